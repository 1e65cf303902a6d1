package udx

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

var lan = conditions{delay: 5 * time.Millisecond}

func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := newNetwork(1)
		ma, mb := NewMux(Config{}), NewMux(Config{})
		pa, pb := n.port("192.0.2.1:1", ma, conditions{}), n.port("192.0.2.2:2", mb, conditions{})
		a, b := newTestStream(t, ma, StreamConfig{}), newTestStream(t, mb, StreamConfig{})
		connect(t, a, pa, pb.addr, b.ID())
		connect(t, b, pb, pa.addr, a.ID())
		return a, b, func() {
			_ = a.Close()
			_ = b.Close()
			_ = ma.Close()
			_ = mb.Close()
		}, nil
	})
}

func readAll(t *testing.T, s *Stream, want string) {
	t.Helper()
	got, err := io.ReadAll(s)
	if string(got) != want || err != nil {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

func write(t *testing.T, s *Stream, text string) {
	t.Helper()
	if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("Write(%d bytes): %d, %v", len(text), n, err)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, newNetwork(1), lan, lan)
		write(t, a, "question")
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		readAll(t, b, "question")
		_, err := a.Write([]byte("more"))
		wantErr(t, "Write after CloseWrite", err, io.ErrClosedPipe)
		time.Sleep(time.Minute) // the other direction stays open
		write(t, b, strings.Repeat("answer", 1000))
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		readAll(t, a, strings.Repeat("answer", 1000))
		<-a.Done()
		<-b.Done()
		wantErr(t, "a", a.Err(), nil)
		wantErr(t, "b", b.Err(), nil)
		_, err = a.Read(make([]byte, 1))
		wantErr(t, "Read at the end", err, io.EOF)
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := conditions{delay: 20 * time.Millisecond, loss: .1, rate: 1e6, queue: 100e3}
		a, b := pair(t, newNetwork(1), slow, slow)
		text := strings.Repeat("all of it ", 20000)
		write(t, a, text)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := a.Write([]byte("x"))
		wantErr(t, "Write after Close", err, net.ErrClosed)
		_, err = a.Read([]byte("x"))
		wantErr(t, "Read after Close", err, net.ErrClosed)
		readAll(t, b, text)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		<-a.Done()
		<-b.Done()
		wantErr(t, "a", a.Err(), nil)
		wantErr(t, "b", b.Err(), nil)
	})
}

func TestCloseUnblocksReadAndWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(t, newNetwork(1), lan, lan)
		errs := make(chan error, 2)
		go func() {
			_, err := a.Read(make([]byte, 1))
			errs <- err
		}()
		go func() {
			_, err := a.Write(make([]byte, 64<<20))
			errs <- err
		}()
		time.Sleep(time.Second)
		_ = a.Close()
		wantErr(t, "first", <-errs, net.ErrClosed)
		wantErr(t, "second", <-errs, net.ErrClosed)
	})
}

func TestCloseIsBounded(t *testing.T) {
	for _, c := range []struct {
		name  string
		peer  func(b *Stream)
		under time.Duration
	}{
		{"peer never ends", func(*Stream) {}, 12 * time.Second},
		{"peer never reads", func(*Stream) {}, 12 * time.Second},
		{"peer is gone", func(b *Stream) { _ = b.mux.Close() }, 20 * time.Second},
		{"peer goes on writing", func(b *Stream) {
			go func() {
				for err := error(nil); err == nil; _, err = b.Write(make([]byte, 1000)) {
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}, 12 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(1)
				a, b := pair(t, n, lan, lan)
				if c.name == "peer is gone" {
					n.setDrop(func(from, _ netip.AddrPort, _ []byte) bool { return from.Port() == 2 })
				}
				c.peer(b)
				write(t, a, "bye")
				start := time.Now()
				_ = a.Close()
				<-a.Done()
				if took := time.Since(start); took > c.under {
					t.Errorf("done after %v, want %v at most", took, c.under)
				}
				wantErr(t, "Err", a.Err(), ErrTimeout)
				time.Sleep(time.Second) // for the peer to learn of it
			})
		})
	}
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, newNetwork(1), lan, lan)
		write(t, a, "partial")
		time.Sleep(time.Second)
		mine := errors.New("my reason")
		a.Reset(mine)
		wantErr(t, "a", a.Err(), mine)
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "Read after Reset", err, mine)
		wantErr(t, "Heartbeat after Reset", a.Heartbeat(), mine)
		<-b.Done()
		wantErr(t, "b", b.Err(), ErrReset)
		buf := make([]byte, 100)
		n, err := b.Read(buf)
		if string(buf[:n]) != "partial" || err != nil {
			t.Errorf("Read after the peer's reset: %q, %v, want what had arrived", buf[:n], err)
		}
		_, err = b.Read(buf)
		wantErr(t, "Read again", err, ErrReset)
		_, err = b.Write(buf)
		wantErr(t, "Write", err, ErrReset)
		a.Reset(nil) // does nothing
		wantErr(t, "a again", a.Err(), mine)
	})
}

func TestLostResetIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pair(t, n, lan, lan)
		var lost atomic.Int32
		n.setDrop(func(_, _ netip.AddrPort, p []byte) bool {
			return Flags(p[2]) == FlagDestroy && lost.CompareAndSwap(0, 1)
		})
		a.Reset(nil)
		time.Sleep(time.Second)
		start := time.Now()
		write(t, b, "anybody there?")
		<-b.Done()
		wantErr(t, "b", b.Err(), ErrReset)
		if took := time.Since(start); lost.Load() != 1 || took > time.Second {
			t.Errorf("%d packets lost, known after %v", lost.Load(), took)
		}
	})
}

func TestLostLastAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pair(t, n, lan, lan)
		_ = a.CloseWrite()
		time.Sleep(time.Second)
		n.setDrop(func(_, to netip.AddrPort, _ []byte) bool { return to.Port() == 2 }) // all to b
		_ = b.CloseWrite()
		<-a.Done()
		wantErr(t, "a", a.Err(), nil)
		n.setDrop(nil)
		start := time.Now()
		<-b.Done()
		wantErr(t, "b", b.Err(), nil)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("b was done after %v", took)
		}
		lingering := func() int {
			a.mux.mu.RLock()
			defer a.mux.mu.RUnlock()
			return len(a.mux.linger.entries)
		}
		if got := lingering(); got != 1 {
			t.Errorf("%d streams linger, want 1", got)
		}
		time.Sleep(lingerTime + time.Second)
		if got := lingering(); got != 0 {
			t.Errorf("%d streams linger in the end, want 0", got)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pairConfig(t, newNetwork(1), lan, lan, StreamConfig{}, StreamConfig{ReadBuffer: 8 << 10})
		start := time.Now()
		_ = a.SetReadDeadline(start.Add(time.Second))
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "Read", err, os.ErrDeadlineExceeded)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is not a timeout", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("Read returned after %v, want 1s", took)
		}
		write(t, b, "late")
		time.Sleep(time.Second)
		_ = a.SetReadDeadline(time.Time{})
		buf := make([]byte, 10)
		if n, err := a.Read(buf); string(buf[:n]) != "late" || err != nil {
			t.Errorf("Read: %q, %v, want late", buf[:n], err)
		}

		_ = a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(make([]byte, 16<<20))
		wantErr(t, "Write", err, os.ErrDeadlineExceeded)
		_ = a.SetDeadline(time.Time{})
		_ = a.CloseWrite()
		if got, err := io.Copy(io.Discard, b); got != int64(n) || err != nil {
			t.Errorf("received %d, %v, want the %d bytes that Write reported", got, err, n)
		}
	})
}

func TestNotConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMux(Config{})
		s := newTestStream(t, m, StreamConfig{})
		_, err := s.Write([]byte("x"))
		wantErr(t, "Write", err, ErrNotConnected)
		wantErr(t, "CloseWrite", s.CloseWrite(), ErrNotConnected)
		wantErr(t, "SendMessage", s.SendMessage(nil), ErrNotConnected)
		wantErr(t, "ChangeRemote", s.ChangeRemote(&tape{}, peerAddr, 1), ErrNotConnected)
		_, err = m.NewStream(StreamConfig{ID: s.ID()})
		wantErr(t, "NewStream with the same id", err, ErrIDInUse)
		connect(t, s, &tape{}, peerAddr, 1)
		wantErr(t, "Connect again", s.Connect(&tape{}, peerAddr, 1), ErrConnected)
		wantErr(t, "SendMessage", s.SendMessage(make([]byte, 2029)), ErrTooLong)
		if got := s.RemoteAddr(); got != (Addr{peerAddr, 1}) || got.Network() != "udx" {
			t.Errorf("RemoteAddr: %v", got)
		}
		u := newTestStream(t, m, StreamConfig{})
		_ = u.Close()
		<-u.Done()
		_ = m.Close()
		<-s.Done()
		wantErr(t, "after Mux.Close", s.Err(), net.ErrClosed)
		_, err = m.NewStream(StreamConfig{})
		wantErr(t, "NewStream after Close", err, net.ErrClosed)
	})
}

func TestEarlyPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		ma, mb := NewMux(Config{}), NewMux(Config{})
		defer ma.Close()
		defer mb.Close()
		pa, pb := n.port("192.0.2.1:1", ma, lan), n.port("192.0.2.2:2", mb, lan)
		a := newTestStream(t, ma, StreamConfig{})
		var b *Stream
		b = newTestStream(t, mb, StreamConfig{Accept: func(s Socket, from netip.AddrPort) bool {
			connect(t, b, s, from, a.ID())
			return true
		}})
		if s := newTestStream(t, mb, StreamConfig{}); s.ID() == b.ID() { // refuses all
			t.Error("same id twice")
		}
		connect(t, a, pa, pb.addr, b.ID())
		write(t, a, "early")
		_ = a.CloseWrite()
		readAll(t, b, "early")
		write(t, b, "answer")
		_ = b.CloseWrite()
		readAll(t, a, "answer")
	})
}

func TestStrangersAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newTalk(t, 1, 2)
		for _, h := range []Header{
			{Flags: FlagData, ID: 1},
			{Flags: FlagEnd, ID: 1},
			{Flags: FlagDestroy, ID: 1},
			{Flags: FlagHeartbeat, ID: 1},
		} {
			if !k.mux.Receive(k.sock, h.Append(nil), stranger) || !k.mux.Receive(&tape{}, h.Append(nil), peerAddr) {
				t.Errorf("%v: not taken", h.Flags)
			}
		}
		time.Sleep(time.Second)
		k.want("packets of strangers")
		k.feed(Header{Flags: FlagDestroy, ID: 1, Seq: maxDestroyAhead + 1}.Append(nil))
		select {
		case <-k.s.Done():
			t.Error("a DESTROY far ahead was believed")
		default:
		}
	})
}

func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := make(chan string, 10)
		a, b := pairConfig(t, newNetwork(1), lan, lan, StreamConfig{},
			StreamConfig{OnMessage: func(_ Socket, _ netip.AddrPort, b []byte) { got <- string(b) }})
		for _, m := range []string{"one", "", strings.Repeat("x", 1400)} {
			if err := a.SendMessage([]byte(m)); err != nil {
				t.Fatal(err)
			}
			if m2 := <-got; m2 != m {
				t.Errorf("got %q, want %q", m2, m)
			}
		}
		wantErr(t, "from the side without a callback", b.SendMessage([]byte("x")), nil)
		time.Sleep(time.Second)
	})
}

func TestMessagesInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		var sizes []int // of batches
		n := newNetwork(1)
		a, b := pairConfig(t, n, lan, lan, StreamConfig{}, StreamConfig{OnMessage: func(_ Socket, _ netip.AddrPort, b []byte) { got = append(got, string(b)) }})
		if !b.Stats().Heard.IsZero() {
			t.Error("heard something before anything was sent")
		}
		var out [][]byte
		var want []string
		for i, size := range []int{1200, 1200, 1200, 700, 0, 1400, 5, 5} {
			m := bytes.Repeat([]byte{byte('a' + i)}, size)
			out, want = append(out, m), append(want, string(m))
		}
		counted := &countingSocket{a.path.sock.(BatchSocket), &sizes}
		a.path.sock = counted
		if err := a.SendMessages(out); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Equal(got, want) {
			t.Errorf("%d messages arrived, want %d in order", len(got), len(want))
		}
		if !slices.Equal(sizes, []int{4, 1, 2, 1}) {
			t.Errorf("sent in batches of %v", sizes)
		}
		if ago := time.Since(b.Stats().Heard); ago <= 0 || ago > time.Second {
			t.Errorf("heard %v ago", ago)
		}
		wantErr(t, "one too long", a.SendMessages([][]byte{nil, make([]byte, maxMessage+1)}), ErrTooLong)
		wantErr(t, "none", a.SendMessages(nil), nil)
		a.Reset(nil)
		wantErr(t, "after Reset", a.SendMessages(out), net.ErrClosed)
	})
}

// countingSocket notes how many datagrams are sent at a time.
type countingSocket struct {
	BatchSocket
	sizes *[]int
}

func (s *countingSocket) Send(b []byte, to netip.AddrPort) error {
	*s.sizes = append(*s.sizes, 1)
	return s.BatchSocket.Send(b, to)
}

func (s *countingSocket) SendBatch(b [][]byte, to netip.AddrPort) error {
	*s.sizes = append(*s.sizes, len(b))
	return s.BatchSocket.SendBatch(b, to)
}

// TestBackPressure has a reader that does not read: the writer must stop, with bounded memory on both sides.
func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const buffer = 64 << 10
		c := conditions{delay: 5 * time.Millisecond, loss: .02, reorder: .1}
		a, b := pairConfig(t, newNetwork(1), c, c, StreamConfig{}, StreamConfig{ReadBuffer: buffer})
		const size = 8 << 20
		sum := make(chan [32]byte, 1)
		go func() {
			h, err := send(a, size, 7)
			if err != nil {
				t.Error(err)
			}
			sum <- h
		}()
		time.Sleep(time.Minute) // with zero window probes
		st := b.Stats()
		if st.BytesWaiting < buffer/2 || st.BytesWaiting > 2*buffer+holeSlack {
			t.Errorf("%d bytes wait to be read, want about %d", st.BytesWaiting, buffer)
		}
		if held := a.Stats().BytesUnacknowledged; held > 2<<20 {
			t.Errorf("the writer holds %d bytes", held)
		}
		n, got, err := receiveAll(b)
		if want := <-sum; n != size || got != want || err != nil {
			t.Errorf("received %d bytes %x, %v, want %d bytes %x", n, got[:4], err, size, want[:4])
		}
	})
}

func TestChangeRemoteWhileSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(3)
		c := conditions{delay: 10 * time.Millisecond, rate: 20e6, queue: 200e3}
		a, b := pair(t, n, c, c)
		small := conditions{delay: 20 * time.Millisecond, rate: 10e6, queue: 200e3, mtu: 1280}
		a2 := n.port("198.51.100.1:1", a.mux, small)
		b2 := n.port("198.51.100.2:2", b.mux, small)
		go func() {
			time.Sleep(300 * time.Millisecond)
			if err := a.ChangeRemote(a2, b2.addr, b.ID()); err != nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond)
			if err := b.ChangeRemote(b2, a2.addr, a.ID()); err != nil {
				t.Error(err)
			}
		}()
		b.accept = func(Socket, netip.AddrPort) bool { return true }
		took := transfer(t, a, b, 16<<20, 1<<20)
		st := a.Stats()
		if st.MTU > 1280 || took > 10*time.Second {
			t.Errorf("mtu %d, took %v: %+v", st.MTU, took, st)
		}
	})
}

