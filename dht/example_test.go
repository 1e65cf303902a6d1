package dht_test

import (
	"context"
	"errors"
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

func listen() socket {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	return socket{c}
}

// receive hands what s receives to n until s is closed.
func receive(n *dht.Node, s socket) {
	b := make([]byte, 2048)
	for {
		size, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		n.Receive(s, b[:size], from)
	}
}

// start returns a node on the loopback network, and what stops it.
func start(mode dht.Mode, bootstrap ...string) (n *dht.Node, stop func()) {
	client, server := listen(), listen()
	if bootstrap == nil {
		bootstrap = []string{} // the first node of a network of its own
	}
	n, err := dht.New(dht.Config{Client: client, Server: server, Bootstrap: bootstrap, Mode: mode, Open: true})
	if err != nil {
		panic(err)
	}
	go receive(n, client)
	go receive(n, server)
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

// A network of one's own: a bootstrap node, and others that enter by it.
func ExampleNewBootstrapper() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, server := listen(), listen()
	first, err := dht.NewBootstrapper(server.LocalAddr(), dht.Config{Client: client, Server: server})
	if err != nil {
		panic(err)
	}
	go receive(first, client)
	go receive(first, server)
	defer func() { _, _, _ = first.Close(), client.Close(), server.Close() }()

	for range 2 {
		n, stop := start(dht.Persistent, server.LocalAddr().String())
		defer stop()
		if err := n.Ready(ctx); err != nil {
			panic(err)
		}
	}
	fmt.Println("members besides the first:", len(first.Nodes()))
	// Output: members besides the first: 2
}

// Whoever announces a topic is found by others who look for it.
func ExampleNode_Lookup() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	member, stop := start(dht.Persistent)
	defer stop()
	bootstrap, _ := member.RemoteAddr()
	n, stop := start(dht.Ephemeral, bootstrap.String())
	defer stop()

	topic := key.Hash([]byte("a topic"))
	identity := key.FromSeed([32]byte{1})
	stored, err := n.Announce(ctx, topic, identity, nil)
	if err != nil {
		panic(err)
	}
	fmt.Printf("stored on %d of %d\n", len(stored.Nodes), stored.Closest)

	for r, err := range n.Lookup(ctx, topic) {
		if err != nil {
			panic(err)
		}
		for _, peer := range r.Peers {
			fmt.Println("announced by", peer.Key)
		}
	}
	if _, err := n.Unannounce(ctx, topic, identity); err != nil {
		panic(err)
	}
	// Output:
	// stored on 1 of 1
	// announced by 35gbkb6hdzqzffcidowotn8o1ss51bnpdp37pfzg5hdf44b54u6y
}

// A value under its own hash cannot be changed; one under a key can, by the owner of the key.
func ExampleNode_PutMutable() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	member, stop := start(dht.Persistent)
	defer stop()
	bootstrap, _ := member.RemoteAddr()
	n, stop := start(dht.Ephemeral, bootstrap.String())
	defer stop()

	hash, _, err := n.PutImmutable(ctx, []byte("for good"))
	if err != nil {
		panic(err)
	}
	value, err := n.GetImmutable(ctx, hash)
	fmt.Printf("%s, %v\n", value, err)

	owner := key.Generate()
	for seq, text := range []string{"first", "second"} {
		if _, err := n.PutMutable(ctx, owner, uint64(seq), []byte(text)); err != nil {
			panic(err)
		}
	}
	latest, err := n.GetMutable(ctx, owner.Public(), 0)
	fmt.Printf("%d: %s, %v\n", latest.Seq, latest.Value, err)
	_, err = n.PutMutable(ctx, owner, 0, []byte("late"))
	fmt.Println(err)
	// Output:
	// for good, <nil>
	// 1: second, <nil>
	// dht: refused: a newer value is stored
}

// Before a phone sleeps its node is suspended; afterwards it goes on, and its announcements are renewed.
func ExampleNode_Suspend() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	member, stop := start(dht.Persistent)
	defer stop()
	bootstrap, _ := member.RemoteAddr()
	n, stop := start(dht.Ephemeral, bootstrap.String())
	defer stop()
	if err := n.Ready(ctx); err != nil {
		panic(err)
	}

	n.Suspend()
	_, err := n.Ping(ctx, nil, bootstrap, 0)
	fmt.Println("suspended:", n.Info().Suspended, errors.Is(err, dht.ErrSuspended))

	n.Resume()
	_, err = n.Ping(ctx, nil, bootstrap, 0)
	fmt.Println("resumed:", !n.Info().Suspended, err)
	// Output:
	// suspended: true true
	// resumed: true <nil>
}

// A program that wants to know how its node is doing follows its events.
func ExampleNode_Events() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	member, stop := start(dht.Persistent)
	defer stop()
	bootstrap, _ := member.RemoteAddr()
	n, stop := start(dht.Persistent, bootstrap.String())
	defer stop()
	for info := range n.Events(ctx) {
		if info.Bootstrapped && info.Persistent {
			addr, open := n.RemoteAddr()
			fmt.Println("a member:", info.ID == dht.NodeID(addr), open, info.NAT)
			break
		}
	}
	// Output: a member: true true open
}
