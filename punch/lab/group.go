package lab

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// ListenGroup opens a socket that hears what is sent to a multicast address and port in the LANs that the host is in. It
// sends with [Conn.WriteFrom]. A host has one socket for each group.
func (h *Host) ListenGroup(group netip.AddrPort) (*Conn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if !group.Addr().IsMulticast() || h.net.closed || h.conns[group] != nil {
		return nil, fmt.Errorf("lab: %s: listen to %v: %w", h.name, group, syscall.EADDRINUSE)
	}
	c := newConn(h, group)
	h.conns[group] = c
	return c, nil
}

// WriteFrom sends a datagram from one of the host's addresses to the group that the socket hears, in the LAN in which the host has
// that address. Every other host there with a socket for the group gets a copy. It does not keep b.
func (c *Conn) WriteFrom(b []byte, from netip.Addr) error {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	for _, cable := range c.host.cables {
		if !slices.Contains(cable.addrs, from) || from.Is4() != c.local.Addr().Is4() {
			continue
		}
		p := n.newPacketLocked(b)
		p.src, p.dst, p.ttl = netip.AddrPortFrom(from, c.local.Port()), c.local, 1
		if cable.up.link.MTU > 0 && p.size() > cable.up.link.MTU {
			n.freeLocked(p)
			return syscall.EMSGSIZE
		}
		c.host.sent++
		n.stats.Sent++
		p.order = uint64(c.host.num)<<40 | c.host.sent
		p.record = n.newRecordLocked(c.host, p)
		n.traverseLocked(n.nowLocked(), p, cable, &cable.up, stageLeft)
		return nil
	}
	return fmt.Errorf("lab: %s: write from %v: %w", c.host.name, from, syscall.EADDRNOTAVAIL)
}

// multicastLocked hands a packet to every host of a LAN but its sender, and to no router.
func (n *Network) multicastLocked(p *packet, lan *segment) {
	now := n.nowLocked()
	sender := lan.addrs[p.src.Addr()]
	seen := map[*cable]bool{sender: true}
	for _, a := range slices.SortedFunc(maps.Keys(lan.addrs), netip.Addr.Compare) {
		if to := lan.addrs[a]; to.host != nil && to.seg == lan && !seen[to] && to.host.conns[p.dst] != nil {
			seen[to] = true
			n.afterLocked(now, now, n.copyLocked(p), stageCrossed, to)
		}
	}
	if p.record != nil {
		p.record.fate = "to the group"
	}
	n.freeLocked(p)
}
