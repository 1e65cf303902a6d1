package routes

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"omegatun/dht/key"
)

// collidingKeys returns two keys with the same IPv4 address. They are no points on the curve; nothing here asks.
func collidingKeys(t *testing.T) (a, b key.Public) {
	t.Helper()
	seen := make(map[netip.Addr]key.Public)
	for n := range 1 << 16 {
		k := key.Public{byte(n), byte(n >> 8)}
		if first, ok := seen[Addr4(k)]; ok {
			return first, k
		}
		seen[Addr4(k)] = k
	}
	t.Fatal("no two of 65536 keys have the same address")
	return a, b
}

func TestPlan4(t *testing.T) {
	self, p1, p2 := testKey(100), testKey(1), testKey(2)
	c1, c2 := collidingKeys(t)
	set := netip.MustParseAddr("10.70.0.7")
	lan := netip.MustParsePrefix("192.168.1.0/24")
	around := func(k key.Public, bits int) netip.Prefix {
		p, err := Addr4(k).Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	type addrs = map[key.Public]netip.Addr
	for _, row := range []struct {
		name      string
		self      Listed
		peers     []Listed
		networks  []netip.Prefix
		wantSelf  netip.Addr
		wantPeers addrs
		conflicts []Conflict
	}{
		{
			name: "nothing in the way", self: Listed{Key: self}, peers: []Listed{{Key: p1}, {Key: p2}},
			networks: []netip.Prefix{lan},
			wantSelf: Addr4(self), wantPeers: addrs{p1: Addr4(p1), p2: Addr4(p2)},
		},
		{
			name: "peers collide", self: Listed{Key: self}, peers: []Listed{{Key: c1}, {Key: p1}, {Key: c2}},
			wantSelf: Addr4(self), wantPeers: addrs{p1: Addr4(p1)},
			conflicts: []Conflict{
				{Key: c1, Addr: Addr4(c1), Kind: Collision, Other: c2},
				{Key: c2, Addr: Addr4(c1), Kind: Collision, Other: c1},
			},
		},
		{
			name: "one of the two was moved", self: Listed{Key: self}, peers: []Listed{{Key: c1, IPv4: set}, {Key: c2}},
			wantSelf: Addr4(self), wantPeers: addrs{c1: set, c2: Addr4(c2)},
		},
		{
			name: "a configured address beats a derived one", self: Listed{Key: self},
			peers:    []Listed{{Key: p1}, {Key: p2, IPv4: Addr4(p1)}},
			wantSelf: Addr4(self), wantPeers: addrs{p2: Addr4(p1)},
			conflicts: []Conflict{{Key: p1, Addr: Addr4(p1), Kind: Collision, Other: p2}},
		},
		{
			name: "configured twice", self: Listed{Key: self},
			peers:    []Listed{{Key: p1, IPv4: set}, {Key: p2, IPv4: set}},
			wantSelf: Addr4(self), wantPeers: addrs{},
			conflicts: []Conflict{
				{Key: p1, Addr: set, Kind: Collision, Other: p2},
				{Key: p2, Addr: set, Kind: Collision, Other: p1},
			},
		},
		{
			name: "a peer collides with us", self: Listed{Key: c1}, peers: []Listed{{Key: c2}, {Key: p1}},
			wantSelf: Addr4(c1), wantPeers: addrs{p1: Addr4(p1)},
			conflicts: []Conflict{{Key: c2, Addr: Addr4(c1), Kind: Collision, Other: c1}},
		},
		{
			name: "a peer configured to our address", self: Listed{Key: self}, peers: []Listed{{Key: p1, IPv4: Addr4(self)}},
			wantSelf: Addr4(self), wantPeers: addrs{},
			conflicts: []Conflict{{Key: p1, Addr: Addr4(self), Kind: Collision, Other: self}},
		},
		{
			name: "listed twice is no collision", self: Listed{Key: self}, peers: []Listed{{Key: p1}, {Key: p1}, {Key: self}},
			wantSelf: Addr4(self), wantPeers: addrs{p1: Addr4(p1)},
		},
		{
			name: "peer in a host network", self: Listed{Key: self}, peers: []Listed{{Key: p1}, {Key: p2}},
			networks: []netip.Prefix{lan, around(p1, 24)},
			wantSelf: Addr4(self), wantPeers: addrs{p2: Addr4(p2)},
			conflicts: []Conflict{{Key: p1, Addr: Addr4(p1), Kind: HostNetwork, Network: around(p1, 24)}},
		},
		{
			name: "a configured address in a host network is used", self: Listed{Key: self},
			peers:    []Listed{{Key: p1, IPv4: netip.MustParseAddr("192.168.1.9")}},
			networks: []netip.Prefix{lan},
			wantSelf: Addr4(self), wantPeers: addrs{p1: netip.MustParseAddr("192.168.1.9")},
		},
		{
			name: "we are in a host network", self: Listed{Key: self}, peers: []Listed{{Key: p1}},
			networks: []netip.Prefix{netip.MustParsePrefix("10.64.3.3/8")}, wantPeers: addrs{},
			conflicts: []Conflict{
				{Key: self, Addr: Addr4(self), Kind: HostNetwork, Network: netip.MustParsePrefix("10.0.0.0/8")},
			},
		},
		{
			name: "the default route is no network", self: Listed{Key: self}, peers: []Listed{{Key: p1}},
			networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
			wantSelf: Addr4(self), wantPeers: addrs{p1: Addr4(p1)},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := Plan4(row.self, row.peers, row.networks)
			if got.Self != row.wantSelf {
				t.Errorf("Self = %v, want %v", got.Self, row.wantSelf)
			}
			for k, want := range row.wantPeers {
				if got.Peers[k] != want {
					t.Errorf("Peers[%s] = %v, want %v", k.Short(), got.Peers[k], want)
				}
			}
			if len(got.Peers) != len(row.wantPeers) {
				t.Errorf("Peers = %v, want %v", got.Peers, row.wantPeers)
			}
			if !slices.Equal(got.Conflicts, row.conflicts) {
				t.Errorf("Conflicts = %v, want %v", got.Conflicts, row.conflicts)
			}
		})
	}
}

func TestConflictNamesTheRemedy(t *testing.T) {
	for _, c := range []Conflict{
		{Key: testKey(1), Addr: Addr4(testKey(1)), Kind: Collision, Other: testKey(2)},
		{Key: testKey(1), Addr: Addr4(testKey(1)), Kind: HostNetwork, Network: netip.MustParsePrefix("10.0.0.0/8")},
	} {
		text := c.Error()
		for _, want := range []string{c.Addr.String(), c.Key.Short(), `ipv4 = `} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
	}
}
