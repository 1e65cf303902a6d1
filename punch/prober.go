package punch

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"omegatun/dht"
)

const (
	normalTTL = 64
	// lowTTL opens the own NAT, and that of a carrier close by, but does not reach the peer's: there a packet
	// that comes too early could be taken for an attack, or make the router give away the port.
	lowTTL = 5
)

// strategy says how two kinds of NAT are punched.
type strategy uint8

const (
	impossible strategy = iota // both ports would have to be guessed
	exchange                   // both ports are known: each side sends to the other
	search                     // the peer's port is unknown: one socket sends to many ports of its host
	spread                     // our port is unknown to the peer: many sockets send to the peer's one address
	sweep                      // both routers count: many sockets of each side send to one port that the other will have soon
)

// strategyFor is the table of strategies. An open host counts as consistent.
//
//	local ＼ remote   consistent   random
//	consistent        exchange     search
//	random            spread       impossible, or sweep if both routers count their ports up
//
// An unknown kind on either side cannot be punched.
func strategyFor(local, remote dht.Firewall, count bool) strategy {
	if local == dht.FirewallUnknown || remote == dht.FirewallUnknown {
		return impossible
	}
	switch {
	case local < dht.FirewallRandom && remote < dht.FirewallRandom:
		return exchange
	case local < dht.FirewallRandom:
		return search
	case remote < dht.FirewallRandom:
		return spread
	case count:
		return sweep
	}
	return impossible
}

// guesses reports whether the strategy costs the routers many mappings.
func (s strategy) guesses() bool { return s == search || s == spread || s == sweep }

const (
	// searchProbes bounds the ports tried. With 256 sockets on the other side a port is hit after 250 tries on
	// average, and missed by all of these once in a thousand times.
	searchProbes = 1750
	searchFast   = 750                  // the first of them go out faster: 19 of 20 attempts end there
	fastPace     = 8 * time.Millisecond // 125 a second do not hurt a home router
	slowPace     = 20 * time.Millisecond
	firstGuess   = 1000 // lowest port tried; NATs hardly use lower ones
	guesses      = 1<<16 - firstGuess
	// guessStride visits each port once, as it has no common factor with guesses. It is the golden section of them, so
	// that at any time the ports tried lie evenly: a router that counts its ports up gives the peer's 256 sockets
	// neighbouring ones, and one of these is met within 500 tries.
	guessStride = 39883

	spreadSockets = 256
	spreadOpen    = 64 // sockets opened at a time, so that the loop does not stop for long
	spreadStep    = 5 * time.Millisecond
	spreadPause   = 100 * time.Millisecond // after every socket has opened the NAT
	spreadProbes  = 1750

	// leadCycles is how often the ports that a counting router is expected to use next are tried before others, and
	// leadMore how often they are in between.
	leadCycles = 3
	leadMore   = 8
	leadEvery  = 4                    // of the probes in between
	leadPace   = 2 * time.Millisecond // they are few

	// A sweep has rounds. In each of them every socket of a side sends to the same port of the other: the one that its
	// router will have counted to when about the sweepLead-th of its sockets has sent. So on either side the number of
	// ports that others take first may be anything up to sweepLead, and somewhat more in each further round.
	sweepSockets = 128
	sweepLead    = 32
	sweepMore    = 12
	sweepRounds  = 5
	sweepCycles  = 3 // of probes in a round, the first of low TTL: together no more than a spread has
	sweepPace    = 4 * time.Millisecond
)

// probe is a datagram to send.
type probe struct {
	sock Socket
	to   netip.AddrPort
	ttl  int
}

// volley is one round of an exchange: a probe to each address.
type volley struct {
	after    time.Duration // since the exchange began
	ttl      int
	doubtful bool // also to addresses that nothing but the peer's word stands for
}

