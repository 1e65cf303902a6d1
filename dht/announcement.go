package dht

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"omegatun/dht/key"
)

// Announcement is a key served by a node: messages for it go to its [Server], and nodes near it in the network
// are kept informed of the way. All methods are safe for concurrent use.
type Announcement struct {
	n      *Node
	server Server
	public key.Public

	// Guarded by n.mu.
	key    key.Private
	target key.Target
	plan   announcer
	alarm  alarm   // the next round, or cycle
	query  *lookup // nil: none is running
	closed bool
	known  int // nodes in the routing table at the end of the last cycle
	left   int // requests to be waited for before the announcement is gone

	addresses []netip.AddrPort // advertised
	stored    chan struct{}    // closed once the first cycle stored something
	isStored  bool
	gone      chan struct{} // closed once closed and unannounced, or given up
}

// Serve hands the messages for k to s, and announces k in the network until the Announcement is closed. It
// fails with [ErrAnnounced] if k is served already.
func (n *Node) Serve(k key.Private, s Server) (*Announcement, error) {
	if k.IsZero() || s == nil {
		return nil, errors.New("dht: serve needs a key and a server")
	}
	a := &Announcement{
		n: n, server: s, key: k, public: k.Public(), target: k.Public().Target(),
		stored: make(chan struct{}), gone: make(chan struct{}),
	}
	var err error
	n.do(func(now time.Time) {
		switch {
		case n.closed:
			err = ErrClosed
		case n.router.servers[a.target] != nil:
			err = ErrAnnounced
		default:
			n.router.servers[a.target] = a
			n.router.forwards.remove(a.target)
			a.refresh(now)
		}
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// cycle starts looking for the nodes closest to the key, unless that is going on.
func (a *Announcement) cycle(now time.Time) {
	if a.closed || a.plan.state == announceLooking || a.plan.state == announceStoring {
		a.plan.again = true
		return
	}
	a.n.alarms.stop(&a.alarm)
	if a.n.health.offline {
		a.plan.again = true // wakeAnnouncements comes back to this
		return
	}
	spec := lookupSpec{target: a.target, command: cmdFindPeer, start: a.plan.look(), enough: announceRelays}
	query := a.n.lookup(now, spec, func(now time.Time, closest []found, err error) {
		a.query = nil
		if err != nil { // the node closed or is suspended
			return
		}
		a.plan.found(closest)
		a.store(now)
		if a.plan.storing == 0 {
			a.rest(now)
		}
	})
	if !query.over {
		a.query = query
	}
}

// store announces to as many nodes as wanted.
func (a *Announcement) store(now time.Time) {
	for {
		f, ok := a.plan.store()
		if !ok {
			return
		}
		m := announceMessage{peer: some(Record{Key: a.public})}
		signAnnounce(a.key, cmdAnnounce, a.target, f.id, f.token.v, &m)
		spec := callSpec{
			to: f.addr, member: true, token: f.token, command: cmdAnnounce, target: some(a.target),
			value: m.encode(), retries: defaultRetries,
		}
		a.n.call(now, spec, func(now time.Time, r *answer, err error) {
			var relay *announceRelay
			if r != nil && r.code == 0 {
				relay = &announceRelay{contact: f.contact, peer: r.to}
			}
			complete := a.plan.stored(relay)
			switch {
			case a.closed:
				if relay != nil {
					a.forget(now, *relay)
				}
				a.release()
			case halted(err):
			case complete:
				a.rest(now)
			default:
				a.store(now)
			}
		})
	}
}

// rest ends a cycle, and begins with the pings.
func (a *Announcement) rest(now time.Time) {
	removed := a.plan.rest()
	a.known = a.n.table.n
	a.addresses = a.addresses[:0:0]
	remote, open := a.n.remoteAddr()
	if open {
		a.addresses = append(a.addresses, remote)
	}
	for _, r := range a.plan.current() {
		if len(a.addresses) < maxRecordRelays {
			a.addresses = append(a.addresses, r.addr)
		}
	}
	for _, r := range removed {
		a.forget(now, r)
	}
	if stored := len(a.plan.current()) > 0 || open && a.n.persistent; stored && !a.isStored {
		a.isStored = true
		close(a.stored)
	}
	a.n.log.Debug("announced", "key", a.public.Short(), "relays", len(a.plan.current()), "removed", len(removed))
	switch {
	case a.plan.again:
		a.cycle(now)
	case len(a.plan.current()) == 0:
		a.n.alarms.set(&a.alarm, now.Add(a.plan.retry()), a.cycle)
	default:
		a.n.alarms.set(&a.alarm, now.Add(relayPing), a.round)
	}
}

// round pings all relays.
func (a *Announcement) round(now time.Time) {
	more := len(a.plan.current()) < announceRelays && a.n.table.n > a.known // the network has grown
	if a.plan.again || more {
		a.cycle(now)
		return
	}
	relays, cycle := a.plan.round(), a.plan.cycle
	for _, r := range relays {
		spec := callSpec{to: r.addr, member: true, command: cmdPing, retries: defaultRetries}
		a.n.call(now, spec, func(now time.Time, pong *answer, err error) {
			if a.closed || a.plan.cycle != cycle || halted(err) {
				return
			}
			if pong != nil {
				a.plan.ponged(r.addr, pong.to)
			} else {
				a.n.log.Debug("relay lost", "key", a.public.Short(), "relay", r.addr)
				a.plan.lost(r.addr)
			}
			switch over, again := a.plan.roundOver(); {
			case again:
				a.cycle(now)
			case over:
				a.n.alarms.set(&a.alarm, now.Add(relayPing), a.round)
			}
		})
	}
}

// forget removes our record from a node.
func (a *Announcement) forget(now time.Time, from announceRelay) {
	a.left++
	find := callSpec{to: from.addr, command: cmdFindPeer, target: some(a.target), retries: defaultRetries}
	a.n.call(now, find, func(now time.Time, r *answer, _ error) {
		if r == nil || !r.token.set || !r.id.set || r.value == nil {
			a.release()
			return
		}
		m := announceMessage{peer: some(Record{Key: a.public})}
		signAnnounce(a.key, cmdUnannounce, a.target, r.id.v, r.token.v, &m)
		spec := callSpec{
			to: from.addr, token: r.token, command: cmdUnannounce, target: some(a.target),
			value: m.encode(), retries: defaultRetries,
		}
		a.n.call(now, spec, func(time.Time, *answer, error) { a.release() })
	})
}

// release ends the wait for one request.
func (a *Announcement) release() {
	if a.left--; a.left == 0 && a.closed {
		close(a.gone)
	}
}

// refreshAnnouncements has all servers announced again.
func (n *Node) refreshAnnouncements(now time.Time) {
	for _, a := range n.router.servers {
		a.refresh(now)
	}
}

func (a *Announcement) refresh(now time.Time) {
	if a.n.bootstrapped && !a.n.suspended {
		a.cycle(now)
	}
}

// wakeAnnouncements starts the cycles that wait for the network.
func (n *Node) wakeAnnouncements(now time.Time) {
	for _, a := range n.router.servers {
		if len(a.plan.current()) == 0 || a.plan.again {
			a.refresh(now)
		}
	}
}

// Announced waits until the network knows the way to the server: at least one node does, or this node itself
// is a member that anyone can ask.
func (a *Announcement) Announced(ctx context.Context) error {
	select {
	case <-a.stored:
		return nil
	default:
	}
	select {
	case <-a.stored:
		return nil
	case <-a.gone:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.n.ctx.Done():
		return ErrClosed
	}
}

// Relays returns the nodes that forward messages to us, and to which of our addresses.
func (a *Announcement) Relays() []RelayPair {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	pairs := make([]RelayPair, 0, announceRelays)
	for _, r := range a.relaysLocked() {
		pairs = append(pairs, RelayPair{Relay: r.addr, Peer: r.peer})
	}
	return pairs
}

// relaysLocked returns the current relays; while a cycle has not stored anything, those of the previous one.
func (a *Announcement) relaysLocked() []announceRelay {
	if c := a.plan.current(); len(c) > 0 {
		return c
	}
	return a.plan.cycles[1]
}

// Addresses returns the addresses to try first: our own if anyone can reach it, then nodes that forward to us;
// at most three.
func (a *Announcement) Addresses() []netip.AddrPort {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	return append([]netip.AddrPort(nil), a.addresses...)
}

// IsRelay reports whether addr forwards to us, or did in the last three cycles.
func (a *Announcement) IsRelay(addr netip.AddrPort) bool {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	return a.plan.isRelay(unmap(addr))
}

// Refresh announces the key again now.
func (a *Announcement) Refresh() { a.n.do(a.refresh) }

// Close stops serving the key, at once, and has the network forget it; that is waited for until ctx ends.
func (a *Announcement) Close(ctx context.Context) error {
	a.n.do(a.closeLocked)
	select {
	case <-a.gone:
		return nil
	default:
	}
	select {
	case <-a.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// closeLocked is Close with the node's mutex held, without the waiting.
func (a *Announcement) closeLocked(now time.Time) {
	if a.closed {
		return
	}
	a.closed = true
	delete(a.n.router.servers, a.target)
	a.n.alarms.stop(&a.alarm)
	a.query.cancel(now)
	a.query = nil
	from := a.plan.leave()
	a.left += 1 + a.plan.storing // one so that gone is not closed before all were asked
	for _, r := range from {
		a.forget(now, r)
	}
	a.release()
}
