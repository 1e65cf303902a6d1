package session

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"omegatun/dht/key"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

// PathKind says what a path runs through. A smaller kind is better.
type PathKind uint8

// The kinds of path, best first.
const (
	PathLAN    PathKind = iota // both machines are on one local network
	PathDirect                 // datagrams go straight between the public addresses
	PathRelay                  // a third machine passes sealed datagrams on
)

// String returns the word that status and events use.
func (k PathKind) String() string {
	switch k {
	case PathLAN:
		return "lan"
	case PathDirect:
		return "direct"
	case PathRelay:
		return "relay"
	}
	return fmt.Sprintf("path kind %d", uint8(k))
}

// A Path is a way for datagrams to a peer: one of our ports and one of its addresses.
type Path struct {
	Kind   PathKind
	Local  netip.AddrPort
	Remote netip.AddrPort // of the relay, if there is one
	Relay  key.Public     // zero: none, or the path of a plain stream
}

// route is a path in use: where datagrams of a link are sent.
type route struct {
	sock   Socket
	remote netip.AddrPort
	kind   PathKind
	id     udx.ID // of a plain stream at the relay; 0: the peer's

	limit atomic.Int32 // bytes of the longest datagrams to send, as mtu says; 0: any
	large atomic.Bool  // some larger than mtuFloor have been sent since this was last looked at
	mtu   pathMTU      // guarded by link.mu

	heard atomic.Int64 // Unix nanoseconds when the last authentic datagram came this way
	rtt   atomic.Int64 // nanoseconds, of the last answered probe; 0 before

	observed atomic.Pointer[netip.AddrPort] // our address as the peer saw it last; nil: not known

	smooth  time.Duration // round trip, averaged; guarded by link.mu
	samples int           // that it is made of
}

// measured takes the round trip of an answered probe. link.mu is held.
func (r *route) measured(rtt time.Duration) {
	r.rtt.Store(int64(rtt))
	if r.samples++; r.samples == 1 {
		r.smooth = rtt
	}
	r.smooth += (rtt - r.smooth) / 4
}

// otherFamily reports whether one of the two routes is over IPv4 and the other over IPv6.
func (r *route) otherFamily(o *route) bool { return r.remote.Addr().Is4() != o.remote.Addr().Is4() }

// faster reports whether o is a good deal faster than r, by enough measurements of both.
func (r *route) faster(o *route) bool {
	return r.samples >= wantSamples && o.samples >= wantSamples && r.smooth-o.smooth > max(minGain, r.smooth/8)
}

func (r *route) is(s Socket, remote netip.AddrPort) bool { return r.sock == s && r.remote == remote }

func (r *route) path() Path {
	p := Path{Kind: r.kind, Local: r.sock.LocalAddr(), Remote: r.remote}
	if s, ok := r.sock.(*relaySocket); ok {
		p.Relay = s.via
	}
	return p
}

// tally counts how many probes are answered.
type tally struct{ asked, answered int }

const (
	tallyLeast = 4  // probes that say anything
	tallyMost  = 16 // probes after which each counts half
)

// ask counts a probe.
func (t *tally) ask() {
	if t.asked++; t.asked == tallyMost {
		t.asked, t.answered = t.asked/2, t.answered/2
	}
}

// answer counts the answer to one.
func (t *tally) answer() { t.answered = min(t.answered+1, t.asked) }

// lossy reports whether most probes are lost.
func (t *tally) lossy() bool { return t.asked >= tallyLeast && 2*t.answered < t.asked }

const (
	// maxCandidates bounds the addresses probed for one link. Eight local addresses of a machine with
	// containers, its public one and a few sources seen during roaming are what happens in practice. Where the peer is heard
	// from counts for more than where it once was: see makeRoom.
	maxCandidates = 24
	// outstanding is how many unanswered probes of a candidate are remembered. At the fastest pace it
	// covers round trips of two seconds.
	outstanding = 12

	firstProbeWait = 20 * time.Millisecond  // after the first probe; doubles
	recheckWait    = time.Second            // between two looks at an address that the peer also sends from
	maxProbeWait   = 250 * time.Millisecond // while a link has no path

	keepRelay   = 20 * time.Second // between probes of a relayed path that is not in use: relays forget idle ones after a minute
	keepFamily  = 20 * time.Second // between probes of a path as good as the one in use but of another family, while there is traffic
	sampleEvery = time.Second      // between the first probes of such a path, and of the one in use beside it
	wantSamples = 3                // round trips to compare two paths by
	minGain     = 2 * time.Millisecond
	steady      = 30 * time.Second // before the family is changed again for a shorter round trip
	retryBetter = 10 * time.Second // between looks for a better path than the one in use
	barFailed   = 40 * time.Second // before a path that failed may take over again from a worse one that works
)

