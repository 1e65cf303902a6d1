package session_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
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

// Who knows no key can look for a topic. Whoever listens announces it under that, with the addresses at which it is reached best.
func ExampleListener_Addresses() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := host(nil)
	defer first.Close()
	topic := key.Hash([]byte("a game of chess"))

	server := host(first)
	defer server.Close()
	identity := key.Generate()
	listener, err := server.Listen(identity, session.ListenConfig{Admit: func(session.Caller) error { return nil }})
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	if err := listener.Announced(ctx); err != nil {
		panic(err)
	}
	if _, err := server.Node().Announce(ctx, topic, identity, listener.Addresses()); err != nil { // again every ten minutes
		panic(err)
	}

	client := host(first)
	defer client.Close()
	for reply, err := range client.Node().Lookup(ctx, topic) {
		if err != nil {
			panic(err)
		}
		for _, peer := range reply.Peers { // anyone may announce anything: who has the key shows in the handshake
			conn, err := client.Dial(ctx, peer.Key, session.DialConfig{Relays: peer.Relays})
			if err != nil {
				continue
			}
			fmt.Println("connected:", conn.RemoteKey() == identity.Public(), len(peer.Relays) > 0)
			_ = conn.Close()
		}
	}
	// Output: connected: true true
}

// Both ends of a pipe between two machines: what goes into one's standard input comes out of the other's standard output.
// Here both inputs are short texts.
func ExampleListener_Accept() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := host(nil)
	defer first.Close()

	// pipe is what both sides do with their stream, with os.Stdin and os.Stdout in a program.
	pipe := func(conn net.Conn, stdin io.Reader, stdout io.Writer) error {
		defer conn.Close()
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(conn, stdin)
			sent <- errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite()) // the other side reads io.EOF
		}()
		_, err := io.Copy(stdout, conn)
		return errors.Join(err, <-sent)
	}

	server := host(first)
	defer server.Close()
	keyPair := key.Generate()
	listener, err := server.Listen(keyPair, session.ListenConfig{Admit: func(session.Caller) error { return nil }})
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	served := make(chan string)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		var stdout strings.Builder
		if err := pipe(conn, strings.NewReader("from the server"), &stdout); err != nil {
			panic(err)
		}
		served <- stdout.String()
	}()
	if err := listener.Announced(ctx); err != nil {
		panic(err)
	}

	client := host(first)
	defer client.Close()
	conn, err := client.Dial(ctx, keyPair.Public(), session.DialConfig{})
	if err != nil {
		panic(err)
	}
	fmt.Println("the right server:", conn.RemoteKey() == keyPair.Public())
	var stdout strings.Builder
	if err := pipe(conn, strings.NewReader("from the client"), &stdout); err != nil {
		panic(err)
	}
	fmt.Println(<-served)
	fmt.Println(stdout.String())
	// Output:
	// the right server: true
	// from the client
	// from the server
}

// HTTP between two machines, with a public key for a host name.
func ExampleHost_Dial() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := host(nil)
	defer first.Close()

	server := host(first)
	defer server.Close()
	keyPair := key.Generate()
	listener, err := server.Listen(keyPair, session.ListenConfig{Admit: func(session.Caller) error { return nil }})
	if err != nil {
		panic(err)
	}
	web := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "you asked for %s", r.URL.Path)
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go web.Serve(listener) // ends with the listener
	defer web.Close()
	if err := listener.Announced(ctx); err != nil {
		panic(err)
	}

	client := host(first)
	defer client.Close()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			k, err := key.ParsePublic(name)
			if err != nil {
				return nil, err
			}
			return client.Dial(ctx, k, session.DialConfig{})
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+keyPair.Public().String()+"/hello", nil)
	if err != nil {
		panic(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%s, %s, %v\n", resp.Status, body, err)

	// Somebody who is not there.
	_, err = client.Dial(ctx, key.Generate().Public(), session.DialConfig{})
	dial, ok := errors.AsType[*session.DialError](err)
	fmt.Println(ok && dial.Stage == session.StageFind, errors.Is(err, session.ErrNotFound))
	// Output:
	// 200 OK, you asked for /hello, <nil>
	// true true
}
