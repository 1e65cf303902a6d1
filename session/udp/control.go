package udp

import "net/netip"

// control is what the kernel says about a message beside its bytes.
type control struct {
	segment     int        // bytes of each datagram in a train; 0: not a train
	overflow    uint32     // datagrams dropped since the socket was opened
	hasOverflow bool       // overflow was given
	local       netip.Addr // the host's address that it was sent to; zero: not given
}
