package punch

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht"
)

const (
	maxMessages = 20               // of one state, each with the DHT's own retries
	talkTime    = 25 * time.Second // after which a client that still negotiates gives up
	firstHedge  = 400 * time.Millisecond
	nextHedge   = 1200 * time.Millisecond

	unknownPause = 300 * time.Millisecond // before a server that does not know its NAT is asked again
	maxUnknown   = 5

	busyPause = 500 * time.Millisecond // before the limit is tried again
	busyTime  = 8 * time.Second        // the server waits 10 s

	settle = 300 * time.Millisecond

	laterPause = 4 * time.Second // after a TRY_LATER, and up to as much more
	maxLater   = 5

	lastWords = 2 * time.Second // for the answer to the last probe

	maxKnownPaths   = 512 // paths offered whose remote host is the server's; a server may use 256 sockets
	maxStrangePaths = 8   // and others
	offerAgain      = 500 * time.Millisecond
)

// clientState is where the connecting side stands.
//
//	asking ──server's NAT known──▶ surveying ──own NAT known──▶ inviting ──server punches──▶ punching
//	   └───────────────────────────────┴────────────────────────────┴────────────────────────┴──▶ failed
//
// A probe that arrives in any of them is a path, which the session tries while the attempt goes on.
type clientState uint8

const (
	clientAsking    clientState = iota // round 0: messages are under way; a fast opening may make all else needless
	clientSurveying                    // the server has answered, the own NAT is not known yet
	clientInviting                     // the server is told to punch
	clientPunching                     // probes are sent
	clientFailed
)

func (s clientState) stage() Stage { return Stage(s) }

// client decides what the connecting side does. It has no goroutine, no lock and no clock; its loop supplies what
// arrives, and time.
type client struct {
	// Set by the maker.
	rand     *rand.Rand
	secret   [32]byte // for tokens
	main     Socket   // the punch socket
	relay    netip.AddrPort
	pairs    []dht.RelayPair // the relay of the handshake first
	fastOpen bool
	limit    *Limit
	start    time.Time

	state   clientState
	err     *FailedError // once failed
	survey  survey
	remote  remote
	prober  prober
	limited bool // a place of limit is taken

	server  netip.AddrPort // its punch socket as the relay of the handshake sees it
	round   uint64         // of the next message
	heard   uint64         // highest round answered
	end     time.Time      // of talking
	sent    int            // messages in this state
	asked   int            // messages in the first state
	next    time.Time      // of the next message
	waiting map[int]clientState
	ids     int
	unknown int // answers without the server's NAT
	later   int // answers to try later
	busy    time.Time
	given   map[Path]time.Time
	strange int
	out     todo
}

// todo is what a machine wants done. Everything is to be done at once, in any order but that of the fields' kinds.
type todo struct {
	hush    bool // messages under way are not to be sent again. Comes before all else
	open    int  // sockets, to be handed to the prober
	probes  []probe
	pings   []netip.AddrPort // from the punch socket
	signals []signal         // client
	paths   []Path           // client
	answers []answer         // server
}

// signal is a message to the server.
type signal struct {
	id      int
	relay   netip.AddrPort
	peer    netip.AddrPort // where the relay sends it: the server's main or punch socket
	proof   bool           // the answer may prove the server's host
	last    bool           // sent even if the attempt is closed at once
	payload payload
}

func newClient(now time.Time, c client, nodes []netip.AddrPort) *client {
	i := slices.IndexFunc(c.pairs, func(p dht.RelayPair) bool { return p.Relay == c.relay })
	if i > 0 {
		first := c.pairs[i]
		c.pairs = slices.Insert(slices.Delete(slices.Clone(c.pairs), i, i+1), 0, first)
	}
	c.start, c.next, c.end = now, now, now.Add(talkTime)
	c.survey = newSurvey(now, nodes)
	if c.server.Port() != 0 && probeable(c.server.Addr()) {
		c.remote.seen = c.server
	} else {
		c.fastOpen = false
	}
	c.waiting = make(map[int]clientState)
	c.given = make(map[Path]time.Time)
	return &c
}

