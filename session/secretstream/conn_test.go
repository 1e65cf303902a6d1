package secretstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

// duplex is a transport made of two pipes, so that each direction can end by itself. A write waits for its reader.
type duplex struct {
	in, out net.Conn

	mu    sync.Mutex
	reset error // by Reset
}

func pipe() (a, b *duplex) {
	ab, ba := net.Pipe()
	cd, dc := net.Pipe()
	return &duplex{in: cd, out: ab}, &duplex{in: ba, out: dc}
}

func (d *duplex) Read(b []byte) (int, error)         { return d.in.Read(b) }
func (d *duplex) Write(b []byte) (int, error)        { return d.out.Write(b) }
func (d *duplex) CloseWrite() error                  { return d.out.Close() }
func (d *duplex) Close() error                       { return errors.Join(d.in.Close(), d.out.Close()) }
func (d *duplex) LocalAddr() net.Addr                { return d.in.LocalAddr() }
func (d *duplex) RemoteAddr() net.Addr               { return d.in.RemoteAddr() }
func (d *duplex) SetReadDeadline(t time.Time) error  { return d.in.SetReadDeadline(t) }
func (d *duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }
func (d *duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.SetReadDeadline(t), d.SetWriteDeadline(t))
}

func (d *duplex) Reset(err error) {
	d.mu.Lock()
	d.reset = err
	d.mu.Unlock()
	d.Close()
}

func (d *duplex) wasReset() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reset
}

// configs returns the two sides of a handshake. There are no keepalives.
func configs() (initiator, responder Config) {
	initiator = Config{
		Initiator: true, Tx: [32]byte{1}, Rx: [32]byte{2}, Hash: [64]byte{3},
		Local: key.Public{4}, Remote: key.Public{5}, KeepAlive: -1,
	}
	responder = initiator
	responder.Initiator = false
	responder.Tx, responder.Rx = initiator.Rx, initiator.Tx
	responder.Local, responder.Remote = initiator.Remote, initiator.Local
	return initiator, responder
}

// connect returns both ends of a stream. They are closed with the test.
func connect(t testing.TB, change func(*Config)) (a, b *Conn) {
	t.Helper()
	return connectOver(t, change, func(r Raw) Raw { return r })
}

