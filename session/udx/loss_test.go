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
