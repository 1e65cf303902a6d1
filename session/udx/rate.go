package udx

import "time"

// sampler measures how fast the network delivers: each packet remembers how much had been delivered when it was
// sent, so its acknowledgement tells what was delivered in between, over the slower of sending and acknowledging.
// Source: draft-cheng-iccrg-delivery-rate-estimation.
type sampler struct {
	delivered   int64   // bytes, so far
	deliveredAt instant // when that last grew
	firstSentAt instant // when the packet was sent that ended the last sample, or the first of a busy period
	appLimited  int64   // until delivered passes this, samples may show the application's rate; zero: they do not

	prior struct { // of the most recently sent packet of this acknowledgement
		delivered   int64
		deliveredAt instant
		sendElapsed time.Duration
		appLimited  bool
		sentAt      instant
		seq         seq
		set         bool
	}
}

// rateSample is what one acknowledgement shows.
type rateSample struct {
	bandwidth  float64       // bytes per second; zero: not known
	prior      int64         // delivered when the packet was sent
	appLimited bool          // bandwidth is a lower bound
	rtt        time.Duration // zero: no sample
	least      time.Duration // what a round trip of the path takes at least
	period     int           // number of the last period in which the round trips of slow packets were judged; zero: they are not
	trip       time.Duration // what they took in it
	acked      int           // bytes this acknowledgement delivered
	lost       int           // bytes found to be lost since the one before
	undone     int           // bytes it showed to be late that had been taken for lost
	inFlight   int           // bytes, after it
	disordered bool          // packets overtake each other, so that round trips differ by nature
}

// sent marks a packet that is sent now, with inFlight bytes before it.
func (s *sampler) sent(now instant, p *packet, inFlight int) {
	if inFlight == 0 {
		s.firstSentAt, s.deliveredAt = now, now
	}
	p.delivered, p.deliveredAt, p.firstSentAt = s.delivered, s.deliveredAt, s.firstSentAt
	p.appLimited = s.appLimited != 0
}

// arrived counts a packet that was acknowledged. least is the shortest round trip of the path: a packet that took less
// overtook others, and shows nothing.
func (s *sampler) arrived(now instant, p *packet, least time.Duration) {
	s.delivered += int64(p.cost())
	s.deliveredAt = now
	if p.deliveredAt == 0 || now.sub(p.sentAt) < least {
		return
	}
	if r := &s.prior; !r.set || !p.sentBefore(r.sentAt, r.seq) {
		r.delivered, r.deliveredAt = p.delivered, p.deliveredAt
		r.sendElapsed = p.sentAt.sub(p.firstSentAt)
		r.appLimited = p.appLimited
		r.sentAt, r.seq, r.set = p.sentAt, p.seq, true
		s.firstSentAt = p.sentAt
	}
	p.deliveredAt = 0
}

// sample ends an acknowledgement. shortest is the shortest round trip known: an interval below it shows a burst, not
// the path.
func (s *sampler) sample(now instant, shortest time.Duration) rateSample {
	if s.appLimited != 0 && s.delivered > s.appLimited {
		s.appLimited = 0
	}
	r := &s.prior
	if !r.set {
		return rateSample{}
	}
	out := rateSample{prior: r.delivered, appLimited: r.appLimited}
	interval := max(r.sendElapsed, now.sub(r.deliveredAt))
	if interval >= shortest && interval > 0 {
		out.bandwidth = float64(s.delivered-r.delivered) / interval.Seconds()
	}
	r.set = false
	return out
}

// limited tells that there is nothing to send although the network would take more.
func (s *sampler) limited(inFlight int) { s.appLimited = max(s.delivered+int64(inFlight), 1) }
