package udx

import (
	"math"
	"math/bits"
	"time"
)

const (
	tlpAckDelay = 2 * time.Millisecond // what a receiver may add when a single packet is out
	tlpMin      = 5 * time.Millisecond // below, a probe would only race the acknowledgement through two schedulers

	// reorderMultMax bounds how far the reorder window grows, in quarters of a round trip, and reorderRounds says
	// for how many recoveries without a mistake it stays.
	reorderMultMax = 16
	reorderRounds  = 16

	disorderSpan = 64               // packets that rack.disorder looks back over
	muchDisorder = .1               // share of packets overtaken above which the shortest round trip says little about the path
	someDisorder = muchDisorder / 4 // above which a round trip says little about queues

	orderlyRounds = 8           // round trips without much disorder after which there is none
	orderlyTime   = time.Second // and at least this time

	// What slow packets take is judged by the packets of slowSettled packets at least, and a little more than a round trip of
	// theirs, of which all but a slowRare-th took no longer. Until the next judgement one that takes longer raises it by a
	// slowRise-th at most.
	slowSettled = 32
	slowRare    = 50
	slowRise    = 8

	doubtful = 1024 // packets taken for lost that are remembered, a power of two
)

// rack tells lost packets from late ones: a packet is lost when one sent sufficiently later has arrived. Reordering
// moves what is sufficient. It is told of each packet as it arrives. Source: RFC 8985, applied to a protocol
// without duplicate reports: mistakes are recognised by the time an acknowledgement takes instead.
type rack struct {
	rtt    time.Duration // round trip of the packet below
	sentAt instant       // when the most recently sent packet that has arrived was sent
	seq    seq           // and its number

	fack       seq                         // number after the highest that has arrived
	reordering bool                        // a packet was overtaken; kept for the stream's life
	disorder   float64                     // share of packets lately that arrived after one sent later
	slow       time.Duration               // round trip of slow packets lately
	before     [2]time.Duration            // slow in the two periods before
	trips      *tripCounts                 // those of this period; nil until a packet is overtaken
	period     int                         // number of the one before this
	trip       time.Duration               // slow in it alone
	base       windowedBest[time.Duration] // the least that slow was, of shortestWidth: what they take without a queue
	orderly    instant                     // until then at least there is much disorder; zero: there is none
	settled    bool                        // base is known, since there is disorder
	doubts     []doubt                     // by number; nil: none
	heardAt    instant                     // when the last acknowledgement came
	silence    time.Duration               // before it
	mult       int                         // width of the reorder window in quarters of a round trip
	rounds     int                         // recoveries left until mult falls back to one
}

// doubt is a packet that was taken for lost for the first time.
type doubt struct {
	seq   seq
	cost  int32         // zero: none
	after time.Duration // it had been sent
}

// tripCounts counts round trips of 1 us to a minute by their length, tripParts to each doubling.
type tripCounts struct {
	counts [26 * tripParts]uint16
	n      int
	since  instant // of the first
}

const (
	tripParts = 1 << tripBits
	tripBits  = 5
	tripUnit  = 10 // of nanoseconds, the power of two from which they are counted
)

func (t *tripCounts) add(now instant, rtt time.Duration) {
	if t.n == 0 {
		t.since = now
	}
	ns := max(uint64(rtt), 1<<tripUnit)
	octave := bits.Len64(ns) - 1
	i := (octave-tripUnit)<<tripBits + int(ns>>(octave-tripBits))&(tripParts-1)
	if c := &t.counts[min(i, len(t.counts)-1)]; *c < math.MaxUint16 {
		*c++
	}
	t.n++
}

// most returns the length that all but a slowRare-th do not exceed, to within a tripParts-th, and forgets all.
func (t *tripCounts) most() time.Duration {
	rare, i := 0, len(t.counts)-1
	for ; i > 0; i-- {
		if rare += int(t.counts[i]); rare > t.n/slowRare {
			break
		}
	}
	*t = tripCounts{}
	return time.Duration((tripParts + i&(tripParts-1) + 1) << (i>>tripBits + tripUnit - tripBits))
}

// took notes the round trip of a packet that was sent once, or was late.
func (r *rack) took(now instant, rtt time.Duration) {
	if rtt > r.slow {
		r.slow += min((rtt-r.slow+1)/2, r.slow/slowRise+time.Microsecond)
	}
	if r.trips == nil {
		if !r.reordering {
			r.slow = rtt
			return
		}
		r.trips = new(tripCounts)
	}
	t := r.trips
	t.add(now, rtt)
	if t.n < slowSettled || now.sub(t.since) < r.slow*5/4 {
		return
	}
	most := t.most()
	r.period++
	r.trip = most
	r.slow = max(most, r.before[0], r.before[1])
	r.before[0], r.before[1] = most, r.before[0]
	switch {
	case !r.disordered():
		r.settled = false
	case !r.settled:
		r.settled = true
		r.base.reset(int64(now), most)
	default:
		r.base.update(int64(shortestWidth), int64(now), most, atMost)
	}
}

// longest returns the longest round trip that is not an exception.
func (r *rack) longest() time.Duration { return r.slow }

