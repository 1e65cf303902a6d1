package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// TestSeveralReceiversServeManyPeers connects peers over real sockets to a Host that receives in four goroutines, and answers what
// several flows of each send at once.
func TestSeveralReceiversServeManyPeers(t *testing.T) {
	const peers, flows, trains, train = 10, 3, 40, 5
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	open := func(cfg Config) *Host {
		t.Helper()
		cfg.Addr, cfg.DHT.Open, cfg.NoBeacons = netip.AddrFrom4([4]byte{127, 0, 0, 1}), true, true
		h, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return h
	}

	hub := open(Config{
		Identity: key.Generate(), Receivers: 4, DHT: dht.Config{Mode: dht.Persistent, Bootstrap: []string{}},
		Inbound: func(p *Peer, bufs [][]byte, offset int, _ []bool) {
			var back [][]byte
			for _, b := range bufs {
				back = append(back, b[offset:])
			}
			if err := p.Send(back); err != nil {
				t.Log(err) // it is asked again
			}
		},
	})
	if n := 1 + len(hub.server.(*osSocket).more); n != 4 {
		t.Fatalf("the Host receives in %d goroutines, want 4", n)
	}
	listener, err := hub.Listen(hub.cfg.Identity, ListenConfig{
		Tunnels: true, Admit: func(Caller) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { // an echo
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	if err := listener.Announced(ctx); err != nil {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	for i := range peers {
		var answers [flows]chan uint32 // numbers of packets
		for flow := range answers {
			answers[flow] = make(chan uint32, 1000)
		}
		h := open(Config{
			Identity: key.Generate(), Receivers: 1 + i%2, DHT: dht.Config{Bootstrap: []string{hub.Addr().String()}},
			Inbound: func(_ *Peer, bufs [][]byte, offset int, _ []bool) {
				for _, b := range bufs {
					select {
					case answers[b[offset+1]] <- binary.BigEndian.Uint32(b[offset+2:]):
					default:
						t.Error("more answers than questions")
					}
				}
			},
		})
		if _, err := hub.AddPeer(h.cfg.Identity.Public()); err != nil {
			t.Fatal(err)
		}
		p, err := h.AddPeer(hub.cfg.Identity.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(ctx); err != nil {
			t.Fatalf("peer %d: %v", i, err)
		}
		for flow := range byte(flows) {
			wg.Go(func() { // as the queues of a device do
				for first := uint32(0); first < trains*train; first += train {
					if !ask(ctx, p, flow, first, train, answers[flow]) {
						t.Errorf("peer %d, flow %d: no answer to packet %d", i, flow, first)
						return
					}
				}
			})
		}
		wg.Go(func() { // streams come in at the same sockets
			c, err := h.Dial(ctx, hub.cfg.Identity.Public(), DialConfig{})
			if err != nil {
				t.Errorf("peer %d: %v", i, err)
				return
			}
			text := bytes.Repeat(fmt.Append(nil, "hello from ", i), 10_000)
			go func() { _, _ = c.Write(text) }() // what is missing shows below
			got := make([]byte, len(text))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
				t.Errorf("peer %d: what came back over a stream is not the same, %v", i, err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// ask sends a train of a flow's packets, numbered from first on, again and again until all of them have been answered. It reports
// whether they were.
func ask(ctx context.Context, p *Peer, flow byte, first, count uint32, answers <-chan uint32) bool {
	var list [][]byte
	for i := range count {
		list = append(list, binary.BigEndian.AppendUint32([]byte{0x45, flow}, first+i))
	}
	missing := make(map[uint32]bool)
	for n := range count {
		missing[first+n] = true
	}
	for {
		_ = p.Send(list) // what is lost is sent again
		again := time.After(3 * time.Second)
	receive:
		for {
			select {
			case n := <-answers:
				if delete(missing, n); len(missing) == 0 {
					return true
				}
			case <-again:
				break receive
			case <-ctx.Done():
				return false
			}
		}
	}
}

// All main sockets may carry a tunnel or a stream, so all receive trains in one piece.
func TestMainSocketsReceiveTrains(t *testing.T) {
	h, err := New(Config{
		Identity: key.Generate(), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Addr6: netip.IPv6Loopback(), NoBeacons: true,
		DHT: dht.Config{Mode: dht.Persistent, Open: true, Bootstrap: []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for name, s := range map[string]Socket{"server": h.server, "client": h.client, "IPv6": h.six} {
		if s == nil {
			t.Logf("%s: there is none", name) // no IPv6 on this machine
		} else if !s.(*osSocket).bulk.Load() {
			t.Errorf("%s: one datagram at a time", name)
		}
	}
}
