package udx

import "time"

// The numbers of BBR. Windows are in bytes of packet cost.
const (
	initialWindow = 10 * maxMTU
	minWindow     = 4 * maxMTU

	startupGain = 2.88539 // 2/ln 2: doubles the rate each round
	drainGain   = 1 / startupGain
	windowGain  = 2.0
	paceMargin  = 0.99 // a little below the estimate, so that queues drain

	fullGrowth = 1.25 // startup ends when a round does not bring this much
	fullRounds = 3    // for so many rounds
	fullQueue  = 1.5  // of what the path holds must be in flight to show that, and of a round trip be seen to show a queue

	starvedPart = 4 // of a round trip with nothing to send is long

	bandwidthRounds = 10
	shortestWidth   = 10 * time.Second
	shortestFloor   = time.Millisecond // acknowledgements and timers are not finer
	floorBytes      = 256 << 10        // unless so much passes in less time: then it would all wait in the receiver's socket buffer
	probeRTTTime    = 200 * time.Millisecond
	probeLong       = 2 * time.Second // more at most, to judge the round trips of packets that are overtaken
	maxChance       = .3              // share of loss that is made up for
	chanceGain      = 1.25
	extraRounds     = 5
	probePackets    = 36 // more than the path holds do to see a queue: batches of a fast path would leave one standing
	burstPart       = 8  // of a bound that goes at a time
	extraTime       = 100 * time.Millisecond
)

// cycleGains are the pacing gains of steady state, a shortest round trip each: ask for more, give the queue back,
// cruise.
var cycleGains = [...]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1} //nolint:gochecknoglobals // a constant table

type congestionMode uint8

// The modes of congestion.
//
//	startup ──pipe full──▶ drain ──queue gone──▶ probe bandwidth ◀──▶ probe round trip
const (
	startup        congestionMode = iota // doubles the rate each round until that brings nothing
	drain                                // lets the queue go that startup built
	probeBandwidth                       // steady state: goes through cycleGains
	probeRTT                             // keeps little in flight for a moment, to see the path without a queue
)

// congestion decides how fast to send and how much to have in flight. It is BBR, version 1: it models the path by the
// highest delivery rate and the shortest round trip seen, and does not take loss for congestion.
// Source: draft-cardwell-iccrg-bbr-congestion-control-00, Linux net/ipv4/tcp_bbr.c.
//
// It differs from the draft in probeRTT, which keeps half the path's capacity in flight, not four packets, as
// version 2 does: more streams share a path here than bring anything new to learn. And what is in flight is bounded where
// the model does not show how much should be (overrun, rivals).
type congestion struct {
	mode   congestionMode
	window int     // bytes that may be in flight
	rate   float64 // bytes per second

	bandwidth windowedBest[float64] // bytes per second, by round
	round     int64
	roundEnd  int64 // delivered when the round ends
	newRound  bool  // this acknowledgement began one

	shortest   time.Duration // round trip; zero: none yet
	least      time.Duration // what it must be taken for at least
	shortestAt instant
	probeDone  instant // when probeRTT may end; zero: not yet low
	probeRound bool
	probed     time.Duration // shortest round trip since probeRTT began; zero: none
	period     int           // of rateSample, the last that was seen
	probeAt    int           // … when probeDone was set
	probeFrom  time.Duration // least when probeRTT began
	unsure     bool          // least may have been measured with a queue
	sure       bool          // it has just been measured without one

	full        bool // the pipe was once full
	fullRate    float64
	fullCount   int
	roundRTT    time.Duration // shortest round trip of this round, until full
	roundPeak   int           // most in flight in this round, until full
	starvedAt   instant       // since when there is nothing to send; zero: there is
	busy        int           // rounds since there was nothing to send for long, until full
	queuedCount int           // rounds in a row in which there was a queue all the time, until full
	cycle       int
	cycleAt     instant
	idle        bool // restarted from idle
	paceGain    float64
	winGain     float64
	measured    bool // rate comes from a round trip
	conserving  bool // in the first round of a recovery: as much out as comes in
	recovering  bool
	priorWin    int // window before a recovery or probeRTT

	overrun overrun
	rivals  rivals

	// How much more than the bandwidth says is acknowledged at a time, because acknowledgements come in lumps.
	extra      [2]float64
	extraIndex int
	extraRound int64
	extraSince instant
	extraAcked float64
}

