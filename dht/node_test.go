package dht

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

func TestMembersFindEachOther(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		start := time.Now()
		nodes := w.members(60)
		if took := time.Since(start); took > time.Second {
			t.Errorf("bootstrapping took %v", took)
		}
		for _, n := range nodes {
			i := n.Info()
			if !i.Persistent || i.Firewalled || i.ID != NodeID(n.addr()) {
				t.Errorf("%v: %+v, want a member under its own id", n.addr(), i)
			}
			if i.Nodes < 20 {
				t.Errorf("%v knows %d nodes", n.addr(), i.Nodes)
			}
			if a, ok := n.RemoteAddr(); !ok || a != n.addr() {
				t.Errorf("%v: remote address %v, %v", n.addr(), a, ok)
			}
		}
	})
}

func TestFirstNodeIsAMemberAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.member()
		if i := n.Info(); !i.Persistent || i.ID != NodeID(n.addr()) || !i.Bootstrapped {
			t.Errorf("first node: %+v", i)
		}
	})
}

func TestFirstNodeLearnsItsAddressFromOthers(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		first := w.node(true, func(c *Config) { c.Mode, c.Open = Persistent, true })
		if first.Info().Persistent {
			t.Fatal("a node that does not know its address is a member")
		}
		w.member(first)
		time.Sleep(5 * time.Minute)
		if i := first.Info(); !i.Persistent || i.ID != NodeID(first.addr()) {
			t.Errorf("after five minutes: %+v", i)
		}
	})
}

func TestAdaptiveNodeIsPromotedAfterTwentyMinutes(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		start := time.Now()
		n := w.node(true, func(c *Config) { c.Bootstrap = bootstrapList(nodes[:1]) })
		w.ready(n)
		time.Sleep(time.Second)
		if i := n.Info(); i.Persistent || i.Firewalled {
			t.Errorf("after a second: %+v, want an open client", i)
		}
		for !n.Info().Persistent && time.Since(start) < time.Hour {
			<-n.Changes()
		}
		if took := time.Since(start); took < 20*time.Minute || took > 20*time.Minute+10*time.Second {
			t.Errorf("promoted after %v, want 20 min", took)
		}
		if i := n.Info(); i.ID != NodeID(n.addr()) {
			t.Errorf("member under id %v, want that of %v", i.ID, n.addr())
		}
	})
}

func TestFirewalledNodeIsNotPromoted(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		for _, mode := range []Mode{Adaptive, Persistent} {
			n := w.node(false, func(c *Config) { c.Bootstrap, c.Mode = bootstrapList(nodes[:1]), mode })
			w.ready(n)
			time.Sleep(2 * time.Hour)
			i := n.Info()
			if i.Persistent || !i.Firewalled || !i.Online {
				t.Errorf("mode %d: %+v, want a firewalled client", mode, i)
			}
			if i.Host != n.host || i.Port != n.client.public.Port() {
				t.Errorf("mode %d: public address %v:%d, want that of the client socket", mode, i.Host, i.Port)
			}
			if a, ok := n.RemoteAddr(); ok {
				t.Errorf("mode %d: remote address %v", mode, a)
			}
			if n.DefaultSocket() != Socket(n.client) {
				t.Errorf("mode %d: sends from the server socket", mode)
			}
		}
	})
}

func TestWakeUpMakesAMemberAClientAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		n := w.node(true, func(c *Config) { c.Bootstrap, c.Open = bootstrapList(nodes[:1]), true })
		w.ready(n)
		time.Sleep(21 * time.Minute)
		if !n.Info().Persistent {
			t.Fatal("not promoted")
		}
		n.do(func(now time.Time) {
			n.lastTick = now.Add(-time.Minute) // as if no tick had come for that long
			n.onTick(now)
		})
		if i := n.Info(); i.Persistent || i.Firewalled {
			t.Errorf("after waking up: %+v, want an open client", i)
		}
		if f := nodes[0].Info(); !f.Persistent {
			t.Fatal("another node was demoted, too")
		}
		start := time.Now()
		for !n.Info().Persistent && time.Since(start) < 3*time.Hour {
			<-n.Changes()
		}
		if took := time.Since(start); took < time.Hour-time.Minute || took > time.Hour+time.Minute {
			t.Errorf("promoted again after %v, want an hour", took)
		}
	})
}

