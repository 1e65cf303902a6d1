package session

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/session/relay"
	"omegatun/session/udx"
)

var pubR = netip.MustParseAddr("192.88.99.200")

// relay starts a Host with a public address that relays for everybody.
func (w *world) relay(name string, addr netip.Addr) *end {
	w.t.Helper()
	e := &end{name: name}
	e.Host = w.host(w.net.Host(name, addr), Config{Relay: &relay.Config{}})
	l, err := e.Listen(e.cfg.Identity, ListenConfig{
		Admit: func(Caller) error { return nil },
		Relay: func(key.Public) bool { return true },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := l.Announced(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return e
}

// through starts an end that meets others at the given relays.
func (w *world) through(at *lab.Host, listed key.Public, relays ...key.Public) *end {
	w.t.Helper()
	w.relays = relays
	defer func() { w.relays = nil }()
	return w.end(at, listed)
}

// behind puts two hosts behind NATs.
func (w *world) behind(a, b func(netip.Addr) lab.NATConfig) (ha, hb *lab.Host, natA, natB *lab.NAT) {
	natA, natB = w.net.NAT("home-a", a(pubA)), w.net.NAT("home-b", b(pubB))
	return natA.Host("a", inA), natB.Host("b", inB), natA, natB
}

// wantPath waits until e sends to k along a path of that kind.
func (e *end) wantPath(t *testing.T, k key.Public, kind PathKind, within time.Duration) {
	t.Helper()
	began := time.Now()
	for e.Peer(k).Status().State != PeerConnected || e.Peer(k).Status().Path.Kind != kind {
		time.Sleep(10 * time.Millisecond)
		if time.Since(began) > within {
			t.Fatalf("%s: path %+v after %v, want %v", e.name, e.Peer(k).Status().Path, within, kind)
		}
	}
}

func TestRandomNATsMeetAtARelay(t *testing.T) {
	r := keyOf("r")
	for _, row := range []struct {
		name string
		a, b []key.Public
	}{
		{"named by the client", []key.Public{r}, nil},
		{"named by the server", nil, []key.Public{r}},
		{"named by both", []key.Public{r}, []key.Public{r}},
	} {
		for seed := range uint64(5) {
			t.Run(fmt.Sprintf("%s %d", row.name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed, Latency: 30 * time.Millisecond})
					w.relay("r", pubR)
					ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
					a, b := w.through(ha, keyOf("b"), row.a...), w.through(hb, keyOf("a"), row.b...)
					b.listen(t)
					if err := a.Peer(b.public()).Send([][]byte{packet("the first one")}); err != nil {
						t.Fatal(err)
					}
					if took := a.connected(t, b.public()); took > 700*time.Millisecond {
						t.Errorf("connected after %v", took)
					}
					b.wantPacket(t, a.public(), "the first one")
					exchange(t, a, b)
					for range 100 {
						exchange(t, a, b)
						time.Sleep(time.Second)
					}
					for _, s := range []PeerStatus{a.Peer(b.public()).Status(), b.Peer(a.public()).Status()} {
						if s.Path.Kind != PathRelay || s.Path.Relay != r || s.Epoch == 0 {
							t.Errorf("path %+v, epoch %d, want a relayed path with keys of its own", s.Path, s.Epoch)
						}
					}
					for _, p := range []*Peer{a.Peer(b.public()), b.Peer(a.public())} { // the one that was dialled, too
						if last := p.Attempts()[0]; last.Local != dht.FirewallRandom || last.Remote != dht.FirewallRandom {
							t.Errorf("NATs %v and %v, want random ones", last.Local, last.Remote)
						}
					}
				})
			})
		}
	}
}