func newCongestion() congestion {
	c := congestion{window: initialWindow, paceGain: startupGain, winGain: startupGain}
	c.rate = startupGain * initialWindow / shortestFloor.Seconds()
	return c
}

// capacity returns the bytes that fill the path at a gain.
func (c *congestion) capacity(gain float64) float64 {
	if c.shortest == 0 {
		return initialWindow
	}
	bw := c.bandwidth.get()
	return gain * max(bw*max(c.shortest, c.least).Seconds(), min(bw*shortestFloor.Seconds(), floorBytes))
}

// plenty returns the bytes with which there is a queue before the path, if it delivers no more than is known.
func (c *congestion) plenty() int { return int(c.capacity(fullGrowth)) }

// emptyRTT returns a round trip that shows that there was hardly a queue.
func (c *congestion) emptyRTT() time.Duration {
	packet := time.Duration(maxMTU / max(c.bandwidth.get(), maxMTU) * float64(time.Second))
	packet = min(packet, c.shortest/4) // it takes less if others have a part of the bandwidth
	return c.shortest + c.shortest/20 + 200*time.Microsecond + packet
}

// crowdedRTT returns a round trip above which there is a queue, and not just bursts of several streams.
func (c *congestion) crowdedRTT() time.Duration {
	packet := time.Duration(maxMTU / max(c.bandwidth.get(), maxMTU) * float64(time.Second))
	return c.shortest + max(c.shortest, c.least)/8 + max(2*pacerQuantum, packet)
}

// burst returns how many bytes may go at a time where queues are short or shared, zero where it does not matter.
func (c *congestion) burst() int {
	bound := c.overrun.bound
	if b := c.rivals.bound; b != 0 && (bound == 0 || b < bound) {
		bound = b
	}
	return (bound + burstPart - 1) / burstPart
}

// target returns the window for a gain, with room for batches on both ends.
func (c *congestion) target(gain float64) int {
	burst := min(max(c.rate*pacerQuantum.Seconds(), pacerMinBurst), pacerMaxBurst)
	w := c.capacity(gain) + 3*burst
	if c.mode == probeBandwidth && c.cycle == 0 {
		w += 2 * maxMTU
	}
	return int(w)
}

// acked takes what an acknowledgement showed. delivered is the sampler's total, rtt zero if there was no sample.
func (c *congestion) acked(now instant, r rateSample, delivered int64) {
	c.least = r.least
	c.updateBandwidth(r, delivered)
	c.updateExtra(now, r)
	if c.full {
		c.updateBounds(now, r)
	}
	c.updateCycle(now, r)
	c.updateFull(now, r)
	c.updateDrain(now, r)
	c.updateShortest(now, r, delivered)
	c.setRate()
	c.setWindow(r, delivered)
}

// heldBack reports whether less is in flight than the path may hold, to see what that does. What is delivered then does not show
// the bandwidth, and what was known of it counts on. In order, trials are so short that it need not: who shares a queue would
// hold on to what he had before.
func (c *congestion) heldBack(disordered bool) bool {
	return c.mode == probeRTT || disordered && c.overrun.trial > 0
}

