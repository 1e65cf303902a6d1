package dht

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Suspend stops all that the node does until [Node.Resume], as before a phone sleeps: requests and queries end
// with [ErrSuspended], nothing is sent, and datagrams are ignored. What it knows and stores, and its
// announcements, stay; others keep those for 13 to 27 minutes, but get no answer by them. Suspending again does
// nothing.
func (n *Node) Suspend() {
	n.do(func(now time.Time) {
		if n.closed || n.suspended {
			return
		}
		n.suspended = true
		n.alarms.stop(&n.ticker)
		n.endAll(now, ErrSuspended)
		n.queue = nil
		n.alarms.stop(&n.drain)
		n.checks, n.repings, n.hintsSent = 0, 0, 0
		for _, a := range n.router.servers {
			a.suspend()
		}
		n.log.Info("suspended")
		n.notify()
	})
}

// Resume lets a suspended node go on. It looks at the network, and at what the network sees of it, anew, and
// renews all announcements. The sockets may be other ports of the system by then, as long as they are the same
// Sockets.
func (n *Node) Resume() {
	n.do(func(now time.Time) {
		if n.closed || !n.suspended {
			return
		}
		n.suspended = false
		n.lastTick = now
		n.alarms.set(&n.ticker, now.Add(tickInterval), n.onTick)
		n.strangers = nil
		n.log.Info("resumed")
		n.notify()
		if !n.bootstrapped {
			n.bootstrap(now)
			return
		}
		n.wakeUp(now)
		n.refresh(now)
	})
}

// endAll ends all requests and queries.
func (n *Node) endAll(now time.Time, err error) {
	for l := range n.lookups {
		l.end(now, err)
	}
	for _, c := range n.calls {
		n.endCall(now, c, nil, err)
	}
}

// halted reports whether a request ended because the node did, or was suspended: it says nothing about the
// other side.
func halted(err error) bool { return errors.Is(err, ErrClosed) || errors.Is(err, ErrSuspended) }

// suspend brings a to rest until it is refreshed. Its requests and queries have ended.
func (a *Announcement) suspend() {
	a.n.alarms.stop(&a.alarm)
	a.query = nil
	a.plan.suspend()
}

// suspend forgets what was on its way.
func (p *announcer) suspend() {
	p.state = announceResting
	p.candidates, p.storing, p.pings = nil, 0, 0
	p.cycle++
	p.again = true
}

// Shutdown has the network forget what this node announced, and closes it. Announcements are left to expire if
// ctx ends first; the error says so.
func (n *Node) Shutdown(ctx context.Context) error {
	n.mu.Lock()
	var servers []*Announcement
	for _, a := range n.router.servers {
		servers = append(servers, a)
	}
	n.mu.Unlock()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, a := range servers {
		wg.Go(func() { errs[i] = a.Close(ctx) })
	}
	wg.Wait()
	return errors.Join(append(errs, n.Close())...)
}
