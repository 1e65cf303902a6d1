package udp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestOneSenderComesToOneSocket sends from many sockets to four at one port.
func TestOneSenderComesToOneSocket(t *testing.T) {
	const sockets, senders, each = 4, 96, 40
	for _, addr := range []netip.AddrPort{loopback4, loopback6} {
		for _, mode := range modes {
			t.Run(addr.Addr().String()+"/"+mode.name, func(t *testing.T) {
				first := listen(t, addr, mode.cfg)
				group := []*Conn{first}
				for range sockets - 1 {
					c, err := first.Beside()
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = c.Close() })
					if c.LocalAddr() != first.LocalAddr() || c.features.Load() != first.features.Load() {
						t.Errorf("another socket is at %v with %d, want %v with %d", c.LocalAddr(), c.features.Load(), first.LocalAddr(), first.features.Load())
					}
					group = append(group, c)
				}
				if c, err := Listen(Config{Addr: first.LocalAddr()}); err == nil {
					t.Errorf("the port can be bound again: %v", c.Close())
				} else if _, ok := errors.AsType[*InUseError](err); !ok {
					t.Errorf("binding the port again: %v, want an InUseError", err)
				}

				var mu sync.Mutex
				to := make(map[netip.AddrPort]int) // the receiver, by sender
				next := make(map[netip.AddrPort]uint32)
				used := make(map[int]bool)
				arrived := make(chan struct{}, senders*each)
				var receivers sync.WaitGroup
				for i, c := range group {
					receivers.Go(func() {
						b := NewBatch()
						for c.Receive(b) == nil { // until it is closed
							mu.Lock()
							for j := range b.Len() {
								data, from := b.Datagram(j)
								if was, known := to[from]; known && was != i {
									t.Errorf("what %v sends comes to receiver %d after %d", from, i, was)
								}
								if n := binary.BigEndian.Uint32(data); n != next[from] {
									t.Errorf("from %v: datagram %d, want %d", from, n, next[from])
								}
								to[from], used[i] = i, true
								next[from]++
								arrived <- struct{}{}
							}
							mu.Unlock()
						}
					})
				}
				late := time.After(time.Minute)
				for i := range senders {
					s := listen(t, addr, mode.cfg)
					var train [][]byte
					for i := range each {
						train = append(train, binary.BigEndian.AppendUint32(nil, uint32(i)))
					}
					if err := s.SendBatch(train, first.LocalAddr()); err != nil {
						t.Fatal(err)
					}
					if i%4 != 3 {
						continue
					}
					for range 4 * each { // so that no buffer overflows
						select {
						case <-arrived:
						case <-late:
							t.Fatal("datagrams are missing")
						}
					}
				}
				mu.Lock()
				if len(used) != sockets || len(to) != senders { // by chance once in 10^11
					t.Errorf("%d receivers got something from %d senders, want %d from %d", len(used), len(to), sockets, senders)
				}
				mu.Unlock()
				sink := listen(t, addr, mode.cfg)
				for i, c := range group {
					if err := c.Send([]byte("answer"), sink.LocalAddr()); err != nil {
						t.Error(err)
					}
					if got := receive(t, sink, NewBatch(), 1); got[0].from != first.LocalAddr() {
						t.Errorf("what socket %d sends comes from %v, want %v", i, got[0].from, first.LocalAddr())
					}
				}
				for _, c := range group {
					if err := c.Close(); err != nil {
						t.Error(err)
					}
				}
				receivers.Wait()
				again := listen(t, first.LocalAddr(), mode.cfg) // it is free
				if err := again.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestBesideFailsWhereItCannotBe(t *testing.T) {
	c := listen(t, loopback4, Config{})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if other, err := c.Beside(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Beside a closed socket: %v, %v, want net.ErrClosed", other, err)
	}
	g, err := NewHub()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if c, err = g.Listen(Config{Addr: loopback4}, func(*Conn, *Batch) {}); err != nil {
		t.Fatal(err)
	}
	if other, err := c.Beside(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Beside a socket in a Hub: %v, %v, want ErrUnsupported", other, err)
	}
}