// take returns what there is to do since the last call.
func (c *client) take() todo {
	out := c.out
	c.out = todo{}
	return out
}

func (c *client) ended() error {
	if c.err == nil {
		return nil
	}
	return c.err
}

func (c *client) local() *survey   { return &c.survey }
func (c *client) probing() *prober { return &c.prober }

// advance moves the client to time now and returns when it wants to be called again, zero for never.
func (c *client) advance(now time.Time) (wake time.Time) {
	if c.state == clientFailed {
		return time.Time{}
	}
	ping, wake := c.survey.advance(now)
	c.out.pings = append(c.out.pings, ping...)
	for before := clientFailed; before != c.state && c.state != clientFailed; {
		before = c.state
		wake = earliest(wake, c.step(now))
	}
	if c.state == clientFailed {
		return time.Time{}
	}
	probes, open, more := c.prober.advance(now)
	c.out.probes = append(c.out.probes, probes...)
	c.out.open += open
	if c.state == clientPunching && c.prober.finished {
		if c.next.IsZero() {
			c.next = now.Add(lastWords)
		}
		more = c.next
	}
	return earliest(wake, more)
}

// step does what the state asks for at time now.
func (c *client) step(now time.Time) (wake time.Time) {
	switch c.state {
	case clientAsking:
		return c.talk(now, c.ask)
	case clientSurveying:
		return c.decide(now)
	case clientInviting:
		return c.talk(now, c.invite)
	case clientPunching:
		if !c.next.IsZero() && !now.Before(c.next) {
			c.fail(now, ErrNoProbe)
		}
	case clientFailed:
	}
	return time.Time{}
}

// talk sends the next message of the state if it is due. Messages are repeated through other relays before the
// first is known to be lost, but for an invitation to guess ports: a reference server that is guessing already takes
// a second one for a further attempt, and gives up.
func (c *client) talk(now time.Time, message func(now time.Time) signal) (wake time.Time) {
	alone := c.state == clientInviting && c.strategy().guesses()
	switch {
	case !now.Before(c.end), c.sent == maxMessages && len(c.waiting) == 0:
		c.fail(now, ErrSilent)
		return time.Time{}
	case c.sent == maxMessages, alone && len(c.waiting) > 0:
		return c.end
	case now.Before(c.next):
		return c.next
	}
	s := message(now)
	s.id, s.payload.round = c.ids, c.round
	c.ids++
	c.round++
	c.waiting[s.id] = c.state
	c.out.signals = append(c.out.signals, s)
	c.next = now.Add(firstHedge)
	if c.sent > 0 {
		c.next = now.Add(nextHedge)
	}
	c.sent++
	return c.next
}

// pair returns a relay of the server's own list, another one each time.
func (c *client) pair() dht.RelayPair { return c.pairs[c.sent%len(c.pairs)] }

// ask makes a message of the first round. The probe before it opens the own NAT, and the message says so: a
// server whose NAT is consistent answers with a probe that gets through.
func (c *client) ask(time.Time) signal {
	pair := c.pair()
	s := signal{relay: pair.Relay, peer: pair.Peer}
	s.payload.firewall, s.payload.addresses = c.survey.firewall, c.addresses()
	if c.fastOpen {
		c.open(c.server)
		s.payload.remoteAddress = c.server
	}
	return s
}

// invite makes a message of the second round. The first of them goes through the relay of the handshake to the server's
// punch socket, so that the answer proves the server's address; every other one to its main socket, in case the
// server's NAT has forgotten the former.
func (c *client) invite(time.Time) signal {
	s := signal{relay: c.relay, peer: c.server, proof: true}
	if c.sent%2 == 1 {
		pair := c.pair()
		s = signal{relay: pair.Relay, peer: pair.Peer}
	}
	p := &s.payload
	p.punching = true
	p.firewall, p.addresses = c.survey.firewall, c.addresses()
	p.remoteToken = c.remote.token
	if s.proof {
		p.token = makeToken(&c.secret, c.server.Addr())
	}
	switch c.strategy() {
	case spread:
		if !c.fastOpen && c.survey.sequence(false).valid() && c.remote.seen.IsValid() {
			c.open(c.remote.seen) // of which the address told above is a guess
		}
	case exchange:
		targets, doubtful := c.remote.targets()
		for _, a := range targets[:len(targets)-doubtful] {
			c.open(a)
		}
		p.remoteAddress = c.remote.seen
	case impossible, search, sweep:
	}
	return s
}

