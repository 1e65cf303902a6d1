package lab

import (
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

	table *Table // guarded by net.mu
}

// NAT attaches a router to the core.
func (n *Network) NAT(name string, cfg NATConfig) *NAT { return newNAT(&n.root, name, cfg) }

func newNAT(seg *segment, name string, cfg NATConfig) *NAT {
	n := seg.net
	n.mu.Lock()
	defer n.mu.Unlock()
	nat := &NAT{net: n, name: name, table: NewTable(cfg, n.source(name)), cable: newCable(seg, name)}
	nat.lan = segment{net: n, router: nat, addrs: make(map[netip.Addr]*cable)}
	nat.cable.nat = nat
	if public := nat.table.cfg.Public; public.IsValid() {
		nat.cable.attach([]netip.Addr{public})
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
	return r.table.cfg.Public
}

// SetPublic gives a translating router another outside address of the same family, as providers do over night.
// All mappings are forgotten.
func (r *NAT) SetPublic(addr netip.Addr) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	addr = addr.Unmap()
	if !r.table.cfg.Public.IsValid() || r.table.cfg.Public.Is4() != addr.Is4() {
		panic("lab: " + r.name + ": SetPublic needs a translating router and an address of the same family")
	}
	routed := slices.DeleteFunc(slices.Clone(r.cable.addrs), func(a netip.Addr) bool { return a == r.table.cfg.Public })
	delete(r.cable.seg.addrs, r.table.cfg.Public)
	r.cable.addrs = routed
	r.cable.attach([]netip.Addr{addr})
	r.table.SetPublic(addr)
}

// Rebind makes the router forget all mappings and permissions, as a restart does. Forwarded ports stay.
func (r *NAT) Rebind() {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.table.Forget()
}

// Forward forwards an outside port to an inside address and port, whoever sends: what UPnP, PCP or the owner
// sets up. Answers leave from the outside port. The zero AddrPort ends it.
func (r *NAT) Forward(port uint16, to netip.AddrPort) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	outside := netip.AddrPortFrom(r.table.cfg.Public, port)
	if !to.IsValid() {
		r.table.unforward(outside)
		return
	}
	r.table.static[outside] = to
}

// Mappings returns the outside addresses that stand for an inside address and port now, in order.
func (r *NAT) Mappings(inside netip.AddrPort) []netip.AddrPort {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	now := r.net.nowLocked()
	var list []netip.AddrPort
	for key, m := range r.table.out {
		if key.inside == inside && now.Before(m.until) {
			list = append(list, m.outside)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

// outboundLocked forwards a packet from the LAN.
func (r *NAT) outboundLocked(now time.Time, p *packet) {
	p.ttl--
	hairpin := r.table.cfg.Public.IsValid() && p.dst.Addr() == r.table.cfg.Public
	switch {
	case r.table.cfg.BlockUDP:
		r.net.loseLocked(p, "udp blocked by "+r.name)
	case p.ttl <= 0:
		r.net.loseLocked(p, "ttl")
	case hairpin && !r.table.cfg.Hairpin:
		r.net.loseLocked(p, "no hairpin at "+r.name)
	default:
		outside, ok := r.table.Outbound(now, p.src, p.dst)
		if !ok {
			r.net.loseLocked(p, "no port left at "+r.name)
			return
		}
		p.src = outside
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
	case r.table.cfg.BlockUDP:
		r.net.loseLocked(p, "udp blocked by "+r.name)
		return
	case p.ttl <= 0:
		r.net.loseLocked(p, "ttl")
		return
	}
	inside, reason := r.table.Inbound(now, p.src, p.dst)
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
