package session_test

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"omegatun/dht/key"
	"omegatun/session"
	"omegatun/session/secretstream"
)

// The connections are what programs expect of a net.Conn: deadlines, concurrent use, and ends.
func TestConnsAreNetConns(t *testing.T) {
	first := host(nil)
	t.Cleanup(func() { first.Close() })
	server, client := host(first), host(first)
	t.Cleanup(func() { server.Close() })
	t.Cleanup(func() { client.Close() })
	keyPair := key.Generate()
	l, err := server.Listen(keyPair, session.ListenConfig{Admit: func(session.Caller) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := l.Announced(ctx); err != nil {
		t.Fatal(err)
	}
	pipe := func() (c1, c2 net.Conn, stop func(), err error) {
		if c1, err = client.Dial(t.Context(), keyPair.Public(), session.DialConfig{}); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = l.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	}
	nettest.TestConn(t, pipe)

	a, b, stop, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, s := a.(*secretstream.Conn), b.(*secretstream.Conn)
	if c.HandshakeHash() != s.HandshakeHash() || c.HandshakeHash() == [64]byte{} {
		t.Error("the two sides do not have the same handshake hash")
	}
	if c.RemoteKey() != keyPair.Public() || s.LocalKey() != keyPair.Public() || s.RemoteKey() != c.LocalKey() {
		t.Errorf("keys: client %v → %v, server %v ← %v", c.LocalKey(), c.RemoteKey(), s.LocalKey(), s.RemoteKey())
	}
}
