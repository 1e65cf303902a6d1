package udx

import (
	"math"
	"time"
)

const (
	overrunLoss   = .02       // more loss than this in a round is looked into
	overrunSample = 256 << 10 // bytes after which the rounds since the last time are judged
	overrunRounds = 8         // number of rounds after which they are, if they carried
	overrunScant  = 48 << 10  // … as much as this
	overrunLeast  = 3         // packets lost, to be looked into
	overrunLong   = 2         // times as many bytes are judged where it may as well be less
	overrunCut    = .75       // of what was in flight, for each trial
	overrunTrials = 3
	overrunGrowth = maxMTU           // of the bound, for the first round that goes well; twice as much for the next
	overrunForget = 30 * time.Second // after which chance is doubted again
	overrunDoubt  = time.Second      // … and after which if there is a queue,
	overrunDoubts = 64               // and so many rounds
)

// overrun bounds what is in flight where that is what causes loss: a queue or a receiver's buffer shorter than the
// model of the path makes believe. It tells such loss from chance by trial: with less in flight, the one goes away
// and the other does not, although the queue is empty now and then. If it never is, others fill it, and the bound stays.
type overrun struct {
	bound  int     // bytes; zero: none
	growth int     // of bound in the next round that goes well
	chance float64 // share of loss that does not depend on what is in flight
	found  instant // when that was, or was halved
	since  int     // rounds since then

	trial        int           // trials made in a row
	before       float64       // share of loss before the first
	settling     bool          // this round still shows what was sent before the trial
	rounds       int           // since they were judged
	lost, passed int           // bytes in them
	peak         int           // most in flight this round
	rtt          time.Duration // shortest round trip of these rounds; zero: none
	rtts         time.Duration // their round trips together
	samples      int           // number of these
}

// acked takes what an acknowledgement showed; newRound says that it begins a round trip, floor is what the path
// holds without a queue, and empty is a round trip that shows that there was none.
func (o *overrun) acked(now instant, r rateSample, newRound bool, floor int, empty time.Duration) {
	if r.rtt > 0 {
		if o.rtt == 0 || r.rtt < o.rtt {
			o.rtt = r.rtt
		}
		o.rtts += r.rtt
		o.samples++
	}
	o.lost = max(o.lost+r.lost-r.undone, 0)
	o.passed += r.acked
	o.peak = max(o.peak, r.inFlight+r.acked)
	if !newRound {
		return
	}
	o.rounds++
	if o.chance > 0 {
		o.since++
	}
	if n := o.lost + o.passed; n < overrunSample && (n < overrunScant || o.rounds < overrunRounds) {
		return
	}
	few := o.lost < overrunLeast*maxMTU
	share := float64(o.lost) / float64(o.lost+o.passed)
	if o.unclear() {
		return
	}
	peak := o.peak
	queued := o.rtt > empty || !r.disordered && o.rtts/time.Duration(max(o.samples, 1)) > empty+empty/8
	o.lost, o.passed, o.peak, o.rtt, o.rounds, o.rtts, o.samples = 0, 0, 0, 0, 0, 0, 0
	if o.settling {
		o.settling = false
		return
	}
	age := now.sub(o.found)
	if o.chance > 0 && (age > overrunForget || queued && age > overrunDoubt && o.since >= overrunDoubts) {
		o.chance, o.found, o.since = o.chance/2, now, 0
	}
	switch high := share > overrunLoss+1.5*o.chance && !few; {
	case o.trial > 0 && share < o.before/2: // it went away
		o.trial = 0
	case o.trial >= overrunTrials && (queued || share > 2*o.before): // others fill the queue
		o.trial = 0
	case o.trial >= overrunTrials: // it did not
		o.trial, o.bound = 0, 0
		o.chance, o.found, o.since = max(share, o.chance), now, 0
	case o.trial > 0 || high:
		if o.trial == 0 {
			o.before = share
		}
		o.trial++
		o.growth = overrunGrowth
		o.settling = true
		if o.bound != 0 {
			peak = min(peak, o.bound)
		}
		o.bound = max(int(overrunCut*float64(peak)), floor)
	case o.bound > 2*peak:
		o.bound = 0
	case o.bound > 0:
		// By as much for one who has a small part as for one who has a large one, so that parts become equal.
		o.bound += o.growth
		o.growth = min(2*o.growth, o.bound/4)
	}
}

// unclear reports whether more has to pass before it can be told whether too much is lost: of streams that share a path, who
// makes a trial only because a few more than on average were lost by chance gives some of it to the others.
func (o *overrun) unclear() bool {
	all := o.lost + o.passed
	if o.trial > 0 || o.settling || all >= overrunLong*overrunSample {
		return false
	}
	lost, expected := float64(o.lost)/maxMTU, (overrunLoss+1.5*o.chance)*float64(all)/maxMTU
	return lost > expected && lost < expected+math.Sqrt(expected)
}

// limit returns the window as far as the bound allows it.
func (o *overrun) limit(window int) int {
	if o.bound != 0 {
		return min(window, o.bound)
	}
	return window
}
