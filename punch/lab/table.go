package lab

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	defaultLifetime = 2 * time.Minute
	firstPort       = 1024 // outside ports are never below
)

// Table is what a router remembers: which outside address and port stands for which inside one, and who may answer. It
// moves no packets and reads no clock, so that routers of every kind can be made of it. It is for one goroutine at a time.
type Table struct {
	cfg  NATConfig
	rand *rand.Rand

	out    map[mappingKey]*mapping
	in     map[netip.AddrPort][]*mapping // by outside address and port; more than one if ports are shared
	static map[netip.AddrPort]netip.AddrPort
	stolen map[stolenKey]time.Time // until when
	next   uint16                  // for SequentialPorts
	sweep  int                     // number of mappings at which expired ones are looked for
}

type mappingKey struct {
	inside netip.AddrPort
	remote netip.AddrPort // as far as the mapping depends on it
}

type stolenKey struct {
	port   uint16
	remote netip.AddrPort
}

// mapping is an outside address and port that stands for an inside one.
type mapping struct {
	key     mappingKey
	outside netip.AddrPort
	until   time.Time
	allowed map[netip.AddrPort]time.Time // permissions by filtering key, and until when
	sweep   int
}

// NewTable returns an empty table of a router. BlockUDP and Hairpin are not looked at.
func NewTable(cfg NATConfig, random *rand.Rand) *Table {
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = defaultLifetime
	}
	cfg.Public = cfg.Public.Unmap()
	t := &Table{cfg: cfg, rand: random, static: make(map[netip.AddrPort]netip.AddrPort)}
	t.Forget()
	return t
}

// Forget forgets all mappings and permissions. Forwarded ports stay.
func (t *Table) Forget() {
	t.out = make(map[mappingKey]*mapping)
	t.in = make(map[netip.AddrPort][]*mapping)
	t.stolen = make(map[stolenKey]time.Time)
	t.sweep = 1024
	t.next = uint16(firstPort + t.rand.IntN(1<<16-firstPort))
}

// SetPublic sets another outside address and forgets all mappings.
func (t *Table) SetPublic(addr netip.Addr) {
	t.cfg.Public = addr.Unmap()
	t.Forget()
}

// translates reports whether the router gives packets from the inside address another one.
func (t *Table) translates(inside netip.Addr) bool {
	return t.cfg.Public.IsValid() && t.cfg.Public.Is4() == inside.Is4()
}

// Outbound returns the outside address and port for a packet from inside to remote, and permits answers. It reports false
// if all ports are taken.
func (t *Table) Outbound(now time.Time, inside, remote netip.AddrPort) (outside netip.AddrPort, ok bool) {
	m := t.mapping(now, inside, remote)
	if m == nil {
		return netip.AddrPort{}, false
	}
	return m.outside, true
}

// mapping finds or makes the mapping of a packet from inside to remote, and permits answers. It returns nil if
// all ports are taken.
func (t *Table) mapping(now time.Time, inside, remote netip.AddrPort) *mapping {
	key := mappingKey{inside: inside}
	if t.translates(inside.Addr()) {
		key.remote = t.cfg.Mapping.key(remote)
	}
	m := t.out[key]
	if m != nil && !now.Before(m.until) {
		t.remove(m)
		m = nil
	}
	if m == nil {
		outside, ok := t.pick(now, key, remote)
		if !ok {
			return nil
		}
		m = &mapping{key: key, outside: outside, allowed: make(map[netip.AddrPort]time.Time), sweep: 1024}
		t.out[key] = m
		t.in[outside] = append(t.in[outside], m)
		t.expire(now)
	}
	m.until = now.Add(t.cfg.Lifetime)
	m.allowed[t.cfg.Filtering.key(remote)] = m.until
	if len(m.allowed) > m.sweep {
		maps.DeleteFunc(m.allowed, func(_ netip.AddrPort, until time.Time) bool { return !now.Before(until) })
		m.sweep = max(1024, 2*len(m.allowed))
	}
	return m
}

