package udx

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestChaos lets many streams write, read, change paths, close and reset at random over bad links. Whatever is read must
// be the start of what was written, and everything must come to an end.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(seed)
			bad := conditions{delay: 20 * time.Millisecond, loss: .1, reorder: .2, dup: .1, rate: 5e6, queue: 100e3}
			ma, mb := NewMux(Config{}), NewMux(Config{})
			pa := [2]*port{n.port("192.0.2.1:1", ma, bad), n.port("192.0.2.1:2", ma, bad)}
			pb := [2]*port{n.port("192.0.2.2:1", mb, bad), n.port("192.0.2.2:2", mb, bad)}
			yes := StreamConfig{Accept: func(Socket, netip.AddrPort) bool { return true }}
			var wg sync.WaitGroup
			for i := range 20 {
				a, b := newTestStream(t, ma, yes), newTestStream(t, mb, yes)
				connect(t, a, pa[0], pb[0].addr, b.ID())
				connect(t, b, pb[0], pa[0].addr, a.ID())
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				sa, sb := rng.Uint64(), rng.Uint64()
				wg.Go(func() { chaosEnd(t, a, sa, pa, pb[0].addr, b.ID()) })
				wg.Go(func() { chaosEnd(t, b, sb, pb, pa[0].addr, a.ID()) })
				wg.Go(func() { chaosRead(t, a) })
				wg.Go(func() { chaosRead(t, b) })
			}
			wg.Wait()
			_ = ma.Close()
			_ = mb.Close()
		})
	}
}

// pattern is what every stream carries: the byte at an offset.
func pattern(at int) byte { return byte(at ^ at>>8 ^ at>>16) }

func chaosEnd(t *testing.T, s *Stream, seed uint64, socks [2]*port, to netip.AddrPort, id ID) {
	rng := rand.New(rand.NewPCG(seed, 0))
	sent := 0
	for range rng.IntN(40) {
		switch rng.IntN(8) {
		case 0:
			_ = s.ChangeRemote(socks[rng.IntN(2)], to, id)
		case 1:
			_ = s.SendMessage(make([]byte, rng.IntN(1000)))
		case 2:
			time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		default:
			b := make([]byte, rng.IntN(50000))
			for i := range b {
				b[i] = pattern(sent + i)
			}
			_ = s.SetWriteDeadline(time.Now().Add(time.Duration(rng.IntN(2000)) * time.Millisecond))
			m, _ := s.Write(b)
			sent += m
		}
	}
	switch rng.IntN(4) {
	case 0:
		s.Reset(errors.New("chaos"))
	case 1:
		_ = s.Close()
	default:
		_ = s.CloseWrite()
		time.Sleep(20 * time.Second)
		_ = s.Close()
	}
	start := time.Now()
	<-s.Done()
	if took := time.Since(start); took > time.Minute {
		t.Errorf("done %v after the end", took)
	}
}

func chaosRead(t *testing.T, s *Stream) {
	buf := make([]byte, 10000)
	for got := 0; ; {
		n, err := s.Read(buf)
		for i := range n {
			if buf[i] != pattern(got+i) {
				t.Errorf("byte %d is wrong", got+i)
				return
			}
		}
		got += n
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, ErrReset) &&
				!errors.Is(err, ErrTimeout) && err.Error() != "read udx: chaos" {
				t.Errorf("Read: %v", err)
			}
			return
		}
	}
}
