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
)

// strategyFor is the table of strategies. An open host counts as consistent.
//
//	local ＼ remote   consistent   random
//	consistent        exchange     search
//	random            spread       impossible
//
// An unknown kind on either side cannot be punched.
func strategyFor(local, remote dht.Firewall) strategy {
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
	}
	return impossible
}

// guesses reports whether the strategy costs the routers many mappings.
func (s strategy) guesses() bool { return s == search || s == spread }

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

	// For search and spread.
	socks    []Socket // spread: those that are open
	opening  int      // sockets asked for and not opened yet
	closed   bool     // no further socket could be opened
	rested   bool     // the pause after opening is over
	sent     int
	next     time.Time
	guess    int
	finished bool
}

// newExchange starts an exchange with volleys.
func newExchange(now time.Time, sock Socket, v []volley) prober {
	return prober{main: sock, strategy: exchange, start: now, volleys: v}
}

// newGuesser starts a search of the host of target, or a spread towards target.
func newGuesser(now time.Time, r *rand.Rand, s strategy, sock Socket, target netip.AddrPort) prober {
	return prober{
		rand: r, main: sock, strategy: s, start: now, next: now, targets: []netip.AddrPort{target},
		socks: []Socket{sock},
		guess: r.IntN(guesses),
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
		port := uint16(firstGuess + p.guess)
		p.guess = (p.guess + guessStride) % guesses
		send = append(send, probe{p.main, netip.AddrPortFrom(p.targets[0].Addr(), port), normalTTL})
		p.sent++
		pace := slowPace
		if p.sent < searchFast {
			pace = fastPace
		}
		p.next = p.next.Add(pace)
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
