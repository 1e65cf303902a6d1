package udx_test

import (
	"testing"
	"time"

	"omegatun/session/udx"
	"omegatun/session/udx/lab"
)

// TestGoodput has a stream fill links of all kinds and wants most of what they carry to be useful: a representative part of
// what scripts/udxsim measures. least is the share of the best possible that must arrive, most the share of packets
// sent that were sent before.
func TestGoodput(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	for _, c := range []struct {
		mbit        float64
		rtt         time.Duration
		queue       float64
		loss        float64
		reorder     float64
		least, most float64
	}{
		{1, 1 * time.Millisecond, lab.Deep, 0, 0, .9, .01},
		{1, 20 * time.Millisecond, lab.Shallow, .01, .25, .9, .3},
		{1, 100 * time.Millisecond, lab.Deep, .05, 0, .9, .08},
		{1, 300 * time.Millisecond, lab.Shallow, 0, 0, .9, .05},
		{1, 300 * time.Millisecond, lab.Deep, .05, .25, .7, .3},
		{10, 1 * time.Millisecond, lab.Shallow, 0, 0, .9, .1},
		{10, 1 * time.Millisecond, lab.Deep, .2, 0, .6, .25},
		{10, 20 * time.Millisecond, lab.Deep, .001, 0, .9, .01},
		{10, 20 * time.Millisecond, lab.Deep, .05, .25, .7, .15},
		{10, 20 * time.Millisecond, lab.Shallow, .01, 0, .9, .1},
		{10, 100 * time.Millisecond, lab.Deep, .01, 0, .9, .02},
		{10, 100 * time.Millisecond, lab.Shallow, .05, .25, .7, .15},
		{10, 300 * time.Millisecond, lab.Deep, 0, .25, .9, .05},
		{10, 300 * time.Millisecond, lab.Shallow, .01, .25, .9, .1},
		{100, 1 * time.Millisecond, lab.Shallow, .05, 0, .7, .2},
		{100, 300 * time.Millisecond, lab.Deep, .001, .25, .9, .05},
		{100, 20 * time.Millisecond, lab.Deep, 0, 0, .9, .01},
		{100, 20 * time.Millisecond, lab.Shallow, .01, 0, .9, .05},
		{100, 20 * time.Millisecond, lab.Shallow, .05, .25, .7, .15},
		{10, 100 * time.Millisecond, lab.Shallow, .2, .25, .5, .4},
		{100, 1 * time.Millisecond, lab.Shallow, .2, .25, .5, .5},
		{100, 20 * time.Millisecond, lab.Deep, .2, .25, .5, .3},
	} {
		conditions := lab.Conditions{Rate: c.mbit * 1e6 / 8, RTT: c.rtt, Loss: c.loss, Reorder: c.reorder, Queue: c.queue}
		t.Run(conditions.String(), func(t *testing.T) {
			t.Parallel()
			o, err := conditions.Goodput(1)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.0f %% of the best, %.1f %% sent again", o.Share*100, o.Resent*100)
			if o.Share < c.least || o.Resent > c.most {
				t.Errorf("%.2f of the best, %.3f sent again, want at least %.2f and at most %.3f", o.Share, o.Resent, c.least, c.most)
			}
		})
	}
}

// TestFastPathWithinAMachineLosesNothing has a stream fill a path so fast and short that all that waits on it is in the receiver's
// socket buffer.
func TestFastPathWithinAMachineLosesNothing(t *testing.T) {
	w := lab.New(1)
	link := lab.Link{Rate: 1.5e9, Queue: 1 << 20, Delay: 15 * time.Microsecond}
	p := w.NewPair(link, link)
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	const span = 300 * time.Millisecond
	w.Run(span)
	s := f.From.Stats()
	share := float64(f.Received) / span.Seconds() / 1.5e9
	t.Logf("%.2f of what the path carries, %d packets of %d sent again", share, s.PacketsResent, s.PacketsSent)
	if s.PacketsResent > s.PacketsSent/100 || share < .8 {
		t.Errorf("%d packets of %d sent again, %.2f of the best, want 1 %% and 0.8", s.PacketsResent, s.PacketsSent, share)
	}
}

// TestTwoFlowsShare has a second stream join one that fills a bottleneck.
func TestTwoFlowsShare(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	for _, c := range []lab.Conditions{
		{Rate: 10e6 / 8, RTT: 20 * time.Millisecond, Queue: lab.Deep},
		{Rate: 10e6 / 8, RTT: 100 * time.Millisecond, Queue: lab.Shallow},
		{Rate: 1e6 / 8, RTT: 100 * time.Millisecond, Queue: lab.Shallow},
		{Rate: 10e6 / 8, RTT: 300 * time.Millisecond, Queue: lab.Deep, Loss: .01},
		{Rate: 10e6 / 8, RTT: 300 * time.Millisecond, Queue: lab.Shallow},
		{Rate: 50e6 / 8, RTT: 100 * time.Millisecond, Queue: lab.Deep},
	} {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			second, together, err := c.Fairness(1)
			if err != nil {
				t.Fatal(err)
			}
			if second < .4 || second > .6 || together < .9 {
				t.Errorf("the second one has %.2f of %.2f of the best", second, together)
			}
		})
	}
}

// TestSurvival wants a transfer to go on at full speed after what happens in its middle.
func TestSurvival(t *testing.T) {
	limits := map[string]time.Duration{ // of the stall
		"an outage of five seconds": 6 * time.Second,
	}
	for _, e := range lab.Events() {
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			s, err := e.Run(1)
			if err != nil {
				t.Fatal(err)
			}
			limit := limits[e.Name]
			if limit == 0 {
				limit = 1500 * time.Millisecond
			}
			if s.Stall > limit || s.Share < .9 || s.Recovered == 0 {
				t.Errorf("%+v, want a stall of at most %v and 0.9 of the best", s, limit)
			}
		})
	}
}

// TestTailProbes wants the end of a flight that was lost to be noticed within round trips, and not after a timeout only.
func TestTailProbes(t *testing.T) {
	w := lab.New(1)
	link := lab.Link{Rate: 1e6, Delay: 2 * time.Millisecond, Queue: 50e3}
	p := w.NewPair(link, link)
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	w.Run(time.Second)
	p.There.Down = true
	w.Run(w.Now() + 290*time.Millisecond)
	if s := f.From.Stats(); s.TailProbes < 2 || s.Timeouts > 0 {
		t.Errorf("in 290 ms of silence: %d tail probes, %d timeouts", s.TailProbes, s.Timeouts)
	}
	w.Run(w.Now() + time.Second)
	if s := f.From.Stats(); s.Timeouts == 0 {
		t.Error("no timeout after more than a second")
	}
}

// TestNoQueueIsLeftStanding has a stream alone on a fast, short path, where batches hold more than the path does.
func TestNoQueueIsLeftStanding(t *testing.T) {
	c := lab.Conditions{Rate: 125e6, RTT: time.Millisecond, Queue: lab.Deep}
	w := lab.New(1)
	p := w.NewPair(c.Link(), c.Link())
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	const from, to, step = time.Second, 2 * time.Second, 10 * time.Millisecond
	var sum time.Duration
	for at := from; at < to; at += step {
		w.Run(at)
		sum += f.From.Stats().RTT
	}
	if mean := sum / ((to - from) / step); mean > 2*c.RTT {
		t.Errorf("a round trip of %v takes %v", c.RTT, mean)
	} else {
		t.Logf("a round trip of %v takes %v", c.RTT, mean)
	}
}