// connectOver is connect with something around the transport of b.
func connectOver(t testing.TB, change func(*Config), around func(Raw) Raw) (a, b *Conn) {
	t.Helper()
	ca, cb := configs()
	if change != nil {
		change(&ca)
		change(&cb)
	}
	ra, rb := pipe()
	a, b = New(ra, ca), New(around(rb), cb)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// writes sends each message with WriteMessage in the background, and then the end.
func writes(t testing.TB, c *Conn, messages ...[]byte) {
	t.Helper()
	go func() {
		for _, m := range messages {
			if err := c.WriteMessage(m); err != nil {
				t.Errorf("WriteMessage of %d bytes: %v", len(m), err)
			}
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}()
}

// fixed is a transport that delivers given bytes, a few at a time, and keeps what is written.
type fixed struct {
	duplex
	reader  io.Reader
	written bytes.Buffer
}

func (f *fixed) Read(b []byte) (int, error)  { return f.reader.Read(b) }
func (f *fixed) Write(b []byte) (int, error) { return f.written.Write(b) }
func (f *fixed) CloseWrite() error           { return nil }

func newFixed(r io.Reader) *fixed {
	a, _ := pipe()
	return &fixed{duplex: duplex{in: a.in, out: a.out}, reader: r}
}

type wireVectors struct {
	Handshake struct {
		Initiator, Responder struct{ Tx, Rx hexBytes }
		Hash                 hexBytes
	}
	InitiatorToResponder []wireFrame `json:"initiator_to_responder"`
	ResponderToInitiator []wireFrame `json:"responder_to_initiator"`
	DeliveredToResponder []hexBytes  `json:"delivered_to_responder"`
	DeliveredToInitiator []hexBytes  `json:"delivered_to_initiator"`
}

type wireFrame struct {
	Kind             string
	Plaintext, Bytes hexBytes
}

func TestExchangeIsTheReferences(t *testing.T) {
	var v wireVectors
	load(t, "wire.json", &v)
	for _, row := range []struct {
		name      string
		initiator bool
		tx, rx    hexBytes
		out, in   []wireFrame
		delivered []hexBytes
	}{
		{
			"initiator", true, v.Handshake.Initiator.Tx, v.Handshake.Initiator.Rx,
			v.InitiatorToResponder, v.ResponderToInitiator, v.DeliveredToInitiator,
		},
		{
			"responder", false, v.Handshake.Responder.Tx, v.Handshake.Responder.Rx,
			v.ResponderToInitiator, v.InitiatorToResponder, v.DeliveredToResponder,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			var in, out []byte
			for _, f := range row.in {
				in = append(in, f.Bytes...)
			}
			raw := newFixed(iotest.OneByteReader(bytes.NewReader(in)))
			c := newConn(raw, Config{
				Initiator: row.initiator, Tx: [32]byte(row.tx), Rx: [32]byte(row.rx),
				Hash: [64]byte(v.Handshake.Hash), KeepAlive: -1,
			}, func(header []byte) { copy(header, row.out[0].Bytes[lengthSize+idSize:]) })
			defer c.Close()

			for _, f := range row.out {
				out = append(out, f.Bytes...)
				if f.Kind != "message" {
					continue
				}
				if err := c.WriteMessage(f.Plaintext); err != nil {
					t.Fatal(err)
				}
				if got := raw.written.Bytes(); !bytes.Equal(got, out) {
					t.Fatalf("after writing %x: %x, want %x", f.Plaintext, got, out)
				}
			}
			for _, want := range row.delivered {
				if len(want) == 0 {
					continue // the reference had keepalives off and delivered them
				}
				if got, err := c.ReadMessage(); err != nil || !bytes.Equal(got, want) {
					t.Errorf("ReadMessage: %x, %v, want %x", got, err, []byte(want))
				}
			}
			if got, err := c.ReadMessage(); !errors.Is(err, io.EOF) {
				t.Errorf("ReadMessage at the end: %x, %v, want EOF", got, err)
			}
		})
	}
}

func TestMessagesKeepTheirBoundaries(t *testing.T) {
	a, b := connect(t, nil)
	var messages [][]byte
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 300 {
		m := make([]byte, 1+rng.IntN(1<<(i%18)))
		for j := range m {
			m[j] = byte(rng.Uint32())
		}
		messages = append(messages, m)
	}
	writes(t, a, messages...)
	for i, want := range messages {
		got, err := b.ReadMessage()
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("message %d of %d bytes: %d bytes, %v", i, len(want), len(got), err)
		}
	}
	if m, err := b.ReadMessage(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %x, %v, want EOF", m, err)
	}
}

func TestBytesComeThroughBothWays(t *testing.T) {
	a, b := connect(t, nil)
	data := make([]byte, 3<<20+12345)
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	var wg sync.WaitGroup
	for _, way := range []struct{ from, to *Conn }{{a, b}, {b, a}} {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, 3))
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(200_000))
				if m, err := way.from.Write(rest[:n]); m != n || err != nil {
					t.Errorf("Write of %d bytes: %d, %v", n, m, err)
					return
				}
				rest = rest[n:]
			}
			way.from.CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(way.to)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes, %v, want %d", len(got), err, len(data))
			}
		})
	}
	wg.Wait()
}

func TestReadAndReadMessageMayBeMixed(t *testing.T) {
	a, b := connect(t, nil)
	writes(t, a, []byte("first message"), []byte("second"), nil, []byte("third"))
	buf := make([]byte, 6)
	if n, err := io.ReadFull(b, buf); string(buf[:n]) != "first " || err != nil {
		t.Errorf("Read: %q, %v", buf[:n], err)
	}
	for _, want := range []string{"message", "second"} {
		if m, err := b.ReadMessage(); string(m) != want || err != nil {
			t.Errorf("ReadMessage: %q, %v, want %q", m, err, want)
		}
	}
	if n, err := b.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of nothing: %d, %v", n, err)
	}
	if got, err := io.ReadAll(b); string(got) != "third" || err != nil {
		t.Errorf("the rest: %q, %v", got, err)
	}
}

