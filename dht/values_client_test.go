package dht

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"omegatun/dht/key"
)

func TestTopics(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(40)
		a, b := w.peer(false, nodes[0]), w.peer(true, nodes[1])
		topic := key.Hash([]byte("topic"))
		ka, kb := key.Generate(), key.Generate()
		relays := addrList("1.1.1.1:1", "2.2.2.2:2")
		for _, who := range []struct {
			n *testNode
			k key.Private
		}{{a, ka}, {b, kb}} {
			s, err := who.n.Announce(t.Context(), topic, who.k, relays)
			if err != nil || len(s.Nodes) != bucketSize || s.Closest != bucketSize || s.Refused != nil {
				t.Fatalf("announce: %+v, %v", s, err)
			}
		}
		lookup := func() map[key.Public]int {
			seen := make(map[key.Public]int)
			for r, err := range a.Lookup(t.Context(), topic) {
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range r.Peers {
					if !p.Equal(Record{Key: p.Key, Relays: relays}) {
						t.Errorf("record %+v", p)
					}
					seen[p.Key]++
				}
			}
			return seen
		}
		if got := lookup(); got[ka.Public()] < 15 || got[kb.Public()] < 15 || len(got) != 2 {
			t.Errorf("found %v", got)
		}
		if s, err := a.Unannounce(t.Context(), topic, ka); err != nil || len(s.Nodes) < 15 {
			t.Errorf("unannounce: %+v, %v", s, err)
		}
		if got := lookup(); got[ka.Public()] != 0 || got[kb.Public()] < 15 {
			t.Errorf("after unannouncing one: %v", got)
		}
		if s, err := a.Unannounce(t.Context(), topic, ka); err != nil || s.Closest != 0 {
			t.Errorf("unannounce again: %+v, %v", s, err)
		}
		time.Sleep(30 * time.Minute)
		if got := lookup(); len(got) != 0 {
			t.Errorf("after half an hour: %v", got)
		}
	})
}

func TestAnnounceLeavesOutWhatIsNoAddress(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.peer(false, w.members(3)[0])
		topic, k := key.Hash([]byte("topic")), key.Generate()
		relays := append(addrList("[2001:db8::1]:1", "[::ffff:1.1.1.1]:1", "2.2.2.2:0", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4"), netip.AddrPort{})
		if _, err := n.Announce(t.Context(), topic, k, relays); err != nil {
			t.Fatal(err)
		}
		answers := 0
		for r, err := range n.Lookup(t.Context(), topic) {
			if err != nil {
				t.Fatal(err)
			}
			want := Record{Key: k.Public(), Relays: addrList("1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3")}
			if len(r.Peers) != 1 || !r.Peers[0].Equal(want) {
				t.Errorf("%+v, want %+v", r.Peers, want)
			}
			answers++
		}
		if answers == 0 {
			t.Error("nobody has it")
		}
	})
}

func TestImmutable(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		a, b := w.peer(false, nodes[0]), w.peer(false, nodes[1])
		for _, value := range [][]byte{nil, []byte("value"), make([]byte, MaxValue)} {
			target, s, err := a.PutImmutable(t.Context(), value)
			if err != nil || target != key.Hash(value) || len(s.Nodes) != bucketSize {
				t.Fatalf("put: %+v, %v", s, err)
			}
			if got, err := b.GetImmutable(t.Context(), target); err != nil || !bytes.Equal(got, value) {
				t.Errorf("get: %q, %v", got, err)
			}
		}
		if _, _, err := a.PutImmutable(t.Context(), make([]byte, MaxValue+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("put of too much: %v", err)
		}
		if _, err := b.GetImmutable(t.Context(), key.Target{1}); !errors.Is(err, ErrNotFound) {
			t.Errorf("get of nothing: %v", err)
		}
		w.cut(a.host, true)
		if _, err := a.GetImmutable(t.Context(), key.Target{1}); !errors.Is(err, ErrNoNodes) {
			t.Errorf("get without a network: %v", err)
		}
	})
}

