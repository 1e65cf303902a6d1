package udx

import "time"

const (
	overrunLoss   = .02       // more loss than this in a round is looked into
	overrunSample = 256 << 10 // bytes a round must carry to be judged
	overrunCut    = .75       // of what was in flight, for each trial
	overrunTrials = 3
	overrunGrowth = maxMTU           // of the bound, for the first round that goes well; twice as much for the next
	overrunForget = 30 * time.Second // after which chance is doubted again
)

// overrun bounds what is in flight where that is what causes loss: a queue or a receiver's buffer shorter than the
// model of the path makes believe. It tells such loss from chance by trial: with less in flight, the one goes away
// and the other does not.
type overrun struct {
	bound  int     // bytes; zero: none
	growth int     // of bound in the next round that goes well
	chance float64 // share of loss that does not depend on what is in flight
	doubt  instant // when that is halved

	trial        int     // trials made in a row
	before       float64 // share of loss before the first
	settling     bool    // this round still shows what was sent before the trial
	lost, passed int     // bytes this round
	peak         int     // most in flight this round
}

// acked takes what an acknowledgement showed; newRound says that it begins a round trip, floor is what the path
// holds without a queue.
func (o *overrun) acked(now instant, r rateSample, newRound bool, floor int) {
	o.lost = max(o.lost+r.lost-r.undone, 0)
	o.passed += r.acked
	o.peak = max(o.peak, r.inFlight+r.acked)
	if !newRound || o.lost+o.passed < overrunSample {
		return
	}
	share := float64(o.lost) / float64(o.lost+o.passed)
	peak := o.peak
	o.lost, o.passed, o.peak = 0, 0, 0
	if o.settling {
		o.settling = false
		return
	}
	if o.chance > 0 && now > o.doubt {
		o.chance, o.doubt = o.chance/2, now.add(overrunForget)
	}
	switch high := share > overrunLoss+1.5*o.chance; {
	case o.trial > 0 && share < o.before/2: // it went away
		o.trial = 0
	case o.trial >= overrunTrials: // it did not
		o.trial, o.bound = 0, 0
		o.chance, o.doubt = max(share, o.chance), now.add(overrunForget)
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

// limit returns the window as far as the bound allows it.
func (o *overrun) limit(window int) int {
	if o.bound != 0 {
		return min(window, o.bound)
	}
	return window
}