// A keepalive behind a message must not make Read wait for what comes after it.
func TestReadDoesNotWaitBehindAKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, nil)
		together(t, a, b, []byte("one"), nil)
		began := time.Now()
		if err := b.SetReadDeadline(began.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := b.Read(buf)
		if waited := time.Since(began); err != nil || string(buf[:n]) != "one" || waited > 0 {
			t.Errorf("%q, %v after %v, want the message before the keepalive at once", buf[:n], err, waited)
		}
	})
}

// together has messages arrive at b at once.
func together(t *testing.T, a, b *Conn, messages ...[]byte) {
	t.Helper()
	if err := b.Begin(); err != nil {
		t.Fatal(err)
	}
	a.writer.mu.Lock() // the first frame has been written
	for _, m := range messages {
		a.writer.appendLocked(m)
	}
	go func() {
		defer a.writer.mu.Unlock()
		if err := a.flushLocked(); err != nil {
			t.Errorf("flush: %v", err)
		}
	}()
}

// pieces is a writer that keeps what each Write brings.
type pieces struct {
	all   []byte
	sizes []int
	limit int // fails with errFull beyond
}

var errFull = errors.New("full")

func (p *pieces) Write(b []byte) (int, error) {
	if p.limit > 0 && len(p.all)+len(b) > p.limit {
		return 0, errFull
	}
	p.all = append(p.all, b...)
	p.sizes = append(p.sizes, len(b))
	return len(b), nil
}

