package dht

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

type addrPort = netip.AddrPort

func addrPortFrom(a netip.Addr, port uint16) addrPort { return netip.AddrPortFrom(a, port) }

func testAddr(n int) addrPort { return netip.AddrPortFrom(testHost(n), 49737) }

func TestQueriesRun(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(60)
		n := w.peer(false, nodes[0])
		topic, k, other := key.Hash([]byte("topic")), key.Generate(), key.Generate()

		announce := n.StartAnnounce(t.Context(), topic, k, nil)
		if announce.Closest() != nil || announce.Stored().Closest != 0 {
			t.Error("a query that has just begun has results")
		}
		for r, err := range announce.All() {
			t.Errorf("somebody announced the topic already: %+v, %v", r, err)
		}
		<-announce.Done()
		stored := announce.Stored()
		if len(stored.Nodes) != bucketSize || stored.Closest != bucketSize || stored.Refused != nil {
			t.Errorf("stored %+v", stored)
		}
		var closest []netip.AddrPort
		for _, c := range announce.Closest() {
			closest = append(closest, c.Addr)
		}
		if !slices.Equal(closest, stored.Nodes) {
			t.Errorf("stored at %v, closest are %v", stored.Nodes, closest)
		}
		if s := announce.Stats(); s.Requests < bucketSize || s.Answers != s.Requests || s.Hops > 4 {
			t.Errorf("stats %+v", s)
		}

		// The next finds the first, twice.
		second := n.StartAnnounce(t.Context(), topic, other, nil)
		if err := second.Wait(); err != nil {
			t.Fatal(err)
		}
		count := 0
		for r, err := range second.All() { // answers wait
			if err != nil || len(r.Peers) != 1 || r.Peers[0].Key != k.Public() {
				t.Errorf("answer %+v, %v", r, err)
			}
			count++
		}
		if count != bucketSize {
			t.Errorf("%d answers", count)
		}
		lookup := n.StartLookup(t.Context(), topic)
		for r, err := range lookup.All() {
			if err != nil || len(r.Peers) != 2 {
				t.Errorf("answer %+v, %v", r, err)
			}
		}
		if s, err := n.Unannounce(t.Context(), topic, k); err != nil || len(s.Nodes) != bucketSize {
			t.Errorf("unannounce: %+v, %v", s, err)
		}
		for r, err := range n.Lookup(t.Context(), topic) {
			if err != nil || len(r.Peers) != 1 || r.Peers[0].Key != other.Public() {
				t.Errorf("after unannouncing: %+v, %v", r, err)
			}
		}
		if s := lookup.Stored(); s.Closest != 0 {
			t.Errorf("a lookup stored %+v", s)
		}
	})
}

func TestFindNode(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(60)
		n := w.peer(false, nodes[0])
		target := key.Hash([]byte("anything"))
		slices.SortFunc(nodes, func(a, b *testNode) int {
			return compareDistance(target, NodeID(a.addr()), NodeID(b.addr()))
		})
		seen := make(map[Contact]bool)
		for r, err := range n.FindNode(t.Context(), target) {
			if err != nil || r.To != n.client.public {
				t.Errorf("answer %+v, %v", r, err)
			}
			seen[r.From] = true
		}
		for _, m := range nodes[:bucketSize] {
			if !seen[Contact{m.Info().ID, m.addr()}] {
				t.Errorf("%v was not asked", m.addr())
			}
		}
	})
}