func TestRelayedConnectionsBecomeDirectWithoutLoss(t *testing.T) {
	const tries = 10
	direct := 0 // at first
	for seed := range uint64(tries) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
				w.relay("r", pubR)
				ha, hb, _, _ := w.behind(lab.Linux, lab.Symmetric)
				a, b := w.through(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
				b.listen(t)
				a.Peer(b.public()).Connect()
				took, first := a.connected(t, b.public()), a.Peer(b.public()).Status().Path
				if took > 350*time.Millisecond {
					t.Errorf("connected after %v: %+v", took, first)
				}
				switch first.Kind {
				case PathRelay:
					if first.Relay != keyOf("r") || first.Remote.Addr() != pubR {
						t.Errorf("path %+v, want one through the relay", first)
					}
				case PathDirect: // one of the first ports was guessed right, once in twenty times
					if first.Remote.Addr() != pubB || !first.Relay.IsZero() {
						t.Errorf("path %+v, want one to the peer", first)
					}
					direct++
				case PathLAN:
					t.Errorf("path %+v, though the two share no network", first)
				}
				b.connected(t, a.public())
				began := time.Now()
				sent, relayed := 0, time.Duration(0)
				for ; time.Since(began) < 40*time.Second; sent++ {
					for _, s := range [][2]*end{{a, b}, {b, a}} {
						if err := s[0].Peer(s[1].public()).Send([][]byte{packet(fmt.Sprint(sent))}); err != nil {
							t.Fatalf("%s sends: %v", s[0].name, err)
						}
					}
					if a.Peer(b.public()).Status().Path.Kind == PathRelay {
						relayed = time.Since(began)
					}
					time.Sleep(20 * time.Millisecond)
				}
				time.Sleep(time.Second)
				if len(a.got) != sent || len(b.got) != sent {
					t.Errorf("%d and %d of %d packets arrived", len(a.got), len(b.got), sent)
				}
				t.Logf("connected after %v, relayed until %v", took, relayed)
				if first.Kind == PathDirect && relayed > 0 {
					t.Errorf("relayed until %v after a direct path", relayed)
				}
				a.wantPath(t, b.public(), PathDirect, 0)
				b.wantPath(t, a.public(), PathDirect, 0)
			})
		})
	}
	if direct > tries/2 {
		t.Errorf("%d of %d connections are direct at once: nothing was tested", direct, tries)
	}
}

// TestRelayAndPunchRacing has pairs send from the first moment on, while relay and punching race and one path takes over from the
// other: every packet arrives that the network has not lost, once.
func TestRelayAndPunchRacing(t *testing.T) {
	n := uint64(100)
	if testing.Short() || raceEnabled {
		n = 10
	}
	for seed := range n {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond, Jitter: 10 * time.Millisecond})
			w.relay("r", pubR)
			ha, hb, _, _ := w.behind(lab.Linux, lab.Linux)
			a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
			b.listen(t)
			if seed%2 == 0 {
				a.listen(t) // and the other side's dial succeeds as well
			}
			random, lost := rand.New(rand.NewPCG(seed, 1)), 0
			const size = 900 // of the packets: nothing else is as long
			w.net.Drop(func(p lab.Packet) bool {
				drop := random.Float64() < 0.02
				if drop && len(p.Payload) > size && len(p.Payload) < size+100 {
					lost++
				}
				return drop
			})
			sent := 0
			for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(40 * time.Millisecond) {
				text := fmt.Sprintf("%0*d", size-1, sent)
				for _, s := range [][2]*end{{a, b}, {b, a}} {
					if err := s[0].Peer(s[1].public()).Send([][]byte{packet(text)}); err != nil {
						t.Fatalf("seed %d: %s sends: %v", seed, s[0].name, err)
					}
				}
				sent += 2
			}
			time.Sleep(time.Second)
			a.wantPath(t, b.public(), PathDirect, 0)
			b.wantPath(t, a.public(), PathDirect, 0)
			if got := len(a.got) + len(b.got); got != sent-lost || lost == 0 {
				t.Errorf("seed %d: %d of %d packets have arrived, and the network has lost %d", seed, got, sent, lost)
			}
			for _, e := range []*end{a, b} {
				seen := make(map[string]bool)
				for len(e.got) > 0 {
					text := <-e.got
					if seen[text] {
						t.Errorf("seed %d: a packet has arrived twice", seed)
					}
					seen[text] = true
				}
			}
		})
	}
}

// flow sends a packet each way every 50 ms, and keeps the longest time in which none arrived at b.
type flow struct {
	a, b *end
	gap  atomic.Int64
	stop chan struct{}
}

