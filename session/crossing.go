package session

import (
	"context"
	"slices"
	"time"

	"omegatun/session/tunnel"
)

const (
	// crossingTrips and crossingSlack are how much later than an established link a handshake may have begun and
	// still be taken for one that crossed it on the way, rather than for a peer that has restarted: it was sent
	// before the link was up over there, and came by way of a relay.
	crossingTrips = 3
	crossingSlack = 100 * time.Millisecond
	// retireAfter is how long the link that lost to another still receives.
	retireAfter = 10 * time.Second
	// partAfter is the same for one of two crossing links once both sides have said that they send nothing more over it: packets may
	// have been overtaken.
	partAfter = 200 * time.Millisecond
	// incomingHead is how long a dial waits for a link that the peer is opening.
	incomingHead = 500 * time.Millisecond
)

// parting is where a link stands that lost to one which crossed it: to have two sessions, and two pairs at a relay, helps nobody.
//
//	no ──another is better──▶ told ──the peer says so, too──▶ closed partAfter later
//
// A side that has told, again every half second, still receives. What the peer says counts from before as well.
type parting struct {
	told  bool // we send over another link, and have said so
	heard bool // the peer has said that it does
	timer *time.Timer
}

// chooseLocked picks the link to send on. p.mu is held.
//
// The newest link wins, because a peer that restarted knows nothing of the older ones. But when both sides
// dialled at once both links are new, and each side must pick the same: the one whose initiator has the
// lower public key. The peer is to be told of links that part: see tellParting.
func (p *Peer) chooseLocked(now time.Time) {
	var best *link
	for _, l := range p.links {
		if best == nil || p.replaces(l, best) {
			best = l
		}
	}
	p.cur.Store(best)
	for _, l := range p.links {
		crossed := l != best && p.crossed(l, best)
		l.mu.Lock()
		switch {
		case l == best:
			l.retireAt, l.parting.told = time.Time{}, false
		case l.retireAt.IsZero():
			l.retireAt = now.Add(retireAfter)
		}
		if crossed {
			l.parting.told = true
			l.partLocked()
		}
		l.mu.Unlock()
	}
}

// replaces reports whether l should be used rather than o.
func (p *Peer) replaces(l, o *link) bool {
	for _, good := range []func(*link) bool{(*link).stays, (*link).healthy, (*link).wanted} {
		if lg, og := good(l), good(o); lg != og {
			return lg
		}
	}
	if p.crossed(l, o) {
		return l.initiator == p.dialsWin()
	}
	return !l.openedAt().Before(o.openedAt())
}

// crossed reports whether the two links were dialled at once, one by each side.
func (p *Peer) crossed(l, o *link) bool {
	older, newer := o, l
	if l.openedAt().Before(o.openedAt()) {
		older, newer = l, o
	}
	return l.initiator != o.initiator && newer.crosses(older)
}

// crosses reports whether the handshake of l began before a peer that has not restarted could know that older is up.
func (l *link) crosses(older *link) bool {
	return l.began.Before(older.openedAt().Add(crossingTrips*older.rtt() + crossingSlack))
}

// dialsWin reports whether of two crossing links the one that we dialled counts.
func (p *Peer) dialsWin() bool { return p.host.cfg.Identity.Public().Compare(p.key) < 0 }

// stays reports whether a link is not about to be closed because it was superseded.
func (l *link) stays() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parting.timer == nil
}

// wanted reports whether the peer has not said that it sends nothing more over the link.
func (l *link) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.parting.heard
}

// partLocked closes the link soon if neither side needs it any more. l.mu is held.
func (l *link) partLocked() {
	if l.parting.told && l.parting.heard && l.parting.timer == nil && !l.closed {
		l.parting.timer = time.AfterFunc(partAfter, func() { l.close(errSuperseded) })
	}
}

// tellParting tells the peer which links we send nothing more over.
func (p *Peer) tellParting() {
	p.mu.Lock()
	links := slices.Clone(p.links)
	p.mu.Unlock()
	for _, l := range links {
		l.tellParting()
	}
}

// tellParting tells the peer if we send nothing more over the link.
func (l *link) tellParting() {
	l.mu.Lock()
	told := l.parting.told && !l.closed
	l.mu.Unlock()
	if r := l.cur.Load(); told && r != nil {
		l.sendControl(r, tunnel.Control{Kind: tunnel.Retire})
	}
}

// heardParting takes from the peer that it sends nothing more over the link.
func (l *link) heardParting() {
	l.mu.Lock()
	first := !l.parting.heard
	l.parting.heard = true
	l.partLocked()
	l.mu.Unlock()
	p := l.peer.Load()
	if !first || p == nil {
		return
	}
	p.mu.Lock()
	if slices.Contains(p.links, l) {
		p.chooseLocked(time.Now()) // another link, if there is one
	}
	p.mu.Unlock()
	p.noteMTU()
	l.tellParting()
}

// opens notes a link that is being opened. It reports false if it is not to be, because one that crossed it is up and counts.
func (p *Peer) opens(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.supersededLocked(l) {
		return false
	}
	p.opening = append(p.opening, l)
	return true
}

// openedLocked notes that l is not being opened any more. p.mu is held.
func (p *Peer) openedLocked(l *link) {
	if i := slices.Index(p.opening, l); i >= 0 {
		p.opening = slices.Delete(p.opening, i, i+1)
	}
}

// supersededLocked reports whether a link that is not up loses to the one in use, because they cross. p.mu is held.
func (p *Peer) supersededLocked(l *link) bool {
	cur := p.cur.Load()
	return cur != nil && cur.sound() && cur.initiator != l.initiator && cur.initiator == p.dialsWin() && l.crosses(cur)
}

// dropSuperseded ends the attempts that a link which has come up makes needless. One over which the peer was heard may be in use
// over there: it comes up first, and parts.
func (p *Peer) dropSuperseded() {
	p.mu.Lock()
	var lost []*link
	for _, l := range p.opening {
		if l.heard.Load() == 0 && p.supersededLocked(l) {
			lost = append(lost, l)
		}
	}
	cancel := p.cancel
	p.mu.Unlock()
	for _, l := range lost {
		if l.initiator && !l.beside && cancel != nil {
			cancel(errSuperseded)
		}
		l.close(errSuperseded)
	}
}

// awaitIncoming gives a link that the peer is opening incomingHead to come up, so that a dial does not cross it. It reports
// whether it did.
func (p *Peer) awaitIncoming(ctx context.Context) bool {
	p.mu.Lock()
	i := slices.IndexFunc(p.opening, func(l *link) bool { return !l.initiator && !l.beside })
	if i < 0 {
		p.mu.Unlock()
		return false
	}
	l := p.opening[i]
	p.mu.Unlock()
	timer := time.NewTimer(incomingHead - time.Since(l.began))
	defer timer.Stop()
	select {
	case <-l.up:
		return p.sound()
	case <-l.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
