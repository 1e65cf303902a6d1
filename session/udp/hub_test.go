package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// inbox keeps what a Handler is given.
type inbox struct {
	mu  sync.Mutex
	all []got
	new chan struct{} // something came
}

func newInbox() *inbox { return &inbox{new: make(chan struct{}, 1)} }

func (i *inbox) handle(_ *Conn, b *Batch) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := range b.Len() {
		data, from := b.Datagram(n)
		i.all = append(i.all, got{string(data), from, b.Local(n)})
	}
	select {
	case i.new <- struct{}{}:
	default:
	}
}

// take waits for n datagrams.
func (i *inbox) take(t *testing.T, n int) []got {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		i.mu.Lock()
		if all := i.all; len(all) >= n {
			i.all = nil
			i.mu.Unlock()
			return all
		}
		i.mu.Unlock()
		select {
		case <-i.new:
		case <-limit:
			t.Fatalf("%d datagrams did not come", n)
		}
	}
}

func newHub(t *testing.T) *Hub {
	t.Helper()
	g, err := NewHub()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func hubListen(t *testing.T, g *Hub, addr netip.AddrPort, cfg Config, h Handler) *Conn {
	t.Helper()
	cfg.Addr = addr
	c, err := g.Listen(cfg, h)
	if err != nil {
		if addr.Addr().Is6() {
			t.Skipf("no IPv6 on this host: %v", err)
		}
		t.Fatal(err)
	}
	return c
}

func TestHubHandsEachSocketItsDatagrams(t *testing.T) {
	for _, mode := range modes {
		for _, addr := range []netip.AddrPort{loopback4, loopback6} {
			t.Run(fmt.Sprintf("%v/%s", addr.Addr(), mode.name), func(t *testing.T) {
				g := newHub(t)
				c := listen(t, addr, mode.cfg)
				const sockets, each = 100, 20
				boxes, conns := make([]*inbox, sockets), make([]*Conn, sockets)
				for i := range boxes {
					boxes[i] = newInbox()
					conns[i] = hubListen(t, g, addr, mode.cfg, boxes[i].handle)
				}
				b := datagrams(times(each, 300)...)
				for i, z := range conns {
					b[0][0] = byte(i)
					if err := c.SendBatch(b, z.LocalAddr()); err != nil {
						t.Fatal(err)
					}
					check(t, fmt.Sprint("socket ", i), boxes[i].take(t, each), b, c.LocalAddr())
				}
			})
		}
	}
}

func TestHubSocketsSend(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			g := newHub(t)
			z := listen(t, loopback4, mode.cfg)
			c := hubListen(t, g, loopback4, mode.cfg, newInbox().handle)
			b := datagrams(times(20, 1000, 10)...)
			to := z.LocalAddr()
			for name, send := range map[string]func() error{
				"SendBatch":   func() error { return c.SendBatch(b, to) },
				"SendTo":      func() error { return c.SendTo(b, slices.Repeat([]netip.AddrPort{to}, len(b))) },
				"Source.Send": func() error { return errors.Join(sendEach(c.From(to.Addr()), b, to)...) },
				"Send":        func() error { return errors.Join(sendEach(c, b, to)...) },
			} {
				if err := send(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				check(t, name, receive(t, z, NewBatch(), len(b)), b, c.LocalAddr())
			}
			if err := c.Send(make([]byte, MaxDatagram+1), to); !errors.Is(err, ErrTooLarge) {
				t.Errorf("Send of too much: %v", err)
			}
			if err := c.Receive(NewSmallBatch()); err == nil {
				t.Error("Receive works beside the hub")
			}
		})
	}
}

func sendEach(c interface {
	Send(b []byte, to netip.AddrPort) error
}, b [][]byte, to netip.AddrPort,
) (errs []error) {
	for _, d := range b {
		errs = append(errs, c.Send(d, to))
	}
	return errs
}

// TestHubSocketsComeAndGo closes sockets whose places in the hub others take then.
func TestHubSocketsComeAndGo(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			g := newHub(t)
			c := listen(t, loopback4, mode.cfg)
			stay := newInbox()
			stays := hubListen(t, g, loopback4, mode.cfg, stay.handle)
			for round := range 20 {
				box := newInbox()
				z := hubListen(t, g, loopback4, mode.cfg, box.handle)
				addr := z.LocalAddr()
				for _, to := range []netip.AddrPort{addr, stays.LocalAddr()} {
					if err := c.Send([]byte{byte(round)}, to); err != nil {
						t.Fatal(err)
					}
				}
				want := [][]byte{{byte(round)}}
				check(t, "the new one", box.take(t, 1), want, c.LocalAddr())
				check(t, "the old one", stay.take(t, 1), want, c.LocalAddr())
				if _, err := g.Listen(Config{Addr: addr}, box.handle); !isA[*InUseError](err) {
					t.Errorf("Listen at a port in use: %v", err)
				}
				for range 2 {
					if err := z.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if err := z.Send([]byte("x"), stays.LocalAddr()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Send after Close: %v", err)
				}
				if err := z.SendTo(datagrams(1, 2), []netip.AddrPort{addr, addr}); !errors.Is(err, net.ErrClosed) {
					t.Errorf("SendTo after Close: %v", err)
				}
				hubListen(t, g, addr, mode.cfg, box.handle).Close() // the port is free
			}
		})
	}
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func TestHubClosed(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			g := newHub(t)
			z := hubListen(t, g, loopback4, mode.cfg, newInbox().handle)
			for range 2 {
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := z.Send([]byte("x"), z.LocalAddr()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send: %v", err)
			}
			if err := z.Close(); err != nil {
				t.Errorf("Close of the socket: %v", err)
			}
			cfg := mode.cfg
			cfg.Addr = loopback4
			if _, err := g.Listen(cfg, newInbox().handle); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Listen: %v", err)
			}
		})
	}
}

// TestHubUnderLoad has sockets that answer while others send from other goroutines, and close in the middle.
func TestHubUnderLoad(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			g := newHub(t)
			echo := func(c *Conn, b *Batch) {
				for i := range b.Len() {
					d, from := b.Datagram(i)
					_ = c.Send(d, from) // it may be closed
				}
			}
			var conns []*Conn
			for range 8 {
				conns = append(conns, hubListen(t, g, loopback4, mode.cfg, echo))
			}
			box := newInbox()
			asks := hubListen(t, g, loopback4, mode.cfg, box.handle)
			var wg sync.WaitGroup
			for _, c := range conns {
				wg.Go(func() {
					for i := range 50 {
						_ = asks.Send([]byte{byte(i)}, c.LocalAddr())
						_ = c.Send([]byte{byte(i)}, asks.LocalAddr())
					}
					_ = c.Close()
				})
			}
			wg.Wait()
			box.take(t, 8*50) // all that they sent themselves; some answers, too
		})
	}
}
