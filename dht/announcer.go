package dht

import (
	"net/netip"
	"slices"
	"time"
)

const (
	announceRelays = 6               // nodes that forward to a server
	mainRelays     = 3               // of these, the nearest: those that the network expects
	announceTries  = 12              // of the closest nodes, so many are tried to find that many
	relayPing      = 3 * time.Second // between rounds of pings, which keep the way to us open in our NAT
	spareRounds    = 5               // rounds from one in which the other relays are pinged to the next
	announceRounds = 100             // of pings in a cycle, about five minutes: records live 13 or more
	retryFirst     = time.Second     // after a cycle that stored nothing; doubled up to
	retryMost      = time.Minute
)

// announceRelay is a node that stored our record.
type announceRelay struct {
	contact
	peer netip.AddrPort // our default socket as it sees it: where it forwards to
}

// announcer decides when and where a server is announced. It sends nothing: its owner does and reports.
//
//	looking ──closest nodes found──▶ storing ──three stored, or all tried──▶ resting
//	   ▲                                                                       │ pings every 3 s
//	   └──────a relay is lost, sees us elsewhere, 100 rounds, or refresh───────┘
//
// Three relays would do; as many more are spare, pinged as often as a NAT needs it: so a server is still found
// if half of the network vanishes at once, or lies. No two relays are of one network, and none of a crowded one,
// as long as there are others: they may have come to surround the key.
//
// Source: npm hyperdht 6.34.0, lib/announcer.js, which has three relays, and notices neither one that sees us
// elsewhere nor a cycle that stored nothing.
type announcer struct {
	state announceState

	// The relays of the last three cycles, the current one last.
	cycles  [3][]announceRelay
	closest []contact // nodes to start looking from, from the previous cycle

	cycle      int     // counts them
	candidates []found // closest nodes not tried yet
	tried      []netip.AddrPort
	storing    int  // requests on the way
	pings      int  // on the way
	rounds     int  // of pings in this cycle
	again      bool // start over as soon as possible
	failures   int  // cycles in a row that stored nothing
}

type announceState uint8

const (
	announceResting announceState = iota // pinging the relays
	announceLooking                      // a query for the nodes closest to the key is running
	announceStoring                      // records are on their way to them
	announceLeaving                      // closed: records are being removed
)

func (p *announcer) current() []announceRelay { return p.cycles[2] }

// look starts a cycle. It returns the nodes to start looking from, besides others: those that were the closest may
// have been lying.
func (p *announcer) look() []contact {
	p.state = announceLooking
	p.cycles = [3][]announceRelay{p.cycles[1], p.cycles[2], nil}
	p.again, p.rounds, p.pings = false, 0, 0
	p.cycle++
	return p.closest[:min(len(p.closest), bucketSize/2)]
}

// found takes in the nodes closest to the key, nearest first.
func (p *announcer) found(closest []found) {
	p.state = announceStoring
	p.candidates, p.closest, p.tried = nil, nil, nil
	for _, f := range closest {
		p.closest = append(p.closest, f.contact)
	}
	for try := range 3 { // one of each network; the others; those of crowds
		for i, f := range closest {
			again := slices.ContainsFunc(closest[:i], func(o found) bool {
				return f.place != 0 && o.place.network() == f.place.network()
			})
			rank := 0
			if f.crowded {
				rank = 2
			} else if again {
				rank = 1
			}
			if f.token.set && rank == try && len(p.candidates) < announceTries {
				p.candidates = append(p.candidates, f)
			}
		}
	}
}

// store returns the next node to store the record at; false if enough are being tried.
func (p *announcer) store() (f found, ok bool) {
	if len(p.current())+p.storing >= announceRelays || len(p.candidates) == 0 {
		return found{}, false
	}
	f, p.candidates = p.candidates[0], p.candidates[1:]
	p.storing++
	p.tried = append(p.tried, f.addr)
	return f, true
}

// stored reports that a store ended; r is the relay won by it, nil if none. It returns true when the cycle has
// stored all it can.
func (p *announcer) stored(r *announceRelay) (complete bool) {
	p.storing--
	if r != nil {
		p.cycles[2] = append(p.cycles[2], *r)
	}
	return p.storing == 0 && (len(p.current()) >= announceRelays || len(p.candidates) == 0)
}

// rest ends the storing. It returns the relays of the previous cycle that are none any more.
func (p *announcer) rest() (removed []announceRelay) {
	p.state = announceResting
	slices.SortFunc(p.current(), func(a, b announceRelay) int { // the best first, not the fastest
		return slices.Index(p.tried, a.addr) - slices.Index(p.tried, b.addr)
	})
	if len(p.current()) > 0 {
		p.failures = 0
	} else {
		p.failures++
	}
	for _, r := range p.cycles[1] {
		if !p.isCurrent(r.addr) {
			removed = append(removed, r)
		}
	}
	return removed
}

// retry returns how long to wait after a cycle that stored nothing.
func (p *announcer) retry() time.Duration {
	return min(retryMost, retryFirst<<min(p.failures-1, 10))
}

// round begins a round of pings. It returns the relays to ping.
func (p *announcer) round() []announceRelay {
	ping := p.current()
	if p.rounds%spareRounds != 0 {
		ping = ping[:min(len(ping), mainRelays)]
	}
	p.pings = len(ping)
	return ping
}

// ponged reports the answer of a relay to a ping, that sees us at to.
func (p *announcer) ponged(relay, to netip.AddrPort) {
	p.pings--
	for i, r := range p.current() {
		if r.addr == relay && r.peer != to {
			p.cycles[2][i].peer = to
			p.again = true // it would forward to where we are no more
		}
	}
}

// lost reports that a relay did not answer a ping.
func (p *announcer) lost(relay netip.AddrPort) {
	p.pings--
	p.again = true
	p.closest = slices.DeleteFunc(p.closest, func(c contact) bool { return c.addr == relay })
}

// roundOver reports whether all pings of a round have ended, and if so whether to start over now.
func (p *announcer) roundOver() (over, again bool) {
	if p.pings > 0 {
		return false, false
	}
	p.rounds++
	return true, p.again || p.rounds >= announceRounds
}

// isCurrent reports whether a is a relay of the current cycle.
func (p *announcer) isCurrent(a netip.AddrPort) bool {
	return slices.ContainsFunc(p.current(), func(r announceRelay) bool { return r.addr == a })
}

// isRelay reports whether a is a relay of one of the last three cycles.
func (p *announcer) isRelay(a netip.AddrPort) bool {
	for _, c := range p.cycles {
		if slices.ContainsFunc(c, func(r announceRelay) bool { return r.addr == a }) {
			return true
		}
	}
	return false
}

// leave ends everything. It returns the nodes that may still have the record.
func (p *announcer) leave() (from []announceRelay) {
	p.state = announceLeaving
	from = slices.Clone(p.current())
	for _, r := range p.cycles[1] {
		if !p.isCurrent(r.addr) {
			from = append(from, r)
		}
	}
	return from
}
