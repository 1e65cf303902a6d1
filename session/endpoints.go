package session

import (
	"net/netip"
	"slices"
	"time"

	"omegatun/punch"
)

const (
	// maxAddresses6 bounds the IPv6 addresses that one side tells the other: a machine has one or two for each prefix,
	// temporary ones among them.
	maxAddresses6 = 4
	// maxForeign bounds the public addresses of a handshake that are probed beside the one that a relay saw. The
	// message may be a replayed one, so nobody is to be probed at many places by it.
	maxForeign = 2
	// knocksByCaller and knocksByDialled are how often a plain stream knocks at each of them: for 2.3 s, and 140 ms, in which the
	// NAT or firewall of the side that was dialled opens.
	knocksByCaller  = 12
	knocksByDialled = 4
)

// mayProbe reports whether a datagram may be sent to an address at all: to one host, and not into a tunnel.
func (h *Host) mayProbe(to netip.AddrPort) bool {
	a, broadcast := to.Addr(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return to.Port() != 0 && a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != broadcast && !h.avoid(a)
}

// isIPv6Candidate reports whether a may be probed because a peer says that it is there: a global or a unique local
// address. Not so those that stand for an IPv4 address (6to4, Teredo, NAT64: they would lead around the checks of
// those), are good for one link only, or nobody has.
func isIPv6Candidate(a netip.Addr) bool {
	if !a.Is6() || a.Is4In6() || a.Zone() != "" {
		return false
	}
	b := a.As16()
	switch {
	case b[0]&0xfe == 0xfc: // unique local, RFC 4193
		return true
	case b[0]&0xe0 != 0x20: // not global unicast, RFC 4291
		return false
	case b[0] == 0x20 && b[1] == 0x02: // 6to4
		return false
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0: // Teredo
		return false
	}
	return true
}

// localAddrs returns the machine's IPv4 addresses at which peers on the same network may find it.
func (h *Host) localAddrs() []netip.Addr {
	if a := h.server.LocalAddr().Addr(); !a.IsUnspecified() {
		return []netip.Addr{a}
	}
	var list []netip.Addr
	for _, a := range h.network.Addrs() {
		if a.Is4() && !h.avoid(a) && len(list) < maxAddresses {
			list = append(list, a)
		}
	}
	if list == nil {
		list = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return list
}

// localAddresses returns localAddrs with the port of the server socket.
func (h *Host) localAddresses() []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range h.localAddrs() {
		list = append(list, netip.AddrPortFrom(a, h.server.LocalAddr().Port()))
	}
	return list
}

// localAddrs6 returns the machine's IPv6 addresses at which peers may find it, global ones first.
func (h *Host) localAddrs6() []netip.Addr {
	if h.six == nil {
		return nil
	}
	if a := h.six.LocalAddr().Addr(); !a.IsUnspecified() {
		return []netip.Addr{a}
	}
	var list []netip.Addr
	for _, a := range h.network.Addrs() {
		if isIPv6Candidate(a) && !h.avoid(a) {
			list = append(list, a)
		}
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int {
		switch {
		case a.IsPrivate() == b.IsPrivate():
			return 0
		case b.IsPrivate():
			return -1
		}
		return 1
	})
	return list[:min(len(list), maxAddresses6)]
}

// localAddresses6 returns localAddrs6 with the port of the socket for IPv6.
func (h *Host) localAddresses6() []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range h.localAddrs6() {
		list = append(list, netip.AddrPortFrom(a, h.six.LocalAddr().Port()))
	}
	return list
}

// IPv6Only reports whether the machine has IPv6 addresses and no IPv4 address. The DHT is IPv4 only: such a machine keeps
// the connections that it has, over IPv6, and finds peers on its local network, but elsewhere it finds nobody and is found by
// nobody.
func (h *Host) IPv6Only() bool {
	if !h.server.LocalAddr().Addr().IsUnspecified() {
		return false
	}
	four := slices.ContainsFunc(h.network.Addrs(), func(a netip.Addr) bool {
		return a.Is4() && !a.IsLoopback() && !h.avoid(a)
	})
	return !four && len(h.localAddrs6()) > 0
}

