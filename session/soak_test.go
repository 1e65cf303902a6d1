package session

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// burden is what a Host has open and remembers.
type burden struct{ sockets, links, streams, handshakes, dials, relays, nearby int }

func (h *Host) burden() (b burden) {
	h.mu.Lock()
	b.sockets, b.relays = len(h.sinks), len(h.relayConns)+len(h.badRelays)
	for _, l := range h.listeners {
		l.slots.mu.Lock()
		b.handshakes += len(l.slots.byMsg)
		l.slots.mu.Unlock()
	}
	h.mu.Unlock()
	h.links.Range(func(any, any) bool { b.links++; return true })
	h.streams.Range(func(any, any) bool { b.streams++; return true })
	h.relayed.Range(func(any, any) bool { b.relays++; return true })
	b.dials = len(h.dials)
	h.sockets.mu.Lock()
	b.nearby = len(h.sockets.held) + len(h.sockets.nearby)
	h.sockets.mu.Unlock()
	return b
}

// TestADayOfTrouble lets peers that all list each other move, restart and lose their networks for a day, and wants them connected
// afterwards, with nothing left of it.
func TestADayOfTrouble(t *testing.T) {
	const count = 4
	troubles := 6 * 24 // one every ten minutes or so
	if testing.Short() || raceEnabled {
		troubles = 20
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		w.change = func(cfg *Config) { cfg.Logger, cfg.OnPeer = slog.New(slog.DiscardHandler), nil }
		names := [count]string{"a", "b", "c", "d"}
		ends, nats := make([]*end, count), make([]*lab.NAT, count)
		hosts := make([]*lab.Host, count)
		start := func(i int) {
			var others []key.Public
			for j, name := range names {
				if j != i {
					others = append(others, keyOf(name))
				}
			}
			ends[i] = w.end(hosts[i], others...)
			ends[i].listen(t)
			for _, p := range ends[i].Peers() {
				p.Connect()
			}
			go func(e *end) {
				for {
					select {
					case <-e.got:
					case <-e.ctx.Done():
						return
					}
				}
			}(ends[i])
		}
		for i, name := range names {
			nats[i] = w.net.NAT("nat-"+name, lab.Linux(netip.AddrFrom4([4]byte{192, 88, 99, byte(100 + i)})))
			hosts[i] = nats[i].Host(name, netip.AddrFrom4([4]byte{192, 168, byte(i), 10}))
			start(i)
		}
		total := func() (b burden) {
			for _, e := range ends {
				o := e.burden()
				b.sockets += o.sockets
				b.links += o.links
				b.streams += o.streams
				b.handshakes += o.handshakes
				b.dials += o.dials
				b.relays += o.relays
				b.nearby += o.nearby
			}
			return b
		}
		settle := func() {
			for _, e := range ends {
				for _, p := range e.Peers() {
					e.connected(t, p.Key())
				}
			}
			time.Sleep(10 * time.Minute)
			synctest.Wait()
		}
		settle()
		began, goroutines := total(), runtime.NumGoroutine()
		t.Logf("at first %+v, %d goroutines", began, goroutines)
		r := rand.New(rand.NewPCG(1, 1))
		next := byte(120)
		for range troubles {
			i, j := r.IntN(count), r.IntN(count)
			switch r.IntN(8) {
			case 0:
				nats[i].Rebind()
			case 1:
				nats[i].SetPublic(netip.AddrFrom4([4]byte{192, 88, 99, next}))
				if next++; next == 0 {
					next = 120
				}
			case 2:
				nats[i].Cut(true)
				time.Sleep(time.Duration(r.IntN(300)) * time.Second)
				nats[i].Cut(false)
			case 3:
				ends[i].Host.Close()
				time.Sleep(time.Duration(r.IntN(60)) * time.Second)
				start(i)
			case 4:
				ends[i].NetworkChanged()
			case 5:
				ends[i].Peer(keyOf(names[(i+1)%count])).Disconnect()
				ends[i].Peer(keyOf(names[(i+1)%count])).Connect()
			case 6:
				if i != j {
					ends[i].RemovePeer(keyOf(names[j]))
					time.Sleep(time.Duration(r.IntN(90)) * time.Second)
					p, err := ends[i].AddPeer(keyOf(names[j]))
					if err != nil {
						t.Fatal(err)
					}
					p.Connect()
				}
			}
			for _, p := range ends[j].Peers() {
				_ = p.Send([][]byte{packet("x")})
			}
			time.Sleep(time.Duration(r.IntN(1200)) * time.Second)
		}
		settle()
		const pairs = count * (count - 1) // at each end of a connection there is a link
		left := total()
		t.Logf("afterwards %+v, %d goroutines", left, runtime.NumGoroutine())
		if left.links > 3*pairs || left.sockets > 2*pairs || left.nearby > 3*pairs { // a link has two keys, or three
			t.Errorf("%+v is open, at first it was %+v", left, began)
		}
		if left.streams+left.handshakes+left.dials+left.relays > 0 {
			t.Errorf("%+v is under way, want nothing", left)
		}
		n := runtime.NumGoroutine()
		for range 60 { // some are at work just now, others the runtime's
			if n <= goroutines {
				break
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			n = min(n, runtime.NumGoroutine())
		}
		if n > goroutines {
			t.Errorf("%d goroutines, at first there were %d", n, goroutines)
		}
	})
}
