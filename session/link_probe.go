package session

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"omegatun/punch"
	"omegatun/session/tunnel"
)

// setPunching notes that hole punching begins or has ended.
func (l *link) setPunching(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.punching = on
}

// settle waits a moment for the candidates of an attempt that has ended, as their sockets are about to close.
func (l *link) settle() {
	timer := time.NewTimer(lastChance)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.up:
	case <-l.done:
	}
}

// keepSockets takes over those sockets of a punching attempt on which the peer has been heard, or over which the
// stream runs, and returns what the link owns, or did before it was closed. The candidates of all other sockets are forgotten.
func (l *link) keepSockets() []punch.Socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	cur := l.cur.Load()
	if l.closed {
		keep := ownedSockets(l.owned)
		if cur != nil && cur.kind != PathRelay && !l.host.isMain(cur.sock) {
			l.host.sockets.leave(cur.sock)
			keep = append(keep, cur.sock) // the last packets of a short stream may still be under way
		}
		return keep
	}
	for _, c := range l.prober.cands {
		if c.route.kind != PathRelay && (c.route.heard.Load() != 0 || cur != nil && cur.sock == c.route.sock) {
			l.ownLocked(c.route.sock)
		}
	}
	if cur != nil && cur.kind != PathRelay { // a stream has no candidates
		l.ownLocked(cur.sock)
	}
	l.prober.cands = slices.DeleteFunc(l.prober.cands, func(c *candidate) bool {
		s := c.route.sock
		return !l.host.isMain(s) && !slices.Contains(l.owned, s) && c.route.kind != PathRelay
	})
	return ownedSockets(l.owned)
}

func ownedSockets(owned []Socket) []punch.Socket {
	list := make([]punch.Socket, len(owned))
	for i, s := range owned {
		list[i] = s
	}
	return list
}

// ownLocked makes the link an owner of a socket that punching has opened. The main sockets need none. l.mu is held.
func (l *link) ownLocked(s Socket) {
	if l.closed || l.host.isMain(s) || slices.Contains(l.owned, s) {
		return
	}
	l.host.sockets.keep(s)
	l.owned = append(l.owned, s)
	useBulk(s)
}

// adopt makes the link an owner of a socket that another link's punching opened, or reports that this cannot be. The main
// sockets need no owner.
func (l *link) adopt(s Socket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.adoptLocked(s)
}

// adoptLocked is adopt with l.mu held.
func (l *link) adoptLocked(s Socket) bool {
	switch {
	case l.host.isMain(s):
		return true
	case l.closed:
		return false
	case slices.Contains(l.owned, s):
		return true
	case !l.host.sockets.hold(s):
		return false
	}
	l.owned = append(l.owned, s)
	return true
}

// offer makes the address a candidate for a path. It is what every way of finding one ends in: the
// handshake, the local network and hole punching; for datagrams from unexpected places see authentic.
func (l *link) offer(sock Socket, remote netip.AddrPort, kind PathKind) {
	if !l.host.mayProbe(remote) {
		return
	}
	if l.epoch == nil {
		l.offerStream(sock, remote, kind)
		return
	}
	l.mu.Lock()
	before := len(l.prober.cands)
	if !l.closed {
		l.prober.add(sock, remote, kind, l.probesLocked(), time.Now())
	}
	fresh, up := len(l.prober.cands) > before && !l.isUp, l.isUp
	l.mu.Unlock()
	if fresh {
		l.account.step(StagePath, "probing %v (%v)", remote, kind)
	}
	if up {
		l.sendProbes(time.Now())
		return
	}
	l.poke()
}

// probesLocked returns how often a new candidate is probed. l.mu is held.
func (l *link) probesLocked() int {
	switch {
	case l.isUp:
		return probesToCheck
	case !l.epoch.Confirmed():
		return probesUnheard
	}
	return probesToOpen
}

