package routes

import (
	"net/netip"
	"testing"

	"omegatun/dht/key"
)

// testKey returns the public key of the seed whose bytes are all b.
func testKey(b byte) key.Public {
	var seed [key.SeedSize]byte
	for i := range seed {
		seed[i] = b
	}
	return key.FromSeed(seed).Public()
}

// TestAddressesNeverChange holds the derivation fast: nodes of all versions must agree on it. The rows were
// computed with Python's hashlib.blake2b.
func TestAddressesNeverChange(t *testing.T) {
	for _, row := range []struct {
		name string
		key  key.Public
		ip6  string
		ip4  string
	}{
		{"zero key", key.Public{}, "fd6f:6d65:6761:f560:c108:f695:7b9:f822", "10.76.254.246"},
		{"seed 00…", testKey(0), "fd6f:6d65:6761:ba48:5fcc:62f7:82b3:f245", "10.76.36.205"},
		{"seed 01…", testKey(1), "fd6f:6d65:6761:5261:e1fa:c1c2:34b0:f0e4", "10.123.224.108"},
		{"seed 2a…", testKey(42), "fd6f:6d65:6761:7666:7d08:dca6:adf2:4baf", "10.67.72.130"},
		{"seed ff…", testKey(255), "fd6f:6d65:6761:3852:65f5:fa68:62c6:2598", "10.95.165.174"},
	} {
		if got := Addr6(row.key).String(); got != row.ip6 {
			t.Errorf("%s: Addr6(%s) = %s, want %s", row.name, row.key.Hex(), got, row.ip6)
		}
		if got := Addr4(row.key).String(); got != row.ip4 {
			t.Errorf("%s: Addr4(%s) = %s, want %s", row.name, row.key.Hex(), got, row.ip4)
		}
	}
}

func TestHost4AvoidsTheEndsOfTheBlock(t *testing.T) {
	for _, row := range []struct {
		name string
		n    uint32
		want string
	}{
		{"all zero", 0, "10.64.0.1"},
		{"all zero below the top bits", 0xc00000, "10.64.0.1"},
		{"one", 1, "10.64.0.1"},
		{"two", 2, "10.64.0.2"},
		{"byte order", 0x123456, "10.82.52.86"},
		{"top bits are dropped", 0xd23456, "10.82.52.86"},
		{"inner zero byte", 0x010000, "10.65.0.0"},
		{"last but two", 0x3ffffd, "10.127.255.253"},
		{"last but one", 0x3ffffe, "10.127.255.254"},
		{"all one", 0x3fffff, "10.127.255.254"},
		{"all one with top bits", 0xffffff, "10.127.255.254"},
	} {
		if got := host4(row.n); got != netip.MustParseAddr(row.want) {
			t.Errorf("%s: host4(%#x) = %v, want %s", row.name, row.n, got, row.want)
		}
	}
}

func TestOwns(t *testing.T) {
	k, other := testKey(1), testKey(2)
	for _, row := range []struct {
		name string
		addr netip.Addr
		want bool
	}{
		{"own IPv6", Addr6(k), true},
		{"own IPv4", Addr4(k), true},
		{"own IPv4, mapped", netip.AddrFrom16(Addr4(k).As16()), true},
		{"own IPv6 with a zone", Addr6(k).WithZone("eth0"), false},
		{"IPv6 of another", Addr6(other), false},
		{"IPv4 of another", Addr4(other), false},
		{"zero address", netip.Addr{}, false},
		{"start of the block", Block6.Addr(), false},
	} {
		if got := Owns(k, row.addr); got != row.want {
			t.Errorf("%s: Owns(k, %v) = %v, want %v", row.name, row.addr, got, row.want)
		}
	}
}

func TestAddressesLieInTheirBlocks(t *testing.T) {
	for b := range 256 {
		k := testKey(byte(b))
		if a := Addr6(k); !Block6.Contains(a) {
			t.Errorf("Addr6(%s) = %v, not in %v", k, a, Block6)
		}
		if a := Addr4(k); !Block4.Contains(a) {
			t.Errorf("Addr4(%s) = %v, not in %v", k, a, Block4)
		}
	}
}
