package tunnel

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// counterOf returns the counter of a datagram.
func counterOf(datagram []byte) uint64 { return binary.LittleEndian.Uint64(datagram[8:HeaderSize]) }

func TestCountersThatAreNotUsedAreGivenBack(t *testing.T) {
	for _, row := range []struct {
		name  string
		steps string // a and b are sealers: a seals, A ends its run
		want  []uint64
		next  uint64
	}{
		{"one at a time", "aAaAbB", []uint64{0, 1, 2}, 3},
		{"a run", "aaaaaA", []uint64{0, 1, 2, 3, 4}, 5},
		{"runs one after the other", "aaaaAbbB", []uint64{0, 1, 2, 3, 4, 5}, 6},
		{"single ones beside each other", "abAB", []uint64{0, 1}, 2},
		{"side by side, the first one ends first", "aabA", []uint64{0, 1, 3}, 4},
		{"side by side, the last one ends first", "aabbBAaA", []uint64{0, 1, 3, 4, 5}, 6},
		{"the first ends without any left", "aaabbAB", []uint64{0, 1, 2, 3, 4}, 5},
		{"a long run beside others", "aaaabaBA", []uint64{0, 1, 2, 3, 7, 4}, 8},
		{"nothing is sealed", "A", nil, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			initiator, responder := ends(t, ChaCha20Poly1305)
			var sealers [2]Sealer
			var got []uint64
			var open [2]bool
			begin := func(i int) *Sealer {
				if !open[i] {
					if err := sealers[i].Begin(initiator); err != nil {
						t.Fatal(err)
					}
					open[i] = true
				}
				return &sealers[i]
			}
			end := func(i int) {
				begin(i).End()
				open[i] = false
			}
			for _, step := range row.steps {
				switch step {
				case 'A', 'B':
					end(int(step - 'A'))
				default:
					d, err := begin(int(step-'a')).Seal(nil, []byte{0x45})
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, counterOf(d))
					wantOpen(t, responder, d, "\x45", nil)
				}
			}
			for i := range open {
				if open[i] {
					end(i)
				}
			}
			if !slices.Equal(got, row.want) || initiator.counter.Load() != row.next {
				t.Errorf("counters %d, and %d is next; want %d, and %d", got, initiator.counter.Load(), row.want, row.next)
			}
		})
	}
}

// TestNoCounterIsUsedTwice seals in several goroutines at once, in runs and one by one: a counter used twice would give the
// key away.
func TestNoCounterIsUsedTwice(t *testing.T) {
	const sealers, runs = 4, 300
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		began := initiator.counter.Load()
		var all [sealers + 1][][]byte
		var wg sync.WaitGroup
		for i := range sealers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				var s Sealer
				for range runs {
					if err := s.Begin(initiator); err != nil {
						t.Error(err)
						return
					}
					for range rng.IntN(12) {
						d, err := s.Seal(nil, []byte{0x45, byte(i)})
						if err != nil {
							t.Error(err)
						}
						all[i] = append(all[i], d)
					}
					s.End()
				}
			})
		}
		wg.Go(func() {
			for range runs {
				d, err := initiator.Seal(nil, Control{Kind: Ping}.Append(nil))
				if err != nil {
					t.Error(err)
				}
				all[sealers] = append(all[sealers], d)
			}
		})
		wg.Wait()
		seen := make(map[uint64]bool)
		datagrams := 0
		for i, list := range all {
			last := began
			for n, d := range list {
				c := counterOf(d)
				if seen[c] || n > 0 && c <= last {
					t.Fatalf("%v: sealer %d: datagram %d has counter %d after %d, in use: %v", suite, i, n, c, last, seen[c])
				}
				seen[c], last = true, c
				datagrams++
			}
		}
		if next := initiator.counter.Load(); next < began+uint64(datagrams) || next > began+2*uint64(datagrams) {
			t.Errorf("%v: the next counter is %d after %d datagrams from %d on", suite, next, datagrams, began)
		}
		// However they overtake each other on the way, all are opened: there are fewer than the window is wide.
		for _, d := range slices.Concat(all[:]...) {
			if _, err := responder.Open(nil, d); err != nil {
				t.Fatalf("%v: datagram with counter %d: %v", suite, counterOf(d), err)
			}
		}
	}
}

func TestARunEndsWhereTheKeyDoes(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := ends(t, suite)
		const left = 9 // in the middle of what is reserved: 1 + 2 + 4 + 2 of 8
		initiator.counter.Store(initiator.limit - left)
		var s Sealer
		if err := s.Begin(initiator); err != nil {
			t.Fatal(err)
		}
		for i := range left {
			d, err := s.Seal(nil, []byte{0x45})
			if err != nil {
				t.Fatalf("%v: datagram %d of the last %d: %v", suite, i, left, err)
			}
			wantOpen(t, responder, d, "\x45", nil)
		}
		for range 3 {
			if b, err := s.Seal([]byte("kept"), []byte{0x45}); !errors.Is(err, ErrExhausted) || string(b) != "kept" {
				t.Errorf("%v: Seal with a used-up key = %q, %v, want ErrExhausted and dst", suite, b, err)
			}
		}
		s.End()
		if err := s.Begin(initiator); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Seal(nil, []byte{0x45}); !errors.Is(err, ErrExhausted) {
			t.Errorf("%v: Seal in another run: %v, want ErrExhausted", suite, err)
		}
		s.End()
	}
}