func TestWriteToHandsOverAllThatComes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var messages [][]byte
	for _, n := range []int{1, 100_000, 10, 20, 30, 0, 40, 50_000, gatherBelow - 1, gatherMost - gatherBelow, 1, 32 << 10, 5} {
		m := make([]byte, n)
		for i := range m {
			m[i] = byte(random.Uint32())
		}
		messages = append(messages, m)
	}
	want := bytes.Join(messages, nil)
	for _, tt := range []struct {
		name  string
		first int // bytes that Read takes before
		limit int // of what the writer takes
		err   error
	}{
		{"all", 0, 0, nil},
		{"what Read has left", 50_000, 0, nil},
		{"the writer's error", 0, 120_000, errFull},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := connect(t, nil)
			writes(t, a, messages...)
			first := make([]byte, tt.first)
			if _, err := io.ReadFull(b, first); err != nil {
				t.Fatal(err)
			}
			p := pieces{limit: tt.limit}
			n, err := b.WriteTo(&p)
			if !errors.Is(err, tt.err) || n != int64(len(p.all)) {
				t.Errorf("%d bytes, %v, want %v and %d", n, err, tt.err, len(p.all))
			}
			got := append(first, p.all...)
			if tt.err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(want, got) {
				t.Errorf("%d bytes in writes of %d, want %d", len(got), p.sizes, len(want))
			}
			if tt.err != nil { // let the other side finish
				if _, err := io.Copy(io.Discard, struct{ io.Reader }{b}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("gathered", func(t *testing.T) {
		a, b := connect(t, nil)
		together(t, a, b, slices.Repeat([][]byte{make([]byte, 100)}, 100)...)
		writes(t, a)
		var p pieces
		if n, err := b.WriteTo(&p); err != nil || n != 10_000 || len(p.sizes) > 30 {
			t.Errorf("%d bytes in %d writes, %v, want 10000 in few", n, len(p.sizes), err)
		}
	})
	t.Run("broken", func(t *testing.T) {
		a, b := connect(t, nil)
		writes(t, a, []byte("whole"))
		r := &b.reader
		var p pieces
		if _, err := b.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.err = ErrAuth
		r.mu.Unlock()
		if n, err := b.WriteTo(&p); !errors.Is(err, ErrAuth) || string(p.all) != "hole" || n != 4 {
			t.Errorf("%d bytes, %q, %v, want what was there and ErrAuth", n, p.all, err)
		}
	})
}

// reads returns its pieces one by one, and then an error, with the last one if that is asked for.
type reads struct {
	pieces [][]byte
	err    error
	early  bool
}

func (r *reads) Read(b []byte) (n int, err error) {
	if len(r.pieces) == 0 {
		return 0, r.err
	}
	n = copy(b, r.pieces[0])
	if r.pieces[0] = r.pieces[0][n:]; len(r.pieces[0]) == 0 {
		r.pieces = r.pieces[1:]
	}
	if len(r.pieces) == 0 && r.early {
		err = r.err
	}
	return n, err
}

func TestReadFromSendsAllThatComes(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	for _, tt := range []struct {
		name     string
		sizes    []int // of the pieces read
		err      error
		early    bool
		want     error
		messages []int // nil: any
	}{
		{"nothing", nil, io.EOF, false, nil, []int{}},
		{"little at a time", []int{1, 7, 8, 9, 1401}, io.EOF, false, nil, []int{1, 7, 8, 9, 1401}},
		{"the end with the last bytes", []int{10, 20}, io.EOF, true, nil, []int{10, 20}},
		{"much", []int{firstChunk + 2*writeChunk}, io.EOF, false, nil, []int{firstChunk, writeChunk, writeChunk}},
		{"lengths that seal fast", []int{firstChunk, 50_005}, io.EOF, false, nil, []int{firstChunk, 50_000, 5}},
		{"as many bytes beyond that as there can be", []int{firstChunk, writeChunk - 1}, io.EOF, false, nil, []int{firstChunk, writeChunk - 8, 7}},
		{"much, and then little", []int{300_001, 1, 99_999, 3}, io.EOF, false, nil, nil},
		{"the reader's error", []int{100, 50_001}, errFull, false, errFull, nil},
		{"an error with the last bytes", []int{100, 50_001}, errFull, true, errFull, nil},
		{"a reader that makes no progress", []int{100}, nil, false, io.ErrNoProgress, []int{100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := reads{err: tt.err, early: tt.early}
			var want []byte
			for _, n := range tt.sizes {
				m := make([]byte, n)
				random.Read(m)
				r.pieces = append(r.pieces, m)
				want = append(want, m...)
			}
			a, b := connect(t, nil)
			sent := make(chan error, 1)
			go func() {
				n, err := a.ReadFrom(&r)
				if n != int64(len(want)) {
					t.Errorf("ReadFrom returned %d, want %d", n, len(want))
				}
				sent <- errors.Join(err, a.CloseWrite())
			}()
			var got []byte
			lengths := []int{}
			for {
				m, err := b.ReadMessage()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, m...)
				lengths = append(lengths, len(m))
			}
			if err := <-sent; !errors.Is(err, tt.want) {
				t.Errorf("ReadFrom: %v, want %v", err, tt.want)
			}
			if !bytes.Equal(got, want) || tt.messages != nil && !slices.Equal(lengths, tt.messages) {
				t.Errorf("%d bytes in messages of %d, want %d in %d", len(got), lengths, len(want), tt.messages)
			}
		})
	}
}

func TestReadFromLocksNothingWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, nil)
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := a.ReadFrom(r)
			done <- errors.Join(err, a.CloseWrite())
		}()
		for _, part := range []struct {
			text string
			to   io.Writer
		}{{"read ", w}, {"written ", a}, {"and read", w}} {
			go io.WriteString(part.to, part.text)
			if m, err := b.ReadMessage(); err != nil || string(m) != part.text {
				t.Errorf("%q, %v, want %q", m, err, part.text)
			}
		}
		w.Close()
		if _, err := b.ReadMessage(); !errors.Is(err, io.EOF) {
			t.Errorf("ReadMessage: %v, want EOF", err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReadFromThatTimesOutTellsWhatItSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var raw prefixed
		a, b := connectOver(t, nil, func(r Raw) Raw {
			raw.Raw = r
			return &raw
		})
		random := rand.NewChaCha8([32]byte{})
		data := make([]byte, firstChunk+3*writeChunk)
		random.Read(data)
		part := make([]byte, lengthSize+idFrame+Overhead+firstChunk+1000) // and a little of the second message
		go io.ReadFull(&raw, part)
		synctest.Wait()
		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.ReadFrom(bytes.NewReader(data))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n != firstChunk+writeChunk {
			t.Fatalf("ReadFrom: %d, %v, want a timeout after two messages", n, err)
		}
		if m, err := a.ReadFrom(bytes.NewReader(data[n:])); m != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("ReadFrom with the deadline past: %d, %v", m, err)
		}
		a.SetWriteDeadline(time.Time{})
		go func() {
			if m, err := a.ReadFrom(bytes.NewReader(data[n:])); m != int64(len(data))-n || err != nil {
				t.Errorf("ReadFrom of the rest: %d, %v", m, err)
			}
			a.CloseWrite()
		}()
		raw.prefix = part
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v, want the %d that were written", len(got), err, len(data))
		}
	})
}

