package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
	"omegatun/session/relay"
	"omegatun/session/tunnel"
)

// Peers that are taken off the list while they are being looked for leave room for others to be looked for.
func TestRemovedPeersGiveTheirTurnBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		for i := range 4 * dialsAtOnce {
			k := keyOf(fmt.Sprint("nobody ", i))
			p, err := a.AddPeer(k)
			if err != nil {
				t.Fatal(err)
			}
			p.Connect()
			time.Sleep(time.Duration(i) * 40 * time.Millisecond) // it is being looked for, or about to be again
			a.RemovePeer(k)
		}
		synctest.Wait()
		if n := len(a.dials); n != 0 {
			t.Errorf("%d of %d turns are taken, though nobody is being looked for", n, dialsAtOnce)
		}
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
	})
}

// Who asks for a peer again while the search for it is being called off gets another search.
func TestPeerIsWantedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		p := a.Peer(b.public())
		p.Connect()
		time.Sleep(time.Minute) // it waits to try again
		synctest.Wait()
		p.Disconnect()
		p.Connect()
		b.listen(t)
		time.Sleep(2 * maxRetry)
		if s := p.Status(); s.State != PeerConnected {
			t.Errorf("state %q a minute after the peer has come, want connected", s.State)
		}
	})
}

// A peer that moves more often than addresses are remembered is followed all the same.
func TestTunnelFollowsAPeerThatMovesOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		natA := w.net.NAT("home-a", lab.Linux(pubA))
		a, b := w.end(natA.Host("a", inA), keyOf("b")), w.end(w.net.Host("b", pubB), keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		exchange(t, a, b)
		first := b.Peer(a.public()).cur.Load()
		for round := range 3 * maxCandidates {
			natA.SetPublic(netip.AddrFrom4([4]byte{192, 88, 99, byte(120 + round%100)}))
			if err := a.Peer(b.public()).Send([][]byte{packet("here")}); err != nil {
				t.Fatal(err)
			}
			b.wantPacket(t, a.public(), "here")
			time.Sleep(time.Second)
			if err := b.Peer(a.public()).Send([][]byte{packet("there")}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-a.got:
			case <-time.After(time.Second):
				t.Fatalf("after %d changes of address b sends elsewhere", round+1)
			}
			time.Sleep(time.Minute)
		}
		if b.Peer(a.public()).cur.Load() != first {
			t.Error("it took another handshake")
		}
	})
}

// A client that is taken off the list is not relayed for any more.
func TestRemovedPeersAreNotRelayedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		r := w.relay("r", pubR)
		ha, hb, _, _ := w.behind(lab.RandomPort, lab.RandomPort)
		a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
		if _, err := r.AddPeer(a.public()); err != nil {
			t.Fatal(err)
		}
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.wantPath(t, b.public(), PathRelay, time.Minute)
		if s, _ := r.RelayStats(); s.Clients != 2 || s.Links == 0 {
			t.Fatalf("%d clients and %d links at the relay", s.Clients, s.Links)
		}
		a.Peer(b.public()).Disconnect() // so that it does not come back
		b.Peer(a.public()).Disconnect()
		r.RemovePeer(a.public())
		time.Sleep(time.Second)
		if s, _ := r.RelayStats(); s.Clients != 1 || s.Links != 0 {
			t.Errorf("%d clients and %d links at the relay, want the other one alone", s.Clients, s.Links)
		}
	})
}

// What comes over a relay, but not the usual way, is noticed each time.
func TestEachMessageOfARelayedPathIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		from, to := a.Peer(b.public()).cur.Load(), b.Peer(a.public()).cur.Load()
		stream, err := b.newStream(to)
		if err != nil {
			t.Fatal(err)
		}
		s := &relaySocket{host: b.Host, link: to, stream: stream, remote: netip.AddrPortFrom(pubR, 1), under: b.server}
		s.path = relay.NewPath(b.server, s.remote, 1)
		for range 3 {
			d, err := from.epoch.Seal(nil, tunnel.Control{Kind: tunnel.Keepalive}.Append(nil))
			if err != nil {
				t.Fatal(err)
			}
			s.receive(nil, netip.AddrPort{}, d)
			if heard := to.heard.Load(); heard != time.Now().UnixNano() {
				t.Errorf("the link was heard %v ago, want now", time.Since(time.Unix(0, heard)))
			}
			time.Sleep(time.Second)
		}
	})
}

// A path that dies after the clock was set back is found dead as soon as any other.
func TestDeadPathIsNoticedThoughTheClockWasSetBack(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
			ha, hb, natA, _ := w.homes()
			a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
			b.listen(t)
			a.Peer(b.public()).Connect()
			a.connected(t, b.public())
			if busy {
				exchange(t, a, b)
			}
			time.Sleep(time.Second)
			natA.Cut(true)
			l := a.Peer(b.public()).cur.Load()
			ahead := time.Now().Add(1000 * time.Hour).UnixNano() // as it was noted by the clock before
			l.heard.Store(ahead)
			l.cur.Load().heard.Store(ahead)
			if busy {
				l.sent.Store(ahead)
				l.received.Store(ahead)
			}
			time.Sleep(40 * time.Second)
			if l.healthy() {
				t.Errorf("busy %v: a path that has been dead for 40 s counts as healthy", busy)
			}
		})
	}
}

// However many relays callers name, only so many are called at once.
func TestRelaysCalledAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, _, _, _ := w.homes()
		a := w.end(ha)
		var refused int
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 2 * maxRelayConns {
			wg.Go(func() {
				if _, err := a.useRelay(ctx, keyOf(fmt.Sprint("relay ", i))); errors.Is(err, errRelays) {
					refused++
				}
			})
			synctest.Wait()
		}
		cancel()
		wg.Wait()
		if refused != maxRelayConns {
			t.Errorf("%d of %d were refused, want %d", refused, 2*maxRelayConns, maxRelayConns)
		}
		time.Sleep(time.Minute)
		if _, err := a.useRelay(t.Context(), keyOf("relay")); errors.Is(err, errRelays) {
			t.Error("there is no room again")
		}
	})
}

// Packets wait for a path while one is looked for, but not for hours.
func TestOldPacketsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		p := a.Peer(b.public())
		p.Connect()
		send := func(text string) {
			t.Helper()
			if err := p.Send([][]byte{packet(text)}); err != nil {
				t.Fatal(err)
			}
		}
		send("old")
		time.Sleep(time.Hour)
		b.listen(t)
		send("new")
		a.connected(t, b.public()) // at the latest 45 s later
		b.wantPacket(t, a.public(), "new")
		if lost := p.Status().TxLost; lost != 1 {
			t.Errorf("%d packets counted as lost, want the old one", lost)
		}
	})
}

// A packet that is sent while the link comes up must not be left behind in the queue, which the link has just emptied.
func TestNoPacketIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		p := a.Peer(b.public())
		p.Connect()
		a.connected(t, b.public())
		p.mu.Lock() // as when a link comes up
		l := p.cur.Swap(nil)
		go p.Send([][]byte{packet("hello")}) // it arrives or not
		for range 10_000 {
			runtime.Gosched() // until it waits for the lock
		}
		p.cur.Store(l)
		p.mu.Unlock()
		b.wantPacket(t, a.public(), "hello")
	})
}