// gaveUp tells of a packet that is taken for lost. If that is not the first time, nobody can tell any more which of its
// copies arrive.
func (r *rack) gaveUp(now instant, p *packet) {
	if r.doubts == nil {
		r.doubts = make([]doubt, doubtful)
	}
	if d := &r.doubts[p.seq%doubtful]; p.sends == 1 && p.probe == 0 {
		*d = doubt{p.seq, int32(p.cost()), now.sub(p.sentAt)}
	} else if d.seq == p.seq {
		d.cost = 0
	}
}

// again tells that packet q came twice. If it was taken for lost that was wrong, and it took longer than until then.
// It returns what the packet costs, zero if nothing is known about it.
func (r *rack) again(now instant, q seq, rtts *rttEstimator) (cost int) {
	if r.doubts == nil {
		return 0
	}
	d := &r.doubts[q%doubtful]
	if d.seq != q || d.cost == 0 {
		return 0
	}
	cost, d.cost = int(d.cost), 0
	r.mistaken()
	r.took(now, d.after+d.after/slowRise)
	r.noteOrder(now, rtts, 1)
	return cost
}

// heard tells that an acknowledgement comes. After a silence others before it may have been lost: what packets then seem to
// have taken says when something was sent again, not how slow the path is.
func (r *rack) heard(now instant) {
	r.heardAt, r.silence = now, now.sub(r.heardAt)
}

// arrived tells of a packet that was acknowledged. wasLost says that it had been taken for lost and not been sent
// again; telling, that the acknowledgement comes when it should, and not after a timeout or a list of blocks cut
// short.
func (r *rack) arrived(now instant, p *packet, rtts *rttEstimator, wasLost, telling bool) {
	rtt := now.sub(p.sentAt)
	again := p.sends > 1
	overtaken := r.overtaken(p)
	if !again && telling && (r.trips == nil || r.silence <= r.slow/2 || rtt <= r.slow) {
		r.took(now, rtt)
	}
	if wasLost || again && rtt < r.quickest(rtts) {
		r.mistaken()
	}
	if !again || rtt >= rtts.min() {
		r.rtt = rtt
		if r.sentAt < p.sentAt || r.sentAt == p.sentAt && r.seq.before(p.seq) {
			r.sentAt, r.seq = p.sentAt, p.seq
		}
	}
	if again || !telling {
		return
	}
	late := 0.0
	if overtaken {
		late = 1
		r.reordering = true
	}
	r.noteOrder(now, rtts, late)
}

// noteOrder counts a packet that was overtaken, 1, or not, 0.
func (r *rack) noteOrder(now instant, rtts *rttEstimator, late float64) {
	r.disorder += (late - r.disorder) / disorderSpan
	switch {
	case r.disorder > muchDisorder:
		r.orderly = now.add(max(orderlyRounds*max(r.slow, rtts.smoothed), orderlyTime))
	case r.orderly <= now:
		r.orderly = 0
	}
}

// overtaken reports whether p arrives after a packet with a higher number, and notes its own.
func (r *rack) overtaken(p *packet) bool {
	if end := p.seq + 1; r.fack.before(end) {
		r.fack = end
		return false
	}
	return true
}

// disordered reports whether packets overtake each other so much that round trips differ by nature. Then the
// estimates take the longest one for the path's, or the packets on the slow way would be taken for lost, and, once
// sent again, not even be measured.
func (r *rack) disordered() bool { return r.orderly != 0 }

// least is the shortest round trip to believe as one of the path.
func (r *rack) least(rtts *rttEstimator) time.Duration {
	if r.disordered() {
		return max(rtts.min(), r.base.get(), r.longest()/4)
	}
	return rtts.min()
}

// ownTrip is the time below which a round trip is one of a packet that overtook others; zero if those are the exception.
func (r *rack) ownTrip(rtts *rttEstimator) time.Duration {
	if r.disordered() {
		return r.least(rtts) * 9 / 10
	}
	return 0
}

// quickest is the time under which no acknowledgement of a packet sent again can be due to its latest sending.
func (r *rack) quickest(rtts *rttEstimator) time.Duration {
	if r.disordered() {
		return r.longest() / 4
	}
	return max(rtts.min(), rtts.smoothed/4)
}

// mistaken widens the reorder window: a packet that was taken for lost was only late.
func (r *rack) mistaken() {
	r.reordering = true
	r.mult = min(max(r.mult, 1)+1, reorderMultMax)
	r.rounds = reorderRounds
}

// recovered tells that a recovery is over. After some without a mistake the window narrows again.
func (r *rack) recovered() {
	if r.rounds--; r.rounds <= 0 {
		r.mult = 1
	}
}

// window returns how much later than r.rtt a packet may arrive. hurry says that losses are certain: some are being
// repaired, or at least three packets have arrived beyond a hole.
func (r *rack) window(rtts *rttEstimator, hurry bool) time.Duration {
	if !r.reordering && hurry {
		return 0
	}
	if r.disordered() {
		return max(r.longest()*9/8-r.rtt, 0)
	}
	unit := max(rtts.min(), rtts.smoothed/2) / 4
	return min(time.Duration(max(r.mult, 1))*unit, rtts.smoothed+rtts.variance)
}

// lost reports whether p is lost at now, given the window; if it may be later, wait is how much later. Zero: not
// before a packet sent after it arrives.
func (r *rack) lost(now instant, p *packet, window time.Duration) (lost bool, wait time.Duration) {
	if !p.sentBefore(r.sentAt, r.seq) {
		return false, 0
	}
	wait = p.sentAt.add(r.rtt + window).sub(now)
	return wait <= 0, max(wait, 0)
}