func TestConnKnowsWhoIsThere(t *testing.T) {
	a, b := connect(t, nil)
	if a.RemoteKey() != b.LocalKey() || a.LocalKey() != b.RemoteKey() || a.LocalKey() == b.LocalKey() {
		t.Error("the keys do not fit together")
	}
	if a.HandshakeHash() != b.HandshakeHash() || a.HandshakeHash() == ([64]byte{}) {
		t.Error("the handshake hashes differ")
	}
	if a.LocalAddr() == nil || a.RemoteAddr() == nil {
		t.Error("no addresses")
	}
	var _ net.Conn = a
	var _ Raw = (*net.TCPConn)(nil)
}

// recorded returns what one side of a stream writes: its first frame, then these messages.
func recorded(t testing.TB, initiator bool, messages ...[]byte) []byte {
	t.Helper()
	cfg, other := configs()
	if !initiator {
		cfg = other
	}
	raw := newFixed(nil)
	c := newConn(raw, cfg, func(b []byte) { copy(b, "a header of twenty-four!") })
	defer c.Close()
	for _, m := range messages {
		if err := c.WriteMessage(m); err != nil {
			t.Fatal(err)
		}
	}
	if len(messages) == 0 {
		if err := c.CloseWrite(); err != nil { // waits for the first frame
			t.Fatal(err)
		}
	}
	return raw.written.Bytes()
}

func TestBrokenStreamsAreRefused(t *testing.T) {
	hello := []byte("hello")
	good := recorded(t, true, hello)
	frame := func(n int) []byte { return []byte{byte(n), byte(n >> 8), byte(n >> 16)} }
	first := good[:lengthSize+idFrame]
	with := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 1
		return b
	}
	for _, row := range []struct {
		name  string
		in    []byte
		want  error
		reset bool
	}{
		{"nothing", nil, io.ErrUnexpectedEOF, false},
		{"half a length", good[:2], io.ErrUnexpectedEOF, false},
		{"half a first frame", good[:20], io.ErrUnexpectedEOF, false},
		{"a first frame and the end", first, nil, false},
		{"half a message", good[:len(good)-1], io.ErrUnexpectedEOF, false},
		{"a shorter first frame", append(frame(idFrame-1), good[lengthSize:]...), ErrHeader, true},
		{"a longer first frame", append(frame(idFrame+1), good[lengthSize:]...), ErrHeader, true},
		{"another id", with(lengthSize), ErrHeader, true},
		{"our own stream come back", recorded(t, false, hello), ErrHeader, true},
		{"another header", with(lengthSize + idSize), ErrAuth, true},
		{"another tag", with(len(first) + lengthSize), ErrAuth, true},
		{"another message", with(len(first) + lengthSize + 1), ErrAuth, true},
		{"another MAC", with(len(good) - 1), ErrAuth, true},
		{"an empty frame", slices.Concat(first, frame(0)), ErrFrame, true},
		{"a frame of 16 bytes", slices.Concat(first, frame(16), make([]byte, 16)), ErrFrame, true},
		{"a frame above the limit", slices.Concat(first, frame(1000+overhead+1)), ErrTooLong, true},
		{"a message twice", slices.Concat(good, good[len(first):]), ErrAuth, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, cfg := configs()
			cfg.MaxMessage = 1000
			raw := newFixed(bytes.NewReader(row.in))
			c := New(raw, cfg)
			defer c.Close()
			got, err := io.ReadAll(c) // which reports no error at io.EOF
			if !errors.Is(err, row.want) {
				t.Errorf("ReadAll: %q, %v, want %v", got, err, row.want)
			}
			if len(got) > 0 && row.name != "a message twice" {
				t.Errorf("ReadAll returned %q before the error", got)
			}
			if r := raw.wasReset(); row.reset != (r != nil) || row.reset && !errors.Is(r, row.want) {
				t.Errorf("transport reset: %v", r)
			}
			if _, again := c.Read(make([]byte, 1)); err != nil && !errors.Is(again, row.want) || again == nil {
				t.Errorf("Read again: %v, want %v", again, row.want)
			}
		})
	}
}

