package udx

import (
	"math"
	"time"
)

const (
	// On short paths several round trips count as one, so that there is a moment between bursts in it.
	rivalShort = 8 * time.Millisecond
	rivalRound = 32 * time.Millisecond

	rivalSeen = 2  // rounds with a queue that is not ours show that there are rivals
	rivalCalm = 4  // rounds in a row without one, that there were none
	rivalLull = 16 // as many that what was seen before does not count any more

	rivalMost  = .9  // of what was in flight is left by a cut at most
	rivalLeast = .5  // and at least
	rivalSpare = .95 // of what leaves no queue, if all cut alike
	rivalCuts  = 4   // in a row at most
	rivalDeep  = 2   // all of them leave this part of what the first left

	rivalHalf  = .5   // of the path, is left to one who had it to himself,
	rivalJoin  = .625 // and to one who has just started and measured it beside others
	rivalStart = 32   // rounds in which no cut leaves less than that: who starts fills the queue again and again

	// For so many more rounds, and so long, the queue may stay until the others are taken not to give way. Then they are
	// not made room for, until there is none or rivalIgnore has passed.
	rivalHolds  = 16
	rivalHold   = 2 * time.Second
	rivalIgnore = 30 * time.Second

	// The bound grows by rivalStep packets for one with a packet in flight, rivalRise times as much in each round after the
	// first, and at most by a rivalFast-th of itself.
	rivalStep  = 2
	rivalPower = .1
	rivalRise  = 1.5
	rivalFast  = 4

	rivalGain = 1.25 // of pacing, so that the bound decides

	// After so many rounds, and so long, it is tried whether there still are rivals.
	rivalRounds = 64
	rivalStay   = 10 * time.Second
)

// rivals bounds what is in flight where other streams fill the queue as well. A model of the path does not show who is
// to have how much of it: whoever was there first goes on to measure the larger part. So all that see a queue which stays
// cut what they have in flight by the same share, so far that the queue goes away, and let it grow by nearly the same
// number of bytes until it is there again: the parts become equal (Chiu and Jain, additive increase and multiplicative
// decrease). As that takes many cuts, they begin alike: who had all to himself until then with half of it, and who has just
// started with a little more of what it measured, which is less than all.
//
// Others that do not react to a queue, but to loss only, would leave nothing to one who does. If the queue does not go
// away, they are ignored for a while.
type rivals struct {
	bound  int // bytes; zero: none
	growth int // of bound in the next round without a queue

	rtt      time.Duration // shortest round trip of this round; zero: none
	peak     int           // most in flight this round
	began    instant       // this round
	calm     int           // rounds in a row without a queue
	queued   int           // rounds with a queue, where there should be none, since there was none for a while
	alone    bool          // there was none for a while before those
	known    bool          // there have been rivals before
	shared   bool          // the first cut left a fair part of the path
	cuts     int           // in a row, and rounds after these in which the queue stayed
	floor    int           // what these leave at least
	cutAt    instant       // when the last was
	settling bool          // this round still shows what was sent before a cut
	since    instant       // when the bound was first set
	rounds   int           // since then
	ignore   instant       // until then
}

// acked takes what an acknowledgement showed; newRound says that it begins a round trip. quiet says that we do not build
// a queue ourselves, path is what the path holds without one. empty is a round trip without a queue, and crowded one that
// shows that there is.
func (v *rivals) acked(now instant, r rateSample, newRound, quiet bool, path int, empty, crowded time.Duration) {
	if r.rtt > 0 && (v.rtt == 0 || r.rtt < v.rtt) {
		v.rtt = r.rtt
	}
	v.peak = max(v.peak, r.inFlight+r.acked)
	if !newRound || v.rtt == 0 || empty < rivalShort && now.sub(v.began) < rivalRound {
		return
	}
	rtt, peak := v.rtt, v.peak
	v.rtt, v.peak, v.began = 0, 0, now
	v.rounds++
	queue := rtt > crowded
	less := int(float64(peak) * min(max(rivalSpare*float64(empty)/float64(rtt), rivalLeast), rivalMost))
	switch {
	case v.settling:
		v.settling = false
	case v.bound == 0:
		if v.notice(now, queue, quiet) {
			v.since, v.rounds = now, 0
			switch {
			case v.alone:
				v.share(now, min(less, int(rivalHalf*float64(path))))
			case !v.known:
				v.share(now, min(less, int(rivalJoin*float64(path))))
			default:
				v.cut(now, less)
			}
		}
	case queue:
		held := now.sub(v.cutAt)
		switch {
		case v.cuts < rivalCuts:
			v.cut(now, min(less, v.bound))
		case v.cuts < rivalCuts+rivalHolds || held < rivalHold || v.bound <= minWindow && held < rivalIgnore:
			v.cuts++
		default:
			*v = rivals{known: true, ignore: now.add(rivalIgnore)}
		}
	case r.appLimited && v.bound > 2*peak, v.rounds > rivalRounds && now.sub(v.since) > rivalStay:
		*v = rivals{known: true}
	default:
		v.cuts = 0
		if v.bound <= peak+peak/4 { // else something else holds us back
			v.bound += v.growth
			v.growth = max(min(int(rivalRise*float64(v.growth)), v.bound/rivalFast), v.growth)
		}
	}
}

// notice takes a round without a bound, and reports whether it shows that there are rivals.
func (v *rivals) notice(now instant, queue, quiet bool) bool {
	if !queue {
		v.ignore = 0
	}
	switch {
	case !quiet || now < v.ignore:
		return false
	case !queue:
		if v.calm++; v.calm >= rivalLull {
			v.queued = 0
		}
		return false
	}
	if v.queued == 0 {
		v.alone = v.calm >= rivalCalm
	}
	v.calm = 0
	v.queued++
	return v.queued >= rivalSeen
}

// share sets the first bound of one who had all to himself, or who has just started and measured most of that. So both begin
// alike, and until the other one has found out as well, the bound does not go below that.
func (v *rivals) share(now instant, bound int) {
	v.cut(now, bound)
	v.floor, v.known, v.shared = v.bound, true, true
}

// cut sets the bound, unless that leaves too little.
func (v *rivals) cut(now instant, bound int) {
	if v.cuts == 0 && (!v.shared || v.rounds > rivalStart) {
		v.floor = max(bound/rivalDeep, minWindow)
	}
	v.cuts++
	v.cutAt, v.settling = now, true
	v.bound = max(bound, v.floor)
	v.regrow()
}

// regrow has the bound grow from the beginning.
func (v *rivals) regrow() {
	v.growth = int(rivalStep * maxMTU * math.Pow(float64(v.bound)/maxMTU, rivalPower))
}

// resume takes that rounds begin again after some in which little was in flight. That there was no queue in these shows
// nothing.
func (v *rivals) resume() {
	v.rtt, v.peak = 0, 0
	v.regrow()
}

// explains reports whether what is lost now is due to a queue that all share; crowded is a round trip that shows one.
func (v *rivals) explains(crowded time.Duration) bool {
	return v.bound > 0 && (v.settling || v.rtt > crowded)
}

// limit returns the window as far as the bound allows it.
func (v *rivals) limit(window int) int {
	if v.bound != 0 {
		return min(window, v.bound)
	}
	return window
}