// updateBounds takes what shows that more is in flight than there should be, whatever the path would hold.
func (c *congestion) updateBounds(now instant, r rateSample) {
	crowded := c.crowdedRTT()
	own := r
	if c.rivals.explains(crowded) {
		own.lost, own.undone, own.acked = 0, 0, 0
		c.overrun.bound, c.overrun.trial = 0, 0
	}
	acks := c.bandwidth.get() * min(ackDelay, max(c.shortest, c.least)/4).Seconds()
	c.overrun.acked(now, own, c.newRound, max(int(c.capacity(1)+acks), minWindow), c.emptyRTT())
	switch {
	case r.disordered:
		c.rivals = rivals{}
	case c.mode == probeBandwidth:
		quiet := c.cycle > 2 // what was asked for beyond the estimate has been given back
		c.rivals.acked(now, r, c.newRound, quiet, int(c.capacity(1)), c.shortest, crowded)
	}
}

func (c *congestion) updateBandwidth(r rateSample, delivered int64) {
	c.newRound = false
	if r.bandwidth == 0 {
		return
	}
	if r.prior >= c.roundEnd {
		c.roundEnd = delivered
		if !c.heldBack(r.disordered) {
			c.round++
		}
		c.newRound = true
		c.conserving = false
	}
	if !r.appLimited || r.bandwidth >= c.bandwidth.get() {
		c.bandwidth.update(bandwidthRounds, c.round, r.bandwidth, atLeast)
	}
}

func (c *congestion) updateExtra(now instant, r rateSample) {
	if r.acked == 0 {
		return
	}
	if c.newRound {
		if c.extraRound++; c.extraRound >= extraRounds {
			c.extraRound = 0
			c.extraIndex ^= 1
			c.extra[c.extraIndex] = 0
		}
	}
	expected := c.bandwidth.get() * now.sub(c.extraSince).Seconds()
	if c.extraSince == 0 || c.extraAcked <= expected {
		c.extraAcked, c.extraSince, expected = 0, now, 0
	}
	c.extraAcked = min(c.extraAcked+float64(r.acked), 1<<30)
	extra := min(c.extraAcked-expected, float64(c.window))
	c.extra[c.extraIndex] = max(c.extra[c.extraIndex], extra)
}

func (c *congestion) updateCycle(now instant, r rateSample) {
	if c.mode != probeBandwidth {
		return
	}
	done := now.sub(c.cycleAt) > max(c.shortest, c.least, shortestFloor)
	switch gain := cycleGains[c.cycle]; {
	case gain > 1: // until the queue shows, unless there is too little to send for that
		enough := min(c.target(gain), int(c.capacity(gain))+probePackets*maxMTU)
		done = done && (r.lost > 0 || r.inFlight >= enough || r.appLimited)
	case gain < 1:
		done = done || r.inFlight <= int(c.capacity(1))
	}
	if done {
		c.cycle = (c.cycle + 1) % len(cycleGains)
		c.cycleAt = now
		c.paceGain = cycleGains[c.cycle]
	}
}

func (c *congestion) updateFull(now instant, r rateSample) {
	if c.full {
		return
	}
	if r.rtt > 0 && (c.roundRTT == 0 || r.rtt < c.roundRTT) {
		c.roundRTT = r.rtt
	}
	c.roundPeak = max(c.roundPeak, r.inFlight+r.acked)
	if !c.newRound {
		return
	}
	if queued := c.roundRTT > time.Duration(fullQueue*float64(c.shortest))+pacerQuantum; queued && !r.disordered && !r.appLimited {
		c.queuedCount++
	} else {
		c.queuedCount = 0
	}
	c.full = c.queuedCount >= fullRounds
	if c.busy++; c.starvedLong(now) {
		c.busy = 0
	}
	// Otherwise the peer's window is the limit, and what is held for the peer; for moments then, if so much was in flight.
	enough := c.busy > 1 && c.roundPeak > int(c.capacity(fullQueue))
	c.roundRTT, c.roundPeak = 0, 0
	if r.appLimited && !enough {
		return
	}
	if bw := c.bandwidth.get(); bw >= c.fullRate*fullGrowth {
		c.fullRate, c.fullCount = bw, 0
		return
	}
	c.fullCount++
	c.full = c.full || c.fullCount >= fullRounds
}