func TestReadReturnsWhatCameBeforeAnError(t *testing.T) {
	in := recorded(t, true, []byte("good"), []byte("evil"))
	in[len(in)-1] ^= 1
	_, cfg := configs()
	c := New(newFixed(bytes.NewReader(in)), cfg)
	defer c.Close()
	buf := make([]byte, 100)
	if n, err := c.Read(buf); string(buf[:n]) != "good" || err != nil {
		t.Errorf("Read: %q, %v, want what came first", buf[:n], err)
	}
	if n, err := c.Read(buf); n != 0 || !errors.Is(err, ErrAuth) {
		t.Errorf("Read: %q, %v, want ErrAuth", buf[:n], err)
	}
}

func TestMemoryFollowsWhatArrives(t *testing.T) {
	in := recorded(t, true)
	in = append(in, 0xff, 0xff, 0xff) // sixteen megabytes are announced
	in = append(in, make([]byte, 10_000)...)
	_, cfg := configs()
	largest := 0
	raw := newFixed(iotest.OneByteReader(bytes.NewReader(in)))
	c := New(&observed{Raw: raw, see: func(room, _ int) { largest = max(largest, room) }}, cfg)
	defer c.Close()
	if _, err := c.ReadMessage(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadMessage: %v", err)
	}
	if largest > 4*10_000 {
		t.Errorf("room for %d bytes was made when 10000 had come", largest)
	}
}

// observed tells how much room each read has, and how much it gets.
type observed struct {
	Raw
	see func(room, n int)
}

func (o *observed) Read(b []byte) (int, error) {
	n, err := o.Raw.Read(b)
	o.see(len(b), n)
	return n, err
}

func TestLongBuffersAreNotKept(t *testing.T) {
	a, b := connect(t, nil)
	writes(t, a, make([]byte, 4<<20), []byte("small"))
	for range 2 {
		if _, err := b.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	readBuffer := cap(b.reader.buf)
	if _, err := b.ReadMessage(); !errors.Is(err, io.EOF) {
		t.Errorf("ReadMessage: %v, want EOF", err)
	}
	a.writer.mu.Lock()
	defer a.writer.mu.Unlock()
	if n := cap(a.writer.buf); n > keepBuffer {
		t.Errorf("the writer keeps %d bytes", n)
	}
	if readBuffer > keepBuffer {
		t.Errorf("the reader keeps %d bytes", readBuffer)
	}
}

func TestWriteMessageHasALimit(t *testing.T) {
	raw := newFixed(nil)
	cfg, _ := configs()
	c := New(raw, cfg)
	defer c.Close()
	if err := c.WriteMessage(make([]byte, MaxMessage+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("WriteMessage of one byte too many: %v, want ErrTooLong", err)
	}
	if err := c.WriteMessage(make([]byte, MaxMessage)); err != nil {
		t.Errorf("WriteMessage of the longest message: %v", err)
	}
	if got, want := raw.written.Len(), lengthSize+idFrame+Overhead+MaxMessage; got != want {
		t.Errorf("%d bytes were written, want %d", got, want)
	}
	_, cfg = configs()
	r := New(newFixed(&raw.written), cfg)
	defer r.Close()
	if m, err := r.ReadMessage(); err != nil || len(m) != MaxMessage {
		t.Errorf("ReadMessage: %d bytes, %v", len(m), err)
	}
}

func TestWriteChoosesLengthsThatSealFast(t *testing.T) {
	for _, row := range []struct {
		n    int
		want []int
	}{
		{1, []int{1}},
		{1401, []int{1401}},
		{splitFrom, []int{splitFrom}},
		{splitFrom + 5, []int{splitFrom, 5}},
		{writeChunk, []int{writeChunk}},
		{writeChunk + 3, []int{writeChunk, 3}},
		{3*writeChunk + splitFrom + 9, []int{writeChunk, writeChunk, writeChunk, splitFrom + 8, 1}},
	} {
		a, b := connect(t, nil)
		go a.Write(make([]byte, row.n))
		for i, want := range row.want {
			if m, err := b.ReadMessage(); err != nil || len(m) != want {
				t.Errorf("Write of %d bytes: message %d has %d bytes, %v, want %d", row.n, i, len(m), err, want)
			}
		}
	}
}

func TestTheFirstFrameIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ra, rb := pipe()
		cfg, _ := configs()
		c := New(ra, cfg)
		defer c.Close()
		b := make([]byte, 100)
		n, err := rb.Read(b)
		if want := lengthSize + idFrame; n != want || err != nil {
			t.Errorf("read %d bytes, %v, want %d", n, err, want)
		}
	})
}

