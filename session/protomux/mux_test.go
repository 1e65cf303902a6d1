package protomux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is one direction of an in-memory stream of messages.
type pipe struct {
	messages chan []byte
	ended    chan struct{} // by the writer
	once     sync.Once
}

// end is one end of a stream. It is a Conn.
type end struct {
	in, out *pipe
	closed  chan struct{}
	once    sync.Once
	sent    func([]byte)
}

// stream returns the ends of a stream that holds depth messages each way.
func stream(depth int) (a, b *end) {
	p, q := &pipe{messages: make(chan []byte, depth), ended: make(chan struct{})}, &pipe{messages: make(chan []byte, depth), ended: make(chan struct{})}
	return &end{in: p, out: q, closed: make(chan struct{})}, &end{in: q, out: p, closed: make(chan struct{})}
}

func (e *end) ReadMessage() ([]byte, error) {
	select {
	case <-e.closed:
		return nil, net.ErrClosed
	case b := <-e.in.messages:
		return b, nil
	default:
	}
	select {
	case <-e.closed:
		return nil, net.ErrClosed
	case b := <-e.in.messages:
		return b, nil
	case <-e.in.ended:
		return nil, io.EOF
	}
}

func (e *end) WriteMessage(b []byte) error {
	if e.sent != nil {
		e.sent(b)
	}
	select {
	case <-e.closed:
		return net.ErrClosed
	case e.out.messages <- bytes.Clone(b):
		return nil
	}
}

func (e *end) Close() error {
	e.once.Do(func() { close(e.closed) })
	e.out.once.Do(func() { close(e.out.ended) })
	return nil
}

// muxes returns two Muxes on one stream.
func muxes(t *testing.T, cfg Config) (a, b *Mux) {
	ea, eb := stream(4)
	a, b = New(ea, cfg), New(eb, cfg)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func mustOpen(t *testing.T, m *Mux, protocol string) *Channel {
	t.Helper()
	c, err := m.Open(protocol, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantMessage(t *testing.T, c *Channel, typ int, text string) {
	t.Helper()
	n, b, err := c.Receive(t.Context())
	if err != nil || n != typ || string(b) != text {
		t.Fatalf("Receive: %d %q, %v, want %d %q", n, b, err, typ, text)
	}
}

func TestChannelCarriesMessagesBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := muxes(t, Config{Protocols: []string{"chat"}})
		ca, err := a.Open("chat", []byte("room"), []byte("from a"))
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.Send(t.Context(), 3, []byte("early")); err != nil {
			t.Fatal(err)
		}
		offer, err := b.Accept(t.Context(), "chat")
		if err != nil || string(offer.ID()) != "room" || string(offer.Handshake()) != "from a" {
			t.Fatalf("Accept: %q %q, %v", offer.ID(), offer.Handshake(), err)
		}
		cb, err := offer.Accept([]byte("from b"))
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, cb, 3, "early")
		if h, err := ca.Opened(t.Context()); err != nil || string(h) != "from b" {
			t.Errorf("Opened: %q, %v", h, err)
		}
		if err := cb.Send(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		wantMessage(t, ca, 0, "")
		if _, err := offer.Accept(nil); err == nil {
			t.Error("an offer was accepted twice")
		}
		cb.Send(t.Context(), 1, []byte("last"))
		cb.Close()
		wantMessage(t, ca, 1, "last")
		if _, _, err := ca.Receive(t.Context()); err != io.EOF {
			t.Errorf("Receive after the peer's close: %v, want io.EOF", err)
		}
		if err := ca.Send(t.Context(), 0, nil); !errors.Is(err, io.EOF) {
			t.Errorf("Send after the peer's close: %v, want io.EOF", err)
		}
		if _, _, err := cb.Receive(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive after Close: %v, want ErrClosed", err)
		}
		if h, err := ca.Opened(t.Context()); err != nil || string(h) != "from b" {
			t.Errorf("Opened after the close: %q, %v, want what was received before", h, err)
		}
		ca.Close()
		if a.Err() != nil || b.Err() != nil {
			t.Errorf("the streams ended: %v, %v", a.Err(), b.Err())
		}
	})
}

func TestBothOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := muxes(t, Config{})
		ca, cb := mustOpen(t, a, "p"), mustOpen(t, b, "p")
		for _, c := range []*Channel{ca, cb} {
			if _, err := c.Opened(t.Context()); err != nil {
				t.Errorf("Opened: %v", err)
			}
		}
	})
}

func TestOpenTakesAnOfferThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := muxes(t, Config{Protocols: []string{"p"}})
		ca := mustOpen(t, a, "p")
		synctest.Wait()
		cb := mustOpen(t, b, "p")
		if _, err := ca.Opened(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := cb.Opened(t.Context()); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Accept(ctx, "p"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Accept: %v, want the deadline: the offer is taken", err)
		}
	})
}

func TestRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := muxes(t, Config{Protocols: []string{"p"}})
		unknown, offered := mustOpen(t, a, "unknown"), mustOpen(t, a, "p")
		if _, err := unknown.Opened(t.Context()); !errors.Is(err, ErrRejected) {
			t.Errorf("a protocol that the peer does not speak: %v, want ErrRejected", err)
		}
		if err := unknown.Send(t.Context(), 0, nil); !errors.Is(err, ErrRejected) {
			t.Errorf("Send: %v, want ErrRejected", err)
		}
		offer, err := b.Accept(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		offer.Reject()
		offer.Reject()
		if _, _, err := offered.Receive(t.Context()); !errors.Is(err, ErrRejected) {
			t.Errorf("an offer that was rejected: %v, want ErrRejected", err)
		}
		if _, err := offer.Accept(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Reject: %v, want ErrClosed", err)
		}
	})
}

func TestEndOfTheStream(t *testing.T) {
	failure := errors.New("cable cut")
	for _, tc := range []struct {
		name        string
		act         func(a *Mux, other *end)
		err, closed error // of the Mux; of a channel
	}{
		{"by the peer", func(_ *Mux, other *end) { other.Close() }, io.EOF, io.EOF},
		{"by us", func(a *Mux, _ *end) { a.Close() }, net.ErrClosed, net.ErrClosed},
		{"by a broken frame", func(_ *Mux, other *end) { other.WriteMessage([]byte{0xfd}) }, ErrProtocol, ErrProtocol},
		{"by an error of the stream", func(a *Mux, _ *end) { a.fail(failure) }, failure, failure},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mine, other := stream(4)
				a := New(mine, Config{Protocols: []string{"p"}})
				defer a.Close()
				c := mustOpen(t, a, "p")
				var wg sync.WaitGroup
				var errs [4]error
				wg.Go(func() { _, errs[0] = c.Opened(t.Context()) })
				wg.Go(func() { _, _, errs[1] = c.Receive(t.Context()) })
				wg.Go(func() { _, errs[2] = a.Accept(t.Context(), "p") })
				synctest.Wait()
				tc.act(a, other)
				wg.Wait()
				errs[3] = c.Send(t.Context(), 0, nil)
				for i, err := range errs {
					if !errors.Is(err, tc.closed) {
						t.Errorf("call %d: %v, want %v", i, err, tc.closed)
					}
				}
				<-a.Done()
				if err := a.Err(); !errors.Is(err, tc.err) {
					t.Errorf("Err: %v, want %v", err, tc.err)
				}
				if _, err := a.Open("q", nil, nil); !errors.Is(err, tc.err) {
					t.Errorf("Open: %v, want %v", err, tc.err)
				}
				synctest.Wait()
				select {
				case <-mine.closed:
				default:
					t.Error("the stream was not closed")
				}
			})
		})
	}
}

func TestReadingStopsWhileTooMuchIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1000
		mine, other := stream(0)
		b := New(mine, Config{Protocols: []string{"p"}, MaxKept: 10 * (size + messageCost)})
		defer b.Close()
		var mu sync.Mutex
		sent := 0
		go func() {
			other.WriteMessage(opening{1, name{"p", ""}, nil}.append(nil))
			for range 100 {
				if other.WriteMessage(dataFrame(1, 0, make([]byte, size))) != nil {
					return
				}
				mu.Lock()
				sent++
				mu.Unlock()
			}
		}()
		go func() {
			for {
				if _, err := other.ReadMessage(); err != nil {
					return
				}
			}
		}()
		want := func(n int, when string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if sent != n {
				t.Errorf("%d messages were read %s, want %d", sent, when, n)
			}
		}
		want(11, "before the channel was accepted")
		offer, err := b.Accept(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		c, err := offer.Accept(nil)
		if err != nil {
			t.Fatal(err)
		}
		want(11, "after it was accepted")
		c.Receive(t.Context())
		want(12, "after one was received")
		c.Close()
		want(100, "after the channel was closed")
		other.Close()
	})
}

func TestSendWaitsForAStreamThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, other := stream(0)
		a := New(mine, Config{})
		defer a.Close()
		c := mustOpen(t, a, "p")
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		n := 0
		for ; err == nil; n++ {
			err = c.Send(ctx, 0, make([]byte, 10000))
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("Send: %v after %v, want the deadline after 5s", err, time.Since(start))
		}
		if n < maxQueued/11000 || n > maxQueued/10000+2 {
			t.Errorf("%d messages were queued, want %d bytes of them", n, maxQueued)
		}
		if err := c.Send(ctx, 0, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send without patience on a full stream: %v", err)
		}
		if err := a.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush of a stream that does not move: %v", err)
		}
		go func() {
			for {
				if _, err := other.ReadMessage(); err != nil {
					return
				}
			}
		}()
		if err := a.Flush(t.Context()); err != nil {
			t.Errorf("Flush: %v", err)
		}
		if err := c.Send(ctx, 0, nil); err != nil {
			t.Errorf("Send without patience on an empty stream: %v", err)
		}
		other.Close()
	})
}

func TestFramesThatPileUpLeaveTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, other := stream(0)
		a, b := New(mine, Config{}), newMachine(nil, 8)
		defer a.Close()
		if _, err := b.open(name{"p", ""}, nil); err != nil {
			t.Fatal(err)
		}
		bq, err := b.open(name{"q", ""}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, q := mustOpen(t, a, "p"), mustOpen(t, a, "q")
		synctest.Wait() // the first write is stuck
		for i := range 10 {
			for _, c := range []*Channel{p, q} {
				if err := c.Send(t.Context(), i, []byte(strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.Close()
		frames := 0
		for b.kept < 20*(messageCost+1) {
			f, err := other.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			if err := b.receive(f); err != nil {
				t.Fatal(err)
			}
			frames++
		}
		if frames > 3 {
			t.Errorf("%d frames for 2 opens, 20 messages and a close", frames)
		}
		for i := range 10 {
			if msg, ok := b.next(bq); !ok || msg.typ != i || string(msg.payload) != strconv.Itoa(i) {
				t.Errorf("message %d: %v, %v", i, msg, ok)
			}
		}
		other.Close()
	})
}

func TestPeerThatDoesNotReadAnswersIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, other := stream(0)
		a := New(mine, Config{})
		defer a.Close()
		var err error
		n := uint64(0)
		for ; err == nil && n < 100_000; n++ {
			err = other.write(t, opening{1, name{"x", ""}, nil}.append(nil))
		}
		<-a.Done()
		if !errors.Is(a.Err(), ErrProtocol) || n > maxReplies {
			t.Errorf("after %d opens: %v, want ErrProtocol", n, a.Err())
		}
	})
}

// write is WriteMessage, but fails if the other end has closed.
func (e *end) write(t *testing.T, b []byte) error {
	select {
	case e.out.messages <- b:
		return nil
	case <-e.in.ended:
		return io.EOF
	case <-t.Context().Done():
		return t.Context().Err()
	}
}

func TestOpenChecksItsArguments(t *testing.T) {
	mine, _ := stream(4) // nobody answers
	a := New(mine, Config{MaxChannels: 1})
	defer a.Close()
	for _, tc := range []struct {
		name          string
		protocol      string
		id, handshake int
	}{
		{"no protocol", "", 0, 0},
		{"long protocol", string(make([]byte, 256)), 0, 0},
		{"long id", "p", 256, 0},
		{"long handshake", "p", 0, maxHandshake + 1},
	} {
		if _, err := a.Open(tc.protocol, make([]byte, tc.id), make([]byte, tc.handshake)); err == nil {
			t.Errorf("%s: opened", tc.name)
		}
	}
	c := mustOpen(t, a, "p")
	if err := c.Send(t.Context(), -1, nil); err == nil {
		t.Error("message number -1 was sent")
	}
	if _, err := a.Open("q", nil, nil); !errors.Is(err, ErrTooMany) {
		t.Errorf("Open beyond MaxChannels: %v, want ErrTooMany", err)
	}
}

func TestManyChannelsAtOnce(t *testing.T) {
	a, b := muxes(t, Config{Protocols: []string{"echo"}, MaxKept: 2000})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			offer, err := b.Accept(t.Context(), "echo")
			if err != nil {
				return
			}
			c, err := offer.Accept(nil)
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				defer c.Close()
				for {
					typ, p, err := c.Receive(t.Context())
					if err != nil {
						return
					}
					if c.Send(t.Context(), typ, p) != nil {
						return
					}
				}
			})
		}
	})
	var users sync.WaitGroup
	for i := range 16 {
		users.Go(func() {
			for round := range 20 {
				c, err := a.Open("echo", []byte{byte(i), byte(round)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for n := range 5 {
					c.Send(t.Context(), n, []byte{byte(i), byte(n)})
				}
				for n := range 5 {
					typ, p, err := c.Receive(t.Context())
					if err != nil || typ != n || p[0] != byte(i) {
						t.Errorf("echo: %d %x, %v, want %d", typ, p, err, n)
					}
				}
				c.Close()
			}
		})
	}
	users.Wait()
	a.Close()
	b.Close()
	wg.Wait()
}

func BenchmarkEcho(b *testing.B) {
	ea, eb := stream(64)
	x, y := New(ea, Config{}), New(eb, Config{})
	defer x.Close()
	defer y.Close()
	cx, _ := x.Open("p", nil, nil)
	cy, _ := y.Open("p", nil, nil)
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		cx.Send(b.Context(), 0, payload)
		if _, _, err := cy.Receive(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