// open opens the own NAT towards an address.
func (c *client) open(to netip.AddrPort) {
	c.out.probes = append(c.out.probes, probe{c.main, to, lowTTL})
}

// decide goes on once both NATs are known.
func (c *client) decide(now time.Time) (wake time.Time) {
	switch {
	case !now.Before(c.end):
		c.fail(now, ErrLocalUnknown)
		return time.Time{}
	case !c.survey.done:
		return c.end
	}
	s := c.strategy()
	switch {
	case c.survey.again(now):
		return now
	case c.survey.firewall == dht.FirewallUnknown:
		c.abort(now, ErrLocalUnknown)
		return time.Time{}
	case s == impossible:
		c.abort(now, ErrBothRandom)
		return time.Time{}
	case s.guesses() && !c.limited:
		if c.busy.IsZero() {
			c.busy = now.Add(busyTime)
		}
		switch {
		case c.limit.acquire():
			c.limited = true
		case now.Before(c.busy):
			return now.Add(busyPause)
		default:
			c.abort(now, ErrBusy)
			return time.Time{}
		}
	}
	c.survey.frozen = true
	c.enter(now, clientInviting)
	if c.asked > 1 && s.guesses() {
		c.next = now.Add(settle) // what was asked through other relays must not arrive after the invitation
	}
	return time.Time{}
}

// addresses returns what to tell the server of the own NAT. For a sweep the ports to come count; else a fast opening has made
// the mapping that the server is to find.
func (c *client) addresses() []netip.AddrPort {
	return c.survey.sequence(c.fastOpen && c.remote.firewall < dht.FirewallRandom).announce(c.survey.addresses())
}

// strategy returns how the two NATs are punched, as far as they are known.
func (c *client) strategy() strategy {
	return strategyFor(c.survey.firewall, c.remote.firewall, c.remote.count.valid() && c.survey.sequence(false).valid())
}

// enter goes on to state s. Messages of the old state are not repeated any more.
func (c *client) enter(now time.Time, s clientState) {
	if c.state == clientAsking {
		c.asked = c.sent
	}
	c.state, c.sent, c.next = s, 0, now
	clear(c.waiting)
	c.out.hush = true
}

// abort tells the server that there is no point in waiting, and what NAT we are behind, so that it can say why; and fails. npm
// hyperdht sends no class here, and looks at none.
func (c *client) abort(now time.Time, reason error) {
	pair := c.pair()
	c.out.signals = append(c.out.signals, signal{
		id: c.ids, relay: pair.Relay, peer: pair.Peer, last: true,
		payload: payload{refusal: refusalAborted, firewall: c.survey.firewall, round: c.round},
	})
	c.fail(now, reason)
}

func (c *client) fail(now time.Time, reason error) {
	c.err = &FailedError{
		Stage: c.state.stage(), Local: c.survey.firewall, Remote: c.remote.firewall, Reason: reason,
		After: now.Sub(c.start),
	}
	c.state = clientFailed
	c.release()
}

// release gives back what the client holds. It may be called twice.
func (c *client) release() {
	if c.limited {
		c.limited = false
		c.limit.release()
	}
}

// missed takes note that a message was not answered.
func (c *client) missed(id int) { delete(c.waiting, id) }