func TestMemberLeavesWhenItsAddressChanges(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(20)
		n := w.node(true, func(c *Config) { c.Bootstrap, c.Open = bootstrapList(nodes[:1]), true })
		w.ready(n)
		time.Sleep(21 * time.Minute)
		if !n.Info().Persistent {
			t.Fatal("not promoted")
		}
		moved := netip.AddrPortFrom(testHost(5000), n.addr().Port())
		w.rename(n.server, moved)
		n.NetworkChanged()
		time.Sleep(10 * time.Minute)
		if i := n.Info(); i.Persistent || i.Host != moved.Addr() {
			t.Errorf("after moving: %+v, want a client at %v", i, moved)
		}
		time.Sleep(30 * time.Minute)
		if i := n.Info(); !i.Persistent || i.ID != NodeID(moved) {
			t.Errorf("after moving and half an hour: %+v, want a member at %v", i, moved)
		}
	})
}

func TestKnownNodesStandInForBootstrapNodes(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(30)
		known := nodes[0].RecentNodes(100)
		if len(known) < 20 {
			t.Fatalf("%d recent nodes", len(known))
		}
		for _, b := range nodes[:5] {
			w.cut(b.host, true)
		}
		n := w.node(false, func(c *Config) {
			c.Mode, c.Bootstrap = Ephemeral, bootstrapList(nodes[:2])
			c.Nodes = known[:3]
		})
		start := time.Now()
		w.ready(n)
		if i := n.Info(); i.Nodes < 10 || !i.Online {
			t.Errorf("knows %d nodes after %v", i.Nodes, time.Since(start))
		}
		if took := time.Since(start); took > 5*time.Second { // a second for each round that meets dead nodes
			t.Errorf("took %v", took)
		}
	})
}

func TestRememberedNodesThatAreGoneHoldUpNothing(t *testing.T) {
	for _, row := range []struct {
		name string
		open bool
		gone int
		want time.Duration // until it is ready, at most
	}{
		{"behind a firewall", false, 9, 2 * time.Second},
		{"open", true, 9, 2 * time.Second},
		{"many", true, 60, 12 * time.Second}, // a second for ten of them: 6 s as a rule, 8 once in a hundred times, depending on the own id
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *testNet) {
				members := w.members(8)
				n := w.node(row.open, func(c *Config) {
					c.Mode, c.Bootstrap = Ephemeral, bootstrapList(members[:1])
					for i := range row.gone {
						c.Nodes = append(c.Nodes, netip.AddrPortFrom(testHost(1000+i), 49737))
					}
				})
				start := time.Now()
				w.ready(n)
				if took := time.Since(start); took > row.want {
					t.Errorf("ready after %v, want at most %v", took, row.want)
				}
				for i := range 5 {
					start = time.Now()
					for _, err := range n.FindNode(t.Context(), key.Hash([]byte{byte(i)})) {
						if err != nil {
							t.Fatal(err)
						}
					}
					if took := time.Since(start); row.gone < 20 && took > time.Second {
						t.Errorf("query %d took %v", i, took)
					}
				}
				if got := n.Info().Nodes; row.gone < 20 && got != len(members) {
					t.Errorf("knows %d nodes, want the %d members", got, len(members))
				}
			})
		})
	}
}

func TestNodeStartedOfflineComesOnline(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		w.cut(nodes[0].host, true)
		n := w.node(false, func(c *Config) { c.Mode, c.Bootstrap = Ephemeral, bootstrapList(nodes[:1]) })
		w.ready(n)
		k := key.Generate()
		a, err := n.Serve(k, echoServer{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if i := n.Info(); i.Nodes != 0 {
			t.Fatalf("%+v", i)
		}
		w.cut(nodes[0].host, false)
		time.Sleep(90 * time.Second)
		if i := n.Info(); i.Nodes < 9 || !i.Online {
			t.Errorf("after 90 s: %+v", i)
		}
		if got := len(a.Relays()); got != announceRelays {
			t.Errorf("announced at %d nodes after 90 s", got)
		}
	})
}

