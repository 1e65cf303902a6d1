package session_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

// host returns a Host in a network of its own on loopback, which begins with the first.
func host(first *session.Host) *session.Host {
	cfg := session.Config{Identity: key.Generate(), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	cfg.DHT.Open = true
	cfg.DHT.Bootstrap = []string{}
	if first != nil {
		cfg.DHT.Bootstrap = []string{first.Addr().String()}
	} else {
		cfg.DHT.Mode = dht.Persistent
	}
	h, err := session.New(cfg)
	if err != nil {
		panic(err)
	}
	return h
}

// A server and a client in an isolated network: the client needs to know the server's key, and nothing else.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := host(nil)
	defer first.Close()

	server := host(first)
	defer server.Close()
	identity := key.Generate()
	listener, err := server.Listen(identity, session.ListenConfig{
		Admit: func(session.Caller) error { return nil }, // anybody
	})
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // an echo
				_, err := io.Copy(conn, conn)
				_ = errors.Join(err, conn.Close())
			}()
		}
	}()
	if err := listener.Announced(ctx); err != nil {
		panic(err)
	}

	client := host(first)
	defer client.Close()
	conn, err := client.Dial(ctx, identity.Public(), session.DialConfig{})
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		panic(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", b)
	// Output: hello
}

// Who is not admitted meets silence: it cannot tell a server that refuses it from one that is gone.
func ExampleHost_Listen() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := host(nil)
	defer first.Close()
	server := host(first)
	defer server.Close()
	friend := key.Generate()
	listener, err := server.Listen(key.Generate(), session.ListenConfig{
		Admit: func(c session.Caller) error {
			if c.Key != friend.Public() {
				return errors.New("a stranger")
			}
			return nil
		},
	})
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	if err := listener.Announced(ctx); err != nil {
		panic(err)
	}

	client := host(first)
	defer client.Close()
	target := key.Public(listener.Addr().(session.KeyAddr))
	conn, err := client.Dial(ctx, target, session.DialConfig{Identity: friend})
	fmt.Println("a friend:", conn != nil, err)
	stranger := host(first)
	defer stranger.Close()
	_, err = stranger.Dial(ctx, target, session.DialConfig{})
	fmt.Println("a stranger:", errors.Is(err, session.ErrNoAnswer))
	// Output:
	// a friend: true <nil>
	// a stranger: true
}
