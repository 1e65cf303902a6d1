package dht

import (
	"encoding/binary"
	"net/netip"
)

// What of a full row of the routing table, and of the nodes closest to a target, may share a host, and a
// network of 256 addresses. One owner of many addresses has them next to each other; so it cannot take over a
// row, nor the surroundings of a key. Places that nobody else wants are filled nevertheless: small networks are
// often run on few hosts.
const (
	hostLimit = 1
	netLimit  = 2
)

// place is the host of a node on the public Internet, 0 for any other: loopback, private, and documentation
// addresses are not scarce, and are not counted.
type place uint32

func placeOf(a netip.Addr) place {
	if !isPublic(a) {
		return 0
	}
	b := a.As4()
	return place(binary.BigEndian.Uint32(b[:]))
}

// network returns the /24 of p.
func (p place) network() place { return p &^ 0xff }

// tally counts the nodes of a set that share the host of a place, and its network.
type tally struct{ host, network int }

// count adds a node at o to the tally of p.
func (t *tally) count(p, o place) {
	if p != 0 && p.network() == o.network() {
		t.network++
		if p == o {
			t.host++
		}
	}
}

// full reports whether a set with this tally has no room for another node, when others want it.
func (t tally) full() bool { return t.host >= hostLimit || t.network >= netLimit }

// over reports whether a set with this tally has more than its limit.
func (t tally) over() bool { return t.host > hostLimit || t.network > netLimit }

// isPublic reports whether a may be a host's address on the public Internet: it is in none of the IANA's blocks
// for special purposes. 192.88.99.0/24, once for relays to IPv6, is one of them.
func isPublic(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()
	switch b[0] {
	case 0, 10, 127:
		return false
	case 100:
		return b[1]&0xc0 != 64 // 100.64/10
	case 169:
		return b[1] != 254
	case 172:
		return b[1]&0xf0 != 16 // 172.16/12
	case 192:
		switch {
		case b[1] == 168:
			return false
		case b[1] == 0:
			return b[2] != 0 && b[2] != 2
		case b[1] == 88:
			return b[2] != 99
		}
	case 198:
		return b[1]&0xfe != 18 && (b[1] != 51 || b[2] != 100) // 198.18/15
	case 203:
		return b[1] != 0 || b[2] != 113
	}
	return b[0] < 224
}