func TestBootstrapByName(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		for _, list := range [][]string{
			{"boot.example:49737"},
			{"20.99.99.99@boot.example:49737"}, // the address is out of date
			{"gone.example:49737", "boot.example:49737"},
			{nodes[0].host.String() + "@gone.example:49737"},
		} {
			var asked atomic.Int32
			n := w.node(false, func(c *Config) {
				c.Mode, c.Bootstrap = Ephemeral, list
				c.LookupHost = func(_ context.Context, host string) ([]netip.Addr, error) {
					asked.Add(1)
					if host == "boot.example" {
						return []netip.Addr{netip.MustParseAddr("2001:db8::1"), nodes[0].host}, nil
					}
					return nil, errors.New("no such host")
				}
			})
			w.ready(n)
			synctest.Wait()
			if i := n.Info(); i.Nodes != len(nodes) {
				t.Errorf("%v: knows %d nodes, asked %d times for names", list, i.Nodes, asked.Load())
			}
			if strings.Contains(list[0], "@gone") && asked.Load() > 0 {
				t.Errorf("%v: looked up a name that was not needed", list)
			}
		}
	})
}

// A network that wants a login first gives every name an address of its own.
func TestPublicNetworkStaysPublicWhateverNamesResolveTo(t *testing.T) {
	for _, row := range []struct {
		name, bootstrap string
		private         bool
	}{
		{"known at a public address", "20.99.99.99@boot.example:49737", false},
		{"known by its name only", "boot.example:49737", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *testNet) {
				var asked atomic.Int32
				n := w.node(false, func(c *Config) {
					c.Mode, c.Bootstrap = Ephemeral, []string{row.bootstrap}
					c.LookupHost = func(context.Context, string) ([]netip.Addr, error) {
						asked.Add(1)
						return []netip.Addr{netip.MustParseAddr("192.168.1.1")}, nil
					}
				})
				w.ready(n)
				if asked.Load() == 0 {
					t.Error("the name was not looked up")
				}
				if got := n.InScope(netip.MustParseAddrPort("192.168.1.7:80")); got != row.private {
					t.Errorf("addresses of local networks in scope: %v, want %v", got, row.private)
				}
			})
		})
	}
}

func TestBootstrapDoesNotWaitForSilentNameServers(t *testing.T) {
	for _, row := range []struct {
		name    string
		members int
		within  time.Duration
	}{
		{"enough nodes answer", 5, time.Second},
		{"few nodes answer", 2, resolveTimeout + time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *testNet) {
				nodes := w.members(row.members)
				began := time.Now()
				n := w.node(false, func(c *Config) {
					c.Mode, c.Bootstrap = Ephemeral, []string{"silent.example:1", nodes[0].addr().String()}
					c.LookupHost = func(ctx context.Context, _ string) ([]netip.Addr, error) {
						<-ctx.Done()
						return nil, ctx.Err()
					}
				})
				w.ready(n)
				if took := time.Since(began); took > row.within {
					t.Errorf("ready after %v, want at most %v", took, row.within)
				}
				time.Sleep(resolveTimeout)
				synctest.Wait()
				if got := n.Unresolved(); !slices.Equal(got, []string{"silent.example"}) {
					t.Errorf("Unresolved = %v", got)
				}
			})
		})
	}
}

func TestCloseWhileResolvingEnds(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.node(false, func(c *Config) {
			c.Bootstrap = []string{"boot.example:1"}
			c.LookupHost = func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		synctest.Wait()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := n.Ready(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Ready: %v, want ErrClosed", err)
		}
	})
}

