package dht

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

func TestSuspendAndResume(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(20)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		k, a := server.serve(t, echoServer{})
		time.Sleep(10 * time.Second)

		// In the middle of things.
		ended := make(chan error, 2)
		go func() {
			_, err := server.Ping(t.Context(), nil, testAddr(999), 3)
			ended <- err
		}()
		go func() { ended <- server.StartFindNode(t.Context(), key.Target{}).Wait() }()
		a.Refresh()
		synctest.Wait()
		server.Suspend()
		server.Suspend()
		for range 2 {
			if err := <-ended; !errors.Is(err, ErrSuspended) {
				t.Errorf("ended with %v, want ErrSuspended", err)
			}
		}
		if !server.Info().Suspended {
			t.Error("does not say that it is suspended")
		}
		if _, err := server.Ping(t.Context(), nil, nodes[0].addr(), 0); !errors.Is(err, ErrSuspended) {
			t.Errorf("Ping: %v, want ErrSuspended", err)
		}
		if err := server.StartLookup(t.Context(), key.Target{}).Wait(); !errors.Is(err, ErrSuspended) {
			t.Errorf("Lookup: %v, want ErrSuspended", err)
		}
		time.Sleep(100 * time.Millisecond) // what is on its way
		w.mu.Lock()
		from := 0
		w.tap = func(f, _ addrPort, _ []byte) {
			if f.Addr() == server.host {
				from++
			}
		}
		w.mu.Unlock()
		if _, err := client.Ping(t.Context(), nil, server.client.public, 0); !errors.Is(err, ErrTimeout) {
			t.Errorf("a suspended node was pinged: %v", err)
		}
		time.Sleep(40 * time.Minute) // records are gone by then
		w.mu.Lock()
		if w.tap = nil; from > 0 {
			t.Errorf("a suspended node sent %d datagrams", from)
		}
		w.mu.Unlock()
		if got := client.find(t, k.Public().Target()); len(got) > 0 {
			t.Errorf("found at %v after 40 minutes", got)
		}

		server.Resume()
		time.Sleep(5 * time.Second)
		if got := client.find(t, k.Public().Target()); len(got) != announceRelays || server.Info().Suspended {
			t.Errorf("found at %v after it resumed", got)
		}
		if _, err := server.Ping(t.Context(), nil, nodes[0].addr(), 0); err != nil {
			t.Errorf("Ping: %v", err)
		}
	})
}

func TestSuspendWhileBootstrapping(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		n := w.node(false, func(c *Config) { c.Bootstrap = bootstrapList(nodes[:1]) })
		n.Suspend()
		k := key.Generate()
		a, err := n.Serve(k, echoServer{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if i := n.Info(); i.Bootstrapped || i.Nodes > 0 {
			t.Errorf("a suspended node looked around: %+v", i)
		}
		n.Resume()
		w.ready(n)
		if err := a.Announced(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWhileSuspended(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		n := w.peer(false, nodes[0])
		_, a := n.serve(t, echoServer{})
		n.Suspend()
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		n.Resume()
	})
}

func TestShutdownUnannounces(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		server, client := w.peer(false, nodes[0]), w.peer(false, nodes[0])
		a, _ := server.serve(t, echoServer{})
		b, _ := server.serve(t, echoServer{})
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for _, k := range []key.Private{a, b} {
			if got := client.find(t, k.Public().Target()); len(got) > 0 {
				t.Errorf("found at %v after shutdown", got)
			}
		}
		if _, err := server.Ping(t.Context(), nil, nodes[0].addr(), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("Ping after shutdown: %v", err)
		}
	})
}

func TestEvents(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		n := w.node(false, func(c *Config) { c.Bootstrap = bootstrapList(nodes[:1]) })
		var seen []Info
		ctx, cancel := context.WithCancel(t.Context())
		for i := range n.Events(ctx) {
			seen = append(seen, i)
			if i.Bootstrapped && i.NAT == FirewallConsistent {
				break
			}
		}
		if seen[0].Bootstrapped || seen[0].NAT != FirewallUnknown {
			t.Errorf("at first: %+v", seen[0])
		}
		// Each of the next nodes is told another port.
		for i, m := range nodes {
			w.rename(n.client, addrPortFrom(n.host, uint16(1000+i)))
			if _, err := n.Ping(t.Context(), nil, m.addr(), 0); err != nil {
				t.Fatal(err)
			}
		}
		if kind := n.Info().NAT; kind != FirewallRandom {
			t.Errorf("NAT is %v, want random", kind)
		}
		if kind := nodes[0].Info().NAT; kind != FirewallOpen {
			t.Errorf("NAT of a member is %v, want open", kind)
		}
		go func() {
			time.Sleep(time.Hour)
			cancel()
		}()
		for range n.Events(ctx) {
		}
		cancel()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		for range n.Events(t.Context()) {
			t.Error("an event of a closed node")
		}
	})
}

func TestAddNode(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		n := w.node(false, nil) // knows nobody
		w.ready(n)
		if err := n.AddNode(testAddr(9999)); err != nil { // nobody is there
			t.Error(err)
		}
		if err := n.AddNode(addrPort{}); err == nil {
			t.Error("an invalid address was added")
		}
		time.Sleep(10 * time.Second)
		if got := n.Nodes(); len(got) > 0 {
			t.Errorf("knows %v", got)
		}
		if err := n.AddNode(nodes[3].addr()); err != nil {
			t.Error(err)
		}
		q := n.StartFindNode(t.Context(), nodes[7].Info().ID)
		if err := q.Wait(); err != nil {
			t.Fatal(err)
		}
		if got := q.Closest(); len(got) != bucketSize || got[0] != (Contact{nodes[7].Info().ID, nodes[7].addr()}) {
			t.Errorf("closest %v, want %v first", got, nodes[7].addr())
		}
		known := n.Nodes()
		if len(known) != n.Info().Nodes || !slices.Contains(known, Contact{nodes[3].Info().ID, nodes[3].addr()}) {
			t.Errorf("knows %v", known)
		}
	})
}

func TestNewBootstrapper(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		host := testHost(5000)
		client, server := w.socket(addrPortFrom(host, 1), false), w.socket(addrPortFrom(host, 2), false)
		n, err := NewBootstrapper(server.public, Config{Client: client, Server: server})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		server.receive = func(s *testSocket, b []byte, from addrPort) { n.Receive(s, b, from) }
		if i := n.Info(); !i.Persistent || i.ID != NodeID(server.public) {
			t.Errorf("%+v", i)
		}
		w.ready(w.member(&testNode{server: server}))
		if _, err := NewBootstrapper(addrPort{}, Config{Client: client, Server: server}); err == nil {
			t.Error("a bootstrap node without an address")
		}
	})
}

func TestNodesAddedWhileSuspendedAreNotWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(3)
		n := w.peer(false, nodes[0])
		n.Suspend()
		for range maxChecks {
			if err := n.AddNode(nodes[1].addr()); err != nil {
				t.Fatal(err)
			}
		}
		n.Resume()
		time.Sleep(time.Minute)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.checks != 0 {
			t.Errorf("%d nodes count as being checked", n.checks)
		}
	})
}
