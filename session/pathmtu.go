package session

import (
	"errors"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"omegatun/session/tunnel"
	"omegatun/session/udp"
)

// Sizes of datagrams, which is to say UDP payloads, in bytes.
const (
	mtuFloor   = 548  // what every IPv4 path is taken to carry: 576 less the headers
	mtuBase    = 1200 // what is sent along a path of which nothing is known yet
	mtuUsual   = 1232 // what every IPv6 path carries
	mtuPrecise = 8    // a size closer than this to one that does not pass is good enough

	// packetOverhead is how much longer the datagram of a packet is, at most.
	packetOverhead = tunnel.Overhead + tunnel.UnfinishedHeader
	// DefaultMTU is the size in bytes of the largest IP packets where [Config].MTU does not say: those that fit
	// into Ethernet's 1,500 bytes over IPv4 and, but for two bytes, over IPv6.
	DefaultMTU = 1420

	// plaintextRoom is the room before a packet that is needed to seal it, whole or in parts.
	plaintextRoom = tunnel.UnfinishedHeader + tunnel.PartHeader
)

// Times of the search for the path MTU.
const (
	mtuTries      = 3                      // probes of one size before it is taken not to pass
	mtuLeastWait  = 100 * time.Millisecond // for an answer; otherwise two round trips
	mtuMostWait   = time.Second
	mtuConfirm    = 500 * time.Millisecond // between checks whether large datagrams pass still, while some are sent
	mtuPairEvery  = 40 * time.Millisecond  // between pairs of probes while that is in doubt
	mtuPairs      = 32                     // pairs before the doubt is given up: then it is not about the size
	mtuChance     = 1e-3                   // how likely the loss of all large ones may be by chance for it to count
	mtuRaiseAfter = 10 * time.Minute       // before larger sizes are tried again (RFC 8899, PMTU_RAISE_TIMER)
	mtuAnew       = 5 * time.Second        // before a search that nothing answered is begun anew
	mtuRemembered = 128                    // probes that may still be answered
)

// mtuSizes are the sizes tried between one that passes and one that does not: what is left of usual MTUs after the headers of
// IPv4 or IPv6.
var mtuSizes = [...]int{ //nolint:gochecknoglobals // constant
	8952, 8932, 4352, 2000, // jumbo frames
	1472, 1464, 1452, 1444, 1432, 1412, 1392, 1372, 1352, 1332, // Ethernet, PPPoE, tunnels
	1252, 1232, 1200, 1096, 972, 772, 572, 548,
}

// pathMTU finds out how large datagrams may be on one path, in the manner of RFC 8899, and notices when that changes. ICMP is not
// needed. It has no clock, no lock and no socket: its owner supplies the time, sends what advance returns and reports answers.
//
//	unknown ──start──▶ searching ──nothing left to try──▶ settled ──confirm──▶ doubting ──a large one answered──▶ settled
//	                       ▲                                │ 10 min               │
//	                       └────────────────────────────────┴────small ones only───┘
type pathMTU struct {
	limit int // the largest that is of use
	lo    int // the largest that was answered since hi was last lowered from it; 0: none
	hi    int // the smallest that is taken not to pass
	state mtuState

	sizes []int         // searching: those of this round without an answer, descending
	tries int           // … how often they were sent
	wait  time.Duration // for an answer
	due   time.Time     // of the next step; zero: none
	again time.Time     // settled: when larger ones are tried again; zero: never

	doubted time.Time // doubting: since when
	pairs   []time.Time
	small   int // … answers to the small ones

	sent []mtuProbe // mtuRemembered of them once one was sent: most paths are never searched
	n    int
}

type mtuState uint8

const (
	mtuUnknown mtuState = iota // not started
	mtuSearching
	mtuSettled
	mtuDoubting // large datagrams may have ceased to pass
)

// mtuProbe is a probe to send, or one that was sent.
type mtuProbe struct {
	id   uint64
	size int
	at   time.Time
}

// size returns how large datagrams are to be.
func (m *pathMTU) size() int {
	switch {
	case m.lo != 0:
		return m.lo
	case m.hi != 0 && m.hi <= mtuBase:
		return mtuFloor
	}
	return mtuBase
}

// settled reports whether size is what the path carries, as far as can be known.
func (m *pathMTU) settled() bool {
	return m.lo != 0 && (m.state == mtuSettled || m.state == mtuDoubting)
}

// start begins the search on a path that is about to be used, or confirms what was found when it last was.
func (m *pathMTU) start(limit int, now time.Time) {
	if m.state != mtuUnknown && limit == m.limit {
		m.confirm(now)
		return
	}
	m.limit, m.lo, m.hi = limit, 0, limit+1
	m.search(now)
}