func (c *congestion) updateDrain(now instant, r rateSample) {
	if c.mode == startup && c.full {
		c.mode, c.paceGain, c.winGain = drain, drainGain, startupGain
	}
	if c.mode == drain && r.inFlight <= c.target(1) {
		c.cruise(now)
		if c.unsure {
			c.unsure = false
			c.probe()
		}
	}
}

// cruise enters steady state, behind the phase that gives the queue back.
func (c *congestion) cruise(now instant) {
	c.mode, c.winGain = probeBandwidth, windowGain
	c.cycle, c.cycleAt = 2, now
	c.paceGain = cycleGains[c.cycle]
}

func (c *congestion) updateShortest(now instant, r rateSample, delivered int64) {
	expired := c.shortest != 0 && now.sub(c.shortestAt) > shortestWidth
	if r.rtt > 0 && (c.shortest == 0 || r.rtt <= c.shortest || expired && c.idle) {
		c.shortest = r.rtt
		if r.period == 0 {
			c.shortestAt = now
		}
	}
	if r.period != c.period {
		c.period = r.period
		if r.trip <= r.least+r.least/16 {
			c.shortestAt = now
		}
	}
	if expired && !c.idle && c.mode != probeRTT {
		c.probe()
	}
	if c.mode == probeRTT {
		if r.rtt > 0 && (c.probed == 0 || r.rtt < c.probed) {
			c.probed = r.rtt
		}
		switch {
		case c.probeDone == 0 && r.inFlight <= c.probeWindow():
			c.probeDone, c.probeAt = now.add(probeRTTTime), r.period
			c.probeRound = false
			c.roundEnd = delivered
		case c.probeDone != 0:
			c.probeRound = c.probeRound || c.newRound
			if over := now.sub(c.probeDone); c.probeRound && over > 0 && (r.period == 0 || r.period > c.probeAt+1 || over > probeLong) {
				c.endProbe(now, r)
			}
		}
	}
	if r.acked > 0 {
		c.idle = false
	}
}

// probe begins to look for the shortest round trip.
func (c *congestion) probe() {
	c.mode, c.paceGain, c.winGain = probeRTT, 1, 1
	c.priorWin = max(c.priorWin, c.window)
	c.probeDone, c.probed, c.probeFrom = 0, 0, c.least
}

func (c *congestion) endProbe(now instant, r rateSample) {
	if c.probed > 0 {
		c.shortest = c.probed
	}
	c.shortestAt = now
	if r.period > c.probeAt+1 {
		c.sure = true
		if r.trip < c.probeFrom*3/4 { // so there still was a queue
			c.probe()
			return
		}
	}
	c.restore()
	c.rivals.resume()
	if c.full {
		c.cruise(now)
	} else {
		c.mode, c.paceGain, c.winGain = startup, startupGain, startupGain
	}
}

func (c *congestion) probeWindow() int { return max(int(c.capacity(0.5)), minWindow) }

func (c *congestion) setRate() {
	if !c.measured && c.shortest > 0 {
		c.measured = true
		c.rate = startupGain * paceMargin * float64(c.window) / max(c.shortest, c.least, shortestFloor).Seconds()
	}
	if bw := c.bandwidth.get(); bw > 0 {
		gain := c.paceGain
		if c.rivals.bound > 0 && c.mode == probeBandwidth {
			gain = rivalGain
		}
		rate := bw * gain * paceMargin / (1 - min(c.overrun.chance, maxChance)) // bw is what arrives
		if c.full || rate > c.rate {
			// Whatever was measured, a little must go out each round, or nothing is measured again.
			c.rate = max(rate, minWindow/max(c.shortest, c.least, 10*time.Millisecond).Seconds())
		}
	}
}