func startFlow(t *testing.T, a, b *end) *flow {
	t.Helper()
	f := &flow{a: a, b: b, stop: make(chan struct{})}
	go func() {
		last := time.Now()
		for {
			select {
			case <-f.stop:
				return
			case <-b.got:
				last = time.Now()
			case <-a.got:
			case <-time.After(10 * time.Millisecond):
			}
			f.gap.Store(max(f.gap.Load(), int64(time.Since(last))))
		}
	}()
	go func() {
		for {
			select {
			case <-f.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			_ = a.Peer(b.public()).Send([][]byte{packet("ping")})
			_ = b.Peer(a.public()).Send([][]byte{packet("pong")})
		}
	}()
	t.Cleanup(func() { close(f.stop) })
	time.Sleep(time.Second)
	f.reset()
	return f
}

func (f *flow) reset() { f.gap.Store(0) }

// wantGap waits and checks the longest gap since reset.
func (f *flow) wantGap(t *testing.T, what string, wait, limit time.Duration) {
	t.Helper()
	time.Sleep(wait)
	gap := time.Duration(f.gap.Load())
	t.Logf("%s: longest gap %v", what, gap)
	if gap > limit {
		t.Errorf("%s: no packet arrived for %v, want less than %v", what, gap, limit)
	}
}

func TestFallBackToTheRelayAndBack(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open hosts %t", open), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testFallBack(t, open) }) })
	}
}

// testFallBack cuts the direct path of two hosts, which may be open to everybody, and heals it again.
func testFallBack(t *testing.T, open bool) {
	w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
	w.relay("r", pubR)
	ha, hb := w.somewhere(open, open, lab.Link{})
	a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
	b.listen(t)
	a.listen(t)
	a.Peer(b.public()).Connect()
	a.connected(t, b.public())
	b.connected(t, a.public())
	f := startFlow(t, a, b)
	time.Sleep(30 * time.Second)
	a.wantPath(t, b.public(), PathDirect, 0)
	f.reset()
	w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
	f.wantGap(t, "direct path cut", time.Minute, 5*time.Second)
	a.wantPath(t, b.public(), PathRelay, 0)
	f.reset()
	w.net.Partition()
	a.wantPath(t, b.public(), PathDirect, time.Minute)
	b.wantPath(t, a.public(), PathDirect, 10*time.Second)
	f.wantGap(t, "direct path healed", time.Minute, 200*time.Millisecond)
}

func TestKilledRelayIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		r1 := w.relay("r", pubR)
		r2 := w.relay("r2", netip.MustParseAddr("192.88.99.201"))
		ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, b := w.through(ha, keyOf("b"), r1.cfg.Identity.Public(), r2.cfg.Identity.Public()), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		f := startFlow(t, a, b)
		for range 3 {
			time.Sleep(2 * time.Minute)
			f.reset()
			used, other := r1, r2
			if a.Peer(b.public()).Status().Path.Relay == r2.cfg.Identity.Public() {
				used, other = r2, r1
			}
			used.server.(*labSocket).Host().Cut(true)
			f.wantGap(t, "relay killed", 30*time.Second, 8*time.Second)
			if got := a.Peer(b.public()).Status().Path.Relay; got != other.cfg.Identity.Public() {
				t.Errorf("relay %v is in use, want the other one", got.Short())
			}
			used.server.(*labSocket).Host().Cut(false)
		}
	})
}

func TestListedPeersRelayWithoutBeingNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		hr := w.net.Host("r", pubR)
		r := &end{name: "r", got: make(chan string, 100)}
		r.Host = w.host(hr, Config{Relay: &relay.Config{}})
		for _, k := range []key.Public{keyOf("a"), keyOf("b")} {
			if _, err := r.AddPeer(k); err != nil {
				t.Fatal(err)
			}
		}
		r.listenWith(t, ListenConfig{
			Tunnels: true,
			Admit: func(c Caller) error {
				if r.Peer(c.Key) == nil {
					return errors.New("not listed")
				}
				return nil
			},
			Relay: func(k key.Public) bool { return r.Peer(k) != nil },
		})
		ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, b := w.end(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(r.public()).Connect()
		a.connected(t, r.public())
		time.Sleep(time.Second)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		exchange(t, a, b)
		if s, _ := r.RelayStats(); s.Links != 1 {
			t.Errorf("the relay has %d links, want one", s.Links)
		}
	})
}

