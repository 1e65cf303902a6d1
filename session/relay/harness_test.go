package relay

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"omegatun/dht/key"
	"omegatun/session/protomux"
	"omegatun/session/udx"
)

// pipe is one direction of an in-memory stream of messages.
type pipe struct {
	messages chan []byte
	ended    chan struct{}
	once     sync.Once
}

// conn is one end of a stream, a protomux.Conn.
type conn struct {
	in, out *pipe
	closed  chan struct{}
	once    sync.Once
}

// stream returns the ends of a stream that holds depth messages each way.
func stream(depth int) (a, b *conn) {
	p := &pipe{messages: make(chan []byte, depth), ended: make(chan struct{})}
	q := &pipe{messages: make(chan []byte, depth), ended: make(chan struct{})}
	return &conn{in: p, out: q, closed: make(chan struct{})}, &conn{in: q, out: p, closed: make(chan struct{})}
}

func (c *conn) ReadMessage() ([]byte, error) {
	select {
	case b := <-c.in.messages:
		return b, nil
	default:
	}
	select {
	case <-c.closed:
		return nil, net.ErrClosed
	case b := <-c.in.messages:
		return b, nil
	case <-c.in.ended:
		return nil, io.EOF
	}
}

func (c *conn) WriteMessage(b []byte) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	case c.out.messages <- bytes.Clone(b):
		return nil
	}
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.out.once.Do(func() { close(c.out.ended) })
	return nil
}

// sink is a Socket that keeps what is sent.
type sink struct {
	mu    sync.Mutex
	sent  []sent
	calls int
}

type sent struct {
	to netip.AddrPort
	b  []byte
}

func (s sent) String() string { return fmt.Sprintf("%x to %v", s.b, s.to) }

func (s *sink) Send(b []byte, to netip.AddrPort) error { return s.SendBatch([][]byte{b}, to) }

func (s *sink) SendBatch(b [][]byte, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	for i, d := range b {
		if i > 0 && i < len(b)-1 && len(d) != len(b[0]) || len(d) > len(b[0]) {
			panic(fmt.Sprintf("datagram %d of %d has %d bytes, the first %d", i, len(b), len(d), len(b[0])))
		}
		s.sent = append(s.sent, sent{to, bytes.Clone(d)})
	}
	return nil
}

// take returns what was sent since the last call.
func (s *sink) take() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sent
	s.sent, s.calls = nil, 0
	return out
}

// plain is a Socket that cannot send batches.
type plain struct{ s sink }

func (p *plain) Send(b []byte, to netip.AddrPort) error { return p.s.Send(b, to) }

// ids is a Config.Reserve that counts, and knows what was given back.
type ids struct {
	mu   sync.Mutex
	next udx.ID
	held map[udx.ID]bool
	err  error
}

func (i *ids) reserve() (udx.ID, func(), error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return 0, nil, i.err
	}
	id := i.next
	i.next++
	i.held[id] = true
	return id, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if !i.held[id] {
			panic("a stream id was given back twice")
		}
		delete(i.held, id)
	}, nil
}

func (i *ids) wantHeld(t *testing.T, n int, when string) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.held) != n {
		t.Errorf("%d stream ids are held %s, want %d", len(i.held), when, n)
	}
}

// testRelay is a Server and what it runs on.
type testRelay struct {
	*Server
	t    *testing.T
	sock *sink
	ids  *ids
}

func newTestRelay(t *testing.T, cfg Config) *testRelay {
	r := &testRelay{t: t, sock: &sink{}, ids: &ids{next: 1000, held: make(map[udx.ID]bool)}}
	cfg.Reserve = r.ids.reserve
	r.Server = NewServer(cfg)
	t.Cleanup(func() { r.Server.Close() })
	return r
}

// served is a control connection, at its client's end.
type served struct {
	*Client
	mux  *protomux.Mux
	conn *conn
	done chan error // what Serve has returned
}

func keyOf(n byte) (k key.Public) {
	for i := range k {
		k[i] = n
	}
	return k
}

// serve starts to serve a control connection of a key, and returns its client's end. Packets come from addr.
func (r *testRelay) serve(k key.Public, addr netip.Addr) (end *conn, done chan error) {
	mine, theirs := stream(16)
	done = make(chan error, 1)
	go func() {
		mux := protomux.New(mine, protomux.Config{Protocols: []string{Protocol}})
		done <- r.Serve(r.t.Context(), mux, Control{Key: k, Path: func() (udx.Socket, netip.Addr) { return r.sock, addr }})
		mux.Close()
	}()
	return theirs, done
}

func (r *testRelay) client(n byte) *served {
	r.t.Helper()
	end, done := r.serve(keyOf(n), netip.AddrFrom4([4]byte{192, 0, 2, n}))
	mux := protomux.New(end, protomux.Config{Protocols: []string{Protocol}})
	c, err := NewClient(mux, keyOf(n))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		c.Close()
		mux.Close()
	})
	return &served{c, mux, end, done}
}

// paired is two clients that were paired: a, the initiator, sends to idA, b to idB.
type paired struct {
	a, b     *served
	idA, idB udx.ID
	token    Token
}

// pair pairs two clients, whose streams are 501 and 502.
func (r *testRelay) pair(a, b *served) paired {
	r.t.Helper()
	p := paired{a: a, b: b, token: NewToken()}
	var errA, errB error
	var wg sync.WaitGroup
	wg.Go(func() { p.idA, errA = a.Pair(r.t.Context(), true, p.token, 501) })
	wg.Go(func() { p.idB, errB = b.Pair(r.t.Context(), false, p.token, 502) })
	wg.Wait()
	if errA != nil || errB != nil {
		r.t.Fatalf("Pair: %v, %v", errA, errB)
	}
	return p
}

// packet is a UDX packet for a stream.
func packet(id udx.ID, flags udx.Flags, payload string) []byte {
	return append(udx.Header{ID: id, Flags: flags}.Append(nil), payload...)
}

func addrOf(n byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), port)
}

// forward gives the relay a packet, and checks what leaves it.
func (r *testRelay) forward(from netip.AddrPort, b []byte, want ...sent) {
	r.t.Helper()
	text := fmt.Sprintf("%x", b)
	if !r.Receive(r.sock, b, from) {
		r.t.Errorf("%s is not for a link", text)
	}
	got := r.sock.take()
	if !slices.EqualFunc(got, want, func(a, b sent) bool { return a.to == b.to && bytes.Equal(a.b, b.b) }) {
		r.t.Errorf("%s from %v: sent %v, want %v", text, from, got, want)
	}
}