func (c *congestion) setWindow(r rateSample, delivered int64) {
	if r.acked > 0 {
		if r.lost > 0 && c.conserving {
			c.window = max(c.window-r.lost, maxMTU)
		}
		gain := c.winGain
		if c.full && c.overrun.chance > 0 { // where others may be the chance, half a queue is enough
			gain = min(gain, chanceGain)
		}
		target := c.target(gain)
		if c.full {
			most := c.bandwidth.get() * extraTime.Seconds()
			if c.shortest < shortestFloor { // no radio gathers acknowledgements there
				most = min(most, floorBytes)
			}
			target += int(min(max(c.extra[0], c.extra[1]), most))
		}
		switch {
		case c.conserving:
			c.window = max(c.window, r.inFlight+r.acked, minWindow)
		case c.full:
			c.window = max(min(c.window+r.acked, target), minWindow)
		case c.window < target || delivered < initialWindow:
			c.window = max(c.window+r.acked, minWindow)
		}
	}
	if c.mode == probeRTT {
		c.window = min(c.window, c.probeWindow())
	}
	if c.full {
		c.window = c.rivals.limit(c.overrun.limit(c.window))
	}
}

func (c *congestion) restore() {
	c.window = max(c.window, c.priorWin)
	c.priorWin = 0
}

// starved tells that there is nothing to send although the network would take more.
func (c *congestion) starved(now instant) {
	if c.starvedAt == 0 {
		c.starvedAt = now
	}
}

// starvedLong reports whether there has been nothing to send for so long that it shows in what is delivered.
func (c *congestion) starvedLong(now instant) bool {
	return c.starvedAt != 0 && now.sub(c.starvedAt) > c.shortest/starvedPart
}

// fed tells that a packet is about to go.
func (c *congestion) fed(now instant) {
	if c.starvedLong(now) {
		c.busy = 0
	}
	c.starvedAt = 0
}

// sending tells that a packet is about to go with nothing else in flight.
func (c *congestion) sending(appLimited bool) {
	if !appLimited {
		return
	}
	c.idle = true
	c.extraSince, c.extraAcked = 0, 0
	if c.mode == probeBandwidth {
		c.rate = max(c.bandwidth.get()*paceMargin, 1)
	}
}

// lost tells that a recovery begins: lost bytes were found lost, and inFlight are left. Many at once mean that a
// queue is overrun; then only as much goes out as comes in for a round. A few are taken for chance, and cost no more
// than what a full path holds.
func (c *congestion) lost(delivered int64, inFlight, acked, lost int) {
	if !c.recovering && c.mode != probeRTT {
		c.priorWin = max(c.priorWin, c.window)
	}
	c.recovering = true
	if lost > (inFlight+lost)/4 && lost > int(c.capacity(.25)) {
		c.conserving = true
		c.roundEnd = delivered
		c.window = max(inFlight+acked, minWindow)
	} else if c.full {
		c.window = max(inFlight+acked, min(c.window, int(c.capacity(1))), minWindow)
	}
}

// timedOut tells that everything in flight was given up but for inFlight bytes.
func (c *congestion) timedOut(inFlight int) {
	c.priorWin = max(c.priorWin, c.window)
	c.recovering = true
	c.conserving = false
	c.window = inFlight + 2*maxMTU // as RFC 9002: one more that is lost must not cost another timeout
}

// recovered tells that a recovery is over.
func (c *congestion) recovered() {
	if c.recovering {
		c.recovering, c.conserving = false, false
		c.restore()
	}
}

// restart looks for the capacity of the path once more: what was found before was not true.
func (c *congestion) restart() {
	c.unsure = true
	if !c.full {
		return
	}
	c.mode, c.paceGain, c.winGain = startup, startupGain, startupGain
	c.full, c.fullRate, c.fullCount, c.queuedCount = false, 0, 0, 0
	c.bandwidth = windowedBest[float64]{}
	c.overrun = overrun{}
	c.restore()
}

// newPath forgets the shortest round trip, which belonged to another path.
func (c *congestion) newPath() { c.shortest, c.shortestAt, c.least = 0, 0, 0 }
