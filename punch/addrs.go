package punch

import (
	"net/netip"
)

// IsPrivate reports whether a is an IPv4 address of a network that is not the Internet: 10/8, 100.64/10, 127/8,
// 169.254/16, 172.16/12 or 192.168/16.
func IsPrivate(a netip.Addr) bool {
	b, ok := octets(a)
	if !ok {
		return false
	}
	switch b[0] {
	case 10, 127:
		return true
	case 100:
		return b[1]&0xc0 == 64
	case 169:
		return b[1] == 254
	case 172:
		return b[1]&0xf0 == 16
	case 192:
		return b[1] == 168
	}
	return false
}

// IsReserved reports whether a is an IPv4 address that nobody has: 0/8, 192.0.0/24, 192.0.2/24, 198.18/15,
// 198.51.100/24, 203.0.113/24, 224/4 or 240/4.
func IsReserved(a netip.Addr) bool {
	b, ok := octets(a)
	if !ok {
		return false
	}
	switch {
	case b[0] == 0, b[0] >= 224:
		return true
	case b[0] == 192:
		return b[1] == 0 && (b[2] == 0 || b[2] == 2)
	case b[0] == 198:
		return b[1]&0xfe == 18 || b[1] == 51 && b[2] == 100
	case b[0] == 203:
		return b[1] == 0 && b[2] == 113
	}
	return false
}

// IsBogon reports whether a is private or reserved: no packet reaches it through the Internet.
func IsBogon(a netip.Addr) bool { return IsPrivate(a) || IsReserved(a) }

func octets(a netip.Addr) (b [4]byte, ok bool) {
	if a = a.Unmap(); !a.Is4() {
		return b, false
	}
	return a.As4(), true
}

// MatchAddr picks the one of a peer's local IPv4 addresses that is most likely in the same LAN as one of our own:
// the first that shares three octets with one of ours, else two, else one. ok is false if none does.
//
// Source: npm hyperdht 6.34.0, lib/holepuncher.js (matchAddress).
func MatchAddr(ours []netip.Addr, theirs []netip.AddrPort) (match netip.AddrPort, ok bool) {
	best := 0
	for _, o := range ours {
		mine, is4 := octets(o)
		if !is4 {
			continue
		}
		for _, t := range theirs {
			other, is4 := octets(t.Addr())
			if !is4 {
				continue
			}
			same := 0
			for same < 3 && mine[same] == other[same] {
				same++
			}
			if same == 3 {
				return t, true
			}
			if same > best {
				best, match = same, t
			}
		}
	}
	return match, best > 0
}
