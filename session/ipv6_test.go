package session

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

var (
	sixA = netip.MustParseAddr("2a0e:a::10")
	sixB = netip.MustParseAddr("2a0e:b::10")
)

// dual puts two hosts with IPv4 and IPv6 behind a router each, which filters IPv6.
func (w *world) dual(a, b func(netip.Addr) lab.NATConfig) (ha, hb *lab.Host, natA, natB *lab.NAT) {
	natA, natB = w.net.NAT("home-a", a(pubA)), w.net.NAT("home-b", b(pubB))
	return natA.Host("a", inA, sixA), natB.Host("b", inB, sixB), natA, natB
}

func (e *end) isOver6(of *end) bool {
	s := e.Peer(of.public()).Status()
	return s.State == PeerConnected && s.Path.Remote.Addr().Is6()
}

// wantFamily waits until both ends send over IPv6, or over IPv4.
func wantFamily(t *testing.T, a, b *end, six bool, within time.Duration) {
	t.Helper()
	for began := time.Now(); a.isOver6(b) != six || b.isOver6(a) != six; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > within {
			t.Fatalf("after %v the paths are %+v and %+v, want IPv6: %v", within,
				a.Peer(b.public()).Status().Path, b.Peer(a.public()).Status().Path, six)
		}
	}
}

func TestRandomNATsConnectOverIPv6(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
			ha, hb, _, _ := w.dual(lab.Symmetric, lab.Symmetric)
			a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
			b.listen(t)
			a.Peer(b.public()).Connect()
			if took := a.connected(t, b.public()); took > 300*time.Millisecond {
				t.Errorf("connected after %v", took)
			}
			b.connected(t, a.public())
			wantFamily(t, a, b, true, time.Second)
			exchange(t, a, b)
			if s := a.Peer(b.public()).Status(); s.Path.Kind != PathDirect || s.Path.Remote.Addr() != sixB || s.Observed.Addr() != sixA {
				t.Errorf("status %+v", s)
			}
			time.Sleep(5 * time.Minute) // the control channel and new keys, over IPv6
			exchange(t, a, b)
			if s := a.Peer(b.public()).Status(); s.Epoch < 2 {
				t.Errorf("epoch %d after five minutes", s.Epoch)
			}
		})
	}
}

func TestTheFasterFamilyIsUsed(t *testing.T) {
	for _, row := range []struct {
		name string
		six  time.Duration // latency of IPv6; that of IPv4 is 30 ms
		want bool
	}{
		{"IPv6 is faster", 10 * time.Millisecond, true},
		{"IPv4 is faster", 60 * time.Millisecond, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 30 * time.Millisecond})
				w.net.SetLink6(lab.Link{Latency: row.six})
				ha, hb, _, _ := w.dual(lab.Linux, lab.Linux)
				a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
				b.listen(t)
				a.Peer(b.public()).Connect()
				a.connected(t, b.public())
				b.connected(t, a.public())
				f := startFlow(t, a, b)
				wantFamily(t, a, b, row.want, 10*time.Second)
				f.reset()
				f.wantGap(t, "steady", time.Minute, 200*time.Millisecond)
				wantFamily(t, a, b, row.want, 0)

				// The other way round: it changes once, and stays.
				w.net.SetLink(lab.Link{Latency: row.six})
				w.net.SetLink6(lab.Link{Latency: 30 * time.Millisecond})
				if row.want {
					w.net.SetLink6(lab.Link{Latency: 60 * time.Millisecond})
				}
				wantFamily(t, a, b, !row.want, 2*time.Minute)
				f.reset()
				f.wantGap(t, "after the change", 5*time.Minute, 200*time.Millisecond)
				wantFamily(t, a, b, !row.want, 0)
			})
		})
	}
}

func TestEqualFamiliesDoNotAlternate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond, Jitter: 20 * time.Millisecond})
		ha, hb, _, _ := w.dual(lab.Linux, lab.Linux)
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		startFlow(t, a, b)
		changes, last := 0, a.isOver6(b)
		const minutes = 10
		for range minutes * 600 {
			time.Sleep(100 * time.Millisecond)
			if now := a.isOver6(b); now != last {
				changes, last = changes+1, now
			}
		}
		if changes > minutes {
			t.Errorf("%d changes of path in %d minutes", changes, minutes)
		}
	})
}

func TestEachFamilyStandsInForTheOther(t *testing.T) {
	for _, six := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
			if !six {
				w.net.SetLink6(lab.Link{Latency: 5 * time.Millisecond})
			} else {
				w.net.SetLink6(lab.Link{Latency: 50 * time.Millisecond})
			}
			ha, hb, _, _ := w.dual(lab.Linux, lab.Linux)
			a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
			b.listen(t)
			a.Peer(b.public()).Connect()
			a.connected(t, b.public())
			b.connected(t, a.public())
			f := startFlow(t, a, b)
			wantFamily(t, a, b, !six, 30*time.Second)
			time.Sleep(time.Minute)
			f.reset()
			if six {
				w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
			} else {
				w.net.Partition([]netip.Addr{sixA}, []netip.Addr{sixB})
			}
			f.wantGap(t, "the path in use is cut", 30*time.Second, 5*time.Second)
			wantFamily(t, a, b, six, 0)
		})
	}
}

