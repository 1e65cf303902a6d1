package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"omegatun/dht/key"
	"omegatun/session/protomux"
	"omegatun/session/relay"
	"omegatun/session/secretstream"
	"omegatun/session/udp"
	"omegatun/session/udx"
)

// host is a machine with one socket on the loopback interface.
type host struct {
	t       *testing.T
	sock    *udp.Conn
	streams *udx.Mux
	key     key.Public
	relay   *relay.Server // nil: it is none
	wg      sync.WaitGroup
}

func newHost(t *testing.T, isRelay bool) *host {
	t.Helper()
	sock, err := udp.Listen(udp.Config{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, sock: sock, streams: udx.NewMux(udx.Config{}), key: key.Generate().Public()}
	if isRelay {
		h.relay = relay.NewServer(relay.Config{Reserve: h.reserve})
	}
	h.wg.Go(h.receive)
	t.Cleanup(func() {
		if h.relay != nil {
			h.relay.Close()
		}
		h.streams.Close()
		h.sock.Close()
		h.wg.Wait()
	})
	return h
}

func (h *host) reserve() (udx.ID, func(), error) {
	s, err := h.streams.NewStream(udx.StreamConfig{})
	if err != nil {
		return 0, nil, err
	}
	return s.ID(), func() { s.Reset(nil) }, nil
}

func (h *host) receive() {
	received := udp.NewBatch()
	var batch *relay.Batch
	if h.relay != nil {
		batch = h.relay.NewBatch()
	}
	for h.sock.Receive(received) == nil {
		for i := range received.Len() {
			b, from := received.Datagram(i)
			if batch == nil || !batch.Add(h.sock, b, from) {
				h.streams.Receive(h.sock, b, from)
			}
		}
		if batch != nil {
			batch.Flush()
		}
	}
}

// handshake is what the two ends of an encrypted stream have agreed upon.
type handshake struct {
	tx, rx [32]byte
	hash   [64]byte
}

func newHandshake() (h handshake) {
	rand.Read(h.tx[:])
	rand.Read(h.rx[:])
	rand.Read(h.hash[:])
	return h
}

func (h handshake) secure(raw secretstream.Raw, initiator bool, local, remote key.Public) *secretstream.Conn {
	tx, rx := h.tx, h.rx
	if !initiator {
		tx, rx = rx, tx
	}
	return secretstream.New(raw, secretstream.Config{
		Initiator: initiator, Tx: tx, Rx: rx, Hash: h.hash, Local: local, Remote: remote,
	})
}

// control connects h to a relay, which serves the connection, and returns the client.
func (h *host) control(r *host) (*relay.Client, *protomux.Mux) {
	h.t.Helper()
	mine, err1 := h.streams.NewStream(udx.StreamConfig{})
	theirs, err2 := r.streams.NewStream(udx.StreamConfig{})
	if err := errors.Join(err1, err2); err != nil {
		h.t.Fatal(err)
	}
	err := errors.Join(mine.Connect(h.sock, r.sock.LocalAddr(), theirs.ID()), theirs.Connect(r.sock, h.sock.LocalAddr(), mine.ID()))
	if err != nil {
		h.t.Fatal(err)
	}
	hs := newHandshake()
	r.wg.Go(func() {
		mux := protomux.New(hs.secure(theirs, false, r.key, h.key), protomux.Config{Protocols: []string{relay.Protocol}})
		defer mux.Close()
		path := func() (udx.Socket, netip.Addr) { return r.sock, h.sock.LocalAddr().Addr() }
		_ = r.relay.Serve(context.Background(), mux, relay.Control{Key: h.key, Path: path})
	})
	mux := protomux.New(hs.secure(mine, true, h.key, r.key), protomux.Config{Protocols: []string{relay.Protocol}})
	h.t.Cleanup(func() { mux.Close() })
	client, err := relay.NewClient(mux, h.key)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { client.Close() })
	return client, mux
}

func TestStreamsAndMessagesCrossARelay(t *testing.T) {
	r, a, b := newHost(t, true), newHost(t, false), newHost(t, false)
	clientA, muxA := a.control(r)
	clientB, _ := b.control(r)

	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	token := relay.NewToken()
	hs := newHandshake()
	messages := make(chan []byte, 10)
	connect := func(h, other *host, c *relay.Client, initiator bool) (*udx.Stream, *secretstream.Conn, error) {
		s, err := h.streams.NewStream(udx.StreamConfig{OnMessage: func(_ udx.Socket, _ netip.AddrPort, b []byte) { messages <- bytes.Clone(b) }})
		if err != nil {
			return nil, nil, err
		}
		id, err := c.Pair(ctx, initiator, token, s.ID())
		if err != nil {
			return nil, nil, err
		}
		if err := s.Connect(h.sock, r.sock.LocalAddr(), id); err != nil {
			return nil, nil, err
		}
		knocking, heard := context.WithCancel(ctx)
		defer heard()
		h.wg.Go(func() {
			if err := relay.Knock(knocking, s); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("Knock: %v", err)
			}
		})
		conn := hs.secure(s, initiator, h.key, other.key)
		return s, conn, conn.Begin()
	}
	type end struct {
		stream *udx.Stream
		conn   *secretstream.Conn
		err    error
	}
	var x, y end
	var wg sync.WaitGroup
	start := time.Now()
	wg.Go(func() { x.stream, x.conn, x.err = connect(a, b, clientA, true) })
	wg.Go(func() { y.stream, y.conn, y.err = connect(b, a, clientB, false) })
	wg.Wait()
	if err := errors.Join(x.err, y.err); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("the first packets took %v: they were lost", d)
	}
	defer x.conn.Close()
	defer y.conn.Close()

	data := make([]byte, 4<<20)
	rand.Read(data)
	var got []byte
	wg.Go(func() { got, y.err = io.ReadAll(y.conn) })
	if _, err := x.conn.Write(data); err != nil {
		t.Fatal(err)
	}
	x.conn.CloseWrite()
	wg.Wait()
	if y.err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, %v, want %d", len(got), y.err, len(data))
	}
	if err := y.stream.SendMessage([]byte("sealed datagram")); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-messages:
		if string(m) != "sealed datagram" {
			t.Errorf("message %q", m)
		}
	case <-ctx.Done():
		t.Error("the message did not arrive")
	}
	if st := r.relay.Stats(); st.Links != 1 || st.Bytes < 4<<20 {
		t.Errorf("relay: %+v", st)
	}

	muxA.Close() // takes the link with it
	select {
	case <-clientA.Done():
	case <-ctx.Done():
		t.Fatal("the client does not know that its connection is closed")
	}
	for r.relay.Stats().Links != 0 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the link outlives the control connection")
		}
	}
}
