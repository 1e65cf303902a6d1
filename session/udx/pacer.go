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
	tokens  float64 // bytes
	last    instant // when tokens was right
	waiting bool    // somebody waits until next; nobody does if it is not the pacer that holds packets back
}

// setRate changes the rate from now on.
func (p *pacer) setRate(now instant, rate float64) {
	p.fill(now)
	p.rate = rate
}

func (p *pacer) fill(now instant) {
	if p.last == 0 {
		p.tokens = pacerInitial
	} else if now > p.last {
		depth := pacerQuantum
		if p.waiting {
			depth = pacerDepth
		}
		p.tokens += p.rate * now.sub(p.last).Seconds()
		p.tokens = min(p.tokens, max(p.rate*depth.Seconds(), pacerMinBurst))
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
	burst := min(max(p.rate*pacerQuantum.Seconds(), pacerMinBurst), pacerMaxBurst)
	wait := (burst - p.tokens) / max(p.rate, 1)
	return now.add(min(time.Duration(wait*float64(time.Second)), time.Second) + 1)
}
