package dht

import (
	"testing"
)

func TestMembersFindEachOther(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(60)
		for _, n := range nodes {
			i := n.Info()
			if !i.Persistent || i.Firewalled || i.ID != NodeID(n.addr()) {
				t.Errorf("%v: %+v, want a member under its own id", n.addr(), i)
			}
			if i.Nodes < 20 {
				t.Errorf("%v knows %d nodes", n.addr(), i.Nodes)
			}
		}
	})
}

func TestHandshakeThroughARelay(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		server := w.peer(false, nodes[0])
		client := w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		if got := len(a.Relays()); got != 3 {
			t.Fatalf("%d relays, want 3", got)
		}
		relays := client.find(t, k.Public().Target())
		if len(relays) != 3 {
			t.Fatalf("found at %v", relays)
		}
		for _, r := range relays {
			h, err := client.Handshake(t.Context(), r, nil, k.Public().Target(), []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			if !h.Relayed || h.Server != server.client.public || h.Self != client.client.public {
				t.Errorf("handshake by way of %v: %+v", r, h)
			}
		}
	})
}