func TestRoamingOverIPv6(t *testing.T) {
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
			ha, hb, natA, _ := w.dual(lab.Symmetric, lab.Symmetric)
			a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
			b.listen(t)
			a.listen(t)
			a.Peer(b.public()).Connect()
			a.connected(t, b.public())
			b.connected(t, a.public())
			f := startFlow(t, a, b)
			time.Sleep(20 * time.Second)
			f.reset()
			natA.Rebind() // the filter forgets
			f.wantGap(t, "the router restarts", 20*time.Second, 3*time.Second)

			f.reset()
			moved := netip.MustParseAddr("2a0e:c::10")
			other := w.net.NAT("other", lab.Symmetric(netip.MustParseAddr("192.88.99.130")))
			ha.Move(other, netip.MustParseAddr("192.168.7.7"), moved)
			a.NetworkChanged()
			f.wantGap(t, "another network", time.Minute, 15*time.Second)
			wantFamily(t, a, b, true, 0)
			if got := b.Peer(a.public()).Status().Path.Remote.Addr(); got != moved {
				t.Errorf("b sends to %v, want %v", got, moved)
			}
		})
	}
}

func TestAMachineWithIPv6OnlyIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha := w.net.NAT("home-a", lab.Linux(pubA)).Host("a", inA, sixA)
		hb := w.net.Host("b", pubB, sixB) // two filters cannot be opened without somebody who tells b of the new address
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		if a.IPv6Only() {
			t.Error("a machine with both families counts as one with IPv6 only")
		}
		f := startFlow(t, a, b)
		time.Sleep(30 * time.Second)
		f.reset()
		ha.Move(w.net.NAT("other", lab.Firewall()), netip.MustParseAddr("2a0e:c::10"))
		a.NetworkChanged()
		f.wantGap(t, "what there is goes on", time.Minute, 15*time.Second)
		wantFamily(t, a, b, true, 0)
		if !a.IPv6Only() {
			t.Error("a machine without IPv4 does not count as one with IPv6 only")
		}
		if _, err := a.Dial(t.Context(), keyOf("c"), DialConfig{}); !errors.Is(err, ErrIPv6Only) {
			t.Errorf("a dial: %v, want ErrIPv6Only", err)
		}
	})
}

func TestIPv6Candidates(t *testing.T) {
	for _, row := range []struct {
		addr string
		want bool
	}{
		{"2a0e::1", true},
		{"2001:db8::1", true}, // nobody has it, nobody is harmed
		{"fd00:1:2::3", true},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"2a0e::1%eth0", false},
		{"ff02::1", false},
		{"::", false},
		{"::1", false},
		{"::ffff:10.0.0.1", false},
		{"10.0.0.1", false},
		{"64:ff9b::a00:1", false},
		{"2002:a00:1::1", false},
		{"2001:0:a00:1::1", false},
		{"fec0::1", false},
	} {
		if got := isIPv6Candidate(netip.MustParseAddr(row.addr)); got != row.want {
			t.Errorf("%s: %v, want %v", row.addr, got, row.want)
		}
	}
}

// TestNoCandidateLeadsAstray has a peer announce addresses that nothing may be sent to.
func TestNoCandidateLeadsAstray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.dual(lab.Linux, lab.Linux)
		virtual := netip.MustParsePrefix("fd6f:6d65:6761::/48")
		w.change = func(cfg *Config) { cfg.Avoid = virtual.Contains }
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		time.Sleep(time.Second)
		l := a.Peer(b.public()).cur.Load()
		l.mu.Lock()
		before := len(l.prober.cands)
		l.mu.Unlock()
		var list []Endpoint
		for _, s := range []string{
			"[fd6f:6d65:6761::1]:1", "[ff02::1]:1", "[fe80::1]:1", "[::1]:1", "[::]:1", "[64:ff9b::a00:1]:1",
			"127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "203.0.113.1:1", "10.0.0.1:1", "169.254.0.1:1",
			"[2a0e:d::1]:0",
		} {
			list = append(list, Endpoint{EndpointLocal, netip.MustParseAddrPort(s)}, Endpoint{77, netip.MustParseAddrPort(s)})
		}
		l.tryEndpoints(list)
		var four, six []netip.AddrPort
		for _, e := range list {
			if e.Addr.Addr().Is4() {
				four = append(four, e.Addr)
			} else {
				six = append(six, e.Addr)
			}
		}
		l.offerForeign(four, six, netip.Addr{})
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.prober.cands[before:] {
			t.Errorf("%v became a candidate", c.route.remote)
		}
	})
}
