package dht

import (
	"bytes"
	"cmp"
	"encoding/binary"
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

// node is a member of the network that the routing table knows. There are many, so it is small: 64 bytes.
type node struct {
	id   key.Target
	ip   [4]byte
	port uint16

	hints    uint8 // how often others said that it is down, at most 255
	answered bool  // it answered a request of ours, so it does receive at its address

	added  int32 // the tick in which it entered the table
	pinged int32 // the tick in which it was last asked, or heard from

	// In the order of being heard from; nil at the ends, and both if the node is not in the table.
	older, newer *node
}

// addr returns the node's address.
func (n *node) addr() netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4(n.ip), n.port) }

// place returns the node's place.
func (n *node) place() place { return placeOf(netip.AddrFrom4(n.ip)) }

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
}

func newTable(own key.Target) *table { return &table{own: own} }

// prefixLen returns how many leading bits a and b share, at most 255.
func prefixLen(a, b key.Target) int {
	for i := 0; i < len(a); i += 8 {
		if x := binary.BigEndian.Uint64(a[i:]) ^ binary.BigEndian.Uint64(b[i:]); x != 0 {
			return i*8 + bits.LeadingZeros64(x)
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
		return bytes.Compare(n.id[:], id[:])
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

// newNode returns a node for the table, heard from in the given tick. c is at an IPv4 address.
func newNode(c contact, tick int) *node {
	return &node{id: c.id, ip: c.addr.Addr().As4(), port: c.addr.Port(), added: int32(tick), pinged: int32(tick)}
}

// add puts n into the table as the latest node heard from. It returns false if the row of n is full or n is
// already known.
func (t *table) add(n *node) bool {
	row, at, found := t.find(n.id)
	if found {
		return false
	}
	if len(t.row(row)) >= bucketSize {
		surplus := t.surplus(row, n.place())
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
		n.count(p, m.place())
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
			n.count(m.place(), o.place())
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

// ranked is a node and how far it is from a target, as far as 64 bits tell.
type ranked struct {
	distance uint64
	*node
}

// order compares a and b by their XOR distance from target.
func (a ranked) order(b ranked, target *key.Target) int {
	if a.distance != b.distance {
		return cmp.Compare(a.distance, b.distance)
	}
	return compareDistance(*target, a.id, b.id)
}

// sortRanked sorts list by the distance from target. Mostly it is a row of the table, which is short.
func sortRanked(list []ranked, target *key.Target) {
	if len(list) > bucketSize {
		slices.SortFunc(list, func(a, b ranked) int { return a.order(b, target) })
		return
	}
	for i, r := range list {
		for ; i > 0 && r.order(list[i-1], target) < 0; i-- {
			list[i] = list[i-1]
		}
		list[i] = r
	}
}

// closest returns up to limit nodes in the order of their distance from target, nearest first. If it knows more
// nodes than that, those of crowded hosts and networks are left out, see [hostLimit].
func (t *table) closest(target key.Target, limit int) []*node {
	return t.appendClosest(nil, target, limit)
}

// appendClosest appends to dst what closest returns.
//
// Nodes that share more bits with target than we do are in target's own row. All rows beyond that are equally
// far in their first differing bit, then come the shorter prefixes one by one. So few nodes are sorted.
func (t *table) appendClosest(dst []*node, target key.Target, limit int) []*node {
	var (
		head                  = binary.BigEndian.Uint64(target[:])
		foundRoom, chosenRoom [3 * bucketSize]ranked // so that it need not allocate
		restRoom              [bucketSize]ranked
		placeRoom             [3 * bucketSize]place
		found, chosen, rest   = foundRoom[:0], chosenRoom[:0], restRoom[:0]
		places                = placeRoom[:0] // of chosen
	)
	take := func(rows [][]*node) {
		found = found[:0]
		for _, r := range rows {
			for _, m := range r {
				found = append(found, ranked{head ^ binary.BigEndian.Uint64(m.id[:]), m})
			}
		}
		sortRanked(found, &target)
		for _, m := range found {
			p, n := m.place(), tally{}
			if p != 0 {
				for _, o := range places {
					n.count(p, o)
				}
			}
			if n.full() {
				rest = append(rest, m)
			} else {
				chosen, places = append(chosen, m), append(places, p)
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
		sortRanked(chosen, &target)
	}
	for _, m := range chosen[:max(0, min(limit, len(chosen)))] {
		dst = append(dst, m.node)
	}
	return dst
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
