package session

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
	"omegatun/session/noise"
)

// TestRandomDatagramsChangeNothing throws datagrams of every class at a Host that has a tunnel: random ones, and
// real ones that were cut, changed or sent again from elsewhere.
func TestRandomDatagramsChangeNothing(t *testing.T) {
	n := 1_000_000
	if testing.Short() || raceEnabled {
		n = 50_000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		exchange(t, a, b)
		link := b.Peer(a.public()).cur.Load()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)

		// What a stranger may have seen pass by: a datagram to b, and a handshake for it.
		seen, err := a.Peer(b.public()).cur.Load().epoch.Seal(nil, packet("seen"))
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(1, 2))
		in := &inbound{host: b.Host}
		socks := []Socket{b.server, b.client, link.cur.Load().sock}
		firsts := []byte{0xbe, 0xff, 0x03, 0x13, 0x00}
		for i := range n {
			d := make([]byte, r.IntN(200))
			for i := range d {
				d[i] = byte(r.Uint32())
			}
			switch {
			case len(d) == 0:
			case r.IntN(4) == 0: // a real one, cut or changed, which is not the first of its kind after the last round
				d = append(d[:0], seen...)
				if r.IntN(2) == 0 {
					d = d[:r.IntN(len(d))]
				} else {
					d[r.IntN(len(d))] ^= 1 << r.IntN(8)
				}
			case r.IntN(2) == 0:
				d[0] = firsts[r.IntN(len(firsts))]
				if d[0] == 0xbe && len(d) > 16 {
					copy(d, seen[:8]) // the right index: as far as a stranger gets
				}
				if d[0] == 0xff && len(d) > 1 {
					d[1] = 1
				}
			}
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 88, byte(r.Uint32()), byte(r.Uint32())}), uint16(r.Uint32()))
			b.dispatch(socks[i%len(socks)], d, from, in, time.Now())
			if i%1000 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		in.flush()
		synctest.Wait()

		if len(b.got) != 0 {
			t.Errorf("%d packets were delivered, the first is %q", len(b.got), <-b.got)
		}
		if got := b.Peer(a.public()).cur.Load(); got != link {
			t.Error("the link was replaced")
		}
		if remote := link.cur.Load().remote.Addr(); remote != pubA {
			t.Errorf("the path was moved to %v", remote)
		}
		link.mu.Lock()
		cands := len(link.prober.cands)
		link.mu.Unlock()
		if cands > 2 {
			t.Errorf("%d candidates: strangers have added some", cands)
		}
		exchange(t, a, b)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
	})
}

// firstMessage makes a first handshake message of a for b, as a node on the way would see it.
func firstMessage(t *testing.T, a, b *end) []byte {
	t.Helper()
	i, err := noise.NewInitiator(a.cfg.Identity, b.public())
	if err != nil {
		t.Fatal(err)
	}
	p := noise.Payload{
		Version: noise.PayloadVersion, UDX: &noise.UDXInfo{ID: 1},
		SecretStream: &noise.SecretStreamInfo{}, Trailer: a.offer(7).Append(nil),
	}
	msg, err := i.Write(p.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// TestReplayedHandshakeIsHarmless has somebody else send a first message of a listed peer.
func TestReplayedHandshakeIsHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		a, b := w.twoEnds()
		l := b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		exchange(t, a, b)
		msg := firstMessage(t, a, b)
		time.Sleep(2 * slotLife)
		link := b.Peer(a.public()).cur.Load()

		attacker := w.host(w.net.Host("attacker", netip.MustParseAddr("192.88.99.66")), Config{})
		answered := 0
		for r, err := range attacker.node.FindPeer(t.Context(), b.public().Target(), nil) {
			if err != nil {
				break
			}
			if _, err := attacker.node.Handshake(t.Context(), r.From, attacker.server, b.public().Target(), msg); err == nil {
				answered++
			}
		}
		if answered == 0 {
			t.Error("the replayed message was not answered at all: this test shows nothing")
		}
		time.Sleep(6 * slotLife)
		if got := b.Peer(a.public()).cur.Load(); got != link {
			t.Error("a replayed handshake replaced the link")
		}
		if n := b.Peer(a.public()).linkCount(); n != 1 {
			t.Errorf("%d links, want one", n)
		}
		l.slots.mu.Lock()
		slots := len(l.slots.byMsg)
		l.slots.mu.Unlock()
		if slots != 0 {
			t.Errorf("%d slots are still taken", slots)
		}
		exchange(t, a, b)
	})
}
