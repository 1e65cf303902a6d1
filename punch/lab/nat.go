package lab

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Behavior says on what a NAT's decision depends, in the terms of RFC 4787, for mapping (section 4.1) as for
// filtering (section 5).
type Behavior uint8

// The zero value is the kindest to peers.
const (
	EndpointIndependent     Behavior = iota // on the inside address and port alone
	AddressDependent                        // and on the remote address
	AddressAndPortDependent                 // and on the remote address and port
)

// String returns "endpoint-independent", "address-dependent" or "address-and-port-dependent".
func (b Behavior) String() string {
	switch b {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address-and-port-dependent"
	}
	return "unknown"
}

// key returns the part of the remote address that b looks at.
func (b Behavior) key(remote netip.AddrPort) netip.AddrPort {
	switch b {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	case AddressAndPortDependent:
	}
	return remote
}

// Ports says how a NAT picks the outside port of a new mapping.
type Ports uint8

// Ways to pick a port.
const (
	// PreservePorts keeps the inside port if it is free, else picks at random. With dependent mapping the
	// same port serves any number of remotes, as Linux does it.
	PreservePorts Ports = iota
	// RandomPorts picks at random.
	RandomPorts
	// SequentialPorts counts up from a random start.
	SequentialPorts
)

const (
	defaultLifetime = 2 * time.Minute
	firstPort       = 1024 // outside ports are never below
)

// NATConfig describes a router. The zero value is a firewall: it does not translate, and lets in what any
// packet went out for in the last two minutes from the same inside address and port, whoever sends it.
type NATConfig struct {
	// Public is the outside address. Hosts inside with addresses of its family are translated; others, all if
	// Public is not set, are routed, and only filtered.
	Public netip.Addr

	Mapping   Behavior
	Filtering Behavior
	Ports     Ports

	Lifetime       time.Duration // of mappings and permissions without outbound traffic. Default 2 min
	RefreshInbound bool          // inbound packets prolong them too
	Hairpin        bool          // packets from inside to mapped outside addresses are looped back

	// AcceptInbound is a router whose own stack accepts packets to ports without mapping, and thereby takes
	// the port: the inside host's later packet from that port to that remote gets another one. Linux does that
	// if its firewall does not drop such packets.
	AcceptInbound bool

	BlockUDP bool       // nothing passes
	DMZ      netip.Addr // inside host that gets what has no mapping; zero: dropped
}

// NAT is a router with a LAN behind it. It forwards between the two.
type NAT struct {
	net   *Network
	name  string
	lan   segment
	cable *cable // to the outside
	rand  *rand.Rand

	// The fields below are guarded by net.mu.
	cfg    NATConfig
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

// NAT attaches a router to the core.
func (n *Network) NAT(name string, cfg NATConfig) *NAT { return newNAT(&n.root, name, cfg) }

func newNAT(seg *segment, name string, cfg NATConfig) *NAT {
	n := seg.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = defaultLifetime
	}
	cfg.Public = cfg.Public.Unmap()
	nat := &NAT{net: n, name: name, cfg: cfg, cable: newCable(seg, name), rand: n.source(name)}
	nat.lan = segment{net: n, router: nat, addrs: make(map[netip.Addr]*cable)}
	nat.cable.nat = nat
	nat.static = make(map[netip.AddrPort]netip.AddrPort)
	nat.forgetLocked()
	if cfg.Public.IsValid() {
		nat.cable.attach([]netip.Addr{cfg.Public})
	}
	return nat
}

// Name returns the name given to the router.
func (r *NAT) Name() string { return r.name }

// Host attaches a new host to the router's LAN.
func (r *NAT) Host(name string, addrs ...netip.Addr) *Host { return newHost(&r.lan, name, addrs) }

// NAT attaches a router to this one's LAN: a home router behind a carrier's.
func (r *NAT) NAT(name string, cfg NATConfig) *NAT { return newNAT(&r.lan, name, cfg) }

func (r *NAT) place() *segment { return &r.lan }

// SetLink sets both directions of the router's outside cable.
func (r *NAT) SetLink(l Link) { r.SetLinks(l, l) }

// SetLinks sets the directions of the router's outside cable: up is what it sends.
func (r *NAT) SetLinks(up, down Link) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.cable.setLink(up, down)
}

// Cut cuts the router's outside cable, or repairs it.
func (r *NAT) Cut(cut bool) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.cable.cut = cut
}

// Public returns the outside address.
func (r *NAT) Public() netip.Addr {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.cfg.Public
}

