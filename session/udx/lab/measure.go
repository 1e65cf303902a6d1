package lab

import (
	"fmt"
	"time"

	"omegatun/session/udx"
)

// Conditions are those of a bottleneck, which loses and reorders in both directions, and is as fast in both.
type Conditions struct {
	Rate    float64       // bytes of IP packets per second
	RTT     time.Duration // without a queue
	Loss    float64       // share of packets
	Reorder float64       // share of packets that are not delayed
	Queue   float64       // round trips at Rate that may wait; minQueue packets can for each at least
}

// Deep and Shallow are queues as they are found: far too long, and too short.
const (
	Deep    = 4.0
	Shallow = 0.25
)

const (
	packet      = 1500
	payload     = packet - ipOverhead - udx.HeaderSize
	measurement = 30 // round trips measured at least
)

// String returns the conditions in short.
func (c Conditions) String() string {
	queue := fmt.Sprintf("queue=%v", c.Queue)
	switch c.Queue {
	case Deep:
		queue = "deep"
	case Shallow:
		queue = "shallow"
	}
	return fmt.Sprintf("%vMbit/s,%v,loss=%v%%,reorder=%v%%,%s", c.Rate*8/1e6, c.RTT, c.Loss*100, c.Reorder*100, queue)
}

// Link returns the link in one direction.
func (c Conditions) Link() Link {
	queue := max(int(c.Rate*c.RTT.Seconds()*c.Queue), int(16*max(c.Queue, .5))*packet)
	return Link{Rate: c.Rate, Queue: queue, Delay: c.RTT / 2, Loss: c.Loss, Reorder: c.Reorder}
}

// Best returns the most bytes of a stream per second that can arrive.
func (c Conditions) Best() float64 { return c.Rate * payload / packet * (1 - c.Loss) }

// Outcome is what a flow did in steady state.
type Outcome struct {
	Share  float64       // of Conditions.Best
	Resent float64       // share of packets sent that had been sent before
	Start  time.Duration // until half of Best was reached; zero: never
	RTT    time.Duration // at the end, as the sender sees it
	Stats  udx.Stats     // at the end
}

// Goodput has one stream fill the bottleneck. It is measured after a while to get going: 25 round trips, and two
// seconds, or what the slowest link needs for some hundred packets.
func (c Conditions) Goodput(seed uint64) (Outcome, error) {
	w := New(seed)
	p := w.NewPair(c.Link(), c.Link())
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	some := time.Duration(200 * packet / c.Rate * float64(time.Second))
	warm := 25*c.RTT + max(2*time.Second, some)
	if c.Rate > 50e6 {
		warm = 25*c.RTT + time.Second
	}
	span := max(measurement*c.RTT, 5*some, time.Second)
	var o Outcome
	step := max(c.RTT, 10*time.Millisecond)
	for at := step; at < warm; at += step {
		before := f.Received
		w.Run(at)
		if o.Start == 0 && float64(f.Received-before) > c.Best()*step.Seconds()/2 {
			o.Start = at
		}
	}
	w.Run(warm)
	before, start := f.From.Stats(), f.Received
	w.Run(warm + span)
	o.Stats = f.From.Stats()
	o.Share = float64(f.Received-start) / span.Seconds() / c.Best()
	o.Resent = float64(o.Stats.PacketsResent-before.PacketsResent) / max(1, float64(o.Stats.PacketsSent-before.PacketsSent))
	o.RTT = o.Stats.RTT
	return o, f.failed()
}

// failed returns what is wrong with a flow.
func (f *Flow) failed() error {
	for _, s := range []*udx.Stream{f.From, f.To} {
		if err := s.Err(); err != nil {
			return fmt.Errorf("the stream ended: %w", err)
		}
	}
	if f.Wrong != 0 {
		return fmt.Errorf("byte %d is wrong", f.Wrong-1)
	}
	return nil
}

// Fairness has two streams of two hosts each share the bottleneck, the second one started when the first one has it to
// itself, and returns the share of what arrived that was the second one's, and both together as a share of Best. It is
// measured for 20 seconds and at least 100 round trips, which begin 10 seconds and at least 50 round trips after the
// second one has: parts become equal by the round trip, and whoever shares a path for less hardly notices.
func (c Conditions) Fairness(seed uint64) (second, together float64, err error) {
	w := New(seed)
	p := w.NewPair(c.Link(), c.Link())
	q := &Pair{World: w, There: p.There, Back: p.Back, MA: udx.NewMux(udx.Config{Clock: w}), MB: udx.NewMux(udx.Config{Clock: w})}
	q.A, q.B = w.Port("192.0.2.3:1", q.MA, p.There), w.Port("192.0.2.4:2", q.MB, p.Back)
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	some := time.Duration(200 * packet / c.Rate * float64(time.Second))
	warm := 25*c.RTT + max(time.Second, some)
	w.Run(warm)
	g := q.Flow(udx.StreamConfig{ID: 3}, udx.StreamConfig{ID: 4})
	warm += max(10*time.Second, 50*c.RTT)
	w.Run(warm)
	a, b := f.Received, g.Received
	span := max(20*time.Second, 5*some, 100*c.RTT)
	w.Run(warm + span)
	x, y := float64(f.Received-a), float64(g.Received-b)
	if err = f.failed(); err == nil {
		err = g.failed()
	}
	return y / max(x+y, 1), (x + y) / span.Seconds() / c.Best(), err
}
