package udx

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestGoodput fills a link of 10 MB/s for some seconds and wants most of it to be useful. least is the share of what
// the link carries that must arrive, most the share of packets that may be sent again beyond those the link lost at
// random.
func TestGoodput(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	const rate = 10e6
	for _, c := range []struct {
		rtt         time.Duration
		queue       float64 // round trips
		loss        float64
		least, most float64
	}{
		{5 * time.Millisecond, 4, 0, .9, .02},
		{5 * time.Millisecond, 1, 0, .9, .05},
		{50 * time.Millisecond, 4, 0, .9, .02},
		{50 * time.Millisecond, 1, 0, .9, .02},
		{50 * time.Millisecond, .2, 0, .8, .10},
		{200 * time.Millisecond, 1, 0, .8, .05},
		{50 * time.Millisecond, 1, .01, .85, .05},
		{50 * time.Millisecond, 1, .05, .8, .05},
		{50 * time.Millisecond, 1, .2, .8, .05},
		{5 * time.Millisecond, 1, .2, .7, .05},
		{200 * time.Millisecond, 1, .05, .7, .05},
	} {
		t.Run(fmt.Sprintf("rtt=%v,queue=%v,loss=%v", c.rtt, c.queue, c.loss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				queue := int(rate * c.rtt.Seconds() * c.queue)
				out := conditions{delay: c.rtt / 2, rate: rate, queue: queue, loss: c.loss}
				a, b := pair(t, newNetwork(1), out, conditions{delay: c.rtt / 2, loss: c.loss})
				go func() { _, _ = a.Write(make([]byte, 1<<30)) }()
				start := time.Now()
				got := 0
				buf := make([]byte, 64<<10)
				const span = 10 * time.Second
				for time.Since(start) < span {
					n, err := b.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
				st := a.Stats()
				share := float64(got) / span.Seconds() / (rate * 1452 / 1500 * (1 - c.loss))
				resent := float64(st.PacketsResent)/float64(st.PacketsSent) - c.loss
				t.Logf("%.0f %% of the link, %.1f %% resent beyond loss; rtt %v, window %d, rate %.1f MB/s",
					share*100, resent*100, st.RTT, st.Window, st.Rate/1e6)
				// The goals are met on average; which packets are lost differs from run to run. Half of a goal is no chance.
				if share < c.least/2 || resent > c.most+.15 {
					t.Errorf("%.2f of the link, %.3f resent beyond loss, far from the goals of %v and %v",
						share, resent, c.least, c.most)
				}
				a.Reset(nil)
			})
		})
	}
}
