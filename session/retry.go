package session

import (
	"context"
	"time"

	"omegatun/dht"
)

const (
	// firstRetryDirect is how long after its own hole punching has failed a relayed link looks for a direct path again.
	firstRetryDirect = 10 * time.Second
	// retryDirect is the most between two tries while there is traffic, so that a direct path is back within a minute after
	// whatever was in its way has gone.
	retryDirect = 45 * time.Second
	// retryGuess is the least between two tries that guess ports, or that cannot succeed unless a NAT has changed. It
	// doubles each time.
	retryGuess = time.Minute
	// retryIdle is the most between two tries otherwise.
	retryIdle = 10 * time.Minute
	// retrySettle is how long the network is left alone after it has changed.
	retrySettle = 2 * time.Second
	// retryLimit bounds one try: guessing takes half a minute.
	retryLimit = 45 * time.Second
)

// retryPause returns how long to wait after n tries that have failed.
func retryPause(n int, local, remote dht.Firewall, busy bool) time.Duration {
	random := local >= dht.FirewallRandom || remote >= dht.FirewallRandom
	switch {
	case n == 0:
		return firstRetryDirect
	case random:
		return min(retryGuess<<min(n-1, 10), retryIdle)
	case n == 1:
		return 3 * firstRetryDirect
	case busy:
		return retryDirect
	}
	return min(retryDirect<<min(n-1, 10), retryIdle)
}

// retryDirect looks for a direct path beside a relayed one, if it is time: with another handshake, whose link takes the place
// of l if it finds one. Traffic goes on over the relay meanwhile. Of the two sides the initiator of the link does it, and either
// when its own network has changed.
func (l *link) retryDirect(now time.Time) {
	p := l.peer.Load()
	busy := l.busy(now)
	l.mu.Lock()
	r := l.cur.Load()
	relayed := r != nil && r.kind == PathRelay && l.isUp && !l.closed && !l.suspect && l.retireAt.IsZero()
	switch {
	case !relayed || l.punching || l.retrying:
		l.retryFrom = now
		l.mu.Unlock()
		return
	case !l.initiator && !l.hurried, p == nil || p.cur.Load() != l:
		l.mu.Unlock()
		return
	}
	a := l.account.snapshot()
	due := l.retryFrom.Add(retryPause(l.retries, a.Local, a.Remote, busy))
	if l.hurried {
		due = l.retryFrom.Add(retrySettle)
	}
	if now.Before(due) {
		l.mu.Unlock()
		return
	}
	l.retries++
	l.hurried, l.retrying = false, true
	l.mu.Unlock()
	l.host.wg.Go(func() {
		p.tryDirect(l)
		l.mu.Lock()
		l.retrying = false
		l.mu.Unlock()
	})
}

// hurryDirect has a relayed link look for a direct path soon, because the network has changed on one of the two sides.
func (l *link) hurryDirect(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retries, l.hurried, l.retryFrom = 0, true, now
}

// tryDirect makes one try.
func (p *Peer) tryDirect(l *link) {
	h := p.host
	select {
	case h.dials <- struct{}{}:
	case <-l.done:
		return
	}
	defer func() { <-h.dials }()
	ctx, cancel := context.WithTimeoutCause(h.ctx, retryLimit, errNoneAnswered)
	defer cancel()
	l.account.step(StagePath, "looking for a direct path again")
	_, err := h.dial(ctx, dialing{
		local: h.cfg.Identity, remote: p.key, tunnel: true, beside: true,
		needless: func() bool { return isClosed(l.done) || !l.relayed() },
	})
	if err != nil {
		l.account.step(StagePath, "no direct path yet: %v", err)
		l.log.Debug("no direct path yet", "error", err)
	}
}

// relayed reports whether the path in use runs through a relay.
func (l *link) relayed() bool {
	r := l.cur.Load()
	return r != nil && r.kind == PathRelay
}
