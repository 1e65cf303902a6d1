package dht

import (
	"net/netip"
	"slices"

	"omegatun/dht/key"
)

const (
	queryConcurrency      = 10
	backgroundConcurrency = 2
	pathWidth             = 2    // nodes that a path goes on to
	reuseConcurrency      = 3    // while waiting for the first of many nodes known to be close
	queryMaxSeen          = 4096 // addresses a query keeps track of: lies of others end there
	visitsMade            = 32   // at a time
)

// contact is a node to ask.
type contact struct {
	id   key.Target
	addr netip.AddrPort
}

func contactAt(a netip.AddrPort) contact { return contact{id: NodeID(a), addr: a} }

// found is a node that answered a query.
type found struct {
	contact
	place   place
	hops    int            // how many nodes led to it
	crowded bool           // more of its host or network are as close: it may be one of many with one owner
	to      netip.AddrPort // our address as it sees it
	token   optional[Token]
	value   []byte
}

// query decides whom an iterative query asks next, and when it has found the nodes closest to its target. It
// sends nothing: the owner asks the contacts that next returns and reports what became of them.
//
//	pending ──next──▶ asked ──replied / failed──▶ done
//	                    └──slow──▶ asked, not waited for once 20 closest are known
//
// Nodes that are farther than the closest known so far are not asked, except those on the paths: a path leads from
// each node that the query started from to the two nearest that it named, and so on. So liars that name nothing but
// each other cannot cut the query off from what honest nodes know: they would have to be on every path.
//
// Few of the closest may share a host or a network, see [hostLimit]; so someone with many addresses in a few
// networks cannot hide all others from it.
//
// Source: npm dht-rpc 6.27.0, lib/query.js.
type query struct {
	target      key.Target
	own         key.Target // our id, which is not asked
	concurrency int

	pending []contact // in no order
	detours []contact // on paths, to be asked when nothing else is pending
	seen    map[endpoint]*visit
	visits  []visit // memory for some more
	closest []found // nearest first, at most bucketSize
	surplus []found // answered, but too many of one host or network; nearest first, as many

	roots             int // nodes it started from
	inflight, slow    int
	successes, errors int
	usedTable         bool // the routing table was asked for a start
	slowdown          bool // started from enough close nodes: let them answer first
	waiting           int  // start nodes that are still being looked up
}

// visit is what a query knows of an address.
type visit struct {
	contact
	place  place
	hops   int
	state  visitState
	queued bool // pending, or a detour
	asked  bool
	root   bool // the query started from it
	path   bool // asked even if others are closer
	slow   bool
	next   []endpoint // of those it named the nearest to the target, if they are nearer than itself
	refs   []endpoint // who mentioned it

	nextRoom [pathWidth]endpoint // of next and refs, as far as it is enough
	refsRoom [4]endpoint
}

type visitState uint8

const (
	visitPending visitState = iota // known, perhaps already asked
	visitDone                      // it answered
	visitDown                      // it did not
)

func newQuery(target, own key.Target, concurrency int) *query {
	return &query{
		target: target, own: own, concurrency: concurrency, seen: make(map[endpoint]*visit),
		pending: make([]contact, 0, 2*bucketSize), closest: make([]found, 0, bucketSize+1),
	}
}

// visit takes in a node that has not been seen.
func (q *query) visit(c contact, hops int) *visit {
	if len(q.visits) == 0 {
		q.visits = make([]visit, visitsMade)
	}
	v := &q.visits[0]
	q.visits = q.visits[1:]
	v.contact, v.place, v.hops = c, placeOf(c.addr.Addr()), hops
	v.next, v.refs = v.nextRoom[:0], v.refsRoom[:0]
	q.seen[endpointOf(c.addr)] = v
	return v
}

// start adds nodes to start from.
func (q *query) start(nodes []contact) {
	for _, c := range nodes {
		v := q.seen[endpointOf(c.addr)]
		q.add(c, v, nil)
		if v == nil {
			v = q.seen[endpointOf(c.addr)]
		}
		if v != nil && !v.root {
			v.root, v.path = true, true
			q.roots++
		}
	}
}

// width returns to how many nodes paths go on from v. From a few nodes to start from there are many, so that no one
// of them, nor of those it names, decides what the query sees.
func (q *query) width(v *visit) int {
	if v.root {
		return max(pathWidth, bucketSize/q.roots)
	}
	return pathWidth
}

