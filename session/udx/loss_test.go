package udx

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestSlowPackets has rack watch a path on which a quarter of all packets overtake the rest, and reports come in runs, as they
// do on fast paths.
func TestSlowPackets(t *testing.T) {
	ms := func(n int) instant { return instant(n) * instant(time.Millisecond) }
	rng := rand.New(rand.NewPCG(1, 2))
	var r rack
	var rtts rttEstimator
	q := seq(0)
	at := 1000
	// some reports packets that took rtt, and says whether they were overtaken.
	some := func(n, rtt int, overtaken bool) {
		rtts.sample(ms(at), time.Duration(rtt)*time.Millisecond)
		for range n {
			q++
			if overtaken {
				r.fack = q + 2
			} else {
				r.fack = q
			}
			r.arrived(ms(at), &packet{packetBooks: packetBooks{seq: q, sends: 1, sentAt: ms(at - rtt)}}, &rtts, false, true)
		}
		at += 2
	}
	near := func(what string, got, want time.Duration) {
		t.Helper()
		if got < want || got > want+want/16 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	for range 500 {
		some(1+rng.IntN(200), 1+rng.IntN(3), false)
		some(1+rng.IntN(100), 80, true)
	}
	if !r.disordered() || !r.settled {
		t.Errorf("not taken for a path that reorders: %+v", r)
	}
	near("the longest round trip", r.longest(), 80*time.Millisecond)
	near("the least of the slow packets", r.least(&rtts), 80*time.Millisecond)
	for range 200 {
		some(100, 300, true)
	}
	near("after the queue has grown, the longest", r.longest(), 300*time.Millisecond)
	near("the least of the slow packets", r.least(&rtts), 80*time.Millisecond)
	some(2000, 90, false) // a run without order says little
	if !r.disordered() {
		t.Error("a run of packets in order ends the disorder")
	}
	for range 3000 {
		some(10, 90, false)
	}
	if r.disordered() {
		t.Error("many round trips in order do not end the disorder")
	}
}

// TestPacketThatCameTwiceTookLonger wants a report of that to say that a packet took longer than it was waited for, and not
// as long as its second copy.
func TestPacketThatCameTwiceTookLonger(t *testing.T) {
	ms := func(n int) instant { return instant(n) * instant(time.Millisecond) }
	var r rack
	var rtts rttEstimator
	rtts.sample(1, 80*time.Millisecond)
	r.reordering, r.slow = true, 80*time.Millisecond
	for i := range 200 {
		p := &packet{packetBooks: packetBooks{seq: seq(i), sends: 1, n: 100, sentAt: ms(1000 + i)}}
		r.gaveUp(ms(1090+i), p)
		if r.again(ms(1400+i), p.seq, &rtts) != p.cost() {
			t.Fatal("not remembered")
		}
	}
	if got := r.longest(); got < 90*time.Millisecond || got > 110*time.Millisecond {
		t.Errorf("the longest round trip is %v, want a little more than 90ms", got)
	}
}

// TestSilenceIsNotSlowness wants what packets seem to have taken after acknowledgements were lost not to be taken for the path's.
func TestSilenceIsNotSlowness(t *testing.T) {
	ms := func(n int) instant { return instant(n) * instant(time.Millisecond) }
	for _, c := range []struct {
		name  string
		every int // milliseconds between acknowledgements
		want  time.Duration
	}{
		{"acknowledgements are lost", 100, 80 * time.Millisecond},
		{"the path is slow", 1, 120 * time.Millisecond},
	} {
		var r rack
		var rtts rttEstimator
		rtts.sample(1, 80*time.Millisecond)
		r.reordering, r.slow, r.trips = true, 80*time.Millisecond, new(tripCounts)
		for i := range 500 {
			at := 1000 + i*c.every
			for j := range 4 {
				took := 80
				if j == 0 {
					took = 120
				}
				r.heard(ms(at))
				r.arrived(ms(at), &packet{packetBooks: packetBooks{seq: seq(4*i + j), sends: 1, sentAt: ms(at - took)}}, &rtts, false, true)
			}
		}
		if got := r.longest(); got < c.want || got > c.want+c.want/16 {
			t.Errorf("%s: the longest round trip is %v, want %v", c.name, got, c.want)
		}
	}
}

// TestLossFoundByTheTimerCounts wants what a timer finds to be lost to be part of the next sample.
func TestLossFoundByTheTimerCounts(t *testing.T) {
	ms := func(n int) instant { return instant(n) * instant(time.Millisecond) }
	s := newSender()
	s.rack.reordering = true
	s.congestion.full, s.congestion.mode = true, probeBandwidth
	for range 10 {
		p := newPacket()
		p.fill([]byte("x"), 1)
		s.append(p)
		s.sent(ms(1), s.queue.first)
	}
	lost := (*s.ring.at(0)).cost()
	s.acknowledged(ms(100), Header{Window: 1 << 20}, appendSACKs(nil, []seqRange{{1, 9}}))
	if s.timer != timerReorder || s.missing.len != 0 {
		t.Fatalf("no timer for what may be late: %v", s.timer)
	}
	s.tick(s.timerAt)
	if s.missing.len != 1 {
		t.Fatal("the timer finds nothing lost")
	}
	s.acknowledged(ms(200), Header{Window: 1 << 20}, appendSACKs(nil, []seqRange{{1, 10}}))
	if got := s.congestion.overrun.lost; got != lost {
		t.Errorf("%d bytes count as lost, want %d", got, lost)
	}
}

// TestHeldBackFlightDoesNotShowTheBandwidth wants what was known of it to last while less is in flight on purpose.
func TestHeldBackFlightDoesNotShowTheBandwidth(t *testing.T) {
	for _, c := range []struct {
		name string
		hold func(*sender)
		want float64
	}{
		{"a look for the shortest round trip", func(s *sender) { s.congestion.mode, s.congestion.probeDone = probeRTT, 0 }, 1e6},
		{"a trial", func(s *sender) { s.congestion.full, s.congestion.overrun.trial = true, 1 }, 1e5},
		{"a trial where packets are overtaken", func(s *sender) {
			s.congestion.full, s.congestion.overrun.trial, s.rack.disorder = true, 1, 1
		}, 1e6},
		{"steady state", func(s *sender) { s.congestion.mode = probeBandwidth }, 1e5},
	} {
		s := newSender()
		s.congestion.bandwidth.reset(0, 1e6)
		c.hold(&s)
		now := instant(time.Second)
		for i := range 50 {
			p := newPacket()
			p.fill(make([]byte, 972), 972)
			s.append(p)
			s.sent(now, s.queue.first)
			now = now.add(10 * time.Millisecond)
			s.acknowledged(now, Header{Ack: uint32(i + 1), Window: 1 << 20}, nil)
			c.hold(&s)
		}
		if got := s.congestion.bandwidth.get(); got < c.want*.9 || got > c.want*1.1 {
			t.Errorf("%s: %.0f bytes per second, want %.0f", c.name, got, c.want)
		}
		if held := c.want == 1e6; (s.rate.appLimited != 0) != held {
			t.Errorf("%s: samples show a lower bound: %v, want %v", c.name, !held, held)
		}
	}
}

// TestPeerThatChoosesItsReports wants it to be told from one that reports the first blocks only.
func TestPeerThatChoosesItsReports(t *testing.T) {
	const count = 400
	list := func(from int, skip int) (b []seqRange) { // of packets with even numbers
		for q := from; len(b) < maxSACKs; q += 2 {
			b = append(b, seqRange{seq(q), seq(q + 1)})
			if len(b) == 8 {
				q += 2 * skip
			}
		}
		return b
	}
	for _, c := range []struct {
		name     string
		ack      uint32
		skip     int
		thorough bool
	}{
		{"the first ones", 11, 0, false},
		{"what comes lately", 11, 20, true},
		{"a few left out", 11, leftOutMany - 1, false},
		{"an old list", 1, 20, false},
	} {
		s := newSender()
		for range count {
			p := newPacket()
			p.fill([]byte("x"), 1)
			s.append(p)
			s.sent(1, s.queue.first)
		}
		s.acknowledged(2, Header{Ack: 1, Window: 1 << 20}, appendSACKs(nil, list(12, 0)))
		s.acknowledged(3, Header{Ack: 1, Window: 1 << 20}, appendSACKs(nil, list(112, 0)))
		s.acknowledged(4, Header{Ack: c.ack, Window: 1 << 20}, appendSACKs(nil, list(12, c.skip)))
		if s.thorough != c.thorough {
			t.Errorf("%s: taken for one that chooses: %v", c.name, s.thorough)
		}
	}
}