func TestCloseEndsRequests(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(5)
		n := w.peer(false, nodes[0])
		w.cut(n.host, true)
		ended := make(chan error, 3)
		go func() {
			_, err := n.Ping(t.Context(), nil, nodes[1].addr(), 3)
			ended <- err
		}()
		go func() {
			for _, err := range n.FindPeer(t.Context(), key.Target{}, nil) {
				ended <- err
			}
		}()
		go func() {
			a, err := n.Serve(key.Generate(), echoServer{})
			if err != nil {
				t.Error(err)
			}
			ended <- a.Announced(t.Context())
		}()
		synctest.Wait()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			if err := <-ended; !errors.Is(err, ErrClosed) {
				t.Errorf("ended with %v, want ErrClosed", err)
			}
		}
		if err := n.AddNode(nodes[1].addr()); !errors.Is(err, ErrClosed) {
			t.Errorf("a closed node is told of another: %v", err)
		}
		if _, err := n.Serve(key.Generate(), echoServer{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: %v, want ErrClosed", err)
		}
		if _, err := n.Ping(t.Context(), nil, nodes[1].addr(), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("Ping: %v, want ErrClosed", err)
		}
		<-n.Changes()
	})
}

func TestPing(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(2)
		n := w.peer(false, nodes[0])
		p, err := n.Ping(t.Context(), nil, nodes[1].addr(), 0)
		if err != nil || p.From != nodes[1].addr() || p.To != n.client.public || p.RTT != 2*testDelay {
			t.Errorf("Ping: %+v, %v", p, err)
		}
		p, err = n.Ping(t.Context(), n.server, nodes[1].addr(), 0)
		if err != nil || p.To != n.server.public {
			t.Errorf("Ping from the server socket: %+v, %v", p, err)
		}
		for retries, want := range map[int]time.Duration{0: time.Second, 3: 4 * time.Second} {
			start := time.Now()
			_, err := n.Ping(t.Context(), nil, netip.MustParseAddrPort("20.200.0.1:1"), retries)
			if took := time.Since(start); !errors.Is(err, ErrTimeout) || took != want {
				t.Errorf("Ping of nobody, %d retries: %v after %v, want ErrTimeout after %v", retries, err, took, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := n.Ping(ctx, nil, netip.MustParseAddrPort("20.200.0.1:1"), 3); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ping: %v, want that ctx ended", err)
		}
		if i := n.Info(); i.Requests != 0 {
			t.Errorf("%d requests left", i.Requests)
		}
		for _, bad := range []string{"[2001:db8::1]:5", "1.2.3.4:0", "224.0.0.1:5", "0.0.0.0:1"} {
			if _, err := n.Ping(t.Context(), nil, netip.MustParseAddrPort(bad), 3); err == nil || errors.Is(err, ErrTimeout) {
				t.Errorf("Ping of %s: %v", bad, err)
			}
		}
	})
}

func TestPingsAtOnceGetTheirOwnAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		const many = 200 // more than may be on the way
		nodes := w.members(10)
		n := w.peer(false, nodes[0])
		gone := netip.MustParseAddrPort("20.200.0.1:1")
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				for round := range 4 {
					to := nodes[(i+round)%len(nodes)].addr()
					wait := time.Hour
					switch (i + round) % 5 {
					case 0:
						to = gone
					case 1:
						wait = time.Duration(i) * testDelay / 50 // some are answered, some wait for others still
					}
					ctx, cancel := context.WithTimeout(t.Context(), wait)
					p, err := n.Ping(ctx, nil, to, 1)
					cancel()
					switch {
					case err == nil && to != gone:
						if p.From != to || p.To != n.client.public || p.RTT < 2*testDelay {
							t.Errorf("ping of %v: %+v", to, p)
						}
					case errors.Is(err, ErrTimeout) && to == gone:
					case errors.Is(err, context.DeadlineExceeded) && wait < time.Hour:
					default:
						t.Errorf("ping of %v, %v: %+v, %v", to, wait, p, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestDeadNodesAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		dead := nodes[9]
		w.cut(dead.host, true)
		id := NodeID(dead.addr())
		// Looking for it asks it, and then tells the others that it is down.
		n := w.peer(false, nodes[0])
		if got := n.find(t, id); len(got) != 0 {
			t.Errorf("found at %v", got)
		}
		time.Sleep(10 * time.Second)
		for _, m := range append(nodes[:9:9], n) {
			m.mu.Lock()
			known := m.table.get(id) != nil
			m.mu.Unlock()
			if known {
				t.Errorf("%v still knows the dead node", m.addr())
			}
		}
	})
}

