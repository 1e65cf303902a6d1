package dht

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht/key"
)

// lookupSpec says what to ask nodes ever closer to a target.
type lookupSpec struct {
	target    key.Target
	command   Command
	value     []byte
	start     []contact // nodes to start from, best first; then the table and the bootstrap nodes
	bootstrap bool      // ask the bootstrap nodes even if others are known
	retries   int       // per node; 0: queryRetries
	enough    int       // done is called early, for so many closest nodes, if only dead ones are waited for; 0: never

	found func(now time.Time, f found) // called for each answer without error; may be nil
}

// lookup runs a query. Its callbacks are called with the node's mutex held.
type lookup struct {
	*query
	n    *Node
	spec lookupSpec
	busy bool // background: yields to others
	over bool
	held bool // run has to wait, or is running
	done func(now time.Time, closest []found, err error)

	requests int // made, without repetitions
	answered int // of these

	calls      []*call
	spare      []*call // to be used again
	padding    []byte  // the value of requests, see padded
	askedNames bool    // bootstrap nodes were looked up by name although their address is known
	usedNodes  bool    // the bootstrap nodes were added
}

// background starts a query that yields to others. Until the node is ready everything waits for it, so it does not yield.
func (n *Node) background(now time.Time, spec lookupSpec, done func(time.Time, []found, error)) {
	spec.command = cmdFindNode
	l := n.newLookup(spec, queryConcurrency, done)
	l.busy = n.bootstrapped
	l.begin(now)
}

// lookup starts a query.
func (n *Node) lookup(now time.Time, spec lookupSpec, done func(time.Time, []found, error)) *lookup {
	n.maintenance.refreshTicks = refreshTicks
	l := n.newLookup(spec, queryConcurrency, done)
	l.begin(now)
	return l
}

func (n *Node) newLookup(spec lookupSpec, concurrency int, done func(time.Time, []found, error)) *lookup {
	if spec.retries == 0 {
		spec.retries = queryRetries
	}
	q := newQuery(spec.target, n.table.own, concurrency)
	return &lookup{query: q, n: n, spec: spec, done: done}
}

func (l *lookup) begin(now time.Time) {
	if l.n.closed {
		l.end(now, ErrClosed)
		return
	}
	if l.n.suspended {
		l.end(now, ErrSuspended)
		return
	}
	l.n.lookups[l] = struct{}{}
	l.held = true
	l.start(l.spec.start)
	l.addTable(now)
	l.held = false
	l.run(now)
}

// addTable adds nodes that we know, if there is room for them, and the bootstrap nodes if there is room still. Half
// are the closest, half any: those that named each other as the closest may all be lying.
func (l *lookup) addTable(now time.Time) {
	if l.room() > 0 {
		l.usedTable = true
		room := l.room()
		known := l.n.table.closest(l.target, room)
		if len(known) == room && l.n.table.n > room {
			for i := room / 2; i < room; i++ {
				known[i] = l.n.table.random()
			}
		}
		nodes := make([]contact, len(known))
		for i, m := range known {
			nodes[i] = contact{id: m.id, addr: m.addr()}
		}
		l.start(nodes)
	}
	if l.room() > 0 || l.spec.bootstrap {
		l.addBootstraps(now)
	}
}

// addBootstraps adds the bootstrap nodes, those known by name alone once they are looked up.
func (l *lookup) addBootstraps(now time.Time) {
	if l.usedNodes {
		return
	}
	l.usedNodes = true
	for _, h := range l.n.bootstraps {
		if h.ip.IsValid() {
			l.start([]contact{contactAt(netip.AddrPortFrom(h.ip, h.port))})
		} else {
			l.addByName(now, h)
		}
	}
	if l.n.table.n == 0 { // we were cut off; perhaps we are no more
		for _, a := range l.n.former {
			l.start([]contact{contactAt(a)})
		}
	}
}

func (l *lookup) addByName(now time.Time, h bootstrapHost) {
	l.waiting++
	l.n.resolve(now, h.name, func(now time.Time, ip netip.Addr) {
		l.waiting--
		if ip.IsValid() {
			l.start([]contact{contactAt(netip.AddrPortFrom(ip, h.port))})
		}
		l.run(now)
	})
}