func TestQueryEnds(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		n := w.peer(false, nodes[0])
		time.Sleep(10 * time.Second) // its bootstrapping ends
		reason := errors.New("enough")
		for _, row := range []struct {
			name string
			end  func(cancel context.CancelCauseFunc, q *Query[NodeReply])
			want error
		}{
			{"context", func(cancel context.CancelCauseFunc, _ *Query[NodeReply]) { cancel(reason) }, reason},
			{"cancel", func(_ context.CancelCauseFunc, q *Query[NodeReply]) { q.Cancel() }, context.Canceled},
			{"loop", func(_ context.CancelCauseFunc, q *Query[NodeReply]) {
				for range q.All() {
					break
				}
			}, context.Canceled},
			{"itself", func(_ context.CancelCauseFunc, q *Query[NodeReply]) { <-q.Done() }, nil},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			q := n.StartFindNode(ctx, key.Target{})
			row.end(cancel, q)
			if err := q.Wait(); !errors.Is(err, row.want) {
				t.Errorf("%s: %v, want %v", row.name, err, row.want)
			}
			synctest.Wait()
			if r := n.Info().Requests; r > 0 {
				t.Errorf("%s: %d requests on the way", row.name, r)
			}
			cancel(nil)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.StartFindNode(ctx, key.Target{}).Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		alone := w.node(false, nil)
		if err := alone.StartLookup(t.Context(), key.Target{}).Wait(); !errors.Is(err, ErrNoNodes) {
			t.Errorf("without a network: %v", err)
		}
		if _, err := alone.Announce(t.Context(), key.Target{}, key.Generate(), nil); !errors.Is(err, ErrNoNodes) {
			t.Errorf("announcing without a network: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := n.StartLookup(t.Context(), key.Target{}).Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

func TestFirstMutable(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(60)
		n := w.peer(false, nodes[0])
		k := key.Generate()
		if _, err := n.FirstMutable(t.Context(), k.Public(), 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("before: %v", err)
		}
		if _, err := n.PutMutable(t.Context(), k, 3, []byte("three")); err != nil {
			t.Fatal(err)
		}
		if m, err := n.FirstMutable(t.Context(), k.Public(), 3); err != nil || string(m.Value) != "three" || m.Seq != 3 {
			t.Errorf("%+v, %v", m, err)
		}
		if _, err := n.FirstMutable(t.Context(), k.Public(), 4); !errors.Is(err, ErrNotFound) {
			t.Errorf("at least 4: %v", err)
		}
	})
}

// Records name relays; those in local networks are not believed in the public one.
func TestRecordsDoNotLeadIntoLocalNetworks(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		n := w.node(false, func(c *Config) { c.Bootstrap = bootstrapList(nodes[:1]) })
		w.ready(n)
		topic := key.Hash([]byte("topic"))
		relays := addrList("192.168.1.1:80", "20.1.2.3:4", "127.0.0.1:1")
		if _, err := n.Announce(t.Context(), topic, key.Generate(), relays); err != nil {
			t.Fatal(err)
		}
		for r, err := range n.Lookup(t.Context(), topic) {
			if err != nil || !slices.Equal(r.Peers[0].Relays, relays[1:2]) {
				t.Errorf("%+v, %v", r, err)
			}
		}
	})
}

func TestRequestsOfAHostAreLimited(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		liar, honest := w.raw("20.50.0.1:1000"), w.raw("20.50.1.1:1000")
		target := key.Hash([]byte("x"))
		token := liar.token(n, target)
		ping := request{command: cmdPing, to: n.addr()}
		flood := func(p *rawPeer, q request) int {
			p.take()
			for range 2 * requestBurst {
				if err := p.socket.Send(q.append(nil), n.addr()); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(10 * time.Millisecond)
			return len(p.take())
		}
		if got := flood(liar, ping); got < requestBurst-10 || got > requestBurst+10 {
			t.Errorf("%d of %d requests answered, want %d", got, 2*requestBurst, requestBurst)
		}
		if _, ok := honest.ask(n, ping); !ok {
			t.Error("another host got no answer")
		}
		// Whoever received the token is not the one who only says to be that host.
		ping.token = token
		if _, ok := liar.ask(n, ping); !ok {
			t.Error("no answer to a request with a token")
		}
		if got := flood(liar, ping); got < requestBurst-10 || got > requestBurst+10 {
			t.Errorf("%d of %d requests with a token answered, want %d", got, 2*requestBurst, requestBurst)
		}
		time.Sleep(time.Second)
		if _, ok := liar.ask(n, request{command: cmdPing}); !ok {
			t.Error("no answer a second later")
		}
	})
}
