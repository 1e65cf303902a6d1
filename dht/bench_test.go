package dht

import (
	"net/netip"
	"testing"
	"time"

	"omegatun/dht/key"
)

// benchNode returns a member that knows a hundred others, on sockets that send nothing.
func benchNode(b *testing.B) *Node {
	b.Helper()
	local := netip.MustParseAddrPort("127.0.0.1:49737")
	n, err := New(Config{
		Client: &nullSocket{}, Server: &nullSocket{local}, Bootstrap: []string{},
		Mode: Persistent, Open: true, PublicAddr: local,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Close() })
	for i := range 100 {
		n.do(func(time.Time) { n.addKnown(netip.AddrPortFrom(testHost(i), 1)) })
	}
	return n
}

func benchReceive(b *testing.B, r request) {
	n := benchNode(b)
	from := netip.MustParseAddrPort("127.0.0.1:5")
	r.to = n.server.LocalAddr()
	wire := r.append(nil)
	b.ReportAllocs()
	b.SetBytes(int64(len(wire)))
	for b.Loop() {
		n.Receive(n.server, wire, from)
	}
}

func BenchmarkReceivePing(b *testing.B) { benchReceive(b, request{command: cmdPing}) }

func BenchmarkReceiveFindPeer(b *testing.B) {
	benchReceive(b, request{command: cmdFindPeer, target: some(key.Hash([]byte("target"))), value: make([]byte, 40)})
}

func BenchmarkReceiveFindNode(b *testing.B) {
	benchReceive(b, request{command: cmdFindNode, target: some(key.Hash([]byte("target"))), value: make([]byte, 40)})
}

func BenchmarkForwardHandshake(b *testing.B) {
	m := handshakeMessage{mode: fromServer, noise: make([]byte, 200), peer: netip.MustParseAddrPort("127.0.0.1:6")}
	benchReceive(b, request{command: cmdPeerHandshake, target: some(key.Target{}), value: m.encode()})
}

// benchNet is a network that delivers at once.
type benchNet map[netip.AddrPort]*benchSocket

// benchSocket is a socket of a benchNet.
type benchSocket struct {
	net  benchNet
	at   netip.AddrPort
	node *Node
}

func (s *benchSocket) LocalAddr() netip.AddrPort { return s.at }

func (s *benchSocket) Send(b []byte, to netip.AddrPort) error {
	if o := s.net[to]; o != nil && o.node != nil {
		o.node.Receive(o, b, s.at)
	}
	return nil
}

// benchHost returns a host whose requests are not limited.
func benchHost(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}) }

func (w benchNet) node(b *testing.B, i int, cfg Config) *Node {
	b.Helper()
	client := &benchSocket{net: w, at: netip.AddrPortFrom(benchHost(i), 2)}
	server := &benchSocket{net: w, at: netip.AddrPortFrom(benchHost(i), 1)}
	w[client.at], w[server.at] = client, server
	cfg.Client, cfg.Server = client, server
	n, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	client.node, server.node = n, n
	b.Cleanup(func() { _ = n.Close() })
	return n
}

// benchAsk returns a client of a network of a hundred members, and the address of one.
func benchAsk(b *testing.B) (*Node, netip.AddrPort) {
	w := benchNet{}
	var addrs []netip.AddrPort
	for i := range 100 {
		at := netip.AddrPortFrom(benchHost(i), 1)
		n := w.node(b, i, Config{Bootstrap: []string{}, Mode: Persistent, Open: true, PublicAddr: at})
		n.do(func(time.Time) {
			for _, a := range addrs {
				n.addKnown(a)
			}
		})
		for _, a := range addrs {
			o := w[a].node
			o.do(func(time.Time) { o.addKnown(at) })
		}
		addrs = append(addrs, at)
	}
	n := w.node(b, 100, Config{Bootstrap: []string{addrs[0].String()}, Mode: Ephemeral, Nodes: addrs[1:]})
	b.ReportAllocs()
	return n, addrs[0]
}

func BenchmarkAskPing(b *testing.B) {
	n, to := benchAsk(b)
	for b.Loop() {
		if _, err := n.Ping(b.Context(), nil, to, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAskFindNode(b *testing.B) {
	n, _ := benchAsk(b)
	requests := 0
	for i := 0; b.Loop(); i++ {
		q := n.StartFindNode(b.Context(), key.Hash([]byte{byte(i), byte(i >> 8)}))
		if err := q.Wait(); err != nil {
			b.Fatal(err)
		}
		requests += q.Stats().Requests
	}
	b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
}
