package portmap

import (
	"context"
	"net"
	"net/netip"
)

// announcement is what a gateway multicasts of itself when it has started, or its address has changed (RFC 6886, 3.2.1;
// RFC 6887, 14.1). Anybody in the network can forge one: it is a reason to ask, and nothing else.
type announcement struct {
	protocol Protocol
	seconds  uint32     // its epoch
	external netip.Addr // NAT-PMP only
}

// parseAnnouncement parses what came to the port for announcements.
func parseAnnouncement(b []byte) (a announcement, ok bool) {
	if r, err := parsePMP(b); err == nil && r.address.IsValid() {
		return announcement{NATPMP, r.epoch, r.address}, true
	}
	if r, err := parsePCP(b); err == nil && r.mapping == nil && r.result == 0 {
		return announcement{PCP, r.epoch, netip.Addr{}}, true
	}
	return announcement{}, false
}

// hear passes the gateway's announcements on until ctx ends; one that cannot be passed on at once is dropped. group is
// where they are sent to, from the port of the gateway that r names.
func hear(ctx context.Context, from server, group netip.AddrPort, out chan<- announcement) error {
	c, err := net.ListenMulticastUDP("udp4", interfaceOf(from.local), net.UDPAddrFromAddrPort(group))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() { stop(); _ = c.Close() }()
	buf := make([]byte, maxPCP+1)
	for {
		n, source, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return ended(ctx, err)
		}
		if source.Addr().Unmap() != from.gateway || source.Port() != from.port {
			continue
		}
		if a, ok := parseAnnouncement(buf[:n]); ok {
			select {
			case out <- a:
			default:
			}
		}
	}
}

// interfaceOf returns the interface that has an address, nil if none has.
func interfaceOf(a netip.Addr) *net.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a {
				return &i
			}
		}
	}
	return nil
}
