package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
)

func TestKnownPeersAreChecked(t *testing.T) {
	addrs := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	for _, row := range []struct {
		name  string
		nodes []netip.AddrPort
		want  []netip.AddrPort // nil: not remembered
	}{
		{"two nodes", addrs("20.0.0.1:1", "20.0.0.2:2"), addrs("20.0.0.1:1", "20.0.0.2:2")},
		{"too many", addrs("20.0.0.1:1", "20.0.0.2:2", "20.0.0.3:3", "20.0.0.4:4"), addrs("20.0.0.1:1", "20.0.0.2:2", "20.0.0.3:3")},
		{"twice the same", addrs("20.0.0.1:1", "[::ffff:20.0.0.1]:1"), addrs("20.0.0.1:1")},
		{"none", nil, nil},
		{"no address", []netip.AddrPort{{}}, nil},
		{"no port", addrs("20.0.0.1:0"), nil},
		{"IPv6", addrs("[2001:db8::1]:1"), nil},
		{"nowhere", addrs("0.0.0.0:1", "224.0.0.1:1"), nil},
	} {
		k := newKnownPeers([]KnownPeer{{keyOf("a"), row.nodes}})
		if got := k.nodes(keyOf("a")); !slices.Equal(got, row.want) || (len(k) > 0) != (row.want != nil) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
	if k := newKnownPeers([]KnownPeer{{key.Public{}, addrs("20.0.0.1:1")}}); len(k) != 0 {
		t.Errorf("remembered the zero key: %v", k)
	}
}

func TestKnownPeersAreBounded(t *testing.T) {
	node := []netip.AddrPort{netip.MustParseAddrPort("20.0.0.1:1")}
	var list []KnownPeer
	for i := range maxKnownPeers + 10 {
		list = append(list, KnownPeer{keyOf(fmt.Sprint(i)), node})
	}
	k := newKnownPeers(list)
	if len(k) != maxKnownPeers || k[0].Key != list[0].Key {
		t.Fatalf("%d are known, want %d, the first first", len(k), maxKnownPeers)
	}
	k.note(list[5].Key, node)
	k.note(keyOf("new"), node)
	if len(k) != maxKnownPeers || k[0].Key != keyOf("new") || k[1].Key != list[5].Key || k[2].Key != list[0].Key {
		t.Errorf("%d are known, not the latest first", len(k))
	}
	if k.nodes(list[maxKnownPeers-1].Key) != nil {
		t.Error("the oldest did not give way")
	}
}

// A Host that starts with what an earlier one knew reaches the peer though no bootstrap node is left, and no other node is
// known.
func TestKnownPeerIsReachedWithoutBootstrapNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		ha, hb, _, natB := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		known := a.KnownPeers()
		if len(known) != 1 || known[0].Key != b.public() || len(known[0].Nodes) != maxKnownNodes {
			t.Fatalf("known: %v", known)
		}
		a.Host.Close()
		_ = natB

		dead := dht.Config{Bootstrap: []string{"192.88.99.250:49737"}}
		lost := w.host(ha, Config{Identity: a.cfg.Identity, DHT: dead})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := lost.Dial(ctx, b.public(), DialConfig{}); err == nil {
			t.Fatal("connected without knowing anybody: the test shows nothing")
		}
		lost.Close()
		again := w.host(ha, Config{Identity: a.cfg.Identity, DHT: dead, KnownPeers: known})
		began := time.Now()
		c, err := again.Dial(ctx, b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// A peer that is announced but silent is told from one that is not, also when it is remembered by which nodes it was
// reached before.
func TestSilenceOfAKnownPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha), w.end(hb)
		admit := true
		id := key.Generate()
		l, err := b.Listen(id, ListenConfig{Admit: func(Caller) error {
			if !admit {
				return errors.New("not any more")
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Announced(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := a.Dial(t.Context(), id.Public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		admit = false
		// Give it all relays at once: none of those that the DHT names is new.
		var relays []netip.AddrPort
		for _, r := range l.ann.Relays() {
			relays = append(relays, r.Relay)
		}
		for _, cfg := range []DialConfig{{}, {Relays: relays}} {
			_, err = a.Dial(t.Context(), id.Public(), cfg)
			if e, ok := errors.AsType[*DialError](err); !ok || e.Stage != StageHandshake || !errors.Is(err, ErrNoAnswer) {
				t.Errorf("dial with %d relays: %v, want ErrNoAnswer in stage %q", len(cfg.Relays), err, StageHandshake)
			}
		}
		l.Close()
		time.Sleep(time.Hour) // the records are gone as well
		if _, err = a.Dial(t.Context(), id.Public(), DialConfig{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("dial after the end: %v, want ErrNotFound", err)
		}
	})
}

// Whoever closes a Listener that is being closed waits for the announcement to be withdrawn, too.
func TestListenerClosedTwiceIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 20 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha), w.end(hb)
		l := b.listen(t)
		go l.Close()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		b.Host.Close()
		for r, err := range a.node.FindPeer(t.Context(), b.public().Target(), nil) {
			t.Errorf("after both: %+v, %v", r, err)
		}
	})
}