// restart forgets all but what is in use: the network has changed.
func (m *pathMTU) restart(now time.Time) {
	if m.state == mtuSettled && m.lo < m.limit {
		m.again = now
	}
	m.confirm(now)
}

func (m *pathMTU) search(now time.Time) {
	m.state, m.tries, m.again = mtuSearching, 0, time.Time{}
	m.pairs = nil
	m.sizes, m.due = m.choose(), now
}

// choose returns the sizes to try next, the largest first.
func (m *pathMTU) choose() []int {
	if m.lo == 0 && m.hi > m.limit { // most paths carry all, and are done with one probe
		return slices.Compact([]int{m.limit, min(mtuUsual, m.limit), mtuFloor})
	}
	var list []int
	for _, s := range mtuSizes {
		if s > m.lo && s < m.hi && s <= m.limit {
			list = append(list, s)
		}
	}
	if m.hi > m.limit && !slices.Contains(list, m.limit) && m.lo < m.limit {
		list = append([]int{m.limit}, list...)
	}
	gap := m.hi - m.lo
	if list == nil && m.lo != 0 && gap > mtuPrecise {
		list = []int{m.lo + gap*3/4, m.lo + gap/2, m.lo + gap/4}
	}
	return list
}

// confirm begins to find out whether datagrams of the present size pass still.
func (m *pathMTU) confirm(now time.Time) {
	if m.state == mtuSettled && m.lo > mtuFloor {
		m.state, m.doubted, m.pairs, m.small = mtuDoubting, now, nil, 0
		m.due = now
	}
}

// refused notes that this machine cannot send datagrams of a size.
func (m *pathMTU) refused(size int, now time.Time) {
	if size >= m.hi || size <= mtuFloor {
		return
	}
	m.hi = size
	if m.lo >= size {
		m.lo = 0
	}
	m.search(now)
}

// advance takes the steps that are due and returns the probes to send and the time of the next step; zero: none. rtt is the
// path's, 0 if unknown.
func (m *pathMTU) advance(rtt time.Duration, now time.Time) (send []mtuProbe, wake time.Time) {
	if m.state == mtuSettled && !m.again.IsZero() && !now.Before(m.again) {
		m.hi = m.limit + 1
		m.search(now)
	}
	if m.due.IsZero() || now.Before(m.due) {
		return nil, m.due
	}
	m.wait = max(mtuLeastWait, min(2*rtt+mtuPairEvery, mtuMostWait))
	switch m.state {
	case mtuSearching:
		send = m.searchStep(now)
	case mtuDoubting:
		send = m.doubtStep(now)
	case mtuUnknown, mtuSettled:
		m.due = time.Time{}
	}
	return send, m.due
}

func (m *pathMTU) searchStep(now time.Time) (send []mtuProbe) {
	if m.tries == mtuTries && len(m.sizes) > 0 {
		if m.lo == 0 && m.sizes[len(m.sizes)-1] <= mtuFloor { // nothing passes: it is not about the size
			m.hi, m.again = m.limit+1, now.Add(mtuAnew)
			m.settle()
			return nil
		}
		m.hi, m.sizes = m.sizes[len(m.sizes)-1], nil
	}
	if len(m.sizes) == 0 {
		if m.sizes, m.tries = m.choose(), 0; len(m.sizes) == 0 {
			m.settle()
			if m.lo < m.limit {
				m.again = now.Add(mtuRaiseAfter)
			}
			return nil
		}
	}
	for _, s := range m.sizes {
		send = append(send, m.probe(s, now))
	}
	m.tries++
	m.due = now.Add(m.wait)
	return send
}

func (m *pathMTU) settle() { m.state, m.sizes, m.due = mtuSettled, nil, time.Time{} }

// doubtStep sends one large probe and, if it is not answered, pairs of a large and a small one, until the answers to the small
// ones tell that the large ones are not lost by chance.
func (m *pathMTU) doubtStep(now time.Time) []mtuProbe {
	if now.Equal(m.doubted) {
		m.due = now.Add(m.wait)
		return []mtuProbe{m.probe(m.lo, now)}
	}
	n := 0
	for _, at := range m.pairs {
		if now.Sub(at) >= m.wait {
			n++
		}
	}
	loss := float64(max(0, n-m.small)+1) / float64(n+2) // of a probe or its answer, by the rule of succession
	switch {
	case n > 0 && math.Pow(loss, float64(n)) < mtuChance:
		m.hi, m.lo = m.lo, 0
		m.search(now)
		return m.searchStep(now)
	case n >= mtuPairs:
		m.settle()
		return nil
	}
	m.due = now.Add(mtuPairEvery)
	if len(m.pairs) >= mtuPairs {
		return nil
	}
	m.pairs = append(m.pairs, now)
	return []mtuProbe{m.probe(m.lo, now), m.probe(0, now)}
}