// follow has the paths that lead to v go on from there.
func (q *query) follow(v *visit) {
	if v == nil || !v.path {
		return
	}
	for _, e := range v.next {
		w := q.seen[e]
		switch {
		case w == nil:
			if len(q.seen) >= queryMaxSeen {
				return
			}
			w = q.visit(contactAt(e.addr()), v.hops+1)
			w.refs = append(w.refs, endpointOf(v.addr))
		case w.path:
			continue
		}
		w.path = true
		switch {
		case w.asked:
			q.follow(w) // each once, so it ends
		case !w.queued:
			w.queued = true
			q.detours = append(q.detours, w.contact)
		}
	}
}

// room returns how many more nodes to start from the query would like.
func (q *query) room() int { return max(0, bucketSize-len(q.pending)) }

// isCloser reports whether a node with the given id is among the closest known so far.
func (q *query) isCloser(id key.Target) bool {
	return len(q.closest) < bucketSize || closerTo(q.target, id, q.closest[len(q.closest)-1].id)
}

// add takes in a node, seen before as v unless that is nil, and mentioned by the node by (nil: by nobody). It reports
// whether it is among the closest so far, and whether it is known to be down.
func (q *query) add(c contact, v, by *visit) (closer, down bool) {
	closer = q.isCloser(c.id)
	if v != nil {
		if v.state == visitPending && by != nil && len(v.refs) < bucketSize {
			v.refs = append(v.refs, endpointOf(by.addr))
		}
		return closer, v.state == visitDown
	}
	if !closer || len(q.seen) >= queryMaxSeen {
		return closer, false
	}
	hops := 0
	if by != nil {
		hops = by.hops + 1
	}
	v = q.visit(c, hops)
	v.queued = true
	if by != nil {
		v.refs = append(v.refs, endpointOf(by.addr))
	}
	q.pending = append(q.pending, c)
	return true, false
}

// pop takes out the nearest node that is pending, or a detour if there is none.
func (q *query) pop() contact {
	from, best := &q.pending, 0
	if len(q.pending) == 0 {
		from = &q.detours
	}
	for i, c := range *from {
		if closerTo(q.target, c.id, (*from)[best].id) {
			best = i
		}
	}
	c, last := (*from)[best], len(*from)-1
	(*from)[best] = (*from)[last]
	*from = (*from)[:last]
	return c
}

// next returns a node to ask now; false if there is none, or enough are being asked.
func (q *query) next() (contact, bool) {
	limit := q.concurrency
	if q.slowdown {
		limit = reuseConcurrency
	}
	for q.inflight < limit+q.slow && len(q.pending)+len(q.detours) > 0 {
		c := q.pop()
		v := q.seen[endpointOf(c.addr)]
		v.queued = false
		if !v.asked && (v.path || q.isCloser(c.id) && !q.enoughOf(c)) {
			v.asked = true
			q.inflight++
			return c, true
		}
	}
	if !q.usedTable && q.successes == 0 && q.errors == 0 {
		q.slowdown = true
	}
	return contact{}, false
}

// replied reports the answer r of the node at addr. It returns which of the nodes named in it are known to be
// down, for a hint to the one that answered.
func (q *query) replied(addr netip.AddrPort, r *response, filter func(netip.AddrPort) bool) (down []netip.AddrPort) {
	v := q.ended(addr, visitDone)
	if r.code == 0 {
		q.successes++
		if r.id.set && q.isCloser(r.id.v) {
			f := found{contact: contact{id: r.id.v, addr: addr}, to: r.to, token: r.token, value: r.value}
			f.place = placeOf(addr.Addr())
			if v != nil {
				f.hops = v.hops
			}
			q.insert(f)
		}
	} else {
		q.errors++
	}
	adding := true
	for _, a := range r.closer[:min(len(r.closer), bucketSize)] {
		e := endpointOf(a)
		w := q.seen[e]
		var c contact
		if w != nil {
			c = w.contact // which saves computing the id, and looking at the address
		} else {
			if !usable(a) || !filter(a) {
				continue
			}
			if c = contactAt(a); c.id == q.own {
				continue
			}
		}
		if v != nil && (v.root || closerTo(q.target, c.id, v.id)) && len(v.next) < q.width(v) {
			v.next = append(v.next, e)
		}
		if !adding {
			break
		}
		closer, isDown := q.add(c, w, v)
		if isDown {
			down = append(down, a)
		}
		adding = closer // the list is sorted, or nearly
	}
	q.follow(v)
	if !q.usedTable && q.successes+q.errors >= q.concurrency {
		q.slowdown = false
	}
	return down
}

