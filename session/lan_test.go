package session

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/session/beacon"
)

var (
	inA2 = netip.MustParseAddr("192.168.1.11")
	inA3 = netip.MustParseAddr("192.168.1.12")
)

// serve makes the end reachable by those it lists, without waiting for the announcement.
func (e *end) serve(t *testing.T) {
	t.Helper()
	if _, err := e.Listen(e.cfg.Identity, ListenConfig{Tunnels: true, Admit: func(c Caller) error {
		if e.Peer(c.Key) == nil {
			return errors.New("not listed")
		}
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
}

// overheard notes what is sent anywhere in a network.
type overheard struct {
	mu      sync.Mutex
	beacons [][]byte
	first   int // handshake messages
	keys    []string
}

// describe is a lab.Config.Describe.
func (o *overheard) describe(b []byte) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kind, err := beacon.KindOf(b); err == nil {
		switch kind {
		case beacon.KindBeacon:
			o.beacons = append(o.beacons, bytes.Clone(b))
		case beacon.KindFirst:
			o.first++
		case beacon.KindSecond:
		}
		for _, name := range []string{"a", "b", "c"} {
			k := keyOf(name)
			if target := k.Target(); bytes.Contains(b, k[:]) || bytes.Contains(b, target[:]) {
				o.keys = append(o.keys, name)
			}
		}
	}
	return fmt.Sprintf("%d bytes", len(b))
}

func (o *overheard) handshakes() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.first
}

// count returns how many beacons were sent, and whose keys.
func (o *overheard) count() (beacons int, keys []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.beacons), o.keys
}

// last returns the last beacon from an address that is for the owner of p, and what it echoes.
func (o *overheard) last(t *testing.T, from netip.Addr, p *beacon.Pair) (beacon.Nonce, beacon.Echo) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range slices.Backward(o.beacons) {
		if parsed, err := beacon.Parse(b, from); err != nil {
			t.Fatal(err)
		} else if _, echo, ok := parsed.Find(p, time.Now()); ok {
			return parsed.Nonce, echo
		}
	}
	t.Fatal("no beacon")
	return beacon.Nonce{}, beacon.Echo{}
}

func TestPeersMeetWithoutTheInternet(t *testing.T) {
	for _, row := range []struct {
		name  string
		after time.Duration // the second one starts
		loss  float64
	}{{"at once", 0, 0}, {"a minute later", time.Minute, 0}, {"an hour later", time.Hour, 0}, {"with losses", time.Minute, 0.3}} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard overheard
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond, Trace: true, Describe: heard.describe})
				home := w.net.NAT("home", lab.Linux(pubA))
				home.Cut(true)
				ha, hb := home.Host("a", inA), home.Host("b", inA2)
				ha.SetLink(lab.Link{Latency: time.Millisecond, Loss: row.loss})
				a := w.end(ha, keyOf("b"), keyOf("c"))
				a.serve(t)
				a.Peer(keyOf("b")).Connect()
				time.Sleep(row.after)
				b := w.end(hb, keyOf("a"), keyOf("c"))
				began := time.Now()
				b.serve(t)
				b.Peer(keyOf("a")).Connect()
				a.connected(t, b.public())
				b.connected(t, a.public())
				if took := time.Since(began); took > 10*time.Second || row.loss == 0 && took > time.Second {
					t.Errorf("connected after %v", took)
				}
				ha.SetLink(lab.Link{})
				a.wantPath(t, b.public(), PathLAN, 0)
				b.wantPath(t, a.public(), PathLAN, 0)
				exchange(t, a, b)
				time.Sleep(15 * time.Second)
				if n, m := a.Peer(b.public()).linkCount(), b.Peer(a.public()).linkCount(); n != 1 || m != 1 {
					t.Errorf("%d and %d links", n, m)
				}
				link := a.Peer(b.public()).cur.Load()

				// The Internet comes, and with it a third peer.
				home.Cut(false)
				a.NetworkChanged()
				b.NetworkChanged()
				c := w.end(w.net.NAT("home-c", lab.Linux(pubB)).Host("c", inB), keyOf("a"), keyOf("b"))
				c.listen(t)
				for _, e := range []*end{a, b} {
					e.Peer(c.public()).Connect()
					e.connected(t, c.public())
					c.connected(t, e.public())
					exchange(t, e, c)
				}
				exchange(t, a, b)
				a.wantPath(t, b.public(), PathLAN, 0)
				if a.Peer(b.public()).cur.Load() != link {
					t.Error("the connection on the local network was replaced")
				}

				// And goes again.
				home.Cut(true)
				time.Sleep(5 * time.Minute)
				exchange(t, a, b)
				if n, keys := heard.count(); n == 0 || len(keys) != 0 {
					t.Errorf("%d beacons; keys of %v were sent", n, keys)
				}
			})
		})
	}
}