func TestMTU(t *testing.T) {
	for _, path := range []int{1200, 1250, 1280, 1400, 1420, 1492, 1500} {
		synctest.Test(t, func(t *testing.T) {
			c := conditions{delay: 5 * time.Millisecond, mtu: path, rate: 20e6, queue: 200e3}
			a, b := pair(t, newNetwork(1), c, c)
			transfer(t, a, b, 8<<20, 0)
			st := a.Stats()
			if st.MTU > path || st.MTU < path-mtuStep {
				t.Errorf("path of %d: found %d", path, st.MTU)
			}
		})
	}
}

func TestIdleStreamsAreSmall(t *testing.T) {
	const count = 10000
	n := newNetwork(1)
	ma, mb := NewMux(Config{}), NewMux(Config{})
	defer ma.Close()
	defer mb.Close()
	pa, pb := n.port("192.0.2.1:1", ma, conditions{}), n.port("192.0.2.2:2", mb, conditions{})
	memory := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	goroutines, before := runtime.NumGoroutine(), memory()
	streams := make([]*Stream, 0, count)
	for range count / 2 {
		a, b := newTestStream(t, ma, StreamConfig{}), newTestStream(t, mb, StreamConfig{})
		connect(t, a, pa, pb.addr, b.ID())
		connect(t, b, pb, pa.addr, a.ID())
		streams = append(streams, a, b)
	}
	buf := make([]byte, 5)
	for i := 0; i < count; i += 2 {
		write(t, streams[i], "hello")
		if _, err := io.ReadFull(streams[i+1], buf); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < count; i += 2 {
		for streams[i].Stats().BytesUnacknowledged > 0 {
			runtime.Gosched()
		}
	}
	if each := (memory() - before) / count; each > 4096 {
		t.Errorf("an idle stream takes %d bytes", each)
	}
	running := func() int { return runtime.NumGoroutine() - goroutines }
	for end := time.Now().Add(time.Minute); running() > 20 && time.Now().Before(end); { // those that sent the last acknowledgements end
		runtime.Gosched()
	}
	if got := running(); got > 20 {
		t.Errorf("%d goroutines for %d idle streams", got, count)
	}
	runtime.KeepAlive(streams)
}

// TestFairness has two streams share a bottleneck.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		ma, mb := NewMux(Config{}), NewMux(Config{})
		defer ma.Close()
		defer mb.Close()
		link := conditions{delay: 20 * time.Millisecond, rate: 5e6, queue: 200e3}
		pa, pb := n.port("192.0.2.1:1", ma, link), n.port("192.0.2.2:2", mb, conditions{delay: 20 * time.Millisecond})
		var got [2]atomic.Int64
		for i := range got {
			a, b := newTestStream(t, ma, StreamConfig{}), newTestStream(t, mb, StreamConfig{})
			connect(t, a, pa, pb.addr, b.ID())
			connect(t, b, pb, pa.addr, a.ID())
			go func() {
				_, _ = a.Write(make([]byte, 1<<30))
			}()
			go func() {
				buf := make([]byte, 64<<10)
				for {
					m, err := b.Read(buf)
					if err != nil {
						return
					}
					got[i].Add(int64(m))
				}
			}()
			time.Sleep(3 * time.Second)
		}
		x0, y0 := got[0].Load(), got[1].Load()
		time.Sleep(30 * time.Second)
		x, y := float64(got[0].Load()-x0)/30, float64(got[1].Load()-y0)/30
		if x+y < .85*5e6 || x < y/3 || y < x/3 {
			t.Errorf("%.0f and %.0f bytes per second of 5,000,000", x, y)
		}
		t.Logf("%.0f and %.0f bytes per second", x, y)
	})
}

func TestReadReturnsWhatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, newNetwork(1), lan, lan)
		text := bytes.Repeat([]byte("0123456789"), 10000)
		write(t, a, string(text))
		time.Sleep(time.Second)
		buf := make([]byte, len(text)+1)
		if n, err := b.Read(buf); !bytes.Equal(buf[:n], text) || err != nil {
			t.Errorf("one Read returned %d bytes, %v, want %d", n, err, len(text))
		}
	})
}
