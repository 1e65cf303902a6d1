package session

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// oneWay sends packets from a to b every 50 ms and returns the longest time in which none arrived, from now on for a while.
func oneWay(t *testing.T, a, b *end, during time.Duration, fault func()) time.Duration {
	t.Helper()
	for len(b.got) > 0 {
		<-b.got
	}
	fault()
	began, last, longest := time.Now(), time.Now(), time.Duration(0)
	for time.Since(began) < during {
		_ = a.Peer(b.public()).Send([][]byte{packet("one way")})
		next := time.After(50 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case <-b.got:
				longest = max(longest, time.Since(last))
				last = time.Now()
			case <-next:
				waiting = false
			}
		}
	}
	return max(longest, time.Since(last))
}

// TestFaults breaks something under a connection that carries a packet each way every 50 ms.
func TestFaults(t *testing.T) {
	type setting struct {
		w          *world
		a, b       *end
		natA, natB *lab.NAT
	}
	for _, row := range []struct {
		name  string
		fault func(s setting)
		limit time.Duration // longest gap
	}{
		{"nothing", func(setting) {}, 100 * time.Millisecond},
		{"the NAT forgets its mappings", func(s setting) { s.natA.Rebind() }, time.Second},
		{"a new public address", func(s setting) {
			s.natA.SetPublic(netip.MustParseAddr("192.88.99.120"))
		}, 3 * time.Second},
		{"new public addresses on both sides", func(s setting) {
			s.natA.SetPublic(netip.MustParseAddr("192.88.99.120"))
			s.natB.SetPublic(netip.MustParseAddr("192.88.99.121"))
		}, 15 * time.Second},
		{"another network", func(s setting) {
			other := s.w.net.NAT("other", lab.Linux(netip.MustParseAddr("192.88.99.130")))
			s.a.server.(*labSocket).Host().Move(other, netip.MustParseAddr("192.168.7.7"))
			s.a.NetworkChanged()
		}, 3 * time.Second},
		{"60 s without network", func(s setting) {
			s.natA.Cut(true)
			time.Sleep(time.Minute)
			s.natA.Cut(false)
		}, time.Minute + 5*time.Second},
		{"10 min of sleep", func(s setting) {
			s.natA.Cut(true)
			time.Sleep(10 * time.Minute)
			s.natA.Cut(false)
			s.a.NetworkChanged()
		}, 10*time.Minute + 3*time.Second},
		{"the death of all DHT nodes", func(s setting) {
			dht := make([]netip.Addr, worldNodes)
			for i := range dht {
				dht[i] = netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
			}
			s.w.net.Partition(dht, []netip.Addr{pubA, pubB})
			time.Sleep(10 * time.Minute)
		}, 100 * time.Millisecond},
	} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(row.name, " ", seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
					s := setting{w: w}
					s.a, s.b, s.natA, s.natB = w.pair()
					s.b.Peer(s.a.public()).Connect()
					f := startFlow(t, s.a, s.b)
					time.Sleep(time.Duration(20+seed) * time.Second)
					f.reset()
					row.fault(s)
					f.wantGap(t, row.name, time.Minute, row.limit)
				})
			})
		}
	}
}

// TestFaultsWithTwoLinks has a fault silence both a link and the one that it has just replaced.
func TestFaultsWithTwoLinks(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
				a, b, natA, _ := w.pair()
				b.Peer(a.public()).Connect()
				f := startFlow(t, a, b)
				if _, err := a.dial(t.Context(), dialing{local: a.cfg.Identity, remote: b.public(), tunnel: true}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(3000+300*seed) * time.Millisecond)
				if n := a.Peer(b.public()).linkCount(); n != 2 {
					t.Fatalf("%d links, want two", n)
				}
				f.reset()
				natA.SetPublic(netip.MustParseAddr("192.88.99.120"))
				f.wantGap(t, "a new public address", time.Minute, 3*time.Second)
			})
		})
	}
}

func TestRebindingIsNoticedByTheSilentSide(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
			a, b, natA, _ := w.pair()
			oneWay(t, b, a, time.Duration(10_000+700*seed)*time.Millisecond, func() {})
			gap := oneWay(t, b, a, time.Minute, natA.Rebind)
			t.Logf("longest gap %v", gap)
			if gap > 5*time.Second {
				t.Errorf("no packet arrived for %v", gap)
			}
		})
	}
}

func TestShortMappingsAndTenIdleMinutes(t *testing.T) {
	short := func(a netip.Addr) lab.NATConfig {
		cfg := lab.PortRestricted(a)
		cfg.Lifetime = 30 * time.Second
		return cfg
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.behind(short, short)
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		for range 5 {
			time.Sleep(10 * time.Minute)
			for _, s := range [][2]*end{{a, b}, {b, a}} {
				began := time.Now()
				if _, err := s[0].Peer(s[1].public()).Ping(t.Context()); err != nil || time.Since(began) > 60*time.Millisecond {
					t.Errorf("%s: ping after ten idle minutes: %v, %v", s[0].name, time.Since(began), err)
				}
			}
		}
	})
}
