package lab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
)

// Host is a machine with addresses and UDP sockets.
type Host struct {
	net  *Network
	name string
	num  int
	rand *rand.Rand // for ports

	// The fields below are guarded by net.mu.
	cables []*cable
	conns  map[netip.AddrPort]*Conn // by local address; unspecified addresses as 0.0.0.0 or ::
	sent   uint64
}

// Host attaches a new host to the core, with public addresses.
func (n *Network) Host(name string, addrs ...netip.Addr) *Host { return newHost(&n.root, name, addrs) }

func newHost(seg *segment, name string, addrs []netip.Addr) *Host {
	n := seg.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{net: n, name: name, num: len(n.hosts), conns: make(map[netip.AddrPort]*Conn), rand: n.source(name)}
	n.hosts = append(n.hosts, h)
	h.attachLocked(seg, addrs)
	return h
}

func (h *Host) attachLocked(seg *segment, addrs []netip.Addr) {
	c := newCable(seg, fmt.Sprintf("%s/%d", h.name, len(h.cables)))
	c.host = h
	c.attach(addrs)
	h.cables = append(h.cables, c)
}

// Name returns the name given to the host.
func (h *Host) Name() string { return h.name }

// Addrs returns the host's addresses, in the order in which they were given.
func (h *Host) Addrs() []netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.addrsLocked()
}

func (h *Host) addrsLocked() []netip.Addr {
	var addrs []netip.Addr
	for _, c := range h.cables {
		addrs = append(addrs, c.addrs...)
	}
	return addrs
}

// Attach plugs one more cable into the host, for a machine with two networks. Packets leave by the first cable
// that knows the destination, else by the first one with an address of its family that is not cut.
func (h *Host) Attach(to Place, addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.attachLocked(to.place(), addrs)
}

// Move unplugs all cables and attaches the host elsewhere, or to the same place with other addresses: a laptop
// that changes networks. Sockets bound to no particular address go on. Cables are as good as new.
func (h *Host) Move(to Place, addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, c := range h.cables {
		c.detach()
		c.cut = true // for packets under way
	}
	h.cables = nil
	h.attachLocked(to.place(), addrs)
}

// SetLink sets both directions of the host's cables.
func (h *Host) SetLink(l Link) { h.SetLinks(l, l) }

// SetLinks sets the directions of the host's cables: up is what the host sends.
func (h *Host) SetLinks(up, down Link) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, c := range h.cables {
		c.setLink(up, down)
	}
}

// Cut cuts the host's cables, or repairs them. Packets are lost without the host noticing.
func (h *Host) Cut(cut bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, c := range h.cables {
		c.cut = cut
	}
}

// Listen opens a UDP socket. The zero AddrPort, or one with an unspecified address, receives on all addresses of
// the host: 0.0.0.0 those of IPv4, :: those of IPv6, and the zero address both kinds. Port 0 picks a free port. It fails
// with EADDRINUSE or EADDRNOTAVAIL.
func (h *Host) Listen(at netip.AddrPort) (*Conn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	addr, both := at.Addr().Unmap(), !at.Addr().IsValid()
	if both {
		addr = netip.IPv6Unspecified()
	}
	if !addr.IsUnspecified() && !addr.IsLoopback() && !slices.Contains(h.addrsLocked(), addr) {
		return nil, fmt.Errorf("lab: %s: listen on %v: %w", h.name, at, syscall.EADDRNOTAVAIL)
	}
	port := at.Port()
	for port == 0 {
		if p := uint16(32768 + h.rand.IntN(28232)); !h.boundLocked(addr, p, both) {
			port = p
		}
	}
	if h.net.closed || h.boundLocked(addr, port, both) {
		return nil, fmt.Errorf("lab: %s: listen on %v: %w", h.name, at, syscall.EADDRINUSE)
	}
	c := newConn(h, netip.AddrPortFrom(addr, port))
	c.both = both
	h.conns[c.local] = c
	return c, nil
}

// boundLocked reports whether a socket on addr and port, of both families or one, would clash with one that exists.
func (h *Host) boundLocked(addr netip.Addr, port uint16, both bool) bool {
	for at, c := range h.conns {
		a := at.Addr()
		if at.Port() == port && (a == addr || c.both || both ||
			a.Is4() == addr.Is4() && (a.IsUnspecified() || addr.IsUnspecified())) {
			return true
		}
	}
	return false
}

// routeLocked picks the cable and source address of a packet from a socket at local to the address to.
func (h *Host) routeLocked(local, to netip.Addr) (c *cable, src netip.Addr) {
	for _, try := range h.cables {
		for _, a := range try.addrs {
			if a.Is4() != to.Is4() || !local.IsUnspecified() && a != local {
				continue
			}
			if try.seg.router != nil && try.seg.addrs[to] != nil {
				return try, a // a neighbour
			}
			if c == nil || c.cut && !try.cut {
				c, src = try, a
			}
		}
	}
	return c, src
}

// sendLocked sends a datagram from a socket.
func (h *Host) sendLocked(local netip.AddrPort, both bool, to netip.AddrPort, b []byte, ttl int) error {
	n := h.net
	if local.Addr().Is4() != to.Addr().Is4() && !both {
		return syscall.EAFNOSUPPORT
	}
	own := to.Addr().IsLoopback() || slices.ContainsFunc(h.cables, func(c *cable) bool {
		return slices.Contains(c.addrs, to.Addr())
	})
	c, src := h.routeLocked(local.Addr(), to.Addr())
	switch {
	case own:
		src = to.Addr()
	case c == nil:
		return syscall.ENETUNREACH
	}
	p := n.newPacketLocked(b)
	p.src, p.dst, p.ttl = netip.AddrPortFrom(src, local.Port()), to, ttl
	if !own && c.up.link.MTU > 0 && p.size() > c.up.link.MTU {
		n.freeLocked(p)
		return syscall.EMSGSIZE
	}
	h.sent++
	n.stats.Sent++
	p.order = uint64(h.num)<<40 | h.sent
	p.record = n.newRecordLocked(h, p)
	if own {
		h.deliverLocked(p)
		return nil
	}
	n.traverseLocked(n.nowLocked(), p, c, &c.up, stageLeft)
	return nil
}

// deliverLocked puts a packet that reached the host into a socket's queue.
func (h *Host) deliverLocked(p *packet) {
	c := h.conns[p.dst]
	if c == nil && p.dst.Addr().Is4() {
		c = h.conns[netip.AddrPortFrom(netip.IPv4Unspecified(), p.dst.Port())]
	}
	if c == nil {
		c = h.conns[netip.AddrPortFrom(netip.IPv6Unspecified(), p.dst.Port())]
		if c != nil && p.dst.Addr().Is4() && !c.both {
			c = nil
		}
	}
	switch {
	case c == nil:
		h.net.loseLocked(p, "port closed")
	case !c.pushLocked(p):
		h.net.loseLocked(p, "receive queue full")
	default:
		h.net.stats.Delivered++
		p.record.delivered(h, p)
	}
}