// failed reports that the node at addr did not answer at all. It returns who mentioned it, for hints to them.
func (q *query) failed(addr netip.AddrPort) (refs []netip.AddrPort) {
	v := q.ended(addr, visitDown)
	q.errors++
	if v == nil {
		return nil
	}
	for _, e := range v.refs {
		refs = append(refs, e.addr())
	}
	v.refs = nil
	return refs
}

// late reports that the node at addr has not answered the first attempt. Another one is asked meanwhile.
func (q *query) late(addr netip.AddrPort) {
	if v := q.seen[endpointOf(addr)]; v != nil && !v.slow {
		v.slow = true
		q.slow++
	}
}

func (q *query) ended(addr netip.AddrPort, state visitState) *visit {
	q.inflight--
	v := q.seen[endpointOf(addr)]
	if v == nil {
		return nil
	}
	v.state = state
	if v.slow {
		v.slow = false
		q.slow--
	}
	return v
}

// enoughOf reports whether so many nodes of c's host or network that are closer answered that c need not be
// asked. That is one more than are wanted, so that the crowd is noticed.
func (q *query) enoughOf(c contact) bool {
	p := placeOf(c.addr.Addr())
	if p == 0 {
		return false
	}
	var n tally
	for _, list := range [][]found{q.closest, q.surplus} {
		for _, f := range list {
			if !closerTo(q.target, f.id, c.id) {
				break
			}
			n.count(p, f.place)
		}
	}
	return n.over()
}

// insert puts f among the closest. If there are too many of a host or network then, the farthest of them is
// surplus.
func (q *query) insert(f found) {
	order := func(o found, id key.Target) int { return compareDistance(q.target, o.id, id) }
	at, dup := slices.BinarySearchFunc(q.closest, f.id, order)
	if dup {
		return
	}
	q.closest = slices.Insert(q.closest, at, f)
	for i := len(q.closest) - 1; i >= 0 && f.place != 0; i-- {
		if q.closest[i].place.network() != f.place.network() {
			continue // nothing has changed for these
		}
		var before tally
		for j := range q.closest[:i] {
			before.count(q.closest[i].place, q.closest[j].place)
		}
		if before.full() {
			o := q.closest[i]
			q.closest = slices.Delete(q.closest, i, i+1)
			at, _ := slices.BinarySearchFunc(q.surplus, o.id, order)
			q.surplus = slices.Insert(q.surplus, at, o)
			q.surplus = q.surplus[:min(len(q.surplus), bucketSize)]
		}
	}
	q.closest = q.closest[:min(len(q.closest), bucketSize)]
}

// result returns the closest nodes, nearest first. If there are less than bucketSize, those that are surplus
// fill up.
func (q *query) result() []found {
	result := slices.Clone(q.closest)
	for _, s := range q.surplus {
		last := len(q.closest) - 1
		if len(q.closest) >= bucketSize && !closerTo(q.target, s.id, q.closest[last].id) {
			break
		}
		for i, f := range result { // they are in the same crowd
			var n tally
			n.count(s.place, f.place)
			result[i].crowded = f.crowded || n.network > 0
		}
	}
	for _, s := range q.surplus {
		if len(result) >= bucketSize {
			break
		}
		s.crowded = true
		result = append(result, s)
	}
	slices.SortFunc(result, func(a, b found) int { return compareDistance(q.target, a.id, b.id) })
	return result
}

// idle reports whether nothing is left to ask or worth waiting for.
func (q *query) idle() bool {
	return q.exhausted() &&
		(q.inflight == 0 || q.slow == q.inflight && len(q.closest) >= bucketSize)
}

// stalled reports whether only nodes that did not answer in time keep the query from its end.
func (q *query) stalled() bool { return q.exhausted() && q.slow == q.inflight }

// exhausted reports whether nobody is left to ask. Names that are still being looked up do not count once enough nodes
// have answered: a name server that is silent takes most of a minute to be given up.
func (q *query) exhausted() bool {
	return len(q.pending) == 0 && len(q.detours) == 0 && (q.waiting == 0 || q.successes >= bucketSize/4)
}

// needsTable reports whether an idle query learnt too little from the nodes that it was given, and should go on
// from the routing table.
func (q *query) needsTable() bool { return !q.usedTable && q.successes < bucketSize/4 }