func TestMutable(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		a, b := w.peer(false, nodes[0]), w.peer(false, nodes[1])
		k := key.Generate()
		if _, err := b.GetMutable(t.Context(), k.Public(), 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("get of nothing: %v", err)
		}
		if s, err := a.PutMutable(t.Context(), k, 3, []byte("three")); err != nil || len(s.Nodes) != bucketSize {
			t.Fatalf("put: %+v, %v", s, err)
		}
		var refused *ReplyError
		if s, err := a.PutMutable(t.Context(), k, 3, []byte("other")); !errors.As(err, &refused) || refused.Code != CodeSeqReused || len(s.Nodes) != 0 {
			t.Errorf("put with the same seq: %+v, %v", s, err)
		}
		if _, err := a.PutMutable(t.Context(), k, 2, []byte("two")); !errors.As(err, &refused) || refused.Code != CodeSeqTooLow {
			t.Errorf("put with a lower seq: %v", err)
		}
		if _, err := a.PutMutable(t.Context(), k, 4, []byte("four")); err != nil {
			t.Error(err)
		}
		if m, err := b.GetMutable(t.Context(), k.Public(), 0); err != nil || m.Seq != 4 || string(m.Value) != "four" {
			t.Errorf("get: %+v, %v", m, err)
		}
		if _, err := b.GetMutable(t.Context(), k.Public(), 5); !errors.Is(err, ErrNotFound) {
			t.Errorf("get of a later one: %v", err)
		}
		if _, err := a.PutMutable(t.Context(), k, 1<<60, nil); err == nil {
			t.Error("put with a seq that the reference cannot read")
		}
		began := time.Now()
		if _, err := b.GetMutable(t.Context(), k.Public(), 1<<60); err == nil || errors.Is(err, ErrNoNodes) || time.Since(began) > 0 {
			t.Errorf("get of a seq that no node can read: %v after %v, want an error about the seq at once", err, time.Since(began))
		}
		if m, err := b.FirstMutable(t.Context(), k.Public(), 1<<60); err == nil || errors.Is(err, ErrNoNodes) {
			t.Errorf("the first of a seq that no node can read: %+v, %v, want an error about the seq", m, err)
		}
		if _, err := a.PutMutable(t.Context(), k, 9, make([]byte, MaxValue+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("put of too much: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.PutMutable(ctx, k, 10, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("put with a context that ended: %v", err)
		}
	})
}

func TestPutDoesNotCountThoseWhoRefuse(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		a := w.peer(false, nodes[0])
		k := key.Generate()
		s, err := a.PutMutable(t.Context(), k, 1, []byte("one"))
		if err != nil || len(s.Nodes) != bucketSize {
			t.Fatalf("put: %+v, %v", s, err)
		}
		const ahead = 7
		for _, n := range nodes {
			if !slices.Contains(s.Nodes[:ahead], n.addr()) {
				continue
			}
			n.do(func(now time.Time) {
				m, _ := n.store.mutables.get(k.Public().Target(), now)
				m.seq = 9
				n.store.mutables.set(k.Public().Target(), m, now)
			})
		}
		s2, err := a.PutMutable(t.Context(), k, 2, []byte("two"))
		if err != nil || s2.Closest != bucketSize || s2.Refused == nil || s2.Refused.Code != CodeSeqTooLow {
			t.Errorf("put: %+v, %v", s2, err)
		}
		if len(s2.Nodes) == 0 || len(s2.Nodes) >= s2.Closest {
			t.Errorf("stored on %d of %d", len(s2.Nodes), s2.Closest)
		}
		for _, a := range s2.Nodes {
			if slices.Contains(s.Nodes[:ahead], a) {
				t.Errorf("%v refused, and is counted", a)
			}
		}
	})
}

func TestForgedMutableValuesAreNotYielded(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(2)
		a := w.peer(false, nodes[0])
		k := key.Generate()
		if _, err := a.PutMutable(t.Context(), k, 1, []byte("true")); err != nil {
			t.Fatal(err)
		}
		liar := nodes[0]
		liar.do(func(now time.Time) {
			m := signMutable(key.Generate(), 9, []byte("forged"))
			liar.store.mutables.set(k.Public().Target(), m, now)
		})
		for m, err := range a.MutableValues(t.Context(), k.Public(), 0) {
			if err != nil || string(m.Value) != "true" {
				t.Errorf("%+v, %v", m, err)
			}
		}
	})
}

// Without a key nothing is signed, and nobody is asked.
func TestNothingIsSignedWithoutAKey(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.peer(false, w.members(3)[0])
		ctx := t.Context()
		for name, call := range map[string]func() (Stored, error){
			"put":        func() (Stored, error) { return n.PutMutable(ctx, key.Private{}, 1, nil) },
			"announce":   func() (Stored, error) { return n.Announce(ctx, key.Target{}, key.Private{}, nil) },
			"unannounce": func() (Stored, error) { return n.Unannounce(ctx, key.Target{}, key.Private{}) },
		} {
			if s, err := call(); err == nil || len(s.Nodes) != 0 {
				t.Errorf("%s: %+v, %v", name, s, err)
			}
		}
		q := n.StartAnnounce(ctx, key.Target{}, key.Private{}, nil)
		q.Cancel()
		for r, err := range q.All() {
			if err == nil {
				t.Errorf("an answer: %+v", r)
			}
		}
		if q.Wait() == nil || q.Stats() != (QueryStats{}) || q.Closest() != nil {
			t.Errorf("%v, %+v, %v", q.Wait(), q.Stats(), q.Closest())
		}
	})
}