func (h *Host) warnIPv6Only() {
	if h.IPv6Only() {
		h.log.Warn("this machine has IPv6 only: connections go on, and peers on the local network are found, but none elsewhere without IPv4")
	}
}

// socketFor returns the socket from which to send to a, nil if there is none.
func (h *Host) socketFor(a netip.Addr) Socket {
	if a.Is4() {
		return h.node.DefaultSocket().(Socket)
	}
	return h.six
}

// kindOf guesses the kind of a path from the peer's address.
func (h *Host) kindOf(a netip.Addr) PathKind {
	switch {
	case a.Is4() && punch.IsPrivate(a), a.Is6() && (a.IsLinkLocalUnicast() || sameNetwork(h.localAddrs6(), a)):
		return PathLAN
	}
	return PathDirect
}

// kindOver is kindOf where the path may be a relayed one.
func (h *Host) kindOver(s Socket, a netip.Addr) PathKind {
	if isRelayed(s) {
		return PathRelay
	}
	return h.kindOf(a)
}

func isRelayed(s Socket) bool {
	_, ok := s.(*relaySocket)
	return ok
}

// sameNetwork reports whether a is probably in a local network of ours: prefixes of 24 and 64 bits are usual.
func sameNetwork(ours []netip.Addr, a netip.Addr) bool {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(ours, func(o netip.Addr) bool { return o != a && p.Contains(o) })
}

// offerForeign makes addresses candidates that the peer names in a handshake: public ones, those that its router
// forwards among them, and IPv6. A caller is seen at the given address, and who opens a plain stream may be anybody: his other
// IPv4 addresses are left alone then.
func (l *link) offerForeign(four, six []netip.AddrPort, seen netip.Addr) {
	n := 0
	for _, a := range four {
		if n < maxForeign && !punch.IsBogon(a.Addr()) && (l.epoch != nil || l.initiator || a.Addr() == seen) {
			n++
			l.offerAddress(a)
		}
	}
	for _, a := range six[:min(len(six), maxAddresses6)] {
		if isIPv6Candidate(a.Addr()) {
			l.offerAddress(a)
		}
	}
}

// offerAddress makes an address a candidate, from the socket for it.
func (l *link) offerAddress(a netip.AddrPort) {
	s := l.host.socketFor(a.Addr())
	switch {
	case s == nil:
	case l.epoch != nil:
		l.offer(s, a, l.host.kindOf(a.Addr()))
	case l.host.mayProbe(a):
		n := knocksByDialled
		if l.initiator {
			n = knocksByCaller
		}
		l.mu.Lock()
		l.prober.add(s, a, l.host.kindOf(a.Addr()), n, time.Now())
		l.mu.Unlock()
		l.poke()
	}
}

// tryEndpoints probes addresses that the peer has announced, if they promise a better path than there is, or one of
// another family.
func (l *link) tryEndpoints(list []Endpoint) {
	kind := PathRelay + 1
	if r := l.cur.Load(); r != nil {
		kind = r.kind
	}
	ours := l.host.localAddrs()
	for _, e := range list {
		a := e.Addr.Addr()
		switch {
		case a.Is6():
			if isIPv6Candidate(a) && kind >= l.host.kindOf(a) {
				l.offerAddress(e.Addr)
			}
		case !a.Is4() || a.IsLoopback():
		case punch.IsPrivate(a):
			if kind > PathLAN && sameNetwork(ours, a) {
				l.offer(l.host.server, e.Addr, PathLAN)
			}
		case !punch.IsBogon(a) && kind > PathDirect:
			l.offerAddress(e.Addr)
		}
	}
}