// pick picks the outside address and port of a new mapping.
func (t *Table) pick(now time.Time, key mappingKey, remote netip.AddrPort) (netip.AddrPort, bool) {
	if !t.translates(key.inside.Addr()) {
		return key.inside, true
	}
	if want := netip.AddrPortFrom(t.cfg.Public, key.inside.Port()); t.cfg.Ports == PreservePorts &&
		want.Port() >= firstPort && t.free(now, want, key, remote) {
		return want, true
	}
	const span = 1<<16 - firstPort
	port := t.next
	if t.cfg.Ports != SequentialPorts {
		port = uint16(firstPort + t.rand.IntN(span))
	}
	for range span {
		outside := netip.AddrPortFrom(t.cfg.Public, port)
		if port++; port < firstPort {
			port = firstPort
		}
		if t.free(now, outside, key, remote) {
			t.next = port
			return outside, true
		}
	}
	return netip.AddrPort{}, false
}

// free reports whether a new mapping may use an outside address and port.
func (t *Table) free(now time.Time, outside netip.AddrPort, key mappingKey, remote netip.AddrPort) bool {
	if until, ok := t.stolen[stolenKey{outside.Port(), remote}]; ok && now.Before(until) {
		return false
	}
	if _, ok := t.static[outside]; ok && t.static[outside] != key.inside {
		return false
	}
	share := t.cfg.Ports == PreservePorts && t.cfg.Mapping != EndpointIndependent
	for _, m := range t.in[outside] {
		if now.Before(m.until) && (!share || m.key.remote == key.remote) {
			return false
		}
	}
	return true
}

// Inbound decides on a packet from remote to outside: where it goes, or why it is dropped, in a few words that go on with
// the name of the router.
func (t *Table) Inbound(now time.Time, remote, outside netip.AddrPort) (inside netip.AddrPort, refused string) {
	if to, ok := t.static[outside]; ok {
		t.answer(now, to, outside, remote)
		return to, ""
	}
	permission := t.cfg.Filtering.key(remote)
	mapped := false
	var found *mapping
	for _, m := range t.in[outside] {
		if !now.Before(m.until) {
			continue
		}
		mapped = true
		until, ok := m.allowed[permission]
		if !ok || !now.Before(until) {
			continue
		}
		// If several inside hosts share the port, the one that talks to this remote is meant.
		if found == nil || m.key.remote == t.cfg.Mapping.key(remote) {
			found = m
		}
	}
	switch {
	case found != nil:
		if t.cfg.RefreshInbound {
			found.until = now.Add(t.cfg.Lifetime)
			found.allowed[permission] = found.until
		}
		return found.key.inside, ""
	case t.cfg.DMZ.IsValid() && outside.Addr() == t.cfg.Public:
		return netip.AddrPortFrom(t.cfg.DMZ, outside.Port()), ""
	case t.cfg.AcceptInbound && outside.Addr() == t.cfg.Public:
		t.stolen[stolenKey{outside.Port(), remote}] = now.Add(t.cfg.Lifetime)
		return inside, "accepted by the router"
	case mapped:
		return inside, "filtered by"
	}
	return inside, "no mapping at"
}

// answer has packets from inside to remote leave from outside, a forwarded port, as remote has sent something there.
func (t *Table) answer(now time.Time, inside, outside, remote netip.AddrPort) {
	key := mappingKey{inside: inside, remote: t.cfg.Mapping.key(remote)}
	if m := t.out[key]; m != nil {
		if m.outside == outside {
			m.until = now.Add(t.cfg.Lifetime)
			return
		}
		t.remove(m)
	}
	m := &mapping{
		key: key, outside: outside, until: now.Add(t.cfg.Lifetime),
		allowed: make(map[netip.AddrPort]time.Time), sweep: 1024,
	}
	t.out[key] = m
	t.in[outside] = append(t.in[outside], m)
	t.expire(now)
}

// unforward ends the forwarding of an outside port, and what goes on there.
func (t *Table) unforward(outside netip.AddrPort) {
	delete(t.static, outside)
	for _, m := range slices.Clone(t.in[outside]) {
		t.remove(m)
	}
}

// expire removes what has expired once there is a lot.
func (t *Table) expire(now time.Time) {
	if len(t.out) < t.sweep {
		return
	}
	for _, m := range t.out {
		if !now.Before(m.until) {
			t.remove(m)
		}
	}
	maps.DeleteFunc(t.stolen, func(_ stolenKey, until time.Time) bool { return !now.Before(until) })
	t.sweep = max(1024, 2*len(t.out))
}

func (t *Table) remove(m *mapping) {
	delete(t.out, m.key)
	rest := slices.DeleteFunc(t.in[m.outside], func(o *mapping) bool { return o == m })
	if len(rest) == 0 {
		delete(t.in, m.outside)
		return
	}
	t.in[m.outside] = rest
}
