package session

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/punch/lab"
)

func TestRetryPause(t *testing.T) {
	const random, known, open = dht.FirewallRandom, dht.FirewallConsistent, dht.FirewallOpen
	for _, row := range []struct {
		name          string
		local, remote dht.Firewall
		busy          bool
		want          []int // s
	}{
		{"consistent, with traffic", known, known, true, []int{10, 30, 45, 45, 45, 45, 45}},
		{"consistent, idle", known, open, false, []int{10, 30, 90, 180, 360, 600, 600}},
		{"one random, with traffic", random, known, true, []int{10, 60, 120, 240, 480, 600, 600}},
		{"both random", random, random, false, []int{10, 60, 120, 240, 480, 600, 600}},
	} {
		for n, want := range row.want {
			if got := retryPause(n, row.local, row.remote, row.busy); got != time.Duration(want)*time.Second {
				t.Errorf("%s: %v after %d tries, want %d s", row.name, got, n, want)
			}
		}
	}
	if got := retryPause(1000, random, random, false); got != retryIdle {
		t.Errorf("after 1000 tries %v, want %v", got, retryIdle)
	}
}

// TestRelayedLinksBecomeDirectLater has connections begin where there is no direct path, and later lets there be one.
func TestRelayedLinksBecomeDirectLater(t *testing.T) {
	for _, row := range []struct {
		name   string
		a, b   func(netip.Addr) lab.NATConfig
		heal   func(w *world, a, b *end, natA, natB *lab.NAT)
		wait   time.Duration // before
		within time.Duration
		gap    time.Duration // the longest while that happens: none, but where the one path there is breaks
	}{
		{
			name: "the two could not reach each other for five minutes", a: lab.RandomPort, b: lab.RandomPort,
			wait: 5 * time.Minute, within: time.Minute, gap: 200 * time.Millisecond,
			heal: func(w *world, _, _ *end, _, _ *lab.NAT) { w.net.Partition() },
		},
		{
			name: "the same where a port must be guessed", a: lab.Linux, b: lab.Symmetric,
			wait: time.Minute, within: 3 * time.Minute, gap: 200 * time.Millisecond,
			heal: func(w *world, _, _ *end, _, _ *lab.NAT) { w.net.Partition() },
		},
		{
			name: "the one that dialled moves from behind a random NAT to a home", a: lab.Symmetric, b: lab.Symmetric,
			wait: 20 * time.Minute, within: 40 * time.Second, gap: 3 * time.Second,
			heal: func(w *world, a, _ *end, _, _ *lab.NAT) {
				w.net.Partition()
				home := w.net.NAT("home", lab.FullCone(netip.MustParseAddr("192.88.99.130")))
				a.server.(*labSocket).Host().Move(home, netip.MustParseAddr("192.168.7.7"))
				a.NetworkChanged()
			},
		},
		{
			name: "the other side moves", a: lab.Symmetric, b: lab.Symmetric,
			wait: 20 * time.Minute, within: 40 * time.Second, gap: 3 * time.Second,
			heal: func(w *world, _, b *end, _, _ *lab.NAT) {
				w.net.Partition()
				home := w.net.NAT("home", lab.FullCone(netip.MustParseAddr("192.88.99.130")))
				b.server.(*labSocket).Host().Move(home, netip.MustParseAddr("192.168.7.7"))
				b.NetworkChanged()
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				w.relay("r", pubR)
				ha, hb, natA, natB := w.behind(row.a, row.b)
				a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
				w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
				a.listen(t)
				b.listen(t)
				a.Peer(b.public()).Connect()
				a.connected(t, b.public())
				b.connected(t, a.public()) // wants a connection, too, and makes no other
				wantOneSession(t, a, b)
				f := startFlow(t, a, b)
				f.wantGap(t, "relayed, and looking for a direct path", row.wait, 200*time.Millisecond)
				a.wantPath(t, b.public(), PathRelay, 0)
				before := len(a.Peer(b.public()).Attempts())
				row.heal(w, a, b, natA, natB)
				healed := time.Now()
				a.wantPath(t, b.public(), PathDirect, row.within)
				b.wantPath(t, a.public(), PathDirect, 5*time.Second)
				t.Logf("direct after %v", time.Since(healed))
				f.wantGap(t, "healing", time.Second, row.gap)
				f.reset()
				f.wantGap(t, "direct", time.Minute, 200*time.Millisecond)
				a.wantPath(t, b.public(), PathDirect, 0)
				if after := len(a.Peer(b.public()).Attempts()); before != 1 || after > before+2 {
					t.Errorf("%d attempts are shown after all the trying and %d in the end", before, after)
				}
			})
		})
	}
}

// TestRetriesBehindRandomNATsAreFew counts what two machines send that will never have a direct path, and have nothing to say.
func TestRetriesBehindRandomNATsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		w.relay("r", pubR)
		ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, b := w.through(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		time.Sleep(20 * time.Minute)
		first := a.Peer(b.public()).cur.Load()
		first.mu.Lock()
		before := first.retries
		first.mu.Unlock()
		if before < 3 {
			t.Errorf("%d tries in 20 minutes", before)
		}
		time.Sleep(time.Hour)
		l := a.Peer(b.public()).cur.Load()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l != first {
			t.Error("the link was replaced, although it works")
		}
		if n := l.retries - before; n < 4 || n > 6 {
			t.Errorf("%d tries an hour, want one in ten minutes", n)
		}
	})
}