// noteDirectLocked notes that r is in use, unless it is relayed. The link owns its socket from then on, for the next link to the
// peer may use it at once. l.mu is held.
func (l *link) noteDirectLocked(r *route) {
	if r.kind == PathRelay {
		return
	}
	l.ownLocked(r.sock)
	if !isClosed(l.direct) {
		close(l.direct)
	}
	if r.remote.Addr().Is4() && (l.epoch != nil || l.initiator) { // else it may be no server; handshakes are IPv4
		l.host.sockets.reached(l.remote, r.sock, r.remote)
	}
}

// dropSocket forgets the paths of a relayed socket, which is about to close.
func (l *link) dropSocket(s Socket) {
	now := time.Now()
	l.mu.Lock()
	l.prober.remove(s)
	r := l.cur.Load()
	lost := r != nil && r.sock == s && l.isUp && !l.closed
	if lost {
		l.suspect, l.unheard = true, now
		l.prober.wake(probesToOpen, now)
	}
	l.mu.Unlock()
	if lost {
		l.sendProbes(now)
		l.host.linkLost(l)
	}
}

// poke makes the opening goroutine look at the candidates again.
func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// open probes candidates until one answers, the link closes or ctx ends. It returns nil once the link is up.
func (l *link) open(ctx context.Context) error { return l.probeUntil(ctx, l.up) }

