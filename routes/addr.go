package routes

import (
	"encoding/binary"
	"net/netip"

	"omegatun/dht/key"
)

// The blocks that the addresses of keys lie in. Neither changes.
var (
	// Block6 holds the IPv6 addresses: a unique local prefix (RFC 4193), fd and the letters "omega".
	Block6 = netip.MustParsePrefix("fd6f:6d65:6761::/48")
	// Block4 holds the IPv4 addresses.
	Block4 = netip.MustParsePrefix("10.64.0.0/10")
)

// addressDomain separates this use of the hash from every other. The digit is the version of the derivation.
const addressDomain = "omegatun address 1"

// hostMask4 covers the bits of an IPv4 address that Block4 leaves to the host.
const hostMask4 = 1<<22 - 1

// Addr6 returns the IPv6 address of k, the same on every node and for ever.
func Addr6(k key.Public) netip.Addr {
	h := key.Hash([]byte(addressDomain), k[:])
	a := Block6.Addr().As16()
	copy(a[6:], h[:10])
	return netip.AddrFrom16(a)
}

// Addr4 returns the IPv4 address of k, the same on every node and for ever. Two keys may have the same one: see
// [Plan4].
func Addr4(k key.Public) netip.Addr {
	h := key.Hash([]byte(addressDomain), k[:])
	return host4(uint32(h[10])<<16 | uint32(h[11])<<8 | uint32(h[12]))
}

// host4 returns the address of Block4 that the low 22 bits of n name, avoiding the first and the last of the block.
func host4(n uint32) netip.Addr {
	n = max(1, min(n&hostMask4, hostMask4-1))
	b := Block4.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|n)
	return netip.AddrFrom4(b)
}

// Owns reports whether a is an address that follows from k. It does not know of addresses set by configuration.
func Owns(k key.Public, a netip.Addr) bool {
	if a = a.Unmap(); a.Is4() {
		return a == Addr4(k)
	}
	return a == Addr6(k) // an address with a zone is never equal
}