// candidate is an address that might work.
type candidate struct {
	route *route
	next  time.Time     // of the next probe; zero: resting
	wait  time.Duration // between the next probe and the one after it
	left  int           // probes until it rests
	begun time.Time     // when probing last began
	bar   time.Time     // it failed while it was in use: not to be preferred to one that works before this time
	sent  [outstanding]probeSent
	n     int // probes sent in all

	// claimed: only the source of datagrams says that the peer is here, and whoever is on the way may have written that.
	// Until the address has answered, credit is how many bytes of probes it may still be sent.
	claimed bool
	credit  int
}

// mayAnswer is how many times as long as what came from a claimed address all that is sent there may be, in bytes of UDP
// payload: as in RFC 9000, section 8.
const mayAnswer = 3

// probeSize is how long a probe is, and answerSize how long an answer to a control datagram may be, in bytes of UDP payload.
const (
	probeSize  = tunnel.Overhead + 2 + 8 + 8
	answerSize = probeSize + 1 + 16 + 2
)

// pingSize is how long a Ping is: so long that the peer may answer it, and probe where it came from as often as it does when it hears us
// somewhere else.
const pingSize = (answerSize + probesToCheck*probeSize + mayAnswer - 1) / mayAnswer

type probeSent struct {
	id uint64
	at time.Time
}

// A prober decides which candidates to probe and when. It has no clock, no lock and no socket: its owner
// supplies the time, sends what advance returns and reports what comes back.
//
//	add ──▶ probing at 0, 20, 60, 140, … ms ──answered or budget used──▶ resting ──wake──▶ probing
type prober struct {
	cands []*candidate
}

// add makes the address a candidate, or returns the one that it is already. It returns nil when there are
// too many. A new candidate is probed at once. The address is known from the peer or found out, not claimed.
func (p *prober) add(sock Socket, remote netip.AddrPort, kind PathKind, probes int, now time.Time) *candidate {
	for _, c := range p.cands {
		if c.route.is(sock, remote) {
			c.claimed = false
			if c.next.IsZero() {
				c.start(probes, now)
			}
			return c
		}
	}
	if len(p.cands) >= maxCandidates {
		return nil
	}
	c := &candidate{route: &route{sock: sock, remote: remote, kind: kind}}
	c.start(probes, now)
	p.cands = append(p.cands, c)
	return c
}

func (c *candidate) start(probes int, now time.Time) {
	c.begun, c.next, c.wait, c.left = now, now, firstProbeWait, probes
}

// claim makes an address that is no candidate one because an authentic datagram came from there, which allows of credit bytes
// of probes. Where the peer is now counts for more than where it once was: the candidate that was heard least lately has to go if
// there are too many, but not cur.
func (p *prober) claim(sock Socket, remote netip.AddrPort, kind PathKind, probes, credit int, cur *route, now time.Time) {
	p.makeRoom(cur)
	c := p.add(sock, remote, kind, probes, now)
	c.route.heard.Store(now.UnixNano())
	c.claimed, c.credit = kind != PathRelay, credit
}

// heard notes that an authentic datagram came from a candidate other than the path in use, and reports whether
// there is such a candidate. One that rests is probed again, but no more often than once in recheckWait, however
// much comes from there. If the address is only claimed, the datagram allows of credit bytes of probes.
func (p *prober) heard(sock Socket, remote netip.AddrPort, probes, credit int, now time.Time) bool {
	for _, c := range p.cands {
		if !c.route.is(sock, remote) {
			continue
		}
		c.route.heard.Store(now.UnixNano())
		c.credit = min(c.credit+credit, probes*probeSize)
		switch {
		case !c.next.IsZero():
		case now.Sub(c.begun) >= recheckWait:
			c.start(probes, now)
		case c.claimed && c.left > 0:
			c.next = now // if it has waited for this
		}
		return true
	}
	return false
}

// heardFrom returns the route of a candidate from which authentic datagrams have come, or nil.
func (p *prober) heardFrom(sock Socket, remote netip.AddrPort) *route {
	for _, c := range p.cands {
		if c.route.is(sock, remote) && c.route.heard.Load() != 0 {
			return c.route
		}
	}
	return nil
}

// has reports whether there are candidates of the socket.
func (p *prober) has(s Socket) bool {
	return slices.ContainsFunc(p.cands, func(c *candidate) bool { return c.route.sock == s })
}

// makeRoom forgets, if there are as many candidates as may be, the one that was heard least lately, but not cur.
func (p *prober) makeRoom(cur *route) {
	if len(p.cands) < maxCandidates {
		return
	}
	oldest := -1
	for i, c := range p.cands {
		if c.route != cur && (oldest < 0 || c.route.heard.Load() < p.cands[oldest].route.heard.Load()) {
			oldest = i
		}
	}
	p.cands = slices.Delete(p.cands, oldest, oldest+1)
}

