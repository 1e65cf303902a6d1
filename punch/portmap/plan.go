package portmap

import (
	"net/netip"
	"time"
)

const (
	// minLifetime is the shortest mapping that is of any use: a gateway that grants less is taken to refuse.
	minLifetime = 10 * time.Second
	// maxLifetime bounds what a gateway grants (RFC 6887, 15).
	maxLifetime = 24 * time.Hour
	// minGap is the least time between two rounds of questions, whatever happens.
	minGap = time.Second
	// minRetry is the least time between two renewals that fail (RFC 6887, 11.2.1).
	minRetry = 4 * time.Second
	// firstSearch is the wait after a search that found nothing; it doubles up to maxSearch. A gateway that is
	// switched on or configured does not tell us; what changes here, Refresh does.
	firstSearch = time.Minute
	maxSearch   = 32 * time.Minute
	// restartSpread and restartGap delay the renewal after a gateway has announced that it restarted: not all hosts
	// of the network are to ask at once (RFC 6886, 3.2.1), and announcements can be forged.
	restartSpread = 5 * time.Second
	restartGap    = 30 * time.Second
)

// lease is a mapping that a gateway has granted. The zero lease is none.
type lease struct {
	protocol  Protocol
	external  netip.AddrPort
	at        time.Time     // when it was granted or last renewed
	lifetime  time.Duration // from then, minLifetime to maxLifetime
	epoch     epoch
	service   *wanService // UPnP: who granted it
	permanent bool        // stays at the gateway until it is removed; lifetime says when to look after it
}

func (l lease) valid() bool        { return l.protocol != 0 }
func (l lease) expires() time.Time { return l.at.Add(l.lifetime) }

// plan decides when the gateway is to be asked. It has no clock of its own.
//
//	          ┌──────────── next: 1, 2, 4 … 32 min after a failure
//	searching ┘──granted──▶ held ──failed──▶ held, next: halfway to the end
//	    ▲                    └─ next: half life     │
//	    └─────────────────expired───────────────────┘
type plan struct {
	lease    lease
	asked    time.Time // when the last round began; zero: not yet
	failures int       // rounds without success since the last grant, or since the network changed
	soonest  time.Time // a round is wanted by then; zero: as planned
}

// next returns when the next round is due.
func (p *plan) next() time.Time {
	var at time.Time
	switch {
	case p.asked.IsZero():
		return at
	case !p.lease.valid():
		at = p.asked.Add(min(firstSearch<<min(max(p.failures-1, 0), 10), maxSearch))
	case p.failures == 0:
		at = p.lease.at.Add(p.lease.lifetime / 2)
	default:
		at = p.asked.Add(max(p.lease.expires().Sub(p.asked)/2, minRetry))
	}
	if !p.soonest.IsZero() && p.soonest.Before(at) {
		at = p.soonest
	}
	if end := p.lease.expires(); p.lease.valid() && end.Before(at) {
		at = end
	}
	if gap := p.asked.Add(minGap); at.Before(gap) {
		at = gap
	}
	return at
}

// begin notes that a round begins.
func (p *plan) begin(now time.Time) { p.asked, p.soonest = now, time.Time{} }

// grant takes the lease that a round brought. It reports whether the gateway had lost the one before.
func (p *plan) grant(l lease) (restarted bool) {
	restarted = p.lease.protocol == l.protocol && l.protocol.lostSince(p.lease.epoch, l.epoch)
	p.lease, p.failures = l, 0
	return restarted
}

// fail notes that a round brought nothing.
func (p *plan) fail() { p.failures++ }

// expire drops a lease that has run out, and reports whether one has.
func (p *plan) expire(now time.Time) bool {
	if !p.lease.valid() || now.Before(p.lease.expires()) {
		return false
	}
	p.lease = lease{}
	return true
}

// hurry asks for a round now, as the network has changed: earlier failures mean nothing any more.
func (p *plan) hurry(now time.Time) { p.failures, p.soonest = 0, now }

// restart forgets the mapping, and asks for a round now: the gateway is another.
func (p *plan) restart(now time.Time) { *p = plan{asked: p.asked, soonest: now} }

// announced notes what a gateway said of itself at now, and asks for a round after the delay, if it means that the
// mapping is gone or has another address.
func (p *plan) announced(a announcement, now time.Time, delay time.Duration) {
	moved := a.external.IsValid() && a.external != p.lease.external.Addr()
	if a.protocol != p.lease.protocol || !moved && !a.protocol.lostSince(p.lease.epoch, readEpoch(a.seconds, now)) {
		return
	}
	at := now.Add(delay)
	if gap := p.asked.Add(restartGap); at.Before(gap) {
		at = gap
	}
	if p.soonest.IsZero() || at.Before(p.soonest) {
		p.soonest = at
	}
}