// SetPublic gives a translating router another outside address of the same family, as providers do over night.
// All mappings are forgotten.
func (r *NAT) SetPublic(addr netip.Addr) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	addr = addr.Unmap()
	if !r.cfg.Public.IsValid() || r.cfg.Public.Is4() != addr.Is4() {
		panic("lab: " + r.name + ": SetPublic needs a translating router and an address of the same family")
	}
	routed := slices.DeleteFunc(slices.Clone(r.cable.addrs), func(a netip.Addr) bool { return a == r.cfg.Public })
	delete(r.cable.seg.addrs, r.cfg.Public)
	r.cable.addrs = routed
	r.cfg.Public = addr
	r.cable.attach([]netip.Addr{addr})
	r.forgetLocked()
}

// Rebind makes the router forget all mappings and permissions, as a restart does. Forwarded ports stay.
func (r *NAT) Rebind() {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.forgetLocked()
}

// Forward forwards an outside port to an inside address and port, whoever sends: what UPnP, PCP or the owner
// sets up. The zero AddrPort ends it.
func (r *NAT) Forward(port uint16, to netip.AddrPort) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	outside := netip.AddrPortFrom(r.cfg.Public, port)
	if !to.IsValid() {
		delete(r.static, outside)
		return
	}
	r.static[outside] = to
}

