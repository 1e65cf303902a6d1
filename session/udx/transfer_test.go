package udx

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// send writes size random bytes and ends; it returns their hash.
func send(s *Stream, size int64, seed byte) (sum [32]byte, err error) {
	r := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
	h := sha256.New()
	if _, err = io.Copy(struct{ io.Writer }{s}, io.TeeReader(r, h)); err != nil {
		return sum, err
	}
	err = s.CloseWrite()
	return [32]byte(h.Sum(nil)), err
}

// receiveAll reads to the end and returns how much that was and its hash.
func receiveAll(s *Stream) (n int64, sum [32]byte, err error) {
	h := sha256.New()
	n, err = io.Copy(h, struct{ io.Reader }{s})
	return n, [32]byte(h.Sum(nil)), err
}

// transfer sends size bytes each way at once and checks that they arrive. It returns how long it took.
func transfer(t *testing.T, a, b *Stream, sizeAB, sizeBA int64) time.Duration {
	t.Helper()
	start := time.Now()
	type result struct {
		n   int64
		sum [32]byte
		err error
	}
	run := func(from, to *Stream, size int64, seed byte) (out, in chan result) {
		out, in = make(chan result, 1), make(chan result, 1)
		go func() {
			sum, err := send(from, size, seed)
			out <- result{size, sum, err}
		}()
		go func() {
			n, sum, err := receiveAll(to)
			in <- result{n, sum, err}
		}()
		return out, in
	}
	outAB, inAB := run(a, b, sizeAB, 1)
	outBA, inBA := run(b, a, sizeBA, 2)
	for _, c := range []struct {
		name    string
		out, in chan result
	}{{"a to b", outAB, inAB}, {"b to a", outBA, inBA}} {
		if got, want := <-c.in, <-c.out; got != want {
			t.Errorf("%s: received %d bytes %x, %v, want %d bytes %x, %v",
				c.name, got.n, got.sum[:4], got.err, want.n, want.sum[:4], want.err)
		}
	}
	took := time.Since(start)
	<-a.Done()
	<-b.Done()
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("after the transfer: %v, %v, want no errors", a.Err(), b.Err())
	}
	return took
}

func TestTransfer(t *testing.T) {
	for _, loss := range []float64{0, .01, .05, .2} {
		for _, other := range []conditions{{}, {reorder: .25}, {reorder: .25, dup: .1}} {
			for _, delay := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond} {
				c := other
				c.loss, c.delay = loss, delay/2
				size := int64(4 << 20)
				if testing.Short() {
					size = 512 << 10
				}
				name := fmt.Sprintf("loss=%v/reorder=%v,dup=%v/rtt=%v", loss, c.reorder, c.dup, delay)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newNetwork(1)
						a, b := pair(t, n, c, c)
						took := transfer(t, a, b, size, size/4)
						st := a.Stats()
						t.Logf("%.2f MB/s, %d packets, %d resent, %d spurious, %d timeouts, mtu %d, rtt %v",
							float64(size)/1e6/took.Seconds(), st.PacketsSent, st.PacketsResent, st.Spurious, st.Timeouts,
							st.MTU, st.RTT)
					})
				})
			}
		}
	}
}