func TestConnectedPeersSendNoBeacons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard overheard
		w := newWorld(t, lab.Config{Seed: 1, Trace: true, Describe: heard.describe})
		home := w.net.NAT("home", lab.Linux(pubA))
		a, b := w.end(home.Host("a", inA), keyOf("b")), w.end(home.Host("b", inA2), keyOf("a"))
		b.serve(t)
		a.Peer(keyOf("b")).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		a.wantPath(t, b.public(), PathLAN, 5*time.Second)
		time.Sleep(time.Minute)
		before, _ := heard.count()
		time.Sleep(time.Hour)
		after, _ := heard.count()
		if n := after - before; n != 0 {
			t.Errorf("%d beacons in an hour", n)
		}
		b.Host.Close()
		before, _ = heard.count()
		time.Sleep(time.Hour)
		after, _ = heard.count()
		if n := after - before; n < 100 || n > 200 {
			t.Errorf("%d beacons in an hour in which a peer was missed, want about 120", n)
		}
	})
}

func TestStrangersOnTheLANLearnNothing(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprint("switched off ", off), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard overheard
				w := newWorld(t, lab.Config{Seed: 1, Trace: true, Describe: heard.describe})
				home := w.net.NAT("home", lab.Linux(pubA))
				home.Cut(true)
				listed := keyOf("somebody else")
				if off {
					listed = keyOf("b")
				}
				a := &end{name: "a", got: make(chan string, 10)}
				a.Host = w.host(home.Host("a", inA), Config{Identity: key.FromSeed(key.Hash([]byte("a"))), NoBeacons: off})
				if _, err := a.AddPeer(listed); err != nil {
					t.Fatal(err)
				}
				b := w.end(home.Host("b", inA2), a.public()) // it lists a, and knows its key
				a.serve(t)
				b.serve(t)
				a.Peer(listed).Connect()
				b.Peer(a.public()).Connect()
				time.Sleep(10 * time.Minute)
				if a.Refused() != 0 || heard.handshakes() != 0 || b.Peer(a.public()).Status().State == PeerConnected {
					t.Errorf("%d handshakes, %d refused, %v", heard.handshakes(), a.Refused(), b.Peer(a.public()).Status().State)
				}
				// Straight to the address, as a program of b's own might.
				if err := b.Peer(a.public()).dialNeighbour(t.Context(), netip.AddrPortFrom(inA, a.Addr().Port())); !errors.Is(err, ErrNoAnswer) {
					t.Errorf("a handshake with one that does not list us: %v", err)
				}
			})
		})
	}
}

// hears makes a beacon of from for to, and lets to hear it.
func hears(t *testing.T, to, from *end, at netip.AddrPort, echo beacon.Echo, made, now time.Time) []byte {
	t.Helper()
	from.lan.mu.Lock()
	n := from.lan.lanPeerLocked(from.Peer(to.public()))
	from.lan.mu.Unlock()
	b, _ := beacon.Append(nil, at, []beacon.For{{Pair: &n.pair, Echo: echo}}, made)
	to.lan.hear(b, at, now)
	return b
}

