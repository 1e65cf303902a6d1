package dht

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

// testNet is a network in memory. Datagrams take a millisecond. It works inside synctest bubbles.
type testNet struct {
	t testing.TB

	mu      sync.Mutex
	sockets map[netip.AddrPort]*testSocket // by public address
	down    map[netip.Addr]bool            // hosts that are cut off
	next    int
	sent    int
	tap     func(from, to netip.AddrPort, b []byte) // sees every datagram; may be nil
}

func newTestNet(t testing.TB) *testNet {
	return &testNet{t: t, sockets: make(map[netip.AddrPort]*testSocket), down: make(map[netip.Addr]bool)}
}

const testDelay = time.Millisecond

// testSocket is a socket of a testNet. Its public address may differ from its local one. A filtered one lets in
// only what comes from hosts that it sent to.
type testSocket struct {
	net      *testNet
	local    netip.AddrPort
	public   netip.AddrPort
	filtered bool
	known    map[netip.Addr]bool
	receive  func(s *testSocket, b []byte, from netip.AddrPort)
}

func (s *testSocket) LocalAddr() netip.AddrPort { return s.local }

func (s *testSocket) Send(b []byte, to netip.AddrPort) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.known[to.Addr()] = true
	s.net.sent++
	from := s.public
	if s.net.tap != nil {
		s.net.tap(from, to, b)
	}
	if s.net.down[from.Addr()] {
		return errors.New("network is down")
	}
	b = append([]byte(nil), b...)
	time.AfterFunc(testDelay, func() {
		s.net.mu.Lock()
		dst := s.net.sockets[to]
		ok := dst != nil && !s.net.down[to.Addr()] && !s.net.down[from.Addr()] &&
			(!dst.filtered || dst.known[from.Addr()])
		s.net.mu.Unlock()
		if ok {
			dst.receive(dst, b, from)
		}
	})
	return nil
}

// socket returns a new socket at a public address.
func (w *testNet) socket(public netip.AddrPort, filtered bool) *testSocket {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sockets[public] != nil {
		w.t.Fatalf("address %v is taken", public)
	}
	local := netip.AddrPortFrom(netip.IPv4Unspecified(), public.Port())
	s := &testSocket{net: w, local: local, public: public, filtered: filtered, known: make(map[netip.Addr]bool)}
	s.receive = func(*testSocket, []byte, netip.AddrPort) {}
	w.sockets[public] = s
	return s
}

// rename moves s to another public address: its NAT mapping changed.
func (w *testNet) rename(s *testSocket, public netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sockets, s.public)
	s.public = public
	w.sockets[public] = s
}

// cut cuts the host off, or connects it again.
func (w *testNet) cut(host netip.Addr, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[host] = down
}

// testHost returns the n-th host's address, in a network of its own.
func testHost(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{20 + byte(n>>16), byte(n >> 8), byte(n), 1})
}

// testNode is a node and its place in a testNet.
type testNode struct {
	*Node
	host           netip.Addr
	client, server *testSocket
}

func (n *testNode) addr() netip.AddrPort { return n.server.public }

// node adds a node on a host of its own. Its server socket has port 49737, and lets everything in if open.
func (w *testNet) node(open bool, adjust func(*Config)) *testNode {
	w.t.Helper()
	w.mu.Lock()
	w.next++
	host := testHost(w.next)
	w.mu.Unlock()
	n := &testNode{
		host:   host,
		client: w.socket(netip.AddrPortFrom(host, 50000), !open),
		server: w.socket(netip.AddrPortFrom(host, 49737), !open),
	}
	cfg := Config{Client: n.client, Server: n.server, Bootstrap: []string{}, Logger: testLogger()}
	if adjust != nil {
		adjust(&cfg)
	}
	var ready sync.WaitGroup
	ready.Add(1)
	receive := func(s *testSocket, b []byte, from netip.AddrPort) {
		ready.Wait()
		n.Receive(s, b, from)
	}
	n.client.receive, n.server.receive = receive, receive
	node, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Node = node
	ready.Done()
	w.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return n
}

// member adds a node that is a member of the network at once.
func (w *testNet) member(bootstrap ...*testNode) *testNode {
	w.t.Helper()
	return w.node(true, func(c *Config) {
		c.Mode, c.Open = Persistent, true
		c.PublicAddr = c.Server.(*testSocket).public
		c.Bootstrap = bootstrapList(bootstrap)
	})
}

// members makes a network of count members, the first of which is the bootstrap node.
func (w *testNet) members(count int) []*testNode {
	w.t.Helper()
	nodes := []*testNode{w.member()}
	for len(nodes) < count {
		nodes = append(nodes, w.member(nodes[0]))
	}
	for _, n := range nodes {
		w.ready(n)
	}
	return nodes
}

// peer adds a node that stays a client.
func (w *testNet) peer(open bool, bootstrap ...*testNode) *testNode {
	w.t.Helper()
	n := w.node(open, func(c *Config) {
		c.Mode = Ephemeral
		c.Bootstrap = bootstrapList(bootstrap)
	})
	w.ready(n)
	return n
}

func (w *testNet) ready(n *testNode) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := n.Ready(ctx); err != nil {
		w.t.Fatalf("node %v: %v", n.addr(), err)
	}
}

func bootstrapList(nodes []*testNode) []string {
	list := []string{}
	for _, n := range nodes {
		list = append(list, n.addr().String())
	}
	return list
}

// testLogger logs to stderr if DHT_TEST_LOG is set.
func testLogger() *slog.Logger {
	w := io.Discard
	if os.Getenv("DHT_TEST_LOG") != "" {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// echoServer answers handshakes and hole punches with what it got and where from.
type echoServer struct{ socket Socket }

func (s echoServer) HandleHandshake(r *HandshakeRequest) {
	_ = r.Reply(s.socket, fmt.Appendf(nil, "%s from %v direct %v", r.Noise, r.Client, r.Direct))
}

func (s echoServer) HandleHolepunch(r *HolepunchRequest) {
	_ = r.Reply(s.socket, fmt.Appendf(nil, "%d %s from %v", r.ID, r.Payload, r.Peer))
}

// serve announces a new key at n and waits until it is.
func (n *testNode) serve(t testing.TB, s Server) (key.Private, *Announcement) {
	t.Helper()
	k := key.Generate()
	a, err := n.Serve(k, s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Announced(ctx); err != nil {
		t.Fatalf("announce: %v", err)
	}
	return k, a
}

// find returns the nodes that know the peer.
func (n *testNode) find(t testing.TB, target key.Target) (nodes []netip.AddrPort) {
	t.Helper()
	for r, err := range n.FindPeer(t.Context(), target, nil) {
		if err != nil {
			t.Fatalf("find: %v", err)
		}
		nodes = append(nodes, r.From)
	}
	return nodes
}

// bubble runs f in a bubble with a network.
func bubble(t *testing.T, f func(t *testing.T, w *testNet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newTestNet(t)) })
}