// run asks whom the query wants asked, and ends it when there is nobody left.
func (l *lookup) run(now time.Time) {
	if l.held {
		return
	}
	l.held = true
	defer func() { l.held = false }()
	for !l.over {
		if l.busy {
			l.concurrency = backgroundConcurrency
			if len(l.n.calls) < 3 {
				l.concurrency = queryConcurrency
			}
		}
		c, ok := l.next()
		if ok {
			l.ask(now, c)
			continue
		}
		if l.spec.enough > 0 && l.stalled() && len(l.closest) >= l.spec.enough {
			l.spec.enough = 0
			l.conclude(now, nil)
			continue
		}
		switch {
		case !l.idle():
			return
		case l.needsTable():
			l.usedTable = true
			l.addTable(now)
		case l.successes == 0 && !l.usedNodes:
			l.addBootstraps(now)
		case l.successes == 0 && !l.askedNames:
			l.askedNames = true // their addresses may have changed
			for _, h := range l.n.bootstraps {
				if h.ip.IsValid() && h.name != "" {
					l.addByName(now, h)
				}
			}
		default:
			l.end(now, nil)
		}
	}
}

// What requests of queries are padded to, so that nodes which answer strangers with no more than three times
// what they sent can name all twenty closer nodes, and a record. The value of these commands is not looked at,
// nor are bytes after the sequence number that is the value of a MUTABLE_GET.
const (
	findNodeSize = 55 // answer: 10 bytes, id, 20 nodes
	querySize    = 84 // answer: 10 bytes, id, token, 20 nodes, a record with three relays
)

// padded returns the value of the query's requests, which are small otherwise.
func (l *lookup) padded() []byte {
	size := 2 + 2 + 6 + 1 + len(l.target) + 1 // all but the value
	if l.n.idFor(l.n.defaultSocket()).set {
		size += len(l.n.table.own)
	}
	want := querySize
	if l.spec.command == cmdFindNode {
		want = findNodeSize
	}
	want = max(want-size, len(l.spec.value))
	if want == len(l.spec.value) {
		return l.spec.value
	}
	if want != len(l.padding) {
		l.padding = append(bytes.Clone(l.spec.value), make([]byte, want-len(l.spec.value))...)
	}
	return l.padding
}

func (l *lookup) ask(now time.Time, to contact) {
	l.requests++
	var c *call
	if last := len(l.spare) - 1; last >= 0 {
		c, l.spare = l.spare[last], l.spare[:last]
	} else {
		c = new(call)
	}
	*c = call{callSpec: callSpec{
		to: to.addr, member: true, command: l.spec.command, target: some(l.target),
		value: l.padded(), retries: l.spec.retries, lookup: l,
	}}
	if l.n.start(now, c) {
		l.calls = append(l.calls, c)
	}
}

// asked takes in what became of a request.
func (l *lookup) asked(now time.Time, c *call, a *answer, err error) {
	to := c.to
	if at := slices.Index(l.calls, c); at >= 0 {
		last := len(l.calls) - 1
		l.calls[at], l.calls[last] = l.calls[last], nil
		l.calls = l.calls[:last]
		if !c.queued {
			l.spare = append(l.spare, c) // whose end this is: nobody else has it any more
		}
	}
	switch {
	case l.over:
		return
	case a != nil:
		l.onAnswer(now, a)
	case errors.Is(err, ErrTimeout):
		for _, ref := range l.failed(to) {
			l.n.sendDownHint(now, ref, to)
		}
	default:
		l.end(now, err)
		return
	}
	l.run(now)
}

func (l *lookup) onAnswer(now time.Time, a *answer) {
	l.answered++
	for _, down := range l.replied(a.from, &a.response, l.n.acceptable) {
		l.n.sendDownHint(now, a.from, down)
	}
	if a.code == 0 && l.spec.found != nil {
		f := found{contact: contact{addr: a.from}, to: a.to, token: a.token, value: a.value}
		if v := l.seen[endpointOf(a.from)]; v != nil {
			f.contact, f.hops = v.contact, v.hops
		}
		l.spec.found(now, f)
	}
}

// end ends the query. Requests still on their way are forgotten.
func (l *lookup) end(now time.Time, err error) {
	if l.over {
		return
	}
	l.over = true
	delete(l.n.lookups, l)
	for _, c := range l.calls {
		l.n.cancel(now, c)
	}
	l.calls = nil
	l.conclude(now, err)
}

// conclude reports the result, once.
func (l *lookup) conclude(now time.Time, err error) {
	done := l.done
	l.done = func(time.Time, []found, error) {}
	done(now, l.result(), err)
}

// cancel ends the query without a word. l may be nil.
func (l *lookup) cancel(now time.Time) {
	if l != nil {
		l.done = func(time.Time, []found, error) {}
		l.end(now, ErrClosed)
	}
}