func (m *pathMTU) probe(size int, now time.Time) mtuProbe {
	p := mtuProbe{id: rand.Uint64() | 1, size: size, at: now} // not to be guessed; never 0
	if m.sent == nil {
		m.sent = make([]mtuProbe, mtuRemembered)
	}
	m.sent[m.n%mtuRemembered] = p
	m.n++
	return p
}

// answered takes the answer to a probe. It reports whether that was one of ours.
func (m *pathMTU) answered(id uint64, now time.Time) bool {
	i := slices.IndexFunc(m.sent, func(p mtuProbe) bool { return p.id == id })
	if i < 0 || id == 0 {
		return false
	}
	p := m.sent[i]
	m.sent[i] = mtuProbe{}
	switch {
	case m.state == mtuDoubting && p.size >= m.lo && !p.at.Before(m.doubted):
		m.settle()
	case m.state == mtuDoubting && p.size == 0:
		m.small++
	case m.state == mtuSearching && p.size > m.lo && p.size < m.hi:
		m.lo = p.size
		if m.sizes = slices.DeleteFunc(m.sizes, func(s int) bool { return s <= p.size }); len(m.sizes) == 0 {
			m.due = now
		}
	}
	return true
}

// tunesMTU reports whether the MTU of the link's paths matters: whether the peer answers probes and accepts parts.
func (l *link) tunesMTU() bool {
	return l.epoch != nil && l.epoch.Params().RemoteFeatures&tunnel.FeatureParts != 0
}

// startMTU looks after the MTU of a path that has come into use.
func (l *link) startMTU(r *route, now time.Time) {
	if !l.tunesMTU() {
		return
	}
	l.mu.Lock()
	r.mtu.start(l.host.cfg.MTU+packetOverhead, now)
	l.publishMTULocked(r)
	l.mu.Unlock()
	l.tuneMTU()
}

// checkMTU looks at the MTU of the path in use twice a second: if large datagrams are being sent, do they pass?
func (l *link) checkMTU(r *route, now time.Time) {
	if !l.tunesMTU() {
		return
	}
	l.mu.Lock()
	m := &r.mtu
	if r.large.Load() && now.Sub(m.doubted) >= mtuConfirm {
		r.large.Store(false)
		m.confirm(now)
	}
	due := !m.due.IsZero() || l.busy(now) && !m.again.IsZero() && !now.Before(m.again)
	l.mu.Unlock()
	if due {
		l.tuneMTU()
	}
}

// checkMTUAnew looks at the MTU of the path in use because the network has changed.
func (l *link) checkMTUAnew(now time.Time) {
	if r := l.cur.Load(); r != nil && l.tunesMTU() {
		l.mu.Lock()
		r.mtu.restart(now)
		l.mu.Unlock()
		l.tuneMTU()
	}
}

// refusedMTU notes that a datagram was too large for the interface that it was to leave by. It reports whether err says so.
func (l *link) refusedMTU(r *route, err error, now time.Time) bool {
	if !errors.Is(err, udp.ErrTooLarge) && !errors.Is(err, syscall.EMSGSIZE) {
		return false
	}
	if l.tunesMTU() {
		l.mu.Lock()
		r.mtu.refused(int(r.limit.Load()), now)
		l.publishMTULocked(r)
		l.mu.Unlock()
		l.tuneMTU()
	}
	return true
}

// handleMTUReply takes the answer to a probe of a path's MTU.
func (l *link) handleMTUReply(sock Socket, from netip.AddrPort, id uint64, now time.Time) {
	l.mu.Lock()
	r := l.cur.Load()
	known := r != nil && r.is(sock, from) && r.mtu.answered(id, now)
	if known {
		l.publishMTULocked(r)
	}
	l.mu.Unlock()
	if known {
		l.tuneMTU()
	}
}

// publishMTULocked lets the senders see what r.mtu says. l.mu is held.
func (l *link) publishMTULocked(r *route) { r.limit.Store(int32(r.mtu.size())) }

// tuneMTU takes the steps that are due on the path in use, and sees to it that the next ones are taken in time.
func (l *link) tuneMTU() {
	if next := l.stepMTU(time.Now()); next.IsZero() {
		return
	}
	l.mu.Lock()
	running := l.tuning || l.closed
	l.tuning = true
	if !running {
		l.host.wg.Go(l.runMTU) // before Close can have closed the link
	}
	l.mu.Unlock()
	if !running {
		return
	}
	select {
	case l.tune <- struct{}{}:
	default:
	}
}