// Mappings returns the outside addresses that stand for an inside address and port now, in order.
func (r *NAT) Mappings(inside netip.AddrPort) []netip.AddrPort {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	now := r.net.nowLocked()
	var list []netip.AddrPort
	for key, m := range r.out {
		if key.inside == inside && now.Before(m.until) {
			list = append(list, m.outside)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

func (r *NAT) forgetLocked() {
	r.out = make(map[mappingKey]*mapping)
	r.in = make(map[netip.AddrPort][]*mapping)
	r.stolen = make(map[stolenKey]time.Time)
	r.sweep = 1024
	r.next = uint16(firstPort + r.rand.IntN(1<<16-firstPort))
}

// translates reports whether the router gives packets from the inside address another one.
func (r *NAT) translates(inside netip.Addr) bool {
	return r.cfg.Public.IsValid() && r.cfg.Public.Is4() == inside.Is4()
}

// outboundLocked forwards a packet from the LAN.
func (r *NAT) outboundLocked(now time.Time, p *packet) {
	p.ttl--
	hairpin := r.cfg.Public.IsValid() && p.dst.Addr() == r.cfg.Public
	switch {
	case r.cfg.BlockUDP:
		r.net.loseLocked(p, "udp blocked by "+r.name)
	case p.ttl <= 0:
		r.net.loseLocked(p, "ttl")
	case hairpin && !r.cfg.Hairpin:
		r.net.loseLocked(p, "no hairpin at "+r.name)
	default:
		m := r.mapLocked(now, p.src, p.dst)
		if m == nil {
			r.net.loseLocked(p, "no port left at "+r.name)
			return
		}
		p.src = m.outside
		if hairpin {
			r.inboundLocked(now, p)
			return
		}
		r.net.traverseLocked(now, p, r.cable, &r.cable.up, stageLeft)
	}
}

// inboundLocked forwards a packet that came to the router from outside.
func (r *NAT) inboundLocked(now time.Time, p *packet) {
	p.ttl--
	switch {
	case r.cfg.BlockUDP:
		r.net.loseLocked(p, "udp blocked by "+r.name)
		return
	case p.ttl <= 0:
		r.net.loseLocked(p, "ttl")
		return
	}
	inside, reason := r.acceptLocked(now, p.src, p.dst)
	if reason != "" {
		r.net.loseLocked(p, reason+" "+r.name)
		return
	}
	p.dst = inside
	to := r.lan.addrs[inside.Addr()]
	if to == nil {
		r.net.loseLocked(p, "no route")
		return
	}
	r.net.afterLocked(now, now, p, stageCrossed, to)
}

// mapLocked finds or makes the mapping of a packet from inside to remote, and permits answers. It returns nil if
// all ports are taken.
func (r *NAT) mapLocked(now time.Time, inside, remote netip.AddrPort) *mapping {
	key := mappingKey{inside: inside}
	if r.translates(inside.Addr()) {
		key.remote = r.cfg.Mapping.key(remote)
	}
	m := r.out[key]
	if m != nil && !now.Before(m.until) {
		r.removeLocked(m)
		m = nil
	}
	if m == nil {
		outside, ok := r.pickLocked(now, key, remote)
		if !ok {
			return nil
		}
		m = &mapping{key: key, outside: outside, allowed: make(map[netip.AddrPort]time.Time), sweep: 1024}
		r.out[key] = m
		r.in[outside] = append(r.in[outside], m)
		r.sweepLocked(now)
	}
	m.until = now.Add(r.cfg.Lifetime)
	m.allowed[r.cfg.Filtering.key(remote)] = m.until
	if len(m.allowed) > m.sweep {
		maps.DeleteFunc(m.allowed, func(_ netip.AddrPort, until time.Time) bool { return !now.Before(until) })
		m.sweep = max(1024, 2*len(m.allowed))
	}
	return m
}

// pickLocked picks the outside address and port of a new mapping.
func (r *NAT) pickLocked(now time.Time, key mappingKey, remote netip.AddrPort) (netip.AddrPort, bool) {
	if !r.translates(key.inside.Addr()) {
		return key.inside, true
	}
	if want := netip.AddrPortFrom(r.cfg.Public, key.inside.Port()); r.cfg.Ports == PreservePorts &&
		want.Port() >= firstPort && r.freeLocked(now, want, key, remote) {
		return want, true
	}
	const span = 1<<16 - firstPort
	port := r.next
	if r.cfg.Ports != SequentialPorts {
		port = uint16(firstPort + r.rand.IntN(span))
	}
	for range span {
		outside := netip.AddrPortFrom(r.cfg.Public, port)
		if port++; port < firstPort {
			port = firstPort
		}
		if r.freeLocked(now, outside, key, remote) {
			r.next = port
			return outside, true
		}
	}
	return netip.AddrPort{}, false
}

// freeLocked reports whether a new mapping may use an outside address and port.
func (r *NAT) freeLocked(now time.Time, outside netip.AddrPort, key mappingKey, remote netip.AddrPort) bool {
	if until, ok := r.stolen[stolenKey{outside.Port(), remote}]; ok && now.Before(until) {
		return false
	}
	if _, ok := r.static[outside]; ok && r.static[outside] != key.inside {
		return false
	}
	share := r.cfg.Ports == PreservePorts && r.cfg.Mapping != EndpointIndependent
	for _, m := range r.in[outside] {
		if now.Before(m.until) && (!share || m.key.remote == key.remote) {
			return false
		}
	}
	return true
}

// acceptLocked decides on a packet from remote to outside: where it goes, or why it is dropped.
func (r *NAT) acceptLocked(now time.Time, remote, outside netip.AddrPort) (inside netip.AddrPort, refused string) {
	if to, ok := r.static[outside]; ok {
		return to, ""
	}
	permission := r.cfg.Filtering.key(remote)
	mapped := false
	var found *mapping
	for _, m := range r.in[outside] {
		if !now.Before(m.until) {
			continue
		}
		mapped = true
		until, ok := m.allowed[permission]
		if !ok || !now.Before(until) {
			continue
		}
		// If several inside hosts share the port, the one that talks to this remote is meant.
		if found == nil || m.key.remote == r.cfg.Mapping.key(remote) {
			found = m
		}
	}
	switch {
	case found != nil:
		if r.cfg.RefreshInbound {
			found.until = now.Add(r.cfg.Lifetime)
			found.allowed[permission] = found.until
		}
		return found.key.inside, ""
	case r.cfg.DMZ.IsValid() && outside.Addr() == r.cfg.Public:
		return netip.AddrPortFrom(r.cfg.DMZ, outside.Port()), ""
	case r.cfg.AcceptInbound && outside.Addr() == r.cfg.Public:
		r.stolen[stolenKey{outside.Port(), remote}] = now.Add(r.cfg.Lifetime)
		return inside, "accepted by the router"
	case mapped:
		return inside, "filtered by"
	}
	return inside, "no mapping at"
}

// sweepLocked removes what has expired once there is a lot.
func (r *NAT) sweepLocked(now time.Time) {
	if len(r.out) < r.sweep {
		return
	}
	for _, m := range r.out {
		if !now.Before(m.until) {
			r.removeLocked(m)
		}
	}
	maps.DeleteFunc(r.stolen, func(_ stolenKey, until time.Time) bool { return !now.Before(until) })
	r.sweep = max(1024, 2*len(r.out))
}

func (r *NAT) removeLocked(m *mapping) {
	delete(r.out, m.key)
	rest := slices.DeleteFunc(r.in[m.outside], func(o *mapping) bool { return o == m })
	if len(rest) == 0 {
		delete(r.in, m.outside)
		return
	}
	r.in[m.outside] = rest
}