// answered takes the answer p to the message s; the relay sees the server at peer, and us at self.
func (c *client) answered(now time.Time, s *signal, p *payload, peer, self netip.AddrPort) {
	asked, ok := c.waiting[s.id]
	delete(c.waiting, s.id)
	if !ok || c.state == clientFailed { // too late to be of interest
		return
	}
	c.survey.vote(self, s.relay)
	if p.round < c.heard { // a late answer to an early message
		return
	}
	c.heard = p.round
	switch {
	case p.refusal == refusalTryLater && c.later < maxLater && p.firewall != dht.FirewallUnknown:
		c.later++
		c.sent = 0
		c.end = now.Add(talkTime)
		c.next = now.Add(laterPause + time.Duration(c.rand.Int64N(int64(laterPause))))
		return
	case p.refusal == refusalTryLater:
		c.fail(now, ErrBusy)
		return
	case p.refusal == refusalAborted:
		c.remote.gone(p)
		c.fail(now, ErrRemoteAborted)
		return
	case p.refusal != refusalNone:
		c.fail(now, errUnknownRefusal)
		return
	}
	var verified netip.Addr
	if s.proof && p.remoteToken == s.payload.token {
		verified = c.server.Addr()
	}
	c.remote.update(p, verified)
	if peer.Port() != 0 && probeable(peer.Addr()) {
		c.remote.seen = peer
		if s.relay == c.relay {
			c.server = peer
		}
	}
	if asked != c.state {
		return
	}
	switch c.state {
	case clientAsking:
		c.known(now, p)
	case clientInviting:
		c.accepted(now, p)
	case clientSurveying, clientPunching, clientFailed:
	}
}

// known goes on from asking, if the answer p says enough.
func (c *client) known(now time.Time, p *payload) {
	if p.firewall == dht.FirewallUnknown || p.token == (token{}) && c.unknown == 0 {
		if c.unknown++; c.unknown >= maxUnknown {
			c.abort(now, ErrRemoteUnknown)
			return
		}
		c.next = now.Add(unknownPause)
		return
	}
	c.enter(now, clientSurveying)
	told := c.fastOpen && slices.Contains(p.addresses, c.server)
	if told && p.firewall < dht.FirewallRandom {
		// The server has sent a probe to us, so its NAT is open, and ours is too. Either probe may have
		// been lost.
		c.exchange(now, openedVolleys())
	}
}

// exchange starts sending probes to the server's addresses.
func (c *client) exchange(now time.Time, v []volley) {
	c.prober = newExchange(now, c.main, v)
	c.prober.targets, c.prober.doubtful = c.remote.targets()
}

// accepted goes on from inviting: the server answered p.
func (c *client) accepted(now time.Time, p *payload) {
	if !p.punching && !p.connected {
		c.fail(now, ErrRemoteRefused)
		return
	}
	s := c.strategy()
	switch {
	case s == impossible && p.firewall == dht.FirewallUnknown:
		c.fail(now, ErrRemoteUnknown)
		return
	case s == impossible:
		c.fail(now, ErrBothRandom)
		return
	case s == exchange:
		c.enter(now, clientPunching)
		c.exchange(now, clientVolleys())
	default:
		target, ok := c.remote.proved(s)
		if !ok {
			if c.sent >= maxMessages {
				c.fail(now, ErrUnverified)
			}
			c.next = now // ask for the proof again
			return
		}
		if !c.limited && !c.limit.acquire() {
			c.fail(now, ErrBusy)
			return
		}
		c.limited = true
		c.enter(now, clientPunching)
		c.prober = newGuesser(now, c.rand, s, c.main, target, c.remote.counter())
	}
	c.next = time.Time{}
}

// probed takes a probe. It is a path, unless it is one too many.
func (c *client) probed(now time.Time, s Socket, from netip.AddrPort) {
	if c.state == clientFailed {
		return
	}
	p := Path{Socket: s, Remote: from}
	last, seen := c.given[p]
	if seen && now.Sub(last) < offerAgain {
		return
	}
	if !seen {
		known := from.Addr() == c.remote.seen.Addr() || from.Addr() == c.remote.verified ||
			slices.ContainsFunc(c.remote.told, func(a netip.AddrPort) bool { return a.Addr() == from.Addr() })
		switch {
		case known && len(c.given)-c.strange >= maxKnownPaths, !known && c.strange >= maxStrangePaths:
			return
		case !known:
			c.strange++
		}
	}
	c.given[p] = now
	c.out.paths = append(c.out.paths, p)
}

// earliest returns the earlier of two times, of which zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (c *client) report() Report {
	r := Report{Stage: c.state.stage(), Local: c.survey.firewall, Remote: c.remote.firewall}
	if c.err != nil {
		r.Stage = c.err.Stage
	}
	return r
}
