package session

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
	"omegatun/session/noise"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
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

// TestForgedSourceIsSentLittle has somebody on the way give single authentic datagrams another source: at most three times
// their size may go there, but a ping of a peer that has really moved allows of all the probes.
func TestForgedSourceIsSentLittle(t *testing.T) {
	victim := netip.MustParseAddr("192.88.99.66")
	control := func(c tunnel.Control) func(*link) []byte {
		return func(l *link) []byte {
			b, _ := l.epoch.Seal(nil, c.Append(nil))
			return b
		}
	}
	rows := []struct {
		name     string
		stream   bool
		datagram func(of *link) []byte
		least    int // packets that go to the new source for one
	}{
		{name: "nothing inside", datagram: func(l *link) []byte { b, _ := l.epoch.Seal(nil, nil); return b }, least: 1},
		{name: "keepalive", datagram: control(tunnel.Control{Kind: tunnel.Keepalive})},
		{name: "short ping", datagram: control(tunnel.Control{Kind: tunnel.Ping, ID: 1}), least: 2},
		{name: "path probe", datagram: control(tunnel.Control{Kind: tunnel.PathProbe, ID: 1}), least: 2},
		{name: "MTU probe", datagram: control(tunnel.Control{Kind: tunnel.MTUProbe, ID: 1, Size: 200}), least: 2},
		{name: "packet", datagram: func(l *link) []byte { b, _ := l.epoch.Seal(nil, packet("hello")); return b }, least: 1},
		{name: "ping", least: 1 + probesToCheck, datagram: func(l *link) []byte {
			sent := &sentTo{Socket: l.cur.Load().sock}
			l.sendControl(&route{sock: sent, remote: l.cur.Load().remote}, tunnel.Control{Kind: tunnel.Ping, ID: 1})
			return sent.last
		}},
		{name: "challenge of a stream", stream: true, least: 2, datagram: func(l *link) []byte {
			h := udx.Header{Flags: udx.FlagMessage, ID: l.remoteID}
			return appendPathMessage(h.Append(nil), pathChallenge, [16]byte{1}, l.result.Tx)
		}},
		{name: "heartbeat of a stream", stream: true, datagram: func(l *link) []byte {
			return (&udx.Header{Flags: udx.FlagHeartbeat, ID: l.remoteID}).Append(nil)
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				a, b := w.end(w.net.Host("a", pubA), keyOf("b")), w.end(w.net.Host("b", pubB), keyOf("a"))
				var from *link
				if row.stream {
					streams(t, a, b)
					from = linkOf(a.Host)
				} else {
					b.listen(t)
					a.Peer(b.public()).Connect()
					a.connected(t, b.public())
					b.connected(t, a.public())
					from = a.Peer(b.public()).cur.Load()
				}
				time.Sleep(5 * time.Second)
				c, err := w.net.Host("victim", victim).Listen(netip.AddrPort{})
				if err != nil {
					t.Fatal(err)
				}
				var sent, bytes int
				for range 5 {
					d := row.datagram(from)
					sent += len(d)
					c.WriteToUDPAddrPort(d, from.cur.Load().remote)
					c.SetReadDeadline(time.Now().Add(10 * time.Second))
					packets := 0
					for buf := make([]byte, 2048); ; packets++ {
						n, _, err := c.ReadFromUDPAddrPort(buf)
						if err != nil {
							break
						}
						bytes += n
					}
					if packets < row.least || bytes > mayAnswer*sent {
						t.Errorf("%d packets for one of %d bytes, and %d bytes in all for %d", packets, len(d), bytes, sent)
					}
				}
			})
		})
	}
}

// sentTo is a Socket that keeps what was sent last instead of sending it.
type sentTo struct {
	Socket
	last []byte
}

func (s *sentTo) Send(b []byte, _ netip.AddrPort) error {
	s.last = slices.Clone(b)
	return nil
}
