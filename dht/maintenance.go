package dht

import (
	"net/netip"
	"slices"
	"time"
)

const (
	tickInterval = 5 * time.Second
	sleepGap     = 3 * tickInterval // a longer gap between ticks means that the host slept

	stableTicks     = 240             // 20 min: then an adaptive node tries to become a member
	moreStableTicks = 3 * stableTicks // before it tries again
	refreshTicks    = 60              // 5 min without a query: then one is made up
	recentTicks     = 12              // 1 min: spoken to recently
	oldTicks        = 360             // 30 min: known for long
	pingEvery       = 8               // ticks between pinging some nodes
	smallEvery      = 64              // ticks between refreshes of a table of less than a bucket
	tinyTable       = 5               // a table smaller than that is refreshed as often as nodes are pinged

	maxChecks    = 10 // nodes said to be down that are being checked
	maxRepings   = 3  // nodes of full rows that are being checked
	maxDownHints = 50 // hints sent in a tick
)

// maintenance is what a node does on its own, every tick, to keep its table and its place in the network true.
type maintenance struct {
	ticker        alarm
	tick          int
	lastTick      time.Time // of the wall clock: the monotonic one may stand still while the host sleeps
	stableTicks   int       // left until an adaptive node tries to become a member
	refreshTicks  int       // left until a refresh
	lastChecked   netip.Addr
	bootstrapped  bool
	ready         chan struct{}    // closed once bootstrapped
	refreshing    bool             // a refresh is on its way
	checks        int              // see maxChecks
	repings       int              // see maxRepings
	hintsSent     int              // see maxDownHints
	strangers     []netip.AddrPort // those that are no members, whose view of our address was taken in
	former        []netip.AddrPort // nodes that no longer answered, the latest last: to be tried when none is left
	lastPublic    netip.AddrPort   // our public address when it was last known for sure
	checkingState bool             // a network state check is on its way
	joined        netip.Addr       // our host when we became a member
}

func (n *Node) startMaintenance(now time.Time) {
	// Nodes started together shall not act together.
	n.tick = jitter(100)
	n.maintenance.refreshTicks = jitter(refreshTicks)
	n.maintenance.stableTicks = stableTicks
	n.ready = make(chan struct{})
	n.lastTick = now
	n.alarms.set(&n.ticker, now.Add(tickInterval), n.onTick)
}

// onTick does what is due every five seconds.
func (n *Node) onTick(now time.Time) {
	n.alarms.set(&n.ticker, now.Add(tickInterval), n.onTick)
	if gap := now.Round(0).Sub(n.lastTick.Round(0)); gap > sleepGap {
		n.log.Info("woke up", "gap", gap)
		n.wakeUp(now)
	} else {
		n.tick++
	}
	n.lastTick = now
	if !n.bootstrapped {
		return
	}
	n.considerJoining(now)
	if n.tick%pingEvery == 0 {
		n.pingSome(now)
	}
	n.maintenance.refreshTicks--
	small := n.table.n < bucketSize && n.tick%smallEvery == 0 || n.table.n < tinyTable && n.tick%pingEvery == 0
	lost := n.table.n == 0 && len(n.bootstraps)+len(n.former) > 0
	if small || lost || n.maintenance.refreshTicks <= 0 {
		n.refresh(now)
	}
	n.hintsSent = 0
	if n.health.update(n.responses, n.timeouts) {
		n.log.Info("network health", "online", !n.health.offline, "degraded", n.health.degraded)
		n.notify()
		n.wakeAnnouncements(now)
	}
}

// wakeUp makes everything that is known look old: the host slept, or is somewhere else now.
func (n *Node) wakeUp(now time.Time) {
	n.tick += 2 * oldTicks
	n.tick += pingEvery - n.tick%pingEvery - 2 // so that nodes are pinged in two ticks
	n.maintenance.stableTicks = moreStableTicks
	n.maintenance.refreshTicks = 1 // give the network time to wake up as well
	n.lastChecked = netip.Addr{}
	n.health.reset(n.responses, n.timeouts)
	if n.mode == Adaptive && n.persistent {
		n.leave()
	}
	n.refreshAnnouncements(now)
}

// NetworkChanged tells the node that the addresses or routes of the host changed. It looks at the network, and
// at what the network sees of it, anew, and renews all announcements.
func (n *Node) NetworkChanged() {
	n.do(func(now time.Time) {
		if n.closed || n.suspended {
			return
		}
		n.lastChecked = netip.Addr{}
		n.health.reset(n.responses, n.timeouts)
		n.strangers = nil
		n.refreshAnnouncements(now)
		if n.bootstrapped {
			n.refresh(now)
		}
	})
}

// heardResponse takes in that the node at from answered a request of ours, on socket s.
func (n *Node) heardResponse(now time.Time, s Socket, from netip.AddrPort, r *response) {
	if !n.acceptable(from) {
		return
	}
	// Only what went out by the default socket says something about its public address.
	sample := s == n.defaultSocket() && usable(r.to)
	if !r.id.set {
		// Not a member, or one that does not know its address yet, as bootstrap nodes may be. Few of those
		// are believed.
		if sample && len(n.strangers) < max(1, len(n.bootstraps)) && !slices.Contains(n.strangers, from) {
			n.strangers = append(n.strangers, from)
			n.sampled(now, from, r.to)
		}
		return
	}
	m := n.heard(now, contact{id: r.id.v, addr: from})
	if m == nil {
		return
	}
	m.hearing = answers
	if sample {
		n.sampled(now, from, r.to)
	}
}

