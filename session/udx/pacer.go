package udx

import "time"

const (
	pacerInitial = 25000 // bytes that may go before a rate is known

	// pacerQuantum is how long sends are gathered: timers are not finer, and batches are cheaper than packets.
	pacerQuantum = time.Millisecond

	// pacerDepth is how much unused time may be made up for. Timers are late by up to a few milliseconds on a
	// busy machine, and what they miss must not be lost.
	pacerDepth = 4 * time.Millisecond

	pacerMinBurst = 2 * maxMTU
	pacerMaxBurst = 64 << 10
)

// pacer spreads packets over time: a bucket that fills at a rate and may be overdrawn by one packet.
type pacer struct {
	rate    float64 // bytes per second
	most    float64 // bytes of a burst that was not missed; zero: what the quantum allows
	tokens  float64 // bytes
	last    instant // when tokens was right
	waiting bool    // somebody waits until next; nobody does if it is not the pacer that holds packets back
}

// setRate changes the rate from now on, and how many bytes may go at a time; zero: as the quantum allows.
func (p *pacer) setRate(now instant, rate float64, most int) {
	p.fill(now)
	p.rate, p.most = rate, float64(most)
}

// burst returns the bytes that are worth waking for.
func (p *pacer) burst() float64 {
	burst := min(max(p.rate*pacerQuantum.Seconds(), pacerMinBurst), pacerMaxBurst)
	if p.most > 0 {
		burst = min(burst, max(p.most, pacerMinBurst))
	}
	return burst
}

func (p *pacer) fill(now instant) {
	if p.last == 0 {
		p.tokens = pacerInitial
	} else if now > p.last {
		limit := max(p.rate*pacerQuantum.Seconds(), pacerMinBurst)
		switch {
		case p.waiting:
			limit = max(p.rate*pacerDepth.Seconds(), pacerMinBurst)
		case p.most > 0:
			limit = min(limit, max(p.most, pacerMinBurst))
		}
		p.tokens = min(p.tokens+p.rate*now.sub(p.last).Seconds(), limit)
	}
	p.last = max(now, p.last)
}

// ready reports whether a packet may go now.
func (p *pacer) ready(now instant) bool {
	p.fill(now)
	return p.tokens > 0
}

// sent takes the bytes of a packet that went.
func (p *pacer) sent(n int) {
	p.tokens -= float64(n)
	p.waiting = false
}

// next returns when a burst worth waking for may go.
func (p *pacer) next(now instant) instant {
	p.waiting = true
	wait := (p.burst() - p.tokens) / max(p.rate, 1)
	return now.add(min(time.Duration(wait*float64(time.Second)), time.Second) + 1)
}
