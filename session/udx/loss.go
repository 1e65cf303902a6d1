package udx

import "time"

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

	// The estimate of what slow packets take rises by at most a slowRise-th for one that took longer, and falls by a
	// slowFall-th for any other. It counts once it has seen slowSettled packets of a path that reorders.
	slowRise    = 8
	slowFall    = 400
	slowLeast   = time.Microsecond
	slowSettled = 128

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
	base       windowedBest[time.Duration] // the least that was, of shortestWidth: what they take without a queue
	settled    int                         // packets that slow has seen since there is disorder
	doubts     []doubt                     // by number; nil: none
	mult       int                         // width of the reorder window in quarters of a round trip
	rounds     int                         // recoveries left until mult falls back to one
}

// doubt is a packet that was taken for lost for the first time.
type doubt struct {
	seq    seq
	cost   int32   // zero: none
	sentAt instant // first
}

// took notes the round trip of a packet that was sent once, or was late.
func (r *rack) took(now instant, rtt time.Duration) {
	if rtt > r.slow {
		r.slow += max(min((rtt-r.slow)/2, r.slow/slowRise), slowLeast)
	} else {
		r.slow -= r.slow / slowFall
	}
	switch {
	case !r.disordered():
		r.settled = 0
	case r.settled < slowSettled:
		if r.settled++; r.settled == slowSettled {
			r.base.reset(int64(now), r.slow)
		}
	default:
		r.base.update(int64(shortestWidth), int64(now), r.slow, atMost)
	}
}

// longest returns the longest round trip that is not an exception: one in fifty is longer.
func (r *rack) longest() time.Duration { return r.slow }

// gaveUp tells of a packet that is taken for lost. If that is not the first time, nobody can tell any more which of its
// copies arrive.
func (r *rack) gaveUp(p *packet) {
	if r.doubts == nil {
		r.doubts = make([]doubt, doubtful)
	}
	if d := &r.doubts[p.seq%doubtful]; p.sends == 1 && p.probe == 0 {
		*d = doubt{p.seq, int32(p.cost()), p.sentAt}
	} else if d.seq == p.seq {
		d.cost = 0
	}
}

// again tells that packet q came twice. If it was taken for lost that was wrong, and it took no longer than until now.
// It returns what the packet costs, zero if nothing is known about it.
func (r *rack) again(now instant, q seq) (cost int) {
	if r.doubts == nil {
		return 0
	}
	d := &r.doubts[q%doubtful]
	if d.seq != q || d.cost == 0 {
		return 0
	}
	cost, d.cost = int(d.cost), 0
	r.mistaken()
	r.took(now, now.sub(d.sentAt))
	r.disorder += (1 - r.disorder) / disorderSpan
	return cost
}

// arrived tells of a packet that was acknowledged. wasLost says that it had been taken for lost and not been sent
// again; telling, that the acknowledgement comes when it should, and not after a timeout or a list of blocks cut
// short.
func (r *rack) arrived(now instant, p *packet, rtts *rttEstimator, wasLost, telling bool) {
	rtt := now.sub(p.sentAt)
	again := p.sends > 1
	overtaken := r.overtaken(p)
	if !again && telling {
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
	r.disorder += (late - r.disorder) / disorderSpan
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
func (r *rack) disordered() bool { return r.disorder > muchDisorder }

// least is the shortest round trip to believe as one of the path.
func (r *rack) least(rtts *rttEstimator) time.Duration {
	if r.disordered() {
		return max(rtts.min(), r.base.get(), r.longest()/4)
	}
	return rtts.min()
}

// trips is the time below which a round trip is one of a packet that overtook others; zero if those are the exception.
func (r *rack) trips(rtts *rttEstimator) time.Duration {
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