// clientVolleys are the client's: it sends when the server has agreed to punch, so the server's NAT is open or
// about to be. The first few make up for loss.
func clientVolleys() []volley {
	ms := time.Millisecond
	v := []volley{
		{0, normalTTL, false},
		{100 * ms, normalTTL, true},
		{300 * ms, normalTTL, false},
		{700 * ms, normalTTL, false},
	}
	return everySecond(v, 1500*ms, 10*time.Second)
}

// serverVolleys are the server's. The first ones only open its own NAT; the client's probes then come through.
// That is as safe as the second's wait of the reference implementation, which needs it because it sends
// nothing before, and much faster.
func serverVolleys() []volley {
	ms := time.Millisecond
	v := []volley{{0, lowTTL, false}, {100 * ms, lowTTL, true}, {300 * ms, lowTTL, false}, {600 * ms, lowTTL, false}}
	return everySecond(v, time.Second, 11*time.Second)
}

// openedVolleys are for a peer that says it has opened its NAT to us.
func openedVolleys() []volley {
	ms := time.Millisecond
	return []volley{
		{0, normalTTL, false},
		{100 * ms, normalTTL, false},
		{300 * ms, normalTTL, false},
		{700 * ms, normalTTL, false},
	}
}

func everySecond(v []volley, from, to time.Duration) []volley {
	for n := 0; from <= to; n++ {
		v = append(v, volley{from, normalTTL, n == 3 || n == 7})
		from += time.Second
	}
	return v
}

// prober decides what to send while an attempt punches. It has no clock and sends nothing itself. The zero value
// sends nothing.
type prober struct {
	rand     *rand.Rand
	main     Socket
	strategy strategy
	start    time.Time

	targets  []netip.AddrPort // for exchange: best first; else the one address or host to probe
	doubtful int              // at the end of targets
	volleys  []volley         // left

	// For search, spread and sweep.
	count    sequence         // of the peer's router
	lead     []netip.AddrPort // search: to be tried first
	led      int              // how many of them were, again and again
	socks    []Socket         // spread, sweep: those that are open
	opening  int              // sockets asked for and not opened yet
	closed   bool             // no further socket could be opened
	rested   bool             // the pause after opening is over
	sent     int
	next     time.Time
	guess    int
	finished bool
}

// newExchange starts an exchange with volleys.
func newExchange(now time.Time, sock Socket, v []volley) prober {
	return prober{main: sock, strategy: exchange, start: now, volleys: v}
}

// newGuesser starts a search of the host of target, a spread towards target, or a sweep of its host. count is the counter of
// the peer's router, if it has one.
func newGuesser(now time.Time, r *rand.Rand, s strategy, sock Socket, target netip.AddrPort, count sequence) prober {
	return prober{
		rand: r, main: sock, strategy: s, start: now, next: now, targets: []netip.AddrPort{target},
		socks: []Socket{sock},
		guess: r.IntN(guesses), count: count, lead: count.ahead(),
	}
}

// opened takes the sockets that were opened for a spread. Fewer than wanted means that there will be no more.
func (p *prober) opened(socks []Socket) {
	p.closed = len(socks) < p.opening
	p.opening = 0
	p.socks = append(p.socks, socks...)
}

// advance moves the prober to time now. It returns the probes to send, the number of sockets to open (for
// [prober.opened]), and when it wants to be called again: zero when it has finished, or waits for sockets.
func (p *prober) advance(now time.Time) (send []probe, open int, wake time.Time) {
	if p.finished {
		return nil, 0, time.Time{}
	}
	switch p.strategy {
	case exchange:
		send, wake = p.exchange(now)
	case search:
		send, wake = p.search(now)
	case spread:
		send, open, wake = p.spread(now)
	case sweep:
		send, open, wake = p.sweep(now)
	case impossible:
		p.finished = true
	}
	return send, open, wake
}

