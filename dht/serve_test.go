package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

func TestHandshakeThroughARelay(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(50)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		if got := len(a.Relays()); got != announceRelays {
			t.Fatalf("%d relays, want %d", got, announceRelays)
		}
		found := client.find(t, k.Public().Target())
		for _, p := range a.Relays() {
			if p.Peer != server.client.public || !slices.Contains(found, p.Relay) || !a.IsRelay(p.Relay) {
				t.Errorf("relay %+v, found %v", p, found)
			}
		}
		if len(found) != announceRelays || !slices.Equal(a.Addresses(), relayAddrs(a)[:maxRecordRelays]) {
			t.Errorf("found at %v, advertised %v", found, a.Addresses())
		}
		// They are the members nearest to the key.
		slices.SortFunc(nodes, func(x, y *testNode) int {
			return compareDistance(k.Public().Target(), NodeID(x.addr()), NodeID(y.addr()))
		})
		for i, n := range nodes[:announceRelays] {
			if relayAddrs(a)[i] != n.addr() {
				t.Errorf("relay %d is %v, want %v, which is the nearest but %d", i, relayAddrs(a)[i], n.addr(), i)
			}
		}
		for _, r := range found {
			h, err := client.Handshake(t.Context(), r, nil, k.Public().Target(), []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			want := HandshakeReply{
				Noise:  fmt.Appendf(nil, "hello from %v direct false", client.client.public),
				Server: server.client.public, Self: client.client.public, Relay: r, Relayed: true,
			}
			if !bytes.Equal(h.Noise, want.Noise) || h.Server != want.Server || h.Self != want.Self || h.Relay != want.Relay || !h.Relayed {
				t.Errorf("handshake: %+v, want %+v", h, want)
			}
		}
	})
}

func relayAddrs(a *Announcement) (addrs []netip.AddrPort) {
	for _, p := range a.Relays() {
		addrs = append(addrs, p.Relay)
	}
	return addrs
}

func TestHandshakeAnswersFromAnotherSocket(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		punch := w.socket(netip.AddrPortFrom(server.host, 60000), true)
		punch.receive = func(s *testSocket, b []byte, from netip.AddrPort) { server.Receive(s, b, from) }
		k, a := server.serve(t, echoServer{socket: punch})
		target := k.Public().Target()
		r := a.Relays()[0].Relay
		own := w.socket(netip.AddrPortFrom(client.host, 60001), true)
		own.receive = func(s *testSocket, b []byte, from netip.AddrPort) { client.Receive(s, b, from) }
		h, err := client.Handshake(t.Context(), r, own, target, []byte("x"))
		if err != nil || h.Server != punch.public || h.Self != own.public {
			t.Fatalf("handshake: %+v, %v, want the server at %v", h, err, punch.public)
		}
		// A hole punch message goes to the socket named, the answer tells where it came from.
		for _, peer := range []netip.AddrPort{{}, server.client.public, punch.public} {
			p, err := client.Holepunch(t.Context(), r, own, target, 7, []byte("sealed"), peer)
			if err != nil || p.Peer != punch.public || p.Self != own.public {
				t.Fatalf("hole punch to %v: %+v, %v", peer, p, err)
			}
			if want := fmt.Sprintf("7 sealed from %v", own.public); string(p.Payload) != want {
				t.Errorf("hole punch to %v: %q, want %q", peer, p.Payload, want)
			}
		}
	})
}

func TestHandshakeThroughTwoRelays(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		target := k.Public().Target()
		second := a.Relays()[0].Relay
		var first *testNode
		for _, n := range nodes {
			if !a.IsRelay(n.addr()) {
				first = n
			}
		}
		server.client.known[first.host] = true // the answer goes there directly; so may the request
		m := handshakeMessage{mode: fromClient, noise: []byte("hi"), relay: second}
		r, err := client.ask(t.Context(), callSpec{
			to: first.addr(), command: cmdPeerHandshake, target: some(target), value: m.encode(), retries: 3,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseHandshake(r.value)
		if err != nil || got.mode != toClient || got.peer != server.client.public {
			t.Errorf("answer %+v, %v, want from %v", got, err, server.client.public)
		}
		if want := fmt.Sprintf("hi from %v direct false", client.client.public); string(got.noise) != want {
			t.Errorf("answer %q, want %q", got.noise, want)
		}
	})
}

