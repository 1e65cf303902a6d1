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
	id   key.Target
	addr netip.AddrPort

	added   int // when it entered the table
	pinged  int // when it was last asked, or heard from
	seen    int // when it was last heard from
	sampled int // when its view of our address was last taken in; 0: never
	hints   int // how often others said that it is down

	answered bool // it answered a request of ours, so it does receive at its address

	// In the order of being heard from; nil at the ends, and both if the node is not in the table.
	older, newer *node
}

// table is a Kademlia routing table: one row of nodes per length of the prefix that their ids share with our
// own, each at most bucketSize long; and the same nodes in the order in which they were last heard from.
//
// Source: npm kademlia-routing-table 1.0.6, time-ordered-set.
type table struct {
	own            key.Target
	rows           [][]*node // by prefix length, as far as needed; each sorted by id
	n              int
	oldest, latest *node
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

// add puts n into the table as the latest node heard from. It returns false if the row of n is full or n is
// already known.
func (t *table) add(n *node) bool {
	row, at, found := t.find(n.id)
	if found || len(t.row(row)) >= bucketSize {
		return false
	}
	for len(t.rows) <= row {
		t.rows = append(t.rows, nil)
	}
	t.rows[row] = slices.Insert(t.rows[row], at, n)
	t.n++
	t.link(n)
	return true
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

// closest returns up to limit nodes in the order of their distance from target, nearest first.
//
// Nodes that share more bits with target than we do are in target's own row. All rows beyond that are equally
// far in their first differing bit, then come the shorter prefixes one by one. So few nodes are sorted.
func (t *table) closest(target key.Target, limit int) []*node {
	var found []*node
	take := func(rows [][]*node) {
		from := len(found)
		for _, r := range rows {
			found = append(found, r...)
		}
		slices.SortFunc(found[from:], func(a, b *node) int { return compareDistance(target, a.id, b.id) })
	}
	d := prefixLen(t.own, target)
	if d < len(t.rows) {
		take(t.rows[d : d+1])
		if len(found) < limit {
			take(t.rows[d+1:])
		}
	}
	for i := min(d, len(t.rows)) - 1; i >= 0 && len(found) < limit; i-- {
		take(t.rows[i : i+1])
	}
	return found[:min(limit, len(found))]
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
