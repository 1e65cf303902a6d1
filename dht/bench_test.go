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