func TestDirectHandshake(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		server, client := w.peer(true, nodes[0]), w.peer(false, nodes[0])
		k, _ := server.serve(t, echoServer{})
		h, err := client.Handshake(t.Context(), server.addr(), nil, k.Public().Target(), []byte("hello"))
		if err != nil || h.Relayed || h.Server != server.addr() {
			t.Errorf("handshake: %+v, %v", h, err)
		}
		if want := fmt.Sprintf("hello from %v direct true", client.client.public); string(h.Noise) != want {
			t.Errorf("handshake: %q, want %q", h.Noise, want)
		}
		// A node that knows no way says so.
		if _, err := client.Handshake(t.Context(), nodes[3].addr(), nil, key.Target{1}, []byte("hello")); !errors.Is(err, ErrBadReply) {
			t.Errorf("handshake with nobody: %v, want ErrBadReply", err)
		}
	})
}

func TestServerOnAMemberIsFoundThere(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		alone := w.member()
		k, a := alone.serve(t, echoServer{})
		if got := a.Addresses(); len(got) != 1 || got[0] != alone.addr() {
			t.Errorf("advertised %v, want %v", got, alone.addr())
		}
		client := w.peer(false, alone)
		if found := client.find(t, k.Public().Target()); len(found) != 1 || found[0] != alone.addr() {
			t.Errorf("found at %v", found)
		}
	})
}

func TestMemberFindsPeersAnnouncedToIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		alone := w.member()
		server := w.peer(false, alone)
		k, _ := server.serve(t, echoServer{})
		found := alone.find(t, k.Public().Target())
		if len(found) != 1 || found[0] != server.client.public {
			t.Fatalf("found at %v, want %v", found, server.client.public)
		}
		h, err := alone.Handshake(t.Context(), found[0], nil, k.Public().Target(), []byte("x"))
		if err != nil || h.Relayed {
			t.Errorf("handshake: %+v, %v", h, err)
		}
	})
}

// silentServer answers nothing.
type silentServer struct{}

func (silentServer) HandleHandshake(*HandshakeRequest) {}
func (silentServer) HandleHolepunch(*HolepunchRequest) {}

func TestSilentServerLooksLikeALostOne(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, silentServer{})
		start := time.Now()
		_, err := client.Handshake(t.Context(), a.Relays()[0].Relay, nil, k.Public().Target(), []byte("x"))
		if took := time.Since(start); !errors.Is(err, ErrTimeout) || took != 4*time.Second {
			t.Errorf("%v after %v, want ErrTimeout after 4 s", err, took)
		}
	})
}

// keepServer hands requests to the test.
type keepServer struct{ handshakes chan *HandshakeRequest }

func (s keepServer) HandleHandshake(r *HandshakeRequest) { s.handshakes <- r }
func (s keepServer) HandleHolepunch(*HolepunchRequest)   {}

func TestReplyMayComeLaterAndCountsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		s := keepServer{make(chan *HandshakeRequest, 10)}
		k, a := server.serve(t, s)
		go func() {
			r := <-s.handshakes
			time.Sleep(500 * time.Millisecond)
			if err := r.Reply(nil, []byte("late")); err != nil {
				t.Error(err)
			}
			if err := r.Reply(nil, []byte("twice")); err == nil {
				t.Error("a second answer is accepted")
			}
		}()
		h, err := client.Handshake(t.Context(), a.Relays()[0].Relay, nil, k.Public().Target(), []byte("x"))
		if err != nil || string(h.Noise) != "late" {
			t.Errorf("%q, %v", h.Noise, err)
		}
	})
}

func TestServeTwiceIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(3)
		server := w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		if _, err := server.Serve(k, echoServer{}); !errors.Is(err, ErrAnnounced) {
			t.Errorf("Serve again: %v, want ErrAnnounced", err)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		b, err := server.Serve(k, echoServer{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Announced(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := server.Serve(key.Private{}, echoServer{}); err == nil {
			t.Error("a zero key is served")
		}
	})
}

func TestCloseUnannounces(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(20)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		if got := client.find(t, k.Public().Target()); len(got) != announceRelays {
			t.Fatalf("found at %v", got)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := client.find(t, k.Public().Target()); len(got) != 0 {
			t.Errorf("found at %v after closing", got)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Errorf("Close again: %v", err)
		}
		if err := a.Announced(t.Context()); err != nil {
			t.Errorf("Announced after it was: %v", err)
		}
		time.Sleep(time.Hour)
		if i := server.Info(); i.Requests > 5 {
			t.Errorf("%+v", i)
		}
	})
}

func TestCloseWhileAnnouncing(t *testing.T) {
	for delay := time.Duration(0); delay < 20*testDelay; delay += testDelay / 2 {
		bubble(t, func(t *testing.T, w *testNet) {
			nodes := w.members(10)
			server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
			k := key.Generate()
			a, err := server.Serve(k, echoServer{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			if err := a.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := client.find(t, k.Public().Target()); len(got) != 0 {
				t.Errorf("closed after %v: found at %v", delay, got)
			}
		})
	}
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		server := w.peer(false, nodes[0])
		_, a := server.serve(t, echoServer{})
		w.cut(server.host, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want that ctx ended", err)
		}
	})
}

func TestLostRelayIsReplacedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		lost := a.Relays()[0].Relay
		w.cut(lost.Addr(), true)
		start := time.Now()
		for slices.Contains(relayAddrs(a), lost) || len(a.Relays()) < announceRelays {
			time.Sleep(50 * time.Millisecond)
			if time.Since(start) > time.Minute {
				t.Fatalf("relays %v after a minute", a.Relays())
			}
		}
		// A ping every three seconds, four attempts of a second, a query that waits a second for the dead node.
		if took := time.Since(start); took > 9*time.Second {
			t.Errorf("replaced after %v", took)
		}
		if !a.IsRelay(lost) {
			t.Error("the lost relay is forgotten already; messages by way of it may still come")
		}
		got := client.find(t, k.Public().Target())
		if len(got) != announceRelays || slices.Contains(got, lost) {
			t.Errorf("found at %v", got)
		}
	})
}

func TestAddressDriftRenewsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(20)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		moved := netip.AddrPortFrom(testHost(9000), 777)
		w.rename(server.client, moved)
		time.Sleep(4 * time.Second)
		for _, p := range a.Relays() {
			if p.Peer != moved {
				t.Errorf("relay %v sees us at %v, want %v", p.Relay, p.Peer, moved)
			}
		}
		for _, r := range client.find(t, k.Public().Target()) {
			h, err := client.Handshake(t.Context(), r, nil, k.Public().Target(), []byte("x"))
			if err != nil || h.Server != moved {
				t.Errorf("handshake by way of %v: %+v, %v", r, h, err)
			}
		}
	})
}

func TestAnnouncementOutlivesTheRecords(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, _ := server.serve(t, echoServer{})
		for range 4 {
			time.Sleep(31 * time.Minute)
			if got := client.find(t, k.Public().Target()); len(got) != announceRelays {
				t.Fatalf("found at %v", got)
			}
		}
		w.cut(server.host, true)
		time.Sleep(31 * time.Minute)
		if got := client.find(t, k.Public().Target()); len(got) != 0 {
			t.Errorf("found at %v half an hour after the server went", got)
		}
	})
}

func TestNetworkChangedAnnouncesAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		server := w.peer(false, nodes[0])
		_, a := server.serve(t, echoServer{})
		time.Sleep(10 * time.Second)
		var announces atomic.Int32
		w.mu.Lock()
		w.tap = func(from, _ netip.AddrPort, b []byte) {
			if r, err := parseRequest(b); err == nil && r.command == cmdAnnounce && from == server.client.public {
				announces.Add(1)
			}
		}
		w.mu.Unlock()
		server.NetworkChanged()
		time.Sleep(2 * time.Second)
		if announces := announces.Load(); announces != announceRelays {
			t.Errorf("%d announcements after NetworkChanged, want %d", announces, announceRelays)
		}
		a.Refresh()
		time.Sleep(2 * time.Second)
		if announces := announces.Load(); announces != 2*announceRelays {
			t.Errorf("%d announcements after Refresh, want %d", announces, 2*announceRelays)
		}
		time.Sleep(4 * time.Minute)
		if announces := announces.Load(); announces != 2*announceRelays {
			t.Errorf("%d announcements four minutes later, want no more", announces)
		}
	})
}

func TestForwardingIsLimited(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		server := w.peer(false, nodes[0])
		k, a := server.serve(t, silentServer{})
		relay := a.Relays()[0].Relay
		p := w.raw("20.50.0.1:1000")
		q := request{
			to: relay, command: cmdPeerHandshake, target: some(k.Public().Target()),
			value: handshakeMessage{mode: fromClient, noise: make([]byte, 200)}.encode(),
		}
		var forwarded atomic.Int32
		w.mu.Lock()
		w.tap = func(from, to netip.AddrPort, _ []byte) {
			if from == relay && to == server.client.public {
				forwarded.Add(1)
			}
		}
		w.mu.Unlock()
		for range 10 * forwardBurst {
			if err := p.socket.Send(q.append(nil), relay); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if forwarded := forwarded.Load(); forwarded < forwardBurst || forwarded > forwardBurst+10 {
			t.Errorf("%d of %d messages at once forwarded, want %d", forwarded, 10*forwardBurst, forwardBurst)
		}
		client := w.peer(false, nodes[0])
		go func() {
			_, _ = client.Handshake(t.Context(), relay, nil, k.Public().Target(), []byte("x"))
		}()
		before := forwarded.Load()
		time.Sleep(10 * time.Millisecond)
		if forwarded.Load() == before {
			t.Error("another client is not served")
		}
	})
}

func TestFindPeerEndsWithTheLoop(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(50)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, _ := server.serve(t, echoServer{})
		time.Sleep(10 * time.Second) // the check of the firewall ends
		for _, err := range client.FindPeer(t.Context(), k.Public().Target(), nil) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		if i := client.Info(); i.Requests != 0 {
			t.Errorf("%d requests go on after the loop", i.Requests)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		cancel(cause)
		for _, err := range client.FindPeer(ctx, key.Target{1}, nil) {
			if !errors.Is(err, cause) {
				t.Errorf("FindPeer: %v, want %v", err, cause)
			}
		}
		if i := client.Info(); i.Requests != 0 {
			t.Errorf("%d requests go on", i.Requests)
		}
		w.cut(client.host, true)
		var last error
		for _, err := range client.FindPeer(t.Context(), key.Target{1}, nil) {
			last = err
		}
		if !errors.Is(last, ErrNoNodes) {
			t.Errorf("FindPeer without a network: %v, want ErrNoNodes", last)
		}
	})
}

func TestFindPeerStartsFromGivenNodes(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(40)
		server := w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		// This one knows nobody.
		client := w.node(false, func(c *Config) { c.Mode = Ephemeral })
		w.ready(client)
		found := 0
		for r, err := range client.FindPeer(t.Context(), k.Public().Target(), relayAddrs(a)[:1]) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Peer.Key != k.Public() || r.To != client.client.public {
				t.Errorf("found %+v", r)
			}
			found++
		}
		if found != announceRelays {
			t.Errorf("found at %d nodes", found)
		}
	})
}
