package session

import (
	"sync/atomic"
	"time"
)

// maintain keeps a link that is up alive: it probes the path in use, notices silence and tries the other
// addresses. The Host calls it about twice a second.
func (l *link) maintain(now time.Time) {
	r := l.cur.Load()
	if r == nil || l.epoch == nil {
		return
	}
	var due []probe
	var doubted, lost, close bool
	l.mu.Lock()
	l.notAheadLocked(r, now)
	heard := time.Unix(0, r.heard.Load())
	if !l.unheard.IsZero() && heard.After(l.unheard) {
		l.unheard, l.suspect, l.checked = time.Time{}, false, false
	}
	if l.unheard.IsZero() {
		l.lossy = l.tally.lossy()
	}
	l.prober.refresh(r, l.busy(now), now)
	spare := l.prober.spare(r, now)
	every := keepAlive
	switch {
	case l.busy(now) && spare:
		every = probeSpare
	case l.busy(now):
		every = probeEvery
	}
	if !l.unheard.IsZero() {
		every = hurryEvery
		if l.lossy {
			every = hurryLossy
		}
	}
	if !l.checked && l.doubtful(r, now) {
		l.prober.add(r.sock, r.remote, r.kind, 4, now)
		l.unheard, l.checked, l.lastProbe = now, true, now
		doubted = true
	}
	quiet := now.Sub(heard) >= every || every != keepAlive
	if quiet && now.Sub(l.lastProbe) >= every {
		if c := l.prober.add(r.sock, r.remote, r.kind, 1, now); c != nil {
			c.next = time.Time{} // this one ping is all
			due = append(due, l.prober.ping(c, now))
			l.tally.ask()
		}
		l.lastProbe = now
		if l.unheard.IsZero() {
			l.unheard = now
		}
	}
	dead := deadAfter
	if r.kind == PathRelay {
		dead = deadRelay
	}
	if l.checked {
		dead = max(deadChecked, 4*time.Duration(r.rtt.Load()))
	} else if p := l.peer.Load(); spare || p != nil && p.alternatives.Load() > 0 {
		dead = deadSoon
	}
	if l.lossy {
		dead = max(dead, deadLossy)
	}
	if !l.unheard.IsZero() && now.Sub(l.unheard) >= dead && !l.suspect {
		l.suspect, lost = true, true
		l.prober.fail(r, now)
	}
	if l.suspect && now.Sub(time.Unix(0, l.heard.Load())) > giveUpAfter || !l.retireAt.IsZero() && now.After(l.retireAt) {
		close = true
	}
	more, _ := l.prober.advance(now)
	due = append(due, more...)
	l.mu.Unlock()

	if p := l.peer.Load(); doubted && p != nil {
		p.checkOthers(l, now)
	}
	l.tellParting()
	l.checkMTU(r, now)
	alive := l.maintainKeys(now)

	for _, p := range due {
		l.ping(p)
	}
	if lost {
		l.account.step(StagePath, "%v does not answer any more", r.remote)
		l.log.Info("path silent, trying others", "remote", r.remote)
		l.host.linkLost(l)
	}
	switch {
	case !alive:
		l.close(ErrKeysExpired)
	case close:
		l.close(ErrNotConnected)
	}
}

// notAheadLocked sets what is noted as later than now to now: the clock has been set back, perhaps by years, and until it is
// as late again a path that has died would seem to live. l.mu is held.
func (l *link) notAheadLocked(r *route, now time.Time) {
	limit := now.UnixNano()
	clamp := func(t *atomic.Int64) {
		if t.Load() > limit {
			t.Store(limit)
		}
	}
	clamp(&l.heard)
	clamp(&l.received)
	clamp(&l.sent)
	clamp(&r.heard)
	for _, c := range l.prober.cands {
		clamp(&c.route.heard)
	}
}

// maintainKeys asks for new keys in time and destroys old ones. It reports whether there are any left.
func (l *link) maintainKeys(now time.Time) (alive bool) {
	gone, alive := l.epoch.Expire(now)
	for _, index := range gone {
		if index != l.index {
			l.host.links.Delete(index)
		}
	}
	l.rekey(now)
	_, age := l.epoch.Number(now)
	limit := overdueAfter
	if !l.initiator {
		limit += overdueMargin
	}
	if age > limit {
		l.mu.Lock()
		l.stale = true
		l.mu.Unlock()
		l.host.renew(l)
	}
	return alive
}

// doubtful reports whether packets went both ways over r until a moment ago, and now only ours do.
func (l *link) doubtful(r *route, now time.Time) bool {
	heard := r.heard.Load()
	limit := max(doubtAfter, 3*time.Duration(r.rtt.Load()))
	return now.Sub(time.Unix(0, l.received.Load())) < 3*time.Second &&
		now.Sub(time.Unix(0, heard)) >= limit && time.Duration(l.sent.Load()-heard) >= limit/2
}

// busy reports whether data went either way lately.
func (l *link) busy(now time.Time) bool {
	return now.Sub(time.Unix(0, max(l.sent.Load(), l.received.Load()))) < trafficWindow
}

// check makes maintain probe everything at once: the network has changed.
func (l *link) check(now time.Time) {
	l.mu.Lock()
	l.prober.wake(probesToCheck, now)
	if l.checked = true; l.unheard.IsZero() {
		l.unheard = now
	}
	l.mu.Unlock()
	l.sendProbes(now)
}
