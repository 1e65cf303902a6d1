package dht

import (
	"cmp"
	"encoding/binary"
	"net/netip"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// NodeID returns the id of the node at an IPv4 address: the hash of its encoded address and port. So a node
// cannot choose its id, and the receiver of a packet checks it against the packet's source.
func NodeID(a netip.AddrPort) key.Target {
	var buf [compact.AddrSize]byte
	return key.Hash(compact.AppendAddr(buf[:0], a))
}

// closerTo reports whether a is closer to target than b, by the XOR metric.
func closerTo(target, a, b key.Target) bool { return compareDistance(target, a, b) < 0 }

// compareDistance orders a and b by their XOR distance from target.
func compareDistance(target, a, b key.Target) int {
	for i := 0; i < len(target); i += 8 {
		x, y := binary.BigEndian.Uint64(a[i:]), binary.BigEndian.Uint64(b[i:])
		if x != y {
			t := binary.BigEndian.Uint64(target[i:])
			return cmp.Compare(t^x, t^y)
		}
	}
	return 0
}

// usable reports whether a can be the address of a node: IPv4, with a port, and of a single host.
func usable(a netip.AddrPort) bool {
	ip := a.Addr()
	return ip.Is4() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && ip.As4()[0] < 240
}
