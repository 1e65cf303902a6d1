package dht

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"

	"omegatun/dht/key"
)

const (
	// bucketSize is how many nodes a row of the table holds, an answer names, and a query collects: Kademlia's k.
	bucketSize = 20
	rows       = 256
)

// node is a member of the network that the routing table knows. Times are in ticks.
type node struct {
	id    key.Target
	addr  netip.AddrPort
	place place

	added  int // when it entered the table
	pinged int // when it was last asked, or heard from
	seen   int // when it was last heard from
	hints  int // how often others said that it is down

	answered bool // it answered a request of ours, so it does receive at its address

	// In the order of being heard from; nil at the ends, and both if the node is not in the table.
	older, newer *node
}

// table is a Kademlia routing table: one row of nodes per length of the prefix that their ids share with our
// own, each at most bucketSize long; and the same nodes in the order in which they were last heard from. In a
// full row nodes make room for those of hosts and networks that have fewer, see [hostLimit].
//
// Source: npm kademlia-routing-table 1.0.6, time-ordered-set.
type table struct {
	own            key.Target
	rows           [][]*node // by prefix length, as far as needed; each sorted by id
	n              int
	oldest, latest *node

	found, chosen []*node // closest works here, so that it need not allocate
}

func newTable(own key.Target) *table { return &table{own: own} }

// prefixLen returns how many leading bits a and b share, at most 255.
func prefixLen(a, b key.Target) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return i*8 + bits.LeadingZeros8(x)
		}
	}
	return rows - 1
}

// row returns the nodes of row i.
func (t *table) row(i int) []*node {
	if i < len(t.rows) {
		return t.rows[i]
	}
	return nil
}

// find returns the row of id, and where in it the node with that id is or would be.
func (t *table) find(id key.Target) (row, at int, found bool) {
	row = prefixLen(t.own, id)
	at, found = slices.BinarySearchFunc(t.row(row), id, func(n *node, id key.Target) int {
		return slices.Compare(n.id[:], id[:])
	})
	return row, at, found
}

// get returns the node with the given id, nil if the table does not know it.
func (t *table) get(id key.Target) *node {
	if row, at, found := t.find(id); found {
		return t.rows[row][at]
	}
	return nil
}

// newNode returns a node for the table, heard from in the given tick.
func newNode(c contact, tick int) *node {
	return &node{id: c.id, addr: c.addr, place: placeOf(c.addr.Addr()), added: tick, pinged: tick, seen: tick}
}

// add puts n into the table as the latest node heard from. It returns false if the row of n is full or n is
// already known.
func (t *table) add(n *node) bool {
	row, at, found := t.find(n.id)
	if found {
		return false
	}
	if len(t.row(row)) >= bucketSize {
		surplus := t.surplus(row, n.place)
		if surplus == nil {
			return false
		}
		t.remove(surplus)
		row, at, _ = t.find(n.id)
	}
	for len(t.rows) <= row {
		t.rows = append(t.rows, nil)
	}
	t.rows[row] = slices.Insert(t.rows[row], at, n)
	t.n++
	t.link(n)
	return true
}

// crowded reports whether a row that is full has no room for a node at p, whatever the others are.
func (t *table) crowded(row int, p place) bool {
	var n tally
	for _, m := range t.row(row) {
		n.count(p, m.place)
	}
	return n.full()
}

// surplus returns the node of a row that has to make room for one at p: the latest of a host or network that
// has more than its limit. It returns nil if there is none, or p's own has its limit.
func (t *table) surplus(row int, p place) *node {
	if t.crowded(row, p) {
		return nil
	}
	var latest *node
	for _, m := range t.row(row) {
		var n tally
		for _, o := range t.row(row) {
			n.count(m.place, o.place)
		}
		if n.over() && (latest == nil || m.added >= latest.added) {
			latest = m
		}
	}
	return latest
}

// remove takes n out of the table, if it is in it.
func (t *table) remove(n *node) {
	row, at, found := t.find(n.id)
	if !found || t.rows[row][at] != n {
		return
	}
	t.rows[row] = slices.Delete(t.rows[row], at, at+1)
	t.n--
	t.unlink(n)
}

// heard makes n, which is in the table, the latest node heard from.
func (t *table) heard(n *node) {
	if t.latest == n {
		return
	}
	t.unlink(n)
	t.link(n)
}

func (t *table) link(n *node) {
	n.older, n.newer = t.latest, nil
	if t.latest != nil {
		t.latest.newer = n
	} else {
		t.oldest = n
	}
	t.latest = n
}

func (t *table) unlink(n *node) {
	if n.older != nil {
		n.older.newer = n.newer
	} else {
		t.oldest = n.newer
	}
	if n.newer != nil {
		n.newer.older = n.older
	} else {
		t.latest = n.older
	}
	n.older, n.newer = nil, nil
}

// closest returns up to limit nodes in the order of their distance from target, nearest first. If it knows more
// nodes than that, those of crowded hosts and networks are left out, see [hostLimit]. The result is valid until the
// next call.
//
// Nodes that share more bits with target than we do are in target's own row. All rows beyond that are equally
// far in their first differing bit, then come the shorter prefixes one by one. So few nodes are sorted.
func (t *table) closest(target key.Target, limit int) []*node {
	found, chosen, rest := t.found[:0], t.chosen[:0], []*node(nil)
	defer func() { t.found, t.chosen = found[:0], chosen[:0] }()
	take := func(rows [][]*node) {
		from := len(found)
		for _, r := range rows {
			found = append(found, r...)
		}
		slices.SortFunc(found[from:], func(a, b *node) int { return compareDistance(target, a.id, b.id) })
		for _, m := range found[from:] {
			var n tally
			for _, o := range chosen {
				n.count(m.place, o.place)
			}
			if n.full() {
				rest = append(rest, m)
			} else {
				chosen = append(chosen, m)
			}
		}
	}
	d := prefixLen(t.own, target)
	if d < len(t.rows) {
		take(t.rows[d : d+1])
		if len(chosen) < limit {
			take(t.rows[d+1:])
		}
	}
	for i := min(d, len(t.rows)) - 1; i >= 0 && len(chosen) < limit; i-- {
		take(t.rows[i : i+1])
	}
	if missing := min(limit-len(chosen), len(rest)); missing > 0 {
		chosen = append(chosen, rest[:missing]...)
		slices.SortFunc(chosen, func(a, b *node) int { return compareDistance(target, a.id, b.id) })
	}
	return chosen[:min(limit, len(chosen))]
}

// random returns any of the nodes, nil if there is none.
func (t *table) random() *node {
	if t.n == 0 {
		return nil
	}
	i := rand.IntN(t.n)
	for _, r := range t.rows {
		if i < len(r) {
			return r[i]
		}
		i -= len(r)
	}
	return nil
}

// renamed returns a table with the same nodes, as far as they fit, for another own id; t is used up.
func (t *table) renamed(own key.Target) *table {
	next := newTable(own)
	for n := t.oldest; n != nil; {
		newer := n.newer
		n.older, n.newer = nil, nil
		if n.id != own {
			next.add(n)
		}
		n = newer
	}
	return next
}