// refresh sees to it that paths beside cur stay known: relayed ones are kept open, better ones are looked for again, and those
// of another family are measured; while there is traffic they are kept open, too.
func (p *prober) refresh(cur *route, busy bool, now time.Time) {
	rival := slices.ContainsFunc(p.cands, func(c *candidate) bool {
		return c.route.kind == cur.kind && c.route.otherFamily(cur) && c.route.samples > 0
	})
	for _, c := range p.cands {
		since := now.Sub(c.begun)
		switch {
		case !c.next.IsZero():
		case c.route == cur && (!rival || c.route.samples >= wantSamples || since < sampleEvery):
		case c.route == cur:
			c.start(1, now)
		case c.route.kind == cur.kind && c.route.otherFamily(cur):
			switch {
			case c.route.samples > 0 && c.route.samples < wantSamples && since >= sampleEvery,
				c.route.samples > 0 && busy && since >= keepFamily:
				c.start(1, now)
			case c.route.samples == 0 && busy && since >= retryBetter:
				c.start(3, now)
			}
		case c.route.kind == PathRelay && now.Sub(c.begun) >= keepRelay:
			c.start(2, now)
		case c.route.kind < cur.kind && now.Sub(c.begun) >= retryBetter:
			c.start(3, now)
		}
	}
}

// spare reports whether there is a relayed path, or one of another family, beside cur that was heard lately.
func (p *prober) spare(cur *route, now time.Time) bool {
	return slices.ContainsFunc(p.cands, func(c *candidate) bool {
		return c.route != cur && (c.route.kind == PathRelay || c.route.otherFamily(cur)) && now.Sub(time.Unix(0, c.route.heard.Load())) < 2*keepRelay
	})
}

// fail notes that the path in use has stopped working, and probes all others.
func (p *prober) fail(cur *route, now time.Time) {
	for _, c := range p.cands {
		if c.route == cur {
			c.bar = now.Add(barFailed)
		}
	}
	p.wake(probesToOpen, now)
}

// remove forgets the candidates of a socket.
func (p *prober) remove(s Socket) {
	p.cands = slices.DeleteFunc(p.cands, func(c *candidate) bool { return c.route.sock == s })
}

// wake probes every candidate again.
func (p *prober) wake(probes int, now time.Time) {
	for _, c := range p.cands {
		c.start(probes, now)
	}
}

// probe is one ping to send.
type probe struct {
	id    uint64
	route *route
}

// advance returns the probes due at now and the time of the next one, zero for none.
func (p *prober) advance(now time.Time) (due []probe, wake time.Time) {
	for _, c := range p.cands {
		if c.next.IsZero() {
			continue
		}
		if !c.next.After(now) {
			if c.claimed && c.credit < probeSize { // heard goes on
				c.next = time.Time{}
				continue
			}
			c.credit -= probeSize
			due = append(due, p.ping(c, now))
			if c.left--; c.left <= 0 {
				c.next = time.Time{}
				continue
			}
			c.next = now.Add(c.wait)
			c.wait = min(2*c.wait, maxProbeWait)
		}
		if wake.IsZero() || c.next.Before(wake) {
			wake = c.next
		}
	}
	return due, wake
}

// ping records one more probe of c.
func (p *prober) ping(c *candidate, now time.Time) probe {
	id := rand.Uint64() | 1 // not to be guessed: the answer proves that the question arrived; never 0
	c.sent[c.n%outstanding] = probeSent{id, now}
	c.n++
	return probe{id, c.route}
}

// pong finds the candidate whose probe id was answered, and when that probe was sent. The candidate rests
// from then on. It returns nil for an id that is not outstanding.
func (p *prober) pong(id uint64) (*candidate, time.Time) {
	for _, c := range p.cands {
		for i := range c.sent {
			if s := &c.sent[i]; s.id == id && id != 0 {
				at := s.at
				*s = probeSent{}
				c.next, c.claimed = time.Time{}, false
				return c, at
			}
		}
	}
	return nil, time.Time{}
}

// tried returns the candidates as paths, for an error message.
func (p *prober) tried() []Path {
	paths := make([]Path, len(p.cands))
	for i, c := range p.cands {
		paths[i] = c.route.path()
	}
	return paths
}

// betterRoute reports whether next, which has just answered a probe sent at sent, should replace cur. cur is suspect if it
// has not answered for long.
func betterRoute(cur, next *route, suspect bool, sent, now time.Time) bool {
	switch {
	case cur == nil:
		return true
	case cur == next:
		return false
	case suspect:
		return true
	case next.kind < cur.kind:
		return true
	}
	heard := time.Unix(0, cur.heard.Load())
	if next.kind == cur.kind && next.otherFamily(cur) {
		return cur.faster(next)
	}
	if next.kind == cur.kind { // the peer moved: nothing came the old way since we asked the new one
		return heard.Before(sent)
	}
	return now.Sub(heard) > deadAfter
}