func (p *prober) exchange(now time.Time) (send []probe, wake time.Time) {
	for len(p.volleys) > 0 {
		v := p.volleys[0]
		if at := p.start.Add(v.after); at.After(now) {
			return send, at
		}
		p.volleys = p.volleys[1:]
		to := p.targets
		if !v.doubtful {
			to = to[:len(to)-p.doubtful]
		}
		for _, a := range to {
			send = append(send, probe{p.main, a, v.ttl})
		}
	}
	p.finished = true
	return send, time.Time{}
}

func (p *prober) search(now time.Time) (send []probe, wake time.Time) {
	for !p.next.After(now) {
		if p.sent == searchProbes {
			p.finished = true
			return send, time.Time{}
		}
		first := p.led < leadCycles*len(p.lead)
		var to netip.AddrPort
		if first || p.sent%leadEvery == 0 && p.led < (leadCycles+leadMore)*len(p.lead) {
			to = p.lead[p.led%len(p.lead)]
			p.led++
		} else {
			to = netip.AddrPortFrom(p.targets[0].Addr(), uint16(firstGuess+p.guess))
			p.guess = (p.guess + guessStride) % guesses
		}
		send = append(send, probe{p.main, to, normalTTL})
		p.sent++
		switch {
		case first:
			p.next = p.next.Add(leadPace)
		case p.sent < searchFast:
			p.next = p.next.Add(fastPace)
		default:
			p.next = p.next.Add(slowPace)
		}
	}
	return send, p.next
}

func (p *prober) spread(now time.Time) (send []probe, open int, wake time.Time) {
	for !p.next.After(now) {
		switch {
		case p.opening > 0:
			return send, 0, time.Time{} // until they are opened
		case p.sent < len(p.socks): // a new socket: let it open the NAT
			send = append(send, probe{p.socks[p.sent], p.targets[0], lowTTL})
			p.sent++
		case len(p.socks) < spreadSockets && !p.closed:
			p.opening = min(spreadOpen, spreadSockets-len(p.socks))
			p.next = p.next.Add(spreadStep)
			return send, p.opening, time.Time{}
		case !p.rested:
			p.rested = true
			p.next = p.next.Add(spreadPause)
		case p.sent >= len(p.socks)+spreadProbes:
			p.finished = true
			return send, 0, time.Time{}
		default:
			cycle, i := p.sent/len(p.socks), p.sent%len(p.socks)
			ttl := normalTTL
			if cycle == 1 { // the first time around after opening: still not to be too early
				ttl = lowTTL
			}
			send = append(send, probe{p.socks[i], p.targets[0], ttl})
			p.sent++
			p.next = p.next.Add(slowPace)
		}
	}
	return send, 0, p.next
}

// sweep goes around the sockets several times a round. The mapping that meets one of the peer's is at the sweepLead-th socket or
// shortly before, so later cycles begin there and go backwards.
func (p *prober) sweep(now time.Time) (send []probe, open int, wake time.Time) {
	for !p.next.After(now) {
		if p.opening > 0 {
			return send, 0, time.Time{} // until they are opened
		}
		if len(p.socks) < sweepSockets && !p.closed {
			p.opening = min(spreadOpen, sweepSockets-len(p.socks))
			p.next = p.next.Add(spreadStep)
			return send, p.opening, time.Time{}
		}
		n := len(p.socks)
		cycle, i := p.sent/n, p.sent%n
		round := cycle / sweepCycles
		if round == sweepRounds {
			p.finished = true
			return send, 0, time.Time{}
		}
		lead := sweepLead + round*sweepMore
		to := p.count.after(round*sweepSockets + lead)
		p.sent++
		if cycle%sweepCycles == 0 {
			send = append(send, probe{p.socks[i], to, lowTTL})
			if i == n-1 {
				p.next = p.next.Add(spreadPause)
			}
			continue
		}
		send = append(send, probe{p.socks[(lead+n-i)%n], to, normalTTL})
		p.next = p.next.Add(sweepPace)
	}
	return send, 0, p.next
}
