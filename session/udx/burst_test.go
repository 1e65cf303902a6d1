package udx

import (
	"bytes"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pile is a socket whose datagrams lie there until they are taken.
type pile struct {
	mu        sync.Mutex
	datagrams [][]byte
}

func (p *pile) Send(b []byte, _ netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.datagrams = append(p.datagrams, bytes.Clone(b))
	return nil
}

func (p *pile) take() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.datagrams
	p.datagrams = nil
	return d
}

// piles returns two hosts whose datagrams are piled up, with streams of the ids between them.
func piles(t *testing.T, ids ...ID) (a, b *Mux, fromA, fromB *pile, as, bs []*Stream) {
	t.Helper()
	a, b, fromA, fromB = NewMux(Config{}), NewMux(Config{}), new(pile), new(pile)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	open := func(m *Mux, p *pile, to netip.AddrPort, id ID) *Stream {
		s, err := m.NewStream(StreamConfig{ID: id})
		if err == nil {
			err = s.Connect(p, to, id)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, id := range ids {
		as = append(as, open(a, fromA, pileB, id))
		bs = append(bs, open(b, fromB, pileA, id))
	}
	return a, b, fromA, fromB, as, bs
}

var (
	pileA = netip.MustParseAddrPort("192.0.2.1:1")
	pileB = netip.MustParseAddrPort("192.0.2.2:2")
)

func TestABurstWakesAReaderOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b, fromA, fromB, as, bs := piles(t, 7)
		sent := bytes.Repeat([]byte("burst"), 2000) // fits the first window
		if _, err := as[0].Write(sent); err != nil {
			t.Fatal(err)
		}
		read := make(chan []byte)
		go func() {
			buf := make([]byte, 1<<20)
			n, err := bs[0].Read(buf)
			if err != nil {
				t.Error(err)
			}
			read <- buf[:n]
		}()
		synctest.Wait()
		burst := b.NewBurst()
		packets := fromA.take()
		for _, d := range packets {
			if !burst.Receive(fromB, d, pileA) {
				t.Errorf("a packet of %d bytes is not for the stream", len(d))
			}
		}
		synctest.Wait()
		select {
		case got := <-read:
			t.Errorf("the reader got %d bytes before Flush", len(got))
		default:
		}
		if acks := fromB.take(); len(acks) != 0 {
			t.Errorf("%d packets were sent before Flush", len(acks))
		}
		burst.Flush()
		if got := <-read; !bytes.Equal(got, sent) {
			t.Errorf("the first Read returned %d bytes of %d packets, want all %d", len(got), len(packets), len(sent))
		}
		synctest.Wait()
		if acks := fromB.take(); len(acks) != 1 {
			t.Errorf("%d acknowledgements, want one", len(acks))
		}
	})
}

func TestBurstsCarryStreamsToTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, fromA, fromB, as, bs := piles(t, 1, 2, 3)
		sent := make([][]byte, len(as))
		got := make([]chan []byte, len(as))
		for i := range as {
			sent[i] = bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, 30_000+i)
			got[i] = make(chan []byte, 1)
			go func() {
				if _, err := as[i].Write(sent[i]); err != nil {
					t.Error(err)
				}
				if err := as[i].CloseWrite(); err != nil {
					t.Error(err)
				}
			}()
			go func() {
				var all bytes.Buffer
				if _, err := all.ReadFrom(struct{ *Stream }{bs[i]}); err != nil {
					t.Error(err)
				}
				if err := bs[i].CloseWrite(); err != nil {
					t.Error(err)
				}
				got[i] <- all.Bytes()
			}()
		}
		toA, toB := a.NewBurst(), b.NewBurst()
		done := func() bool {
			for _, s := range as {
				select {
				case <-s.Done():
				default:
					return false
				}
			}
			return true
		}
		for !done() { // the last packets are for streams that have ended by then, and are answered in their place
			synctest.Wait()
			forB, forA := fromA.take(), fromB.take()
			if len(forA) == 0 && len(forB) == 0 {
				time.Sleep(time.Millisecond) // fake: timers are what is left
				continue
			}
			for _, d := range forB {
				toB.Receive(fromB, d, pileA)
			}
			toB.Flush()
			for _, d := range forA {
				toA.Receive(fromA, d, pileB)
			}
			toA.Flush()
		}
		for i := range as {
			if b := <-got[i]; !bytes.Equal(b, sent[i]) {
				t.Errorf("stream %d: %d bytes came, want %d, or others", i, len(b), len(sent[i]))
			}
			if err := as[i].Err(); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		}
	})
}
