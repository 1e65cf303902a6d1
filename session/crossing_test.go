package session

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// wantOneSession fails the test unless both ends have one session with the other, and it is the same.
func wantOneSession(t *testing.T, a, b *end) {
	t.Helper()
	pa, pb := a.Peer(b.public()), b.Peer(a.public())
	la, lb := pa.cur.Load(), pb.cur.Load()
	if la == nil || lb == nil || la.result.Hash != lb.result.Hash {
		t.Fatal("the two sides use different sessions")
	}
	if n, m := pa.linkCount(), pb.linkCount(); n != 1 || m != 1 {
		t.Fatalf("%d and %d sessions, want one", n, m)
	}
}

// TestManySimultaneousDials lets both sides dial at once, again and again. A second later there is one session, and one pair at the
// relay if there is no other path; every packet has arrived that was sent meanwhile, and nothing is replaced later. scripts/lab
// reads the attributes.
func TestManySimultaneousDials(t *testing.T) {
	rounds := 1000
	if testing.Short() || raceEnabled {
		rounds = 30
	}
	for _, row := range []struct {
		name   string
		nat    func(netip.Addr) lab.NATConfig
		relays []key.Public
		want   PathKind
	}{
		{"homes", lab.Linux, nil, PathDirect},
		{"homes, and a relay", lab.Linux, []key.Public{keyOf("r")}, PathDirect},
		{"random NATs, and a relay", lab.Symmetric, []key.Public{keyOf("r")}, PathRelay},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond, Jitter: 10 * time.Millisecond})
				r := w.relay("r", pubR)
				ha, hb, _, _ := w.behind(row.nat, row.nat)
				a, b := w.through(ha, keyOf("b"), row.relays...), w.through(hb, keyOf("a"), row.relays...)
				a.listen(t)
				b.listen(t)
				pa, pb := a.Peer(b.public()), b.Peer(a.public())
				var slowest time.Duration
				for round := range rounds {
					settled := settling(pa, pb)
					pa.Connect()
					time.Sleep(time.Duration(round%7) * 10 * time.Millisecond)
					pb.Connect()
					arrived := exchangeMany(t, a, b, time.Second)
					a.connected(t, b.public())
					b.connected(t, a.public())
					time.Sleep(time.Second)
					slowest = max(slowest, settled())
					wantOneSession(t, a, b)
					la, lb := pa.cur.Load(), pb.cur.Load()
					if got, _ := r.RelayStats(); row.want == PathRelay && got.Links != 1 {
						t.Fatalf("round %d: %d pairs at the relay, want one", round, got.Links)
					}
					if got := pa.Status().Path.Kind; got != row.want {
						t.Fatalf("round %d: path %v, want %v", round, got, row.want)
					}
					arrived()
					if round%10 == 0 {
						time.Sleep(retireAfter + time.Second)
						if pa.cur.Load() != la || pb.cur.Load() != lb {
							t.Fatalf("round %d: the session was replaced", round)
						}
					}
					pa.Disconnect()
					pb.Disconnect()
					time.Sleep(time.Second)
				}
				t.Attr("rounds", fmt.Sprint(rounds))
				t.Attr("settled_ms", fmt.Sprint(slowest.Milliseconds()))
			})
		})
	}
}

// settling watches which sessions the two sides use. The function that it returns tells how long it took until both used the
// same, to the end.
func settling(pa, pb *Peer) (settled func() time.Duration) {
	began, stop, done := time.Now(), make(chan struct{}), make(chan time.Duration)
	go func() {
		var la, lb *link
		var after time.Duration
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				done <- after
				return
			}
			x, y := pa.cur.Load(), pb.cur.Load()
			if x != la || y != lb || x == nil || y == nil || x.result.Hash != y.result.Hash {
				la, lb, after = x, y, time.Since(began)
			}
		}
	}()
	return func() time.Duration {
		close(stop)
		return <-done
	}
}

// exchangeMany sends a packet each way every 10 ms for a while. The function that it returns wants all of them to have arrived,
// once each.
func exchangeMany(t *testing.T, a, b *end, during time.Duration) (arrived func()) {
	t.Helper()
	for _, e := range []*end{a, b} {
		for len(e.got) > 0 {
			<-e.got
		}
	}
	sent := 0
	for began := time.Now(); time.Since(began) < during; time.Sleep(10 * time.Millisecond) {
		for _, s := range [][2]*end{{a, b}, {b, a}} {
			if err := s[0].Peer(s[1].public()).Send([][]byte{packet(fmt.Sprint(sent))}); err != nil {
				t.Fatalf("%s sends: %v", s[0].name, err)
			}
		}
		sent++
	}
	return func() {
		t.Helper()
		for _, e := range []*end{a, b} {
			if len(e.got) != sent {
				t.Errorf("%d of %d packets have arrived at %s", len(e.got), sent, e.name)
			}
			seen := make(map[string]bool)
			for len(e.got) > 0 {
				text := <-e.got
				if seen[text] {
					t.Errorf("packet %q has arrived twice at %s", text, e.name)
				}
				seen[text] = true
			}
		}
	}
}

// Who listens to events is told once of a connection that both sides have opened.
func TestCrossingDialsAreToldOnce(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
			a, b := w.openEnd("a", pubA, keyOf("b")), w.openEnd("b", pubB, keyOf("a")) // one path is possible
			a.listen(t)
			b.listen(t)
			a.Peer(b.public()).Connect()
			time.Sleep(time.Duration(seed) * 5 * time.Millisecond)
			b.Peer(a.public()).Connect()
			time.Sleep(3 * time.Second)
			for _, e := range []*end{a, b} {
				e.mu.Lock()
				n := 0
				for _, ev := range e.events {
					if ev.Connected {
						n++
					}
				}
				e.mu.Unlock()
				if n != 1 {
					t.Errorf("seed %d: %s is told %d times that it is connected, want once", seed, e.name, n)
				}
			}
		})
	}
}
