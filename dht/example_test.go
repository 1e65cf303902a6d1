package dht_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// socket is a UDP socket of the system.
type socket struct{ *net.UDPConn }

func (s socket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func (s socket) LocalAddr() netip.AddrPort { return s.UDPConn.LocalAddr().(*net.UDPAddr).AddrPort() }

// start returns a node on the loopback network, and what stops it.
func start(mode dht.Mode, bootstrap ...string) (n *dht.Node, stop func()) {
	listen := func() socket {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			panic(err)
		}
		return socket{c}
	}
	client, server := listen(), listen()
	if bootstrap == nil {
		bootstrap = []string{} // the first node of a network of its own
	}
	n, err := dht.New(dht.Config{Client: client, Server: server, Bootstrap: bootstrap, Mode: mode, Open: true})
	if err != nil {
		panic(err)
	}
	for _, s := range []socket{client, server} {
		go func() {
			b := make([]byte, 2048)
			for {
				size, from, err := s.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				n.Receive(s, b[:size], from)
			}
		}()
	}
	return n, func() { _, _, _ = n.Close(), client.Close(), server.Close() }
}

// greeter answers each handshake with a greeting.
type greeter struct{}

func (greeter) HandleHandshake(r *dht.HandshakeRequest) { _ = r.Reply(nil, []byte("hello")) }
func (greeter) HandleHolepunch(*dht.HolepunchRequest)   {}

// A server is announced at a member of the network, found there by its key, and sent a message through it.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	member, stop := start(dht.Persistent)
	defer stop()
	bootstrap, _ := member.RemoteAddr()

	server, stop := start(dht.Ephemeral, bootstrap.String())
	defer stop()
	identity := key.Generate()
	announcement, err := server.Serve(identity, greeter{})
	if err != nil {
		panic(err)
	}
	if err := announcement.Announced(ctx); err != nil {
		panic(err)
	}

	client, stop := start(dht.Ephemeral, bootstrap.String())
	defer stop()
	target := identity.Public().Target()
	for peer, err := range client.FindPeer(ctx, target, nil) {
		if err != nil {
			panic(err)
		}
		reply, err := client.Handshake(ctx, peer.From, nil, target, []byte("first message"))
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s, relayed: %v\n", reply.Noise, reply.Relayed)
	}
	// Output: hello, relayed: true
}
