package punch

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// realSide is a host with a real node of the DHT, whose sockets also carry probes and echoes.
type realSide struct {
	t       *testing.T
	host    *lab.Host
	node    *dht.Node
	started sync.WaitGroup // until node is set
	readers sync.WaitGroup

	mu sync.Mutex
	handlers
}

// startReal runs a node on h.
func startReal(t *testing.T, h *lab.Host, mode dht.Mode, bootstrap []string) *realSide {
	t.Helper()
	d := &realSide{t: t, host: h}
	d.started.Add(1)
	client, err := d.listen(0)
	if err != nil {
		t.Fatal(err)
	}
	server, err := d.listen(49737)
	if err != nil {
		t.Fatal(err)
	}
	cfg := dht.Config{Client: client, Server: server, Bootstrap: bootstrap, Mode: mode}
	if mode == dht.Persistent {
		cfg.Open, cfg.PublicAddr = true, netip.AddrPortFrom(h.Addrs()[0], 49737)
	}
	d.node, err = dht.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.started.Done()
	t.Cleanup(func() { d.node.Close() })
	return d
}

func (d *realSide) openSocket() (Socket, error) { return d.listen(0) }

func (d *realSide) listen(port uint16) (*labSocket, error) {
	c, err := d.host.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		return nil, err
	}
	s := &labSocket{c}
	d.readers.Go(func() { d.read(s) })
	return s, nil
}

func (d *realSide) read(s *labSocket) {
	d.started.Wait()
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		d.mu.Lock()
		h := d.handlers
		d.mu.Unlock()
		switch {
		case n <= 1 && h.probe != nil:
			h.probe(s, from)
		case n > 1 && (b[0] == 0x03 || b[0] == 0x13):
			d.node.Receive(s, b[:n], from)
		case n > 1 && h.echo != nil:
			h.echo(s, string(b[:n]), from)
		}
	}
}

func (d *realSide) ready() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	if err := d.node.Ready(ctx); err != nil {
		d.t.Fatal(err)
	}
}

// realServer answers one handshake, and lets the client punch.
type realServer struct {
	*realSide
	announced *dht.Announcement
	attempts  chan *Server
	mu        sync.Mutex
	attempt   *Server
}

func (s *realServer) HandleHandshake(r *dht.HandshakeRequest) {
	go func() { // the survey begins with a call of the node
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.attempt == nil {
			a, err := NewServer(ServerConfig{
				Node: s.node, OpenSocket: s.openSocket, Secret: payloadKey, IsRelay: s.announced.IsRelay,
			})
			if err != nil {
				s.t.Error(err)
				return
			}
			s.attempt = a
			s.attempts <- a
			s.realSide.mu.Lock()
			s.handlers = handlers{probe: a.HandleProbe, echo: func(sock *labSocket, text string, from netip.AddrPort) {
				if text == "echo?" {
					sock.Send([]byte("echo!"), from)
				}
			}}
			s.realSide.mu.Unlock()
		}
		relays, err := json.Marshal(s.announced.Relays())
		if err != nil {
			s.t.Error(err)
		}
		if err := r.Reply(s.attempt.Socket(), relays); err != nil {
			s.t.Error(err)
		}
	}()
}

func (s *realServer) HandleHolepunch(r *dht.HolepunchRequest) {
	s.mu.Lock()
	a := s.attempt
	s.mu.Unlock()
	a.HandleHolepunch(r)
}

// TestThroughTheRealDHT punches with nodes of package dht: lookup, handshake, both rounds.
func TestThroughTheRealDHT(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1) // guessing ports is luck
	for _, tt := range []struct {
		server, client string
		noFastOpen     bool
		within         time.Duration
	}{
		{"linux", "linux", false, 300 * time.Millisecond},
		{"linux", "linux", true, 400 * time.Millisecond},
		{"eimrand", "linux/cgn", false, 300 * time.Millisecond},
		{"linux", "sym", false, 30 * time.Second},
		{"sym", "linux", false, 30 * time.Second},
	} {
		t.Run(fmt.Sprintf("%s : %s, fast open %v", tt.server, tt.client, !tt.noFastOpen), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := lab.New(delayed(1))
				var sides []*realSide
				t.Cleanup(func() {
					n.Close()
					for _, d := range sides {
						d.readers.Wait()
					}
				})
				bootstrap := []string{}
				for i := range 8 {
					h := n.Host(fmt.Sprint("node ", i), netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)}))
					sides = append(sides, startReal(t, h, dht.Persistent, bootstrap))
					bootstrap = []string{"192.88.99.10:49737"}
				}
				for _, d := range sides {
					d.ready()
				}
				s := startReal(t, place(t, n, tt.server, 2, "server"), dht.Ephemeral, bootstrap)
				c := startReal(t, place(t, n, tt.client, 1, "client"), dht.Ephemeral, bootstrap)
				sides = append(sides, s, c)
				s.ready()
				c.ready()

				server := &realServer{realSide: s, attempts: make(chan *Server, 1)}
				identity := key.Generate()
				server.mu.Lock()
				var err error
				server.announced, err = s.node.Serve(identity, server)
				server.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				if err := server.announced.Announced(t.Context()); err != nil {
					t.Fatal(err)
				}
				meetReal(t, c, server, identity.Public().Target(), tt.noFastOpen, tt.within)
			})
		})
	}
}

func meetReal(t *testing.T, c *realSide, server *realServer, target key.Target, noFastOpen bool, within time.Duration) {
	t.Helper()
	var hello dht.HandshakeReply
	for r, err := range c.node.FindPeer(t.Context(), target, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if hello, err = c.node.Handshake(t.Context(), r.From, nil, target, []byte("hello")); err == nil {
			break
		}
	}
	if !hello.Relayed {
		t.Fatalf("handshake: %+v", hello)
	}
	var relays []dht.RelayPair
	if err := json.Unmarshal(hello.Noise, &relays); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	client, err := NewClient(ClientConfig{
		Node: c.node, OpenSocket: c.openSocket, Secret: payloadKey, Target: target, Relay: hello.Relay,
		Server: hello.Server, Relays: relays, NoFastOpen: noFastOpen,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	attempt := <-server.attempts
	defer attempt.Close()
	echoed := make(chan struct{}, 10)
	c.mu.Lock()
	c.handlers = handlers{
		probe: client.HandleProbe,
		echo:  func(*labSocket, string, netip.AddrPort) { echoed <- struct{}{} },
	}
	c.mu.Unlock()
	for {
		select {
		case p, ok := <-client.Paths():
			if !ok {
				t.Fatal(client.Err())
			}
			p.Socket.Send([]byte("echo?"), p.Remote)
			continue
		case <-echoed:
		}
		if took := time.Since(start); took > within {
			t.Errorf("open after %v, want %v", took, within)
		}
		return
	}
}