func TestOldNodesArePinged(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(10)
		w.cut(nodes[9].host, true)
		time.Sleep(10 * time.Minute) // nobody asks for anything
		for _, n := range nodes[:9] {
			if i := n.Info(); i.Nodes != 8 || !i.Online {
				t.Errorf("%v: %+v, want 8 nodes", n.addr(), i)
			}
		}
		if i := nodes[9].Info(); i.Nodes != 0 {
			t.Errorf("the dead node still knows %d nodes", i.Nodes)
		}
	})
}

func TestLargeNetworkFillsRowsAndSwapsDeadNodes(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(80)
		first := nodes[0]
		first.mu.Lock()
		row := slices.Clone(first.table.row(0))
		first.mu.Unlock()
		if len(row) != bucketSize {
			t.Fatalf("row 0 has %d nodes", len(row))
		}
		// Half of the row dies, and new nodes come.
		for _, m := range row[:10] {
			w.cut(m.addr().Addr(), true)
		}
		time.Sleep(2 * time.Minute)
		for range 30 {
			w.ready(w.member(first))
		}
		time.Sleep(10 * time.Minute)
		first.mu.Lock()
		defer first.mu.Unlock()
		if got := len(first.table.row(0)); got != bucketSize {
			t.Errorf("row 0 has %d nodes, want %d", got, bucketSize)
		}
		for _, m := range row[:10] {
			if first.table.get(m.id) == m {
				t.Errorf("dead node %v is still there", m.addr())
			}
		}
	})
}

func TestAnswersOfOthersDoNotCount(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(3)
		n := w.peer(false, nodes[0])
		silent := w.socket(netip.MustParseAddrPort("20.50.0.1:1"), false)
		liar := w.socket(netip.MustParseAddrPort("20.50.0.2:1"), false)
		n.client.known[liar.public.Addr()] = true
		silent.receive = func(_ *testSocket, b []byte, from netip.AddrPort) {
			q, err := parseRequest(b)
			if err != nil {
				t.Error(err)
			}
			r := response{tid: q.tid, to: netip.MustParseAddrPort("6.6.6.6:6")}
			_ = liar.Send(r.append(nil), from)
		}
		if p, err := n.Ping(t.Context(), nil, silent.public, 3); !errors.Is(err, ErrTimeout) {
			t.Errorf("Ping: %+v, %v, want ErrTimeout", p, err)
		}
	})
}

func TestCongestionQueuesRequests(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		nodes := w.members(2)
		n := w.peer(false, nodes[0])
		const count = 1000
		ended := make(chan error, count)
		start := time.Now()
		for range count {
			go func() {
				_, err := n.Ping(t.Context(), nil, nodes[1].addr(), 0)
				ended <- err
			}()
		}
		for range count {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 10*testDelay || took > time.Second {
			t.Errorf("%d pings took %v", count, took)
		}
	})
}

func TestNewRefusesBadConfigs(t *testing.T) {
	s, other := &nullSocket{}, &nullSocket{netip.MustParseAddrPort("1.1.1.1:1")}
	for name, cfg := range map[string]Config{
		"no client":      {Server: s},
		"no server":      {Client: s},
		"one socket":     {Client: s, Server: s},
		"bad bootstrap":  {Client: s, Server: other, Bootstrap: []string{"x"}},
		"public address": {Client: s, Server: other, Bootstrap: []string{}, PublicAddr: netip.MustParseAddrPort("[::1]:1")},
	} {
		if n, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
			_ = n.Close()
		}
	}
}
