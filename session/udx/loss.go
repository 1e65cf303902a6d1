package udx

import "time"

const (
	tlpAckDelay = 2 * time.Millisecond // what a receiver may add when a single packet is out
	tlpMin      = 5 * time.Millisecond // below, a probe would only race the acknowledgement through two schedulers

	// reorderMultMax bounds how far the reorder window grows, in quarters of a round trip, and reorderRounds says
	// for how many recoveries without a mistake it stays.
	reorderMultMax = 16
	reorderRounds  = 16
)

// rack tells lost packets from late ones: a packet is lost when one sent sufficiently later has arrived. Reordering
// moves what is sufficient. It is told of each packet as it arrives. Source: RFC 8985, applied to a protocol
// without duplicate reports: mistakes are recognised by the time an acknowledgement takes instead.
type rack struct {
	rtt    time.Duration // round trip of the packet below
	sentAt instant       // when the most recently sent packet that has arrived was sent
	seq    seq           // and its number

	fack       seq  // number after the highest that has arrived
	reordering bool // a packet was overtaken; kept for the stream's life
	mult       int  // width of the reorder window in quarters of a round trip
	rounds     int  // recoveries left until mult falls back to one
}

// arrived tells of a packet that was acknowledged. wasLost says that it had been taken for lost and not been sent again.
func (r *rack) arrived(now instant, p *packet, rtts *rttEstimator, wasLost bool) {
	rtt := now.sub(p.sentAt)
	again := p.sends > 1
	if wasLost || again && rtt < quickest(rtts) {
		r.mistaken()
	}
	if !again || rtt >= rtts.min() {
		r.rtt = rtt
		if r.sentAt < p.sentAt || r.sentAt == p.sentAt && r.seq.before(p.seq) {
			r.sentAt, r.seq = p.sentAt, p.seq
		}
	}
	switch end := p.seq + 1; {
	case r.fack.before(end):
		r.fack = end
	case end.before(r.fack) && !again:
		r.reordering = true
	}
}

// quickest is the time under which no acknowledgement of a packet sent again can be due to its latest sending.
func quickest(rtts *rttEstimator) time.Duration { return max(rtts.min(), rtts.smoothed/4) }

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
