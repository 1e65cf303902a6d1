package punch

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht"
)

const (
	askedTime     = 20 * time.Second       // without a message; a client in a network with heavy loss takes that long
	laterTime     = 30 * time.Second       // the same, for one that was told to try later
	answerTime    = 900 * time.Millisecond // a client repeats a message after a second; answer what is known by then
	maxUnanswered = 16
	maxAnswers    = 256 // messages can be replayed, and each may cause a few probes

	maxProbeAnswers = 512
)

// serverState is where the side that was connected to stands.
//
//	waiting ──asked to punch──▶ punching ──probes used up──▶ failed
//	   └─────20 s, refusal, abort───────────────────────────────▶ failed
//
// Every probe is answered with a probe in all of them.
type serverState uint8

const (
	serverWaiting serverState = iota
	serverPunching
	serverFailed
)

// server decides what the side that was connected to does. It has no goroutine, no lock and no clock.
type server struct {
	// Set by the maker.
	rand   *rand.Rand
	secret [32]byte // for tokens
	main   Socket   // the punch socket
	limit  *Limit
	start  time.Time

	state   serverState
	err     *FailedError // once failed
	survey  survey
	remote  remote
	prober  prober // for the attempt
	quick   prober // for a client that opened its NAT before asking
	limited bool

	until   time.Time // while waiting
	end0    time.Time // when the last words are over
	round   uint64
	open    []request // not answered yet
	replied int       // to probes
	told    int       // answers
	out     todo
}

// replier sends the answer to a message: a *dht.HolepunchRequest.
type replier interface {
	Reply(s dht.Socket, payload []byte) error
}

// request is a message of the client.
type request struct {
	to      replier
	payload payload
	peer    netip.AddrPort // the client's punch socket, as the relay sees it
	relayed bool           // it came through one of our relays, so peer is worth something
	due     time.Time      // when it is answered at the latest
}

// answer is what to send back.
type answer struct {
	to      replier
	payload payload
	abort   bool // from the main socket, as the punch socket is about to go
}

func newServer(now time.Time, s server, nodes []netip.AddrPort) *server {
	s.start, s.until = now, now.Add(askedTime)
	s.survey = newSurvey(now, nodes)
	return &s
}

func (s *server) take() todo {
	out := s.out
	s.out = todo{}
	return out
}

func (s *server) ended() error {
	if s.err == nil {
		return nil
	}
	return s.err
}

func (s *server) local() *survey   { return &s.survey }
func (s *server) probing() *prober { return &s.prober }

// asked takes a message of the client. to is where it arrived, if that was the punch socket, and from the relay.
func (s *server) asked(now time.Time, r request, to, from netip.AddrPort) {
	if s.state == serverFailed || len(s.open) >= maxUnanswered || s.told+len(s.open) >= maxAnswers {
		return
	}
	if r.payload.refusal != refusalNone {
		s.remote.gone(&r.payload)
		s.refuse(now, &r, ErrRemoteAborted)
		return
	}
	if to.IsValid() {
		s.survey.vote(to, from)
	}
	if r.payload.round >= s.round {
		s.round = r.payload.round
		var verified netip.Addr
		if r.relayed && r.payload.remoteToken == s.token(r.peer) {
			verified = r.peer.Addr()
		}
		s.remote.update(&r.payload, verified)
		if r.relayed && r.peer.Port() != 0 && probeable(r.peer.Addr()) {
			s.remote.seen = r.peer
		}
	}
	if until := now.Add(askedTime); until.After(s.until) {
		s.until = until
	}
	r.due = now.Add(answerTime)
	s.open = append(s.open, r)
}

func (s *server) token(peer netip.AddrPort) token { return makeToken(&s.secret, peer.Addr()) }

// probed takes a probe and answers it: that is how the client learns of the path.
func (s *server) probed(sock Socket, from netip.AddrPort) {
	if s.state == serverFailed || s.replied >= maxProbeAnswers || !probeable(from.Addr()) {
		return
	}
	s.replied++
	s.out.probes = append(s.out.probes, probe{sock, from, normalTTL})
}

// advance moves the server to time now and returns when it wants to be called again, zero for never.
func (s *server) advance(now time.Time) (wake time.Time) {
	if s.state == serverFailed {
		return time.Time{}
	}
	s.look(now)
	for len(s.open) > 0 && (s.survey.done || !now.Before(s.open[0].due)) {
		r := s.open[0]
		s.open = s.open[1:]
		if s.answer(now, &r); s.state == serverFailed {
			return time.Time{}
		}
	}
	wake = s.look(now) // once more, as an answer may have the survey begin anew
	if len(s.open) > 0 {
		wake = earliest(wake, s.open[0].due)
	}
	for _, p := range []*prober{&s.quick, &s.prober} {
		probes, open, more := p.advance(now)
		s.out.probes = append(s.out.probes, probes...)
		s.out.open += open
		wake = earliest(wake, more)
	}
	switch {
	case s.state == serverWaiting && !now.Before(s.until):
		s.fail(now, ErrNeverAsked)
	case s.state == serverWaiting:
		wake = earliest(wake, s.until)
	case s.prober.finished && s.end0.IsZero():
		s.end0 = now.Add(lastWords)
		wake = earliest(wake, s.end0)
	case s.prober.finished && !now.Before(s.end0):
		s.fail(now, ErrNoProbe)
	case s.prober.finished:
		wake = earliest(wake, s.end0)
	}
	if s.state == serverFailed {
		return time.Time{}
	}
	return wake
}

