package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	// maxGroupLinks is on how many interfaces a Group listens at most.
	maxGroupLinks = 32
	// groupHops is the TTL of what is sent to a group. What comes with less has been forwarded, and is not from the same link.
	groupHops = 255
)

// Group is a socket that hears a multicast group on all of the host's interfaces that take part in multicast, except the loopback
// and point-to-point ones. Several programs may have a Group each for the same address and port. Its methods are safe for
// concurrent use, except that at most one goroutine may be in Receive. It starts no goroutine.
type Group struct {
	udp   *net.UDPConn
	four  *ipv4.PacketConn // one of the two is nil
	six   *ipv6.PacketConn
	group netip.AddrPort

	mu     sync.Mutex // guards the fields below, and the socket's choice of interface while something is sent
	joined map[int]bool
	links  []groupLink
}

// groupLink is an address of ours on an interface.
type groupLink struct {
	index  int
	addr   netip.Addr // with a zone if it is link-local
	prefix netip.Prefix
}

// ListenGroup opens a socket for a multicast address and port. [Group.Refresh] has to be called before anything is heard.
func ListenGroup(group netip.AddrPort) (*Group, error) {
	if !group.Addr().IsMulticast() {
		return nil, fmt.Errorf("udp: %v is not a multicast address", group)
	}
	network, any := "udp4", netip.IPv4Unspecified()
	if group.Addr().Is6() {
		network, any = "udp6", netip.IPv6Unspecified()
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = reuseAddress(fd) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(any, group.Port()).String())
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	g := &Group{udp: pc.(*net.UDPConn), group: group, joined: make(map[int]bool)}
	if group.Addr().Is4() {
		g.four = ipv4.NewPacketConn(pc)
		err = errors.Join(g.four.SetMulticastTTL(groupHops), g.four.SetMulticastLoopback(true))
		_ = g.four.SetControlMessage(ipv4.FlagTTL|ipv4.FlagDst, true) // where the system has it
	} else {
		g.six = ipv6.NewPacketConn(pc)
		err = errors.Join(g.six.SetMulticastHopLimit(groupHops), g.six.SetMulticastLoopback(true))
		_ = g.six.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("udp: %w", err), g.udp.Close())
	}
	return g, nil
}

// Refresh joins the group on the interfaces that there are now, and returns the addresses to give to SendFrom: one for each
// interface, the link-local one for IPv6.
func (g *Group) Refresh() []netip.Addr {
	links := groupLinks(g.group.Addr().Is4())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.links = nil
	joined := make(map[int]bool) // what is gone has left by itself; should it come back it is joined again
	var addrs []netip.Addr
	for _, l := range links {
		ok, seen := joined[l.index]
		if !seen {
			ok = g.joined[l.index] || g.joinLocked(l.index)
			joined[l.index] = ok
			if ok {
				addrs = append(addrs, l.addr)
			}
		}
		if ok {
			g.links = append(g.links, l)
		}
	}
	g.joined = joined
	return addrs
}

// joinLocked reports whether the group is heard on the interface. g.mu is held.
func (g *Group) joinLocked(index int) bool {
	ifi, to := &net.Interface{Index: index}, net.UDPAddrFromAddrPort(g.group)
	var err error
	if g.four != nil {
		err = g.four.JoinGroup(ifi, to)
	} else {
		err = g.six.JoinGroup(ifi, to)
	}
	return err == nil || errors.Is(err, syscall.EADDRINUSE)
}

// groupLinks returns the addresses of one family on the interfaces that take part, those of each interface together.
func groupLinks(four bool) (links []groupLink) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	count := 0
	for _, ifi := range ifaces {
		const need = net.FlagUp | net.FlagMulticast
		if ifi.Flags&need != need || ifi.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || count == maxGroupLinks {
			continue
		}
		list, err := ifi.Addrs()
		if err != nil {
			continue
		}
		found := false
		for _, a := range list {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr().Is4() != four || !four && !p.Addr().IsLinkLocalUnicast() {
				continue
			}
			addr := p.Addr()
			if !four {
				addr = addr.WithZone(ifi.Name)
			}
			links = append(links, groupLink{ifi.Index, addr, p.Masked()})
			found = true
		}
		if found {
			count++
		}
	}
	return links
}

// SendFrom sends a datagram to the group, on the interface and from the address that Refresh has named.
func (g *Group) SendFrom(b []byte, from netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.links, func(l groupLink) bool { return l.addr == from })
	if i < 0 {
		return &SendError{To: g.group, Size: len(b), Err: ErrDestination}
	}
	ifi, to := &net.Interface{Index: g.links[i].index}, net.UDPAddrFromAddrPort(g.group)
	src := net.IP(from.WithZone("").AsSlice())
	var err error
	if g.four != nil {
		if err = g.four.SetMulticastInterface(ifi); err == nil {
			_, err = g.four.WriteTo(b, &ipv4.ControlMessage{Src: src, IfIndex: ifi.Index}, to)
		}
	} else if err = g.six.SetMulticastInterface(ifi); err == nil {
		_, err = g.six.WriteTo(b, &ipv6.ControlMessage{Src: src, IfIndex: ifi.Index}, to)
	}
	if err != nil {
		return &SendError{To: g.group, Size: len(b), Err: err}
	}
	return nil
}

// Receive waits for a datagram that a neighbour has sent to the group, and copies it to b. What has been forwarded by a router, or
// comes from an address that is not in one of the host's networks, is passed over. Addresses of IPv6 have the
// interface as their zone. After Close the error is [net.ErrClosed]; any other error is final as well.
func (g *Group) Receive(b []byte) (int, netip.AddrPort, error) {
	for {
		n, hops, dst, from, err := g.read(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return 0, netip.AddrPort{}, net.ErrClosed
		case err != nil && isLate(err):
			continue
		case err != nil:
			return 0, netip.AddrPort{}, fmt.Errorf("udp: %w", err)
		}
		if hops != 0 && hops != groupHops || dst.IsValid() && dst != g.group.Addr() || !g.isNeighbour(from.Addr()) {
			continue
		}
		return n, from, nil
	}
}

func (g *Group) read(b []byte) (n, hops int, dst netip.Addr, from netip.AddrPort, err error) {
	var addr net.Addr
	if g.four != nil {
		var cm *ipv4.ControlMessage
		if n, cm, addr, err = g.four.ReadFrom(b); cm != nil {
			hops = cm.TTL
			dst, _ = netip.AddrFromSlice(cm.Dst)
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, addr, err = g.six.ReadFrom(b); cm != nil {
			hops = cm.HopLimit
			dst, _ = netip.AddrFromSlice(cm.Dst)
		}
	}
	if u, ok := addr.(*net.UDPAddr); ok {
		from = u.AddrPort()
	}
	return n, hops, dst.Unmap(), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

func (g *Group) isNeighbour(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.links, func(l groupLink) bool { return l.prefix.Contains(a.WithZone("")) })
}

// Close closes the socket; a waiting Receive returns.
func (g *Group) Close() error { return g.udp.Close() }
