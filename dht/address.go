package dht

import (
	"net/netip"
	"slices"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// Address is a peer's key, and nodes that forward to it, as HyperDHT programs hand it to each other. Wire form:
// key (32), uint flags, and with flag 1 an array of addresses. The key alone is one, too.
//
// Source: npm hyperdht-address.
type Address struct {
	Key    key.Public
	Relays []netip.AddrPort // to try first; IPv4
}

const addressRelays = 1 // the flag

// Append appends the wire form of a to b.
func (a Address) Append(b []byte) []byte {
	b = append(b, a.Key[:]...)
	if len(a.Relays) == 0 {
		return append(b, 0)
	}
	return compact.AppendAddrs(compact.AppendUint(b, addressRelays), a.Relays)
}

// ParseAddress parses the address that b is. The result does not alias b; bytes after it are ignored.
func ParseAddress(b []byte) (Address, error) {
	r := compact.NewReader(b)
	a := Address{Key: r.Fixed32()}
	if len(b) == len(a.Key) {
		return a, nil
	}
	if r.Uint()&addressRelays != 0 {
		a.Relays = r.Addrs()
	}
	if err := r.Err(); err != nil {
		return Address{}, wrapParse("address", err)
	}
	return a, nil
}

// Equal reports whether a and o are the same address.
func (a Address) Equal(o Address) bool { return a.Key == o.Key && slices.Equal(a.Relays, o.Relays) }