// probeUntil probes candidates until goal is closed, the link closes or ctx ends. It returns nil once goal is closed.
func (l *link) probeUntil(ctx context.Context, goal <-chan struct{}) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next := l.sendProbes(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-goal:
			return nil
		case <-l.done:
			return l.cause()
		case <-ctx.Done():
			if isClosed(goal) { // a result that is there counts
				return nil
			}
			return context.Cause(ctx)
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// sendProbes sends the probes that are due and returns when the next ones are.
func (l *link) sendProbes(now time.Time) time.Time {
	l.mu.Lock()
	due, next := l.prober.advance(now)
	l.mu.Unlock()
	for _, p := range due {
		l.ping(p)
	}
	return next
}

// ping sends one probe. On the path in use it also tells the peer where to send.
func (l *link) ping(p probe) {
	if l.epoch == nil {
		l.knock(p.route)
		return
	}
	kind := tunnel.PathProbe
	if l.cur.Load() == p.route {
		kind = tunnel.Ping
	}
	l.sendControl(p.route, tunnel.Control{Kind: kind, ID: p.id})
}

// authentic notes that a datagram from (sock, from) passed authentication at now. It returns quickly for
// the path in use and makes any other source a candidate, which may be sent credit bytes of probes for it.
func (l *link) authentic(sock Socket, from netip.AddrPort, credit int, now time.Time) {
	l.heard.Store(now.UnixNano())
	if r := l.cur.Load(); r != nil && r.is(sock, from) {
		r.heard.Store(now.UnixNano())
		return
	}
	may, kind := l.host.mayProbe(from), l.host.kindOver(sock, from.Addr()) // it asks Config.Avoid, which is not ours
	l.mu.Lock()
	fresh := !l.prober.heard(sock, from, probesToCheck, credit, now) && !l.closed && may
	if fresh {
		l.prober.claim(sock, from, kind, l.probesLocked(), credit, l.cur.Load(), now)
	}
	opening := fresh && !l.isUp
	l.mu.Unlock()
	if opening {
		l.account.step(StagePath, "probing %v (%v)", from, kind)
	}
	if isClosed(l.up) {
		l.sendProbes(now) // the peer has moved: find out at once
	} else {
		l.poke()
	}
}

// handleControl acts on an authentic control datagram.
func (l *link) handleControl(sock Socket, from netip.AddrPort, b []byte, now time.Time) {
	c, err := tunnel.ParseControl(b)
	if err != nil {
		l.log.Debug("control datagram refused", "error", err)
		return
	}
	switch c.Kind {
	case tunnel.Ping, tunnel.PathProbe:
		pong := tunnel.Control{Kind: tunnel.Pong, ID: c.ID, Time: c.Time, Observed: from}
		if isRelayed(sock) {
			pong.Observed = netip.AddrPort{}
		}
		l.sendControl(&route{sock: sock, remote: from}, pong)
	case tunnel.MTUProbe:
		l.sendControl(&route{sock: sock, remote: from}, tunnel.Control{Kind: tunnel.MTUReply, ID: c.ID, Size: c.Size})
	case tunnel.MTUReply:
		l.handleMTUReply(sock, from, c.ID, now)
	case tunnel.Pong:
		l.handlePong(sock, from, c, now)
	case tunnel.Retire:
		l.heardParting()
	case tunnel.Close:
		l.close(fmt.Errorf("%w: %v", ErrPeerClosed, c.Code))
	default: // a kind of a later version, or a keepalive: it has been noted as authentic
	}
}

func (l *link) handlePong(sock Socket, from netip.AddrPort, c tunnel.Control, now time.Time) {
	l.mu.Lock()
	cand, sentAt := l.prober.pong(c.ID)
	if cand == nil || l.closed {
		l.mu.Unlock()
		return
	}
	r := cand.route
	if !r.is(sock, from) { // answered along another path: proves nothing about this one
		l.mu.Unlock()
		return
	}
	rtt := now.Sub(sentAt)
	r.measured(rtt)
	if o := r.observed.Load(); c.Observed.IsValid() && (o == nil || *o != c.Observed) {
		r.observed.Store(&c.Observed)
	}
	r.heard.Store(now.UnixNano())
	cur := l.cur.Load()
	change := betterRoute(cur, r, l.suspect, sentAt, now)
	if change && l.lossy && !l.suspect && cur != nil && cur.kind == r.kind &&
		now.Sub(time.Unix(0, cur.heard.Load())) < moveLossy {
		change = false
	}
	if change && !l.suspect && now.Before(cand.bar) {
		change = false
	}
	if change && !l.suspect && cur != nil && cur.kind == r.kind && cur.otherFamily(r) {
		if change = now.Sub(l.crossed) >= steady; change {
			l.crossed = now
		}
	}
	if change {
		l.cur.Store(r)
		l.lastProbe = now
	} else if r == cur {
		l.tally.answer()
	}
	if change || r == cur {
		l.unheard, l.suspect, l.checked = time.Time{}, false, false
		l.noteDirectLocked(r)
	}
	first := !l.isUp
	if first {
		l.isUp, l.upAt = true, now
		close(l.up)
	}
	waiter := l.waiting[c.ID]
	delete(l.waiting, c.ID)
	l.mu.Unlock()

	if change && r.remote.Addr().Is6() {
		useBulk(r.sock)
	}
	if waiter != nil {
		waiter <- Pong{RTT: rtt, Path: r.path()}
	}
	if first || change {
		l.startMTU(r, now)
	}
	switch {
	case first:
		l.account.connected(r.path(), rtt)
		l.log.Info("connected", "path", r.kind.String(), "remote", r.remote, "rtt", rtt)
		l.host.linkUp(l)
		l.startControl(r)
	case change:
		l.account.connected(r.path(), rtt)
		l.moveControl(r)
		l.log.Info("path changed", "path", r.kind.String(), "remote", r.remote, "rtt", rtt)
		l.host.pathChanged(l)
	}
}

// pingWait sends one probe on the path in use and waits for its answer.
func (l *link) pingWait(ctx context.Context) (Pong, error) {
	r := l.cur.Load()
	if r == nil {
		return Pong{}, ErrNotConnected
	}
	answer := make(chan Pong, 1)
	l.mu.Lock()
	c := l.prober.add(r.sock, r.remote, r.kind, 1, time.Now())
	if l.closed || c == nil {
		l.mu.Unlock()
		return Pong{}, ErrNotConnected
	}
	c.next = time.Time{} // this one ping is all
	p := l.prober.ping(c, time.Now())
	if l.waiting == nil {
		l.waiting = make(map[uint64]chan Pong)
	}
	l.waiting[p.id] = answer
	l.tally.ask()
	if l.lastProbe = time.Now(); l.unheard.IsZero() && l.cur.Load() == r {
		l.unheard = l.lastProbe // maintain sees to it if there is no answer
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, p.id)
		l.mu.Unlock()
	}()
	l.ping(p)
	select {
	case pong := <-answer:
		return pong, nil
	case <-l.done:
		return Pong{}, l.cause()
	case <-ctx.Done():
		return Pong{}, context.Cause(ctx)
	}
}
