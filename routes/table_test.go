package routes

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"omegatun/dht/key"
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestTable(t *testing.T) {
	var table Table
	a, b := newPeer(PeerConfig{Key: testKey(1)}), newPeer(PeerConfig{Key: testKey(2)})
	addr := netip.MustParseAddr
	if got := table.Lookup(addr("10.64.0.1")); got != nil {
		t.Errorf("Lookup in an empty table = %v, want nil", got)
	}
	if err := table.Insert(a, prefixes("10.64.0.1/32", "192.168.7.9/24", "fd00::/64")); err != nil {
		t.Fatal(err)
	}
	if err := table.Insert(b, prefixes("192.168.7.128/25", "::ffff:10.64.0.2/128")); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		addr string
		want *Peer
	}{
		{"host route", "10.64.0.1", a},
		{"next to it", "10.64.0.0", nil},
		{"bits below a prefix do not count", "192.168.7.1", a},
		{"the longest prefix wins", "192.168.7.200", b},
		{"a mapped prefix is IPv4", "10.64.0.2", b},
		{"IPv6", "fd00::abcd", a},
		{"IPv6 outside", "fd00:0:0:1::", nil},
	} {
		if got := table.Lookup(addr(row.addr)); got != row.want {
			t.Errorf("%s: Lookup(%s) = %v, want %v", row.name, row.addr, got, row.want)
		}
	}

	if err := table.Insert(b, prefixes("10.9.0.0/16", "10.64.0.1/32")); !errors.Is(err, ErrPrefixTaken) {
		t.Errorf("Insert of another peer's prefix: %v, want ErrPrefixTaken", err)
	}
	if got := table.Lookup(addr("10.9.0.1")); got != nil {
		t.Error("a failed Insert left a prefix behind")
	}
	if err := table.Insert(a, prefixes("10.64.0.1/32")); err != nil {
		t.Errorf("Insert of an own prefix again: %v", err)
	}
	for _, bad := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/90")} {
		if err := table.Insert(a, []netip.Prefix{bad}); err == nil {
			t.Errorf("Insert(%v) succeeded", bad)
		}
	}

	table.Remove(b, prefixes("10.64.0.1/32")) // not its own
	table.Remove(b, prefixes("192.168.7.128/25"))
	if got := table.Lookup(addr("10.64.0.1")); got != a {
		t.Error("Remove took another peer's prefix out")
	}
	if got := table.Lookup(addr("192.168.7.200")); got != a {
		t.Errorf("after Remove of the longer prefix: %v, want the peer of the shorter", got)
	}
	if got := table.Len(); got != 4 {
		t.Errorf("Len = %d, want 4", got)
	}
}

// TestTableAgreesWithAList compares the table with the obvious way to do it.
func TestTableAgreesWithAList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var table Table
	list := make(map[netip.Prefix]*Peer)
	peers := make([]*Peer, 8)
	for i := range peers {
		peers[i] = newPeer(PeerConfig{Key: testKey(byte(i))})
	}
	randomAddr := func() netip.Addr { // few bits vary, so that prefixes nest
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 64, byte(rnd.IntN(4)), byte(rnd.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(rnd.IntN(4)), 15: byte(rnd.IntN(256))})
	}
	lookup := func(a netip.Addr) (best *Peer) {
		bits := -1
		for prefix, p := range list {
			if prefix.Contains(a) && prefix.Bits() > bits {
				best, bits = p, prefix.Bits()
			}
		}
		return best
	}
	for range 5000 {
		a, p := randomAddr(), peers[rnd.IntN(len(peers))]
		prefix, err := a.Prefix(a.BitLen() - rnd.IntN(12))
		if err != nil {
			t.Fatal(err)
		}
		owner := list[prefix]
		if rnd.IntN(3) > 0 {
			err := table.Insert(p, []netip.Prefix{prefix})
			if taken := owner != nil && owner != p; taken != errors.Is(err, ErrPrefixTaken) {
				t.Fatalf("Insert(%v) = %v, taken %v", prefix, err, taken)
			}
			if err == nil {
				list[prefix] = p
			}
		} else {
			table.Remove(p, []netip.Prefix{prefix})
			if owner == p {
				delete(list, prefix)
			}
		}
		if a := randomAddr(); table.Lookup(a) != lookup(a) {
			t.Fatalf("Lookup(%v) = %v, want %v", a, table.Lookup(a), lookup(a))
		}
	}
	if table.Len() != len(list) {
		t.Errorf("Len = %d, want %d", table.Len(), len(list))
	}
}

func TestTableIsReadWhileItChanges(t *testing.T) {
	var table Table
	stays := newPeer(PeerConfig{Key: testKey(1)})
	if err := table.Insert(stays, prefixes("10.64.0.1/32")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		comes := newPeer(PeerConfig{Key: key.Public{2}})
		for range 2000 {
			if err := table.Insert(comes, prefixes("10.64.0.2/32", "10.64.0.0/24")); err != nil {
				t.Error(err)
				return
			}
			table.Remove(comes, prefixes("10.64.0.2/32", "10.64.0.0/24"))
		}
	})
	for a := netip.MustParseAddr("10.64.0.1"); ; {
		select {
		case <-done:
			wg.Wait()
			return
		default:
			if got := table.Lookup(a); got != stays {
				t.Fatalf("Lookup = %v while another peer comes and goes, want the one that stays", got)
			}
		}
	}
}

// BenchmarkLookup finds the peers of a packet each time, among few and among many: the cost must stay the same.
func BenchmarkLookup(b *testing.B) {
	for _, peers := range []int{10, 100, 1000, 10_000} {
		b.Run(strconv.Itoa(peers), func(b *testing.B) {
			var table Table
			var addrs []netip.Addr
			rnd := rand.New(rand.NewPCG(1, 2))
			for range peers {
				var k key.Public
				for i := range k {
					k[i] = byte(rnd.Uint32())
				}
				six, four := Addr6(k), Addr4(k)
				p := newPeer(PeerConfig{Key: k})
				if table.Insert(p, []netip.Prefix{netip.PrefixFrom(four, 32)}) == nil { // not taken
					addrs = append(addrs, four)
				}
				if err := table.Insert(p, []netip.Prefix{netip.PrefixFrom(six, 128)}); err != nil {
					b.Fatal(err)
				}
				addrs = append(addrs, six)
			}
			i := 0
			for b.Loop() {
				if table.Lookup(addrs[i]) == nil {
					b.Fatal("a peer was not found")
				}
				if i++; i == len(addrs) {
					i = 0
				}
			}
		})
	}
}
