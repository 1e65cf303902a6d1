package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func TestSendToReachesEach(t *testing.T) {
	rows := []struct {
		name string
		to   []int // the socket that gets each datagram
		size func(i int) int
	}{
		{"nothing", nil, func(int) int { return 1 }},
		{"one", []int{0}, func(int) int { return 100 }},
		{"each another", []int{0, 1, 2}, func(int) int { return 100 }},
		{"in turn", []int{0, 1, 0, 1, 0, 1, 2}, func(int) int { return 100 }},
		{"runs", []int{0, 0, 0, 1, 1, 2, 0, 0}, func(int) int { return 100 }},
		{"runs of unequal size", []int{0, 0, 0, 1, 1, 2, 0, 0}, func(i int) int { return 100 + i%3 }},
		{"equal size across a change", []int{0, 0, 1, 1, 2, 2}, func(int) int { return 700 }},
		{"empty ones", []int{0, 1, 1, 0}, func(i int) int { return i % 2 }},
		{"more than one call", func() (to []int) {
			for i := range 200 {
				to = append(to, i%3)
			}
			return to
		}(), func(i int) int { return 10 + i }},
	}
	for _, mode := range modes {
		for _, r := range rows {
			t.Run(mode.name+"/"+r.name, func(t *testing.T) {
				c := listen(t, loopback4, mode.cfg)
				var z [3]*Conn
				for i := range z {
					z[i] = listen(t, loopback4, mode.cfg)
				}
				var sizes []int
				for i := range r.to {
					sizes = append(sizes, r.size(i))
				}
				b := datagrams(sizes...)
				var to []netip.AddrPort
				want := make([][][]byte, len(z))
				for i, n := range r.to {
					to = append(to, z[n].LocalAddr())
					want[n] = append(want[n], b[i])
				}
				if err := c.SendTo(b, to); err != nil {
					t.Fatal(err)
				}
				for i := range z {
					check(t, fmt.Sprint("socket ", i), receive(t, z[i], NewBatch(), len(want[i])), want[i], c.LocalAddr())
				}
				if got := c.Stats().SentPackets; got != uint64(len(b)) {
					t.Errorf("%d packets counted, want %d", got, len(b))
				}
			})
		}
	}
}

func TestSendToPassesOverWhatCannotBeSent(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			c, z := listen(t, loopback4, mode.cfg), listen(t, loopback4, mode.cfg)
			good, bad := z.LocalAddr(), netip.MustParseAddrPort("[::1]:1")
			b := datagrams(100, 101, 102, 103, 104, 105)
			err := c.SendTo(b, []netip.AddrPort{bad, good, good, bad, bad, good})
			if e, ok := errors.AsType[*SendError](err); !ok || !errors.Is(err, ErrDestination) || e.To != bad || e.Size != 100 {
				t.Errorf("SendTo: %v, want ErrDestination for %v", err, bad)
			}
			check(t, "the others", receive(t, z, NewBatch(), 3), [][]byte{b[1], b[2], b[5]}, c.LocalAddr())
			if got := c.Stats().SendErrors; got != 3 {
				t.Errorf("%d errors counted, want 3", got)
			}
		})
	}
}