// TestOldBeacons plays beacons again, and sets clocks wrong.
func TestOldBeacons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard overheard
		w := newWorld(t, lab.Config{Seed: 1, Trace: true, Describe: heard.describe})
		home, other := w.net.NAT("home", lab.Linux(pubA)), w.net.NAT("other", lab.Linux(pubB))
		home.Cut(true)
		a := w.end(home.Host("a", inA), keyOf("b"))
		b := w.end(other.Host("b", inB), keyOf("a"))
		a.serve(t)
		a.Peer(keyOf("b")).Connect()
		time.Sleep(time.Minute)
		place := netip.AddrPortFrom(inA2, DefaultPort)

		tried := func(reason string, want bool) {
			t.Helper()
			before := heard.handshakes()
			time.Sleep(10 * time.Second)
			if got := heard.handshakes() > before; got != want {
				t.Errorf("%s: handshake %v, want %v", reason, got, want)
			}
		}
		now := time.Now()
		old := hears(t, a, b, place, beacon.Echo{}, now.Add(-48*time.Hour), now)
		tried("two days old", false)
		hears(t, a, b, place, beacon.Echo{}, now.Add(20*365*24*time.Hour), time.Now())
		tried("from a clock that is 20 years ahead", false)
		hears(t, a, b, place, beacon.Echo{1, 2, 3}, now.Add(-48*time.Hour), time.Now())
		tried("two days old, with a wrong echo", false)
		nonce, _ := heard.last(t, inA, &b.lan.peers[a.public()].pair)
		hears(t, a, b, place, nonce.Echo(), now.Add(-48*time.Hour), time.Now())
		tried("from a clock that is two days late, in answer to ours", true)
		time.Sleep(neighbourFor + time.Minute)
		fresh := hears(t, a, b, place, beacon.Echo{}, time.Now(), time.Now())
		tried("fresh", true)
		time.Sleep(neighbourFor + time.Minute) // until a does not try the place any more by itself
		a.lan.hear(fresh, place, time.Now())
		tried("the same again", false)
		a.lan.seen = make(map[beacon.Nonce]struct{}) // as after a restart
		a.lan.hear(fresh, netip.AddrPortFrom(inA3, DefaultPort), time.Now())
		tried("from another address", false)
		a.lan.hear(old, place, time.Now())
		tried("the old one again", false)
		time.Sleep(beaconEvery * 2)
		if _, echo := heard.last(t, inA, &b.lan.peers[a.public()].pair); echo != beacon.Echo(old[4:]) {
			t.Errorf("a's beacon echoes %x, want that it answers to b's", echo)
		}
	})
}

func TestManyPeersHaveTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1})
		a := w.end(w.net.NAT("home", lab.Linux(pubA)).Host("a", inA))
		const n = 150
		for i := range n {
			if _, err := a.AddPeer(keyOf(fmt.Sprint("peer ", i))); err != nil {
				t.Fatal(err)
			}
		}
		a.Peer(keyOf("peer 7")).Connect()
		turns := make(map[*beacon.Pair]int)
		const rounds = 20
		for range rounds {
			list := a.lan.missing(time.Now())
			if len(list) != beaconsAtOnce*beacon.Entries {
				t.Fatalf("%d peers in a round", len(list))
			}
			for _, f := range list {
				turns[f.Pair]++
			}
		}
		if len(turns) != n || turns[&a.lan.peers[keyOf("peer 7")].pair] != rounds {
			t.Errorf("%d of %d peers had a turn; the wanted one %d of %d", len(turns), n, turns[&a.lan.peers[keyOf("peer 7")].pair], rounds)
		}
	})
}

func TestPeersMeetOverIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1})
		home := w.net.NAT("home", lab.Linux(pubA))
		home.Cut(true)
		a := w.end(home.Host("a", netip.MustParseAddr("fe80::a")), keyOf("b"))
		b := w.end(home.Host("b", netip.MustParseAddr("fe80::b")), keyOf("a"))
		a.serve(t)
		b.serve(t)
		began := time.Now()
		a.Peer(b.public()).Connect()
		b.Peer(a.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		if took := time.Since(began); took > time.Second {
			t.Errorf("connected after %v", took)
		}
		exchange(t, a, b)
		a.wantPath(t, b.public(), PathLAN, 0)
		if s := a.Peer(b.public()).Status(); !s.Path.Remote.Addr().Is6() {
			t.Errorf("path %v", s.Path)
		}
	})
}
