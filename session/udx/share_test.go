package udx

import (
	"testing"
	"testing/synctest"
	"time"
)

// Many streams that nobody reads share the memory of a few, and when they are read everything arrives.
func TestSlowReadersShareMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			streams = 20
			size    = 256 << 10
			most    = 1 << 20
		)
		n := newNetwork(1)
		ma, mb := NewMux(Config{}), NewMux(Config{})
		mb.standingMost = most
		t.Cleanup(func() {
			_ = ma.Close()
			_ = mb.Close()
		})
		pa, pb := n.port("192.0.2.1:1", ma, lan), n.port("192.0.2.2:2", mb, lan)
		var from, to []*Stream
		sums := make([]chan [32]byte, streams)
		for i := range streams {
			a, b := newTestStream(t, ma, StreamConfig{}), newTestStream(t, mb, StreamConfig{})
			connect(t, a, pa, pb.addr, b.ID())
			connect(t, b, pb, pa.addr, a.ID())
			from, to = append(from, a), append(to, b)
			sums[i] = make(chan [32]byte, 1)
			go func() {
				h, err := send(a, size, byte(i))
				if err != nil {
					t.Error(err)
				}
				sums[i] <- h
			}()
			time.Sleep(100 * time.Millisecond) // those who start together overshoot together, for a round trip
		}
		time.Sleep(10 * time.Second)
		waiting, held := 0, 0
		for i := range streams {
			waiting += to[i].Stats().BytesWaiting
			held += from[i].Stats().BytesUnacknowledged
			if w := to[i].Stats().BytesWaiting; w == 0 {
				t.Errorf("stream %d has nothing to read", i)
			}
		}
		if waiting < most/2 || waiting > 2*most {
			t.Errorf("%d bytes wait to be read, want about %d", waiting, most)
		}
		if held > streams*(writeAhead+leastShare) {
			t.Errorf("the writers hold %d bytes, want no more than %d", held, streams*(writeAhead+leastShare))
		}
		for i, b := range to {
			n, got, err := receiveAll(b)
			if want := <-sums[i]; n != size || got != want || err != nil {
				t.Errorf("received %d bytes %x, %v, want %d bytes %x", n, got[:4], err, size, want[:4])
			}
		}
		if left := mb.standing.Load(); left != 0 {
			t.Errorf("%d bytes are still counted", left)
		}
	})
}

func TestShare(t *testing.T) {
	for _, row := range []struct {
		name     string
		standing int
		limit    int
		grown    int
		want     int
	}{
		{name: "alone", limit: 4 << 20, want: 4 << 20},
		{name: "beside others", standing: standingMost - 1<<20, limit: 4 << 20, want: 1 << 20},
		{name: "beside too many", standing: 2 * standingMost, limit: 4 << 20, want: leastShare},
		{name: "small, beside too many", standing: 2 * standingMost, limit: minReadBuffer, want: minReadBuffer},
		{name: "grown", standing: 2 * standingMost, limit: 8 << 20, grown: 4 << 20, want: 8 << 20},
	} {
		m := NewMux(Config{})
		m.standing.Store(int64(row.standing))
		s := newTestStream(t, m, StreamConfig{})
		s.assembly.limit, s.growth.taken = row.limit, row.grown
		if got := s.shareLocked(); got != row.want {
			t.Errorf("%s: %d bytes, want %d", row.name, got, row.want)
		}
	}
}