// heardRequest takes in that a member sent us a request.
//
// Requests tell our address, too, but anyone can send them unasked; so only answers count as samples.
func (n *Node) heardRequest(now time.Time, in *incoming) {
	if n.acceptable(in.from) {
		n.heard(now, contact{id: in.id.v, addr: in.from})
	}
}

// heard refreshes what the table says of a member, or adds it. It returns nil if there is no room.
func (n *Node) heard(now time.Time, c contact) *node {
	if m := n.table.get(c.id); m != nil {
		m.pinged = int32(n.tick)
		if m.hearing == remembered {
			m.hearing = asks
		}
		n.table.heard(m)
		return m
	}
	return n.add(now, c)
}

// add puts a new node into the table, or, if its row is full, sees whether another can go.
func (n *Node) add(now time.Time, c contact) *node {
	if c.id == n.table.own {
		return nil
	}
	m := newNode(c, n.tick)
	if n.table.add(m) {
		return m
	}
	n.rowFull(now, c)
	return nil
}

// addKnown puts a node known from an earlier run into the table.
func (n *Node) addKnown(a netip.AddrPort) {
	if c := contactAt(a); n.acceptable(a) && c.id != n.table.own {
		m := newNode(c, n.tick)
		m.hearing = remembered
		n.table.add(m)
	}
}

// missed takes in that the node at a did not answer in time. If nothing was heard from it since the start, it is probably
// gone, and must not hold up one query after the other; if it answers later, it is back.
func (n *Node) missed(a netip.AddrPort) {
	if m := n.table.get(NodeID(a)); m != nil && m.hearing == remembered {
		n.drop(m)
	}
}

// rowFull pings the node of c's row that was heard from least lately, and lets c have its place if it is gone.
func (n *Node) rowFull(now time.Time, c contact) {
	if !n.bootstrapped || n.repings >= maxRepings {
		return
	}
	row, _, _ := n.table.find(c.id)
	if n.table.crowded(row, placeOf(c.addr.Addr())) {
		return
	}
	var oldest *node
	for _, m := range n.table.row(row) {
		if int(m.pinged) == n.tick {
			continue
		}
		if oldest == nil || m.pinged < oldest.pinged || m.pinged == oldest.pinged && m.added < oldest.added {
			oldest = m
		}
	}
	if oldest == nil || n.tick-int(oldest.pinged) < recentTicks && n.tick-int(oldest.added) > oldTicks {
		return
	}
	n.repings++
	n.pingNode(now, oldest, func(now time.Time, alive bool) {
		n.repings--
		if !alive {
			n.drop(oldest)
			n.add(now, c)
		}
	})
}

// check drops m from the table unless it answers.
func (n *Node) check(now time.Time, m *node) {
	n.checks++
	n.pingNode(now, m, func(_ time.Time, alive bool) {
		n.checks--
		if !alive {
			n.drop(m)
		}
	})
}

// drop takes a node that does not answer out of the table.
func (n *Node) drop(m *node) {
	if n.table.get(m.id) != m {
		return
	}
	n.table.remove(m)
	n.former = slices.DeleteFunc(n.former, func(a netip.AddrPort) bool { return a == m.addr() })
	if len(n.former) >= bucketSize {
		n.former = slices.Delete(n.former, 0, 1)
	}
	n.former = append(n.former, m.addr())
}

// pingNode pings m and reports whether it answered as the member that it was.
func (n *Node) pingNode(now time.Time, m *node, done func(now time.Time, alive bool)) {
	m.pinged = int32(n.tick)
	spec := callSpec{to: m.addr(), command: cmdPing, retries: defaultRetries}
	n.call(now, spec, func(now time.Time, a *answer, err error) {
		if halted(err) {
			return
		}
		done(now, a != nil && a.id.set)
	})
}

// pingSome checks the nodes that were not heard from for longest.
func (n *Node) pingSome(now time.Time) {
	count := 5
	if len(n.calls) > 2 {
		count = 3
	}
	m := n.table.oldest
	if m == nil {
		n.refresh(now)
		return
	}
	if n.tick-int(m.pinged) < recentTicks {
		count = 2
	}
	for ; m != nil && count > 0 && int(m.pinged) != n.tick; count-- {
		newer := m.newer
		n.check(now, m)
		m = newer
	}
}

// refresh asks around for a random node, so that the table sees new ones.
func (n *Node) refresh(now time.Time) {
	n.maintenance.refreshTicks = refreshTicks
	if n.refreshing || n.closed || n.suspended {
		return
	}
	target := n.table.own
	if m := n.table.random(); m != nil {
		target = m.id
	}
	n.refreshing = true
	n.background(now, lookupSpec{target: target}, func(time.Time, []found, error) { n.refreshing = false })
}

// sendDownHint tells the node at to that down, which it told us of, does not answer.
func (n *Node) sendDownHint(now time.Time, to, down netip.AddrPort) {
	if n.hintsSent >= maxDownHints {
		return
	}
	n.hintsSent++
	value := appendPresent(nil, down)
	spec := callSpec{to: to, command: cmdDownHint, value: value, retries: defaultRetries}
	n.call(now, spec, func(time.Time, *answer, error) {})
}