func TestKeepAliveIsWrittenWhenNothingElseIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived := make(chan time.Duration, 100)
		start := time.Now()
		a, b := connectOver(t, func(c *Config) {
			if c.Initiator {
				c.KeepAlive = 0 // the default
			}
		}, func(r Raw) Raw {
			return &observed{Raw: r, see: func(_, n int) {
				if n == Overhead {
					arrived <- time.Since(start)
				}
			}}
		})
		read := make(chan string, 10)
		go func() {
			for {
				m, err := b.ReadMessage()
				if err != nil {
					close(read)
					return
				}
				read <- string(m)
			}
		}()
		go io.Copy(io.Discard, a)
		time.Sleep(4 * time.Second)
		if err := a.WriteMessage([]byte("something")); err != nil { // restarts the timer
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		close(arrived)
		var got []time.Duration
		for d := range arrived {
			got = append(got, d)
		}
		if want := []time.Duration{9 * time.Second, 14 * time.Second}; !slices.Equal(got, want) {
			t.Errorf("keepalives came after %v, want %v", got, want)
		}
		if m := <-read; m != "something" {
			t.Errorf("read %q", m)
		}
		if m, ok := <-read; ok {
			t.Errorf("read %q, want the end: keepalives are not delivered", m)
		}
	})
}

func TestIdleStreamsCostNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw := newFixed(nil)
		cfg, _ := configs()
		cfg.KeepAlive = time.Second
		c := New(raw, cfg)
		time.Sleep(3500 * time.Millisecond)
		synctest.Wait()
		// Were there a goroutine that waits for c, the bubble would not end without Close; c only has a timer.
		if got, want := raw.written.Len(), lengthSize+idFrame+3*Overhead; got != want {
			t.Errorf("%d bytes were written, want %d", got, want)
		}
		c.pulse.mu.Lock()
		c.pulse.timer.Stop()
		c.pulse.mu.Unlock()
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ra, _ := pipe() // nobody reads: the first frame is stuck
		cfg, _ := configs()
		cfg.KeepAlive = time.Second
		c := New(ra, cfg)
		errs := make(chan error, 2)
		go func() {
			_, err := c.Read(make([]byte, 1))
			errs <- err
		}()
		time.Sleep(10 * time.Second)
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-errs; err == nil {
			t.Error("Read returned without an error")
		}
		if _, err := c.Write([]byte("late")); err == nil {
			t.Error("Write after Close succeeded")
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close again: %v", err)
		}
		time.Sleep(time.Minute) // a timer left over would fire
	})
}

// A keepalive that is about to arm its timer again may be overtaken by Close.
func TestTheTimerIsNotArmedAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw := newFixed(nil)
		closes := 0
		cfg, _ := configs()
		cfg.KeepAlive = time.Second
		c := New(&closing{Raw: raw, closed: func() { closes++ }}, cfg)
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		c.arm(time.Second)
		if c.pulse.timer.Stop() {
			t.Error("the timer was armed")
		}
		if closes != 1 {
			t.Errorf("the transport was closed %d times", closes)
		}
	})
}

// closing tells when the transport is closed.
type closing struct {
	Raw
	closed func()
}

func (c *closing) Close() error {
	c.closed()
	return c.Raw.Close()
}

func TestTimeoutsLeaveTheStreamUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var raw prefixed
		a, b := connectOver(t, nil, func(r Raw) Raw {
			raw.Raw = r
			return &raw
		})
		// Reading times out in the middle of a message as well as before it.
		b.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read: %v, want a timeout", err)
		}
		b.SetReadDeadline(time.Time{})

		// Writing times out after one frame and a part of the next: nobody reads.
		message := bytes.Repeat([]byte("x"), writeChunk)
		data := slices.Concat(message, message, message, message)
		part := make([]byte, 1000)
		go func() { // takes a little of it
			io.ReadFull(&raw, part)
		}()
		synctest.Wait()
		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(data)
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == len(data) {
			t.Fatalf("Write: %d, %v, want a timeout in the middle", n, err)
		}
		if m, err := a.Write(data[n:]); m != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Write with the deadline past: %d, %v", m, err)
		}
		a.SetWriteDeadline(time.Time{})
		go func() {
			if m, err := a.Write(data[n:]); m != len(data)-n || err != nil {
				t.Errorf("Write of the rest: %d, %v", m, err)
			}
			a.CloseWrite()
		}()
		raw.prefix = part
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v, want the %d that were written", len(got), err, len(data))
		}
	})
}

