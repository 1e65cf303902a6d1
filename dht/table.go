package dht

import (
	"bytes"
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

	hints   uint8 // how often others said that it is down, at most 255
	hearing hearing

	added  int32 // the tick in which it entered the table
	pinged int32 // the tick in which it was last asked, or heard from

	// In the order of being heard from; nil at the ends, and both if the node is not in the table.
	older, newer *node
}

// hearing says what has been heard from a node.
type hearing uint8

const (
	asks       hearing = iota // it sent a request
	remembered                // nothing yet: it is known from an earlier run, and may be long gone
	answers                   // it answered a request of ours, so it does receive at its address
)

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
	if p == 0 {
		return false
	}
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
	nodes := t.row(row)
	var room [bucketSize]place
	places := room[:len(nodes)]
	for i, m := range nodes {
		places[i] = m.place()
	}
	var latest *node
	for i, m := range nodes {
		if places[i] == 0 {
			continue
		}
		var n tally
		for _, o := range places {
			n.count(places[i], o)
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

// sortRanked sorts list, which is short, by the distance from target.
func sortRanked(list []ranked, target *key.Target) {
	for i := 1; i < len(list); i++ {
		r, at := list[i], i
		for ; at > 0; at-- {
			l := &list[at-1]
			if l.distance < r.distance || l.distance == r.distance && compareDistance(*target, l.id, r.id) <= 0 {
				break
			}
			list[at] = *l
		}
		list[at] = r
	}
}

// closest returns up to limit nodes, at most bucketSize, in the order of their distance from target, nearest first. If it knows more
// nodes than that, those of crowded hosts and networks are left out, see [hostLimit].
func (t *table) closest(target key.Target, limit int) []*node {
	return t.appendClosest(nil, target, limit)
}

// appendClosest appends to dst what closest returns.
func (t *table) appendClosest(dst []*node, target key.Target, limit int) []*node {
	if limit <= 0 {
		return dst
	}
	p := pick{target: target, limit: min(limit, bucketSize)}
	// Nodes that share more bits with target than we do are in target's own row. Then come those that share more with us, all
	// of which are on the same side of it: where target's next bit is not ours, the row that differs from us there is
	// nearer than what follows it, else it is farther. Then the shorter prefixes, one by one.
	d := prefixLen(t.own, target)
	p.take(t.row(d))
	for i := d + 1; i < len(t.rows) && !p.full(); i++ {
		if bit(target, i) != bit(t.own, i) {
			p.take(t.rows[i])
		}
	}
	for i := len(t.rows) - 1; i > d && !p.full(); i-- {
		if bit(target, i) == bit(t.own, i) {
			p.take(t.rows[i])
		}
	}
	for i := min(d, len(t.rows)) - 1; i >= 0 && !p.full(); i-- {
		p.take(t.rows[i])
	}
	if missing := min(p.limit-p.n, p.left); missing > 0 {
		p.n += copy(p.chosen[p.n:], p.rest[:missing])
		sortRanked(p.chosen[:p.n], &target)
	}
	for _, m := range p.chosen[:p.n] {
		dst = append(dst, m.node)
	}
	return dst
}

// bit returns bit i of k, from the most significant one on.
func bit(k key.Target, i int) byte { return k[i/8] >> (7 - i%8) & 1 }

// pick gathers the nodes closest to a target, row by row.
type pick struct {
	target key.Target
	limit  int

	chosen [bucketSize]ranked
	n      int
	places [bucketSize]place // of chosen, as far as they are scarce
	scarce int
	rest   [bucketSize]ranked // left out, because their hosts or networks are crowded
	left   int
}

func (p *pick) full() bool { return p.n == p.limit }

// take takes from a row, nearest first, what there is room for.
func (p *pick) take(row []*node) {
	var room [bucketSize]ranked
	head := binary.BigEndian.Uint64(p.target[:])
	for i, m := range row {
		room[i] = ranked{head ^ binary.BigEndian.Uint64(m.id[:]), m}
	}
	near := room[:len(row)]
	sortRanked(near, &p.target)
	for _, m := range near {
		if p.full() {
			return
		}
		at := m.place()
		if at != 0 && p.crowded(at) {
			if p.left < len(p.rest) { // no more are needed
				p.rest[p.left] = m
				p.left++
			}
			continue
		}
		p.chosen[p.n] = m
		p.n++
		if at != 0 {
			p.places[p.scarce] = at
			p.scarce++
		}
	}
}

// crowded reports whether those chosen leave no room for a node at the given place.
func (p *pick) crowded(at place) bool {
	var n tally
	for _, o := range p.places[:p.scarce] {
		n.count(at, o)
	}
	return n.full()
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