// TestRelayIsSwitchedOnAndOff has a listed peer become a relay while it runs, and end that.
func TestRelayIsSwitchedOnAndOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		r := w.end(w.net.Host("r", pubR), keyOf("a"), keyOf("b"))
		r.listenWith(t, ListenConfig{
			Tunnels: true, Admit: func(Caller) error { return nil }, Relay: func(key.Public) bool { return true },
		})
		ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, b := w.end(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"), keyOf("r"))
		b.listen(t)
		a.Peer(r.public()).Connect()
		b.Peer(r.public()).Connect()
		a.connected(t, r.public())
		b.connected(t, r.public())
		a.Peer(b.public()).Connect()
		time.Sleep(20 * time.Second)
		for range 3 {
			if s := a.Peer(b.public()).Status(); s.State == PeerConnected {
				t.Fatalf("connected without a relay: %+v", s.Path)
			}
			r.SetRelay(&relay.Config{})
			r.SetRelay(&relay.Config{}) // which changes nothing
			a.wantPath(t, b.public(), PathRelay, time.Minute)
			b.wantPath(t, a.public(), PathRelay, time.Second)
			exchange(t, a, b)
			if s, ok := r.RelayStats(); !ok || s.Links != 1 {
				t.Errorf("%+v, %v: want one pair", s, ok)
			}
			r.SetRelay(nil)
			if _, ok := r.RelayStats(); ok {
				t.Error("still a relay")
			}
			time.Sleep(20 * time.Second)
		}
	})
}

// TestRelayOfOneConnection names the relay where the connection is made, and not for the whole Host.
func TestRelayOfOneConnection(t *testing.T) {
	for _, byServer := range []bool{false, true} {
		t.Run(fmt.Sprintf("named by the server %t", byServer), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				w.relay("r", pubR)
				ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
				a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
				dial, listen := DialConfig{}, ListenConfig{Admit: func(Caller) error { return nil }}
				if byServer {
					listen.RelayThrough = []key.Public{keyOf("r")}
				} else {
					dial.RelayThrough = []key.Public{keyOf("r")}
				}
				b.listenWith(t, listen)
				c, err := a.Dial(t.Context(), b.public(), dial)
				if err != nil {
					t.Fatal(err)
				}
				if got := c.RemoteAddr().(udx.Addr).AddrPort.Addr(); got != pubR {
					t.Errorf("the stream goes to %v, want the relay's %v", got, pubR)
				}
				c.Close()
			})
		})
	}
}

func TestStreamThroughARelay(t *testing.T) {
	for _, row := range []struct {
		name string
		a, b func(netip.Addr) lab.NATConfig
		want PathKind
	}{
		{"random to random", lab.Symmetric, lab.Symmetric, PathRelay},
		{"random to consistent", lab.Symmetric, lab.Linux, PathDirect},
		{"consistent to random", lab.Linux, lab.Symmetric, PathDirect},
		{"consistent to consistent", lab.Linux, lab.Linux, PathDirect},
	} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(row.name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
					w.relay("r", pubR)
					ha, hb, _, _ := w.behind(row.a, row.b)
					a, b := w.through(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
					l := b.listen(t)
					served := make(chan error, 1)
					go func() {
						c, err := l.Accept()
						if err == nil {
							_, err = io.Copy(c, c)
							c.(interface{ CloseWrite() error }).CloseWrite()
						}
						served <- err
					}()
					c, err := a.Dial(t.Context(), b.public(), DialConfig{})
					if err != nil {
						t.Fatal(err)
					}
					wantBack(t, c, 4<<20, 500*time.Millisecond)
					if err := <-served; err != nil {
						t.Errorf("the server's side: %v", err)
					}
					c.Close()
				})
			})
		}
	}
}