// prefixed delivers some bytes before those of the transport.
type prefixed struct {
	Raw
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Raw.Read(b)
}

func TestWritesFailAfterCloseWrite(t *testing.T) {
	a, b := connect(t, nil)
	go io.Copy(io.Discard, b)
	for range 2 {
		if err := a.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}
	if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write: %d, %v, want ErrClosedPipe", n, err)
	}
	if err := a.WriteMessage([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteMessage: %v, want ErrClosedPipe", err)
	}
}

func TestConcurrentWritersDoNotMix(t *testing.T) {
	a, b := connect(t, func(c *Config) { c.KeepAlive = time.Millisecond })
	const writers, each = 4, 100
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range each {
				if err := a.WriteMessage(bytes.Repeat([]byte{byte(i)}, 10+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go io.Copy(io.Discard, a)
	count := make([]int, writers)
	for range writers * each {
		m, err := b.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		i := int(m[0])
		if i >= writers || len(m) != 10+i || bytes.Count(m, m[:1]) != len(m) {
			t.Fatalf("message %x", m)
		}
		count[i]++
	}
	wg.Wait()
	for i, n := range count {
		if n != each {
			t.Errorf("%d messages of writer %d, want %d", n, i, each)
		}
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	cfg, _ := configs()
	cfg.Tx = [32]byte(bytes.Repeat([]byte{0xab}, 32))
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%d"} {
		for _, v := range []any{cfg, &cfg} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, "abab") || strings.Contains(got, "171 171") {
				t.Errorf("%s prints %q", verb, got)
			}
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(recorded(f, true, []byte("hello"), nil, make([]byte, 100)), uint8(0))
	f.Add(recorded(f, true, make([]byte, 5000)), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, chunk uint8) {
		_, cfg := configs()
		cfg.MaxMessage = 1 << 16
		var r io.Reader = bytes.NewReader(in)
		if chunk > 0 {
			r = &chunked{r, int(chunk)}
		}
		c := newConn(newFixed(r), cfg, func([]byte) {})
		defer c.Close()
		for {
			m, err := c.ReadMessage()
			if err != nil {
				return
			}
			if len(m) == 0 || len(m) > len(in) {
				t.Fatalf("a message of %d bytes", len(m))
			}
		}
	})
}

type chunked struct {
	io.Reader
	n int
}

func (c *chunked) Read(b []byte) (int, error) { return c.Reader.Read(b[:min(len(b), c.n)]) }

// BenchmarkThroughput carries bytes over TCP on the loopback interface, 64 KiB a write.
func BenchmarkThroughput(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	ca, cb := configs()
	from, to := New(dialed.(*net.TCPConn), ca), New(accepted.(*net.TCPConn), cb)
	defer from.Close()
	defer to.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			if _, err := to.Read(buf); err != nil {
				return
			}
		}
	})
	data := make([]byte, 64<<10)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := from.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	from.CloseWrite()
	wg.Wait()
}

func TestResetIsNotAnEnd(t *testing.T) {
	cut := errors.New("cut")
	var transport *duplex
	a, b := connectOver(t, nil, func(r Raw) Raw {
		transport = r.(*duplex)
		return r
	})
	got := make(chan error, 1)
	go func() {
		_, err := b.Read(make([]byte, 1))
		got <- err
	}()
	go a.Begin()
	if err := b.Begin(); err != nil {
		t.Fatal(err)
	}
	b.Reset(cut)
	if err := transport.wasReset(); !errors.Is(err, cut) {
		t.Errorf("the transport was reset with %v, want %v", err, cut)
	}
	if err := <-got; err == nil {
		t.Error("Read goes on after Reset")
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("Write goes on after Reset")
	}
	b.Reset(nil) // again
	if err := b.Close(); err != nil {
		t.Errorf("Close after Reset: %v", err)
	}
}