// look goes on with the survey.
func (s *server) look(now time.Time) (wake time.Time) {
	ping, wake := s.survey.advance(now)
	s.out.pings = append(s.out.pings, ping...)
	return wake
}

// answer answers a message, and begins to punch if that is what the client wants.
func (s *server) answer(now time.Time, r *request) {
	s.told++
	own := s.survey.firewall
	if s.survey.done && !s.survey.again(now) && !r.payload.punching {
		switch {
		case own == dht.FirewallUnknown:
			s.refuse(now, r, ErrLocalUnknown)
			return
		case own >= dht.FirewallRandom && s.remote.firewall >= dht.FirewallRandom && s.strategy() == impossible:
			s.refuse(now, r, ErrBothRandom)
			return
		}
	}
	addrs := s.survey.sequence(false).announce(s.survey.addresses())
	if (own == dht.FirewallOpen || own == dht.FirewallConsistent) && slices.Contains(addrs, r.payload.remoteAddress) &&
		probeable(r.peer.Addr()) {
		s.quick = newExchange(now, s.main, openedVolleys())
		s.quick.targets = []netip.AddrPort{r.peer}
	}
	p := payload{
		firewall: own, round: s.round, addresses: addrs, remoteToken: r.payload.token,
	}
	if r.relayed {
		p.token = s.token(r.peer)
	}
	if r.payload.punching {
		switch reason := s.punch(now); {
		case reason == nil:
		case errors.Is(reason, ErrBusy):
			p.refusal = refusalTryLater
			s.until = now.Add(laterTime)
		default:
			s.refuse(now, r, reason)
			return
		}
	}
	p.punching = s.state == serverPunching
	if own != dht.FirewallUnknown {
		s.survey.frozen = true // the client has been told
	}
	s.out.answers = append(s.out.answers, answer{to: r.to, payload: p})
}

// strategy returns how the two NATs are punched, as far as they are known.
func (s *server) strategy() strategy {
	return strategyFor(s.survey.firewall, s.remote.firewall, s.remote.count.valid() && s.survey.sequence(false).valid())
}

// punch begins to punch, or takes over a new address of the client. It returns why that cannot be.
func (s *server) punch(now time.Time) (reason error) {
	how := s.strategy()
	switch {
	case s.survey.firewall == dht.FirewallUnknown:
		return ErrLocalUnknown
	case s.remote.firewall == dht.FirewallUnknown:
		return ErrRemoteUnknown
	case how == impossible:
		return ErrBothRandom
	case s.state == serverPunching && s.prober.strategy == exchange:
		s.prober.targets, s.prober.doubtful = s.remote.targets()
		return nil
	case s.state == serverPunching:
		return nil
	case how == exchange:
		s.prober = newExchange(now, s.main, serverVolleys())
		s.prober.targets, s.prober.doubtful = s.remote.targets()
	default:
		target, ok := s.remote.proved(how)
		if !ok {
			return ErrUnverified
		}
		if !s.limit.acquire() {
			return ErrBusy
		}
		s.limited = true
		s.prober = newGuesser(now, s.rand, how, s.main, target, s.remote.counter())
	}
	s.state = serverPunching
	return nil
}

// refuse answers r that we give up, and fails.
func (s *server) refuse(now time.Time, r *request, reason error) {
	p := payload{refusal: refusalAborted, firewall: s.survey.firewall, round: r.payload.round}
	s.out.answers = append(s.out.answers, answer{to: r.to, payload: p, abort: true})
	s.fail(now, reason)
}

func (s *server) fail(now time.Time, reason error) {
	stage := StagePunching
	if s.state == serverWaiting {
		stage = StageAsking
	}
	s.err = &FailedError{
		Stage: stage, Local: s.survey.firewall, Remote: s.remote.firewall, Reason: reason, After: now.Sub(s.start),
	}
	s.state = serverFailed
	s.release()
}

// release gives back what the server holds. It may be called twice.
func (s *server) release() {
	if s.limited {
		s.limited = false
		s.limit.release()
	}
}

func (s *server) report() Report {
	r := Report{Stage: StagePunching, Local: s.survey.firewall, Remote: s.remote.firewall}
	switch {
	case s.err != nil:
		r.Stage = s.err.Stage
	case s.state == serverWaiting:
		r.Stage = StageAsking
	}
	return r
}
