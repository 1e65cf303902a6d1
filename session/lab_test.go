package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// labNetwork makes a lab host a Network.
type labNetwork struct{ host *lab.Host }

type labSocket struct {
	*lab.Conn
	data [2048]byte
	n    int
	from netip.AddrPort
}

func (n labNetwork) Listen(at netip.AddrPort) (Socket, error) {
	c, err := n.host.Listen(at)
	if err != nil {
		return nil, err
	}
	return &labSocket{Conn: c}, nil
}

func (n labNetwork) Addrs() []netip.Addr { return n.host.Addrs() }

func (s *labSocket) LocalAddr() netip.AddrPort { return s.LocalAddrPort() }

func (s *labSocket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func (s *labSocket) SendTTL(b []byte, to netip.AddrPort, ttl int) error {
	return s.WriteTTL(b, to, ttl)
}

func (s *labSocket) SendBatch(b [][]byte, to netip.AddrPort) error {
	var errs []error
	for _, d := range b {
		errs = append(errs, s.Send(d, to))
	}
	return errors.Join(errs...)
}

func (s *labSocket) Receive() (Batch, error) {
	n, from, err := s.ReadFromUDPAddrPort(s.data[:])
	if err != nil {
		return nil, net.ErrClosed
	}
	s.n, s.from = n, from
	return s, nil
}

func (s *labSocket) Len() int { return 1 }

func (s *labSocket) Datagram(int) ([]byte, netip.AddrPort) { return s.data[:s.n], s.from }

// world is a lab with a DHT.
type world struct {
	t         *testing.T
	net       *lab.Network
	bootstrap []string
	relays    []key.Public  // that hosts started now meet others at
	change    func(*Config) // of hosts started now; nil: none
}

const worldNodes = 6

// newWorld starts a network of DHT nodes with public addresses.
func newWorld(t *testing.T, cfg lab.Config) *world {
	t.Helper()
	w := &world{t: t, net: lab.New(cfg), bootstrap: []string{}}
	for i := range worldNodes {
		addr := netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
		h := w.host(w.net.Host(fmt.Sprintf("dht%d", i), addr), Config{
			Port: DefaultPort,
			DHT: dht.Config{
				Mode: dht.Persistent, Open: true, PublicAddr: netip.AddrPortFrom(addr, DefaultPort),
			},
		})
		if i == 0 {
			w.bootstrap = []string{netip.AddrPortFrom(addr, h.Addr().Port()).String()}
		}
	}
	return w
}

// host starts a Host on a lab host, with an identity of its own unless cfg has one.
func (w *world) host(at *lab.Host, cfg Config) *Host {
	w.t.Helper()
	if cfg.Identity.IsZero() {
		cfg.Identity = key.FromSeed(key.Hash([]byte(at.Name())))
	}
	cfg.Network = labNetwork{at}
	cfg.Logger = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).
		With("host", at.Name())
	cfg.RelayThrough = w.relays
	if cfg.DHT.Bootstrap == nil {
		cfg.DHT.Bootstrap = w.bootstrap
	}
	if w.change != nil {
		w.change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		w.t.Fatalf("host %s: %v", at.Name(), err)
	}
	w.t.Cleanup(func() { h.Close() })
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		w.t.Fatalf("host %s is not ready: %v", at.Name(), err)
	}
	return h
}

// labGroup makes a lab socket a Group.
type labGroup struct {
	*lab.Conn
	group netip.AddrPort
}

func (n labNetwork) ListenGroup(group netip.AddrPort) (Group, error) {
	c, err := n.host.ListenGroup(group)
	if err != nil {
		return nil, err
	}
	return &labGroup{c, group}, nil
}

func (g *labGroup) Refresh() []netip.Addr {
	var list []netip.Addr
	for _, a := range g.Host().Addrs() {
		if a.Is4() == g.group.Addr().Is4() {
			list = append(list, a)
		}
	}
	return list
}

func (g *labGroup) SendFrom(b []byte, from netip.Addr) error { return g.WriteFrom(b, from) }

func (g *labGroup) Receive(b []byte) (int, netip.AddrPort, error) {
	n, from, err := g.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, netip.AddrPort{}, net.ErrClosed
	}
	return n, from, nil
}
