package session

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// serveEcho sends back what each stream brings.
func (e *end) serveEcho(t *testing.T) {
	l := e.listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// echo opens a stream from a to b, sends something there and back, and ends it. It returns how long dialling took.
func echo(t *testing.T, a, b *end) time.Duration {
	t.Helper()
	began := time.Now()
	c, err := a.Dial(t.Context(), b.public(), DialConfig{})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	took := time.Since(began)
	defer c.Close()
	want := "there and back"
	if _, err := c.Write([]byte(want)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v", got, err)
	}
	return took
}

// socketCount returns how many sockets of punched paths there are, and how many no link uses.
func (h *Host) socketCount() (held, idle int) {
	h.sockets.mu.Lock()
	defer h.sockets.mu.Unlock()
	return len(h.sockets.held), len(h.sockets.idle)
}

func TestNextStreamNeedsNoPunching(t *testing.T) {
	for _, row := range []struct {
		name  string
		pause func(w *world, natA *lab.NAT)
		took  time.Duration // at most, to dial again
	}{
		{"at once", func(*world, *lab.NAT) {}, 60 * time.Millisecond},
		{"while the idle socket is kept", func(*world, *lab.NAT) { time.Sleep(socketIdle - time.Second) }, 60 * time.Millisecond},
		{"without a DHT", func(w *world, _ *lab.NAT) {
			dht := make([]netip.Addr, worldNodes)
			for i := range dht {
				dht[i] = netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
			}
			w.net.Partition(dht, []netip.Addr{pubA, pubB})
		}, 60 * time.Millisecond},
		{"after the NAT has forgotten", func(_ *world, natA *lab.NAT) { natA.Rebind() }, 500 * time.Millisecond},
		{"after the socket is gone", func(*world, *lab.NAT) { time.Sleep(socketIdle + time.Second) }, 400 * time.Millisecond},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				ha, hb, natA, _ := w.homes()
				a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
				b.serveEcho(t)
				first := echo(t, a, b)
				row.pause(w, natA)
				again := echo(t, a, b)
				t.Logf("first %v, again %v", first, again)
				if again > row.took {
					t.Errorf("the second dial took %v, the first %v; want %v at most", again, first, row.took)
				}
				time.Sleep(2 * time.Minute)
				for _, e := range []*end{a, b} {
					if held, _ := e.socketCount(); held != 0 {
						t.Errorf("%s: %d sockets are still open", e.name, held)
					}
				}
			})
		})
	}
}

func TestStreamsShareASocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.serveEcho(t)
		first, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		second, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if held, idle := a.socketCount(); held != 1 || idle != 0 {
			t.Errorf("%d sockets, %d of them idle; want one for both streams", held, idle)
		}
		first.Close()
		time.Sleep(2 * socketIdle)
		if _, err := second.Write([]byte("still there")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(second, make([]byte, len("still there"))); err != nil {
			t.Errorf("the second stream ended with the first: %v", err)
		}
		second.Close()
	})
}

func TestTunnelIsRenewedWithoutTheDHT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		dht := make([]netip.Addr, worldNodes)
		for i := range dht {
			dht[i] = netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
		}
		w.net.Partition(dht, []netip.Addr{pubA, pubB})
		old := a.Peer(b.public()).cur.Load()
		old.stream.Reset(errors.New("of the test")) // keys can no longer be replaced
		time.Sleep(10 * time.Minute)
		exchange(t, a, b)
		if a.Peer(b.public()).cur.Load() == old {
			t.Error("the link was not replaced")
		}
	})
}

// closeCounter is a Socket that knows whether it is closed.
type closeCounter struct {
	Socket
	closed int
}

func (c *closeCounter) Close() error              { c.closed++; return nil }
func (c *closeCounter) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

func TestSockets(t *testing.T) {
	now := time.Now()
	fresh := func() *sockets {
		return &sockets{
			isMain: func(Socket) bool { return false }, log: slog.New(slog.DiscardHandler),
			held: make(map[Socket]int), nearby: make(map[key.Public]nearby),
		}
	}
	remote := netip.MustParseAddrPort("192.0.2.1:1000")

	t.Run("a socket without owner is closed in the end", func(t *testing.T) {
		all, s := fresh(), new(closeCounter)
		all.keep(s)
		if !all.hold(s) {
			t.Fatal("cannot be shared")
		}
		all.release(s, now)
		all.expire(now.Add(time.Hour))
		if s.closed != 0 {
			t.Error("closed although it has an owner")
		}
		all.release(s, now)
		if all.expire(now.Add(socketIdle - 1)); s.closed != 0 {
			t.Error("closed too early")
		}
		if all.expire(now.Add(socketIdle)); s.closed != 1 {
			t.Errorf("closed %d times, want once", s.closed)
		}
		if all.hold(s) {
			t.Error("a closed socket is shared")
		}
	})
	t.Run("a peer is near only while the socket lives", func(t *testing.T) {
		all, s := fresh(), new(closeCounter)
		all.reached(keyOf("b"), s, remote)
		if _, ok := all.near(keyOf("b")); ok {
			t.Error("over a socket that nobody owns")
		}
		all.keep(s)
		all.reached(keyOf("b"), s, remote)
		n, ok := all.near(keyOf("b"))
		if !ok || n.remote != remote {
			t.Fatalf("%v, %t", n, ok)
		}
		all.release(s, now)
		all.release(s, now)
		all.expire(now.Add(socketIdle))
		if _, ok := all.near(keyOf("b")); ok {
			t.Error("over a socket that is closed")
		}
	})
	t.Run("idle sockets are bounded", func(t *testing.T) {
		all, first := fresh(), new(closeCounter)
		all.keep(first)
		all.release(first, now)
		for range maxIdleSockets {
			s := new(closeCounter)
			all.keep(s)
			all.release(s, now)
		}
		if first.closed != 1 || len(all.idle) != maxIdleSockets {
			t.Errorf("%d are idle, the first was closed %d times", len(all.idle), first.closed)
		}
	})
	t.Run("after the end nothing is kept", func(t *testing.T) {
		all, owned, idle := fresh(), new(closeCounter), new(closeCounter)
		all.keep(owned)
		all.keep(idle)
		all.release(idle, now)
		if all.close(); idle.closed != 1 || owned.closed != 0 {
			t.Errorf("idle closed %d times, owned %d", idle.closed, owned.closed)
		}
		if all.release(owned, now); owned.closed != 1 {
			t.Error("the owned one is left open")
		}
	})
}