// runMTU is a goroutine that lives while a search goes on.
func (l *link) runMTU() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-l.tune:
		case <-l.done:
			return
		}
		next := l.stepMTU(time.Now())
		if next.IsZero() {
			l.mu.Lock()
			r := l.cur.Load()
			idle := r == nil || r.mtu.due.IsZero() // else somebody has begun again meanwhile
			l.tuning = !idle
			l.mu.Unlock()
			if idle {
				return
			}
			next = time.Now()
		}
		timer.Reset(time.Until(next))
	}
}

// stepMTU takes the steps that are due and returns when the next ones are; zero: none.
func (l *link) stepMTU(now time.Time) time.Time {
	l.mu.Lock()
	r := l.cur.Load()
	if r == nil || l.closed {
		l.mu.Unlock()
		return time.Time{}
	}
	before := r.mtu.settled()
	send, next := r.mtu.advance(time.Duration(r.rtt.Load()), now)
	if !before && r.mtu.settled() {
		l.log.Debug("path mtu", "remote", r.remote, "datagram", r.mtu.lo)
	}
	l.publishMTULocked(r)
	l.mu.Unlock()
	for _, p := range send {
		err := l.sendMTUProbe(r, p)
		if err != nil && p.size > 0 && (errors.Is(err, udp.ErrTooLarge) || errors.Is(err, syscall.EMSGSIZE)) {
			l.mu.Lock()
			if p.size < r.mtu.hi && p.size > mtuFloor { // the same round goes on with what is smaller
				r.mtu.hi = p.size
				r.mtu.sizes = slices.DeleteFunc(r.mtu.sizes, func(s int) bool { return s >= p.size })
				if len(r.mtu.sizes) == 0 {
					r.mtu.due = now
					next = now
				}
			}
			l.mu.Unlock()
		}
	}
	if p := l.peer.Load(); p != nil {
		p.noteMTU()
	}
	return next
}

func (l *link) sendMTUProbe(r *route, p mtuProbe) error {
	plain := tunnel.Control{Kind: tunnel.MTUProbe, ID: p.id, Size: uint16(p.size)}.Append(nil)
	b, err := l.epoch.Seal(make([]byte, 0, len(plain)+tunnel.Overhead), plain)
	if err == nil {
		err = r.sock.Send(b, r.remote)
	}
	return err
}

// packetMTU returns the size of the largest IP packet that travels whole along the path in use; 0: that is being found out.
func (l *link) packetMTU() int {
	if !l.tunesMTU() {
		return l.host.cfg.MTU
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.cur.Load()
	if r == nil || !r.mtu.settled() {
		return 0
	}
	return min(r.mtu.lo-packetOverhead, l.host.cfg.MTU)
}

// noteMTU tells Config.OnMTU if the peer's path has another MTU.
func (p *Peer) noteMTU() {
	l := p.cur.Load()
	if l == nil {
		return
	}
	mtu := l.packetMTU()
	if mtu == 0 || int(p.mtu.Swap(int32(mtu))) == mtu {
		return
	}
	if f := p.host.cfg.OnMTU; f != nil {
		f(p)
	}
}

// MTU returns the size in bytes of the largest IP packet that travels to the peer in one datagram, as far as that is known.
// Larger ones, up to 9,216 bytes, travel in parts. 0: nothing is known yet.
func (p *Peer) MTU() int { return int(p.mtu.Load()) }

// controlSocket is where the control stream of a tunnel sends: packets that are too long for the path travel in the tunnel, in
// parts.
type controlSocket struct {
	Socket
	link  *link
	route *route
}

// Send implements udx.Socket.
func (s *controlSocket) Send(b []byte, to netip.AddrPort) error {
	limit := int(s.route.limit.Load())
	if limit == 0 || len(b) <= limit {
		return s.Socket.Send(b, to)
	}
	t := trains.Get().(*train)
	defer trains.Put(t)
	t.reset()
	if err := s.link.epoch.Begin(&t.sealer); err != nil {
		return err
	}
	room := append(make([]byte, plaintextRoom, plaintextRoom+len(b)), b...)
	err := t.sealParts(room, plaintextRoom, limit, s.link.parts.Add(1))
	t.sealer.End()
	if err != nil {
		return err
	}
	return s.Socket.SendBatch(t.datagrams, to)
}

// controlSocketFor returns what the control stream sends through to use r.
func (l *link) controlSocketFor(r *route) Socket {
	if !l.tunesMTU() {
		return r.sock
	}
	return &controlSocket{Socket: r.sock, link: l, route: r}
}
