package dht

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"omegatun/dht/key"
)

// fakeNet is the members of a network as a query sees them: each knows those nearest to any target, or some.
type fakeNet struct {
	nodes []contact
	dead  map[netip.AddrPort]bool
	knows int // how many nodes an answer names

	// names says whom the node c names, nil: those nearest to target.
	names func(c contact, target key.Target) []contact
}

func newFakeNet(n int) *fakeNet {
	w := &fakeNet{dead: make(map[netip.AddrPort]bool), knows: bucketSize}
	for i := range n {
		w.nodes = append(w.nodes, contactAt(netip.AddrPortFrom(testHost(i), 1)))
	}
	return w
}

func (w *fakeNet) nearest(target key.Target, n int) []contact {
	nodes := slices.Clone(w.nodes)
	slices.SortFunc(nodes, func(a, b contact) int { return compareDistance(target, a.id, b.id) })
	return nodes[:min(n, len(nodes))]
}

func (w *fakeNet) answer(c contact, target key.Target) *response {
	r := &response{id: some(c.id)}
	nodes := w.nearest(target, w.knows)
	if w.names != nil {
		nodes = w.names(c, target)
	}
	for _, m := range nodes {
		r.closer = append(r.closer, m.addr)
	}
	return r
}

func all(netip.AddrPort) bool { return true }

// run lets q ask w to its end, answers coming in random order. It returns how many were asked.
func (w *fakeNet) run(t *testing.T, r *rand.Rand, q *query) (asked int) {
	t.Helper()
	var flying []contact
	for range 100000 {
		if c, ok := q.next(); ok {
			flying = append(flying, c)
			asked++
			continue
		}
		if len(flying) > q.concurrency+q.slow {
			t.Fatalf("%d in flight", len(flying))
		}
		if q.idle() {
			return asked
		}
		i := r.IntN(len(flying))
		c := flying[i]
		flying = slices.Delete(flying, i, i+1)
		if w.dead[c.addr] {
			q.late(c.addr)
			q.failed(c.addr)
		} else {
			q.replied(c.addr, w.answer(c, q.target), all)
		}
	}
	t.Fatal("the query does not end")
	return 0
}

func TestQueryFindsTheClosest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, row := range []struct{ nodes, dead, knows, most int }{
		{1, 0, 20, 1}, {5, 0, 20, 5}, {20, 0, 20, 20}, {500, 0, 20, 60}, {500, 0, 5, 100}, {500, 100, 20, 120}, {30, 29, 20, 30},
	} {
		w := newFakeNet(row.nodes)
		w.knows = row.knows
		target := randomID(r)
		for _, i := range r.Perm(row.nodes)[:row.dead] {
			w.dead[w.nodes[i].addr] = true
		}
		start := w.nodes[0]
		delete(w.dead, start.addr)
		q := newQuery(target, key.Target{}, queryConcurrency)
		q.usedTable = true
		q.start([]contact{start})
		asked := w.run(t, r, q)
		if asked > row.most {
			t.Errorf("%+v: %d nodes asked", row, asked)
		}
		var want []key.Target
		for _, c := range w.nearest(target, row.nodes) {
			if !w.dead[c.addr] && len(want) < min(bucketSize, row.knows) {
				want = append(want, c.id)
			}
		}
		if row.dead > 0 { // dead nodes crowd out others in the lists
			want = want[:min(3, len(want))]
		}
		for i, id := range want {
			if i >= len(q.closest) || q.closest[i].id != id {
				t.Errorf("%+v: closest node %d is missing", row, i)
				break
			}
		}
	}
}

func TestQueryHintsAtDownNodes(t *testing.T) {
	w := newFakeNet(3)
	a, b, down := w.nodes[0], w.nodes[1], w.nodes[2]
	q := newQuery(key.Target{}, key.Target{1}, 10)
	q.usedTable = true
	q.start([]contact{a, b})
	for range 2 {
		if _, ok := q.next(); !ok {
			t.Fatal("nobody to ask")
		}
	}
	answer := &response{id: some(a.id), closer: []netip.AddrPort{down.addr}}
	q.replied(a.addr, answer, all)
	if c, ok := q.next(); !ok || c != down {
		t.Fatalf("next is %v", c)
	}
	if refs := q.failed(down.addr); !slices.Equal(refs, []netip.AddrPort{a.addr}) {
		t.Errorf("mentioned by %v, want %v", refs, a.addr)
	}
	answer.id = some(b.id)
	if hints := q.replied(b.addr, answer, all); !slices.Equal(hints, []netip.AddrPort{down.addr}) {
		t.Errorf("down nodes mentioned: %v, want %v", hints, down.addr)
	}
	if !q.idle() || len(q.closest) != 2 {
		t.Errorf("idle %v, %d closest", q.idle(), len(q.closest))
	}
}

func TestQueryDoesNotWaitForSlowNodesOnceItHasEnough(t *testing.T) {
	w := newFakeNet(bucketSize + 1)
	q := newQuery(key.Target{}, key.Target{1}, bucketSize+1)
	q.usedTable = true
	q.start(w.nodes)
	for range w.nodes {
		q.next()
	}
	slow := w.nodes[7]
	for i, c := range w.nodes {
		if c != slow {
			if q.idle() {
				t.Errorf("idle after %d answers", i)
			}
			q.replied(c.addr, &response{id: some(c.id)}, all)
		}
	}
	if q.idle() {
		t.Error("idle although a node has not answered, and is not late")
	}
	q.late(slow.addr)
	q.late(slow.addr) // counts once
	if !q.idle() || q.slow != 1 || !q.stalled() {
		t.Errorf("not idle although only a slow node is left: slow %d, in flight %d", q.slow, q.inflight)
	}
	q.replied(slow.addr, &response{id: some(slow.id)}, all)
	if q.slow != 0 || q.inflight != 0 {
		t.Errorf("slow %d, in flight %d at the end", q.slow, q.inflight)
	}
}

func TestQueryIsBounded(t *testing.T) {
	// Every node asked names 20 new ones, each closer than anyone before.
	r := rand.New(rand.NewPCG(2, 2))
	target := randomID(r)
	q := newQuery(target, key.Target{}, queryConcurrency)
	q.usedTable = true
	first := contactAt(netip.MustParseAddrPort("1.1.1.1:1"))
	q.start([]contact{first})
	asked, next := 0, 0
	for {
		c, ok := q.next()
		if !ok {
			break
		}
		asked++
		a := &response{id: some(c.id)}
		for range 1000 {
			a.closer = append(a.closer, netip.AddrPortFrom(testHost(next), 1))
			next++
		}
		q.replied(c.addr, a, all)
	}
	if len(q.seen) > queryMaxSeen || asked > queryMaxSeen {
		t.Errorf("%d nodes asked, %d seen", asked, len(q.seen))
	}
}

func TestQueryStartsSlowlyFromManyGivenNodes(t *testing.T) {
	w := newFakeNet(40)
	q := newQuery(key.Target{}, key.Target{1}, queryConcurrency)
	q.start(w.nearest(key.Target{}, 30))
	burst := 0
	for {
		if _, ok := q.next(); !ok {
			break
		}
		burst++
	}
	if burst != queryConcurrency || !q.slowdown {
		t.Fatalf("%d asked at once, slowdown %v", burst, q.slowdown)
	}
	for i, c := range w.nearest(key.Target{}, queryConcurrency) {
		if _, ok := q.next(); ok && q.inflight > reuseConcurrency {
			t.Errorf("after %d answers %d are asked", i, q.inflight)
		}
		q.replied(c.addr, w.answer(c, q.target), all)
	}
	if q.slowdown {
		t.Error("still slow after the first answers")
	}
	if !newQuery(key.Target{}, key.Target{1}, 10).needsTable() {
		t.Error("a query that learnt nothing does not go on from the table")
	}
}

func TestAnnouncerPlan(t *testing.T) {
	w := newFakeNet(10)
	found := func(n int) (list []found) {
		for _, c := range w.nodes[:n] {
			list = append(list, foundAt(c))
		}
		return list
	}
	relay := func(i int) *announceRelay {
		return &announceRelay{contact: w.nodes[i], peer: netip.MustParseAddrPort("9.9.9.9:9")}
	}
	var p announcer
	if start := p.look(); len(start) != 0 {
		t.Errorf("starts from %v", start)
	}
	candidates := found(9)
	candidates[0].crowded = true // the last resort
	p.found(candidates)
	for i := range announceRelays {
		if f, ok := p.store(); !ok || f.contact != w.nodes[1+i] {
			t.Fatalf("store %d: %v, %v", i, f, ok)
		}
	}
	if _, ok := p.store(); ok {
		t.Error("more than wanted at once")
	}
	if p.stored(nil) { // the first refuses: the next is tried
		t.Error("complete with some on the way")
	}
	if f, ok := p.store(); !ok || f.contact != w.nodes[1+announceRelays] {
		t.Fatalf("instead of the one that refused: %v, %v", f, ok)
	}
	for i := announceRelays + 1; i > 2; i-- { // the last answers first
		if p.stored(relay(i)) {
			t.Error("complete with some on the way")
		}
	}
	if !p.stored(relay(2)) {
		t.Error("not complete with all stored")
	}
	if removed := p.rest(); len(removed) != 0 || p.state != announceResting {
		t.Errorf("removed %v in the first cycle", removed)
	}
	for round := range 2 * spareRounds {
		ping, want := p.round(), mainRelays
		if round%spareRounds == 0 {
			want = announceRelays
		}
		if len(ping) != want || ping[0].contact != w.nodes[2] {
			t.Errorf("round %d pings %v", round, ping)
		}
		for _, r := range ping {
			p.ponged(r.addr, r.peer)
		}
		p.roundOver()
	}
	p.rounds = 0
	// A relay that sees us elsewhere, and one that is lost.
	p.pings = 3
	p.ponged(w.nodes[4].addr, netip.MustParseAddrPort("9.9.9.9:9"))
	if over, _ := p.roundOver(); over || p.again {
		t.Errorf("over %v, again %v after one pong", over, p.again)
	}
	p.ponged(w.nodes[2].addr, netip.MustParseAddrPort("8.8.8.8:8"))
	if !p.again {
		t.Error("a relay sees us elsewhere, and nothing happens")
	}
	p.lost(w.nodes[3].addr)
	if over, again := p.roundOver(); !over || !again {
		t.Errorf("over %v, again %v", over, again)
	}
	start := p.look()
	if slices.Contains(start, w.nodes[3]) || !slices.Contains(start, w.nodes[0]) {
		t.Errorf("starts from %v, which has the lost relay, or lacks others", start)
	}
	p.found(found(1))
	p.store()
	if !p.stored(relay(0)) {
		t.Error("not complete with all tried")
	}
	removed := p.rest()
	if len(removed) != announceRelays || !p.isRelay(w.nodes[4].addr) || p.isCurrent(w.nodes[4].addr) {
		t.Errorf("removed %v", removed)
	}
	for i := range announceRounds {
		p.pings = 0
		if _, again := p.roundOver(); again != (i == announceRounds-1) {
			t.Fatalf("round %d: again %v", i, again)
		}
	}
	for range 2 {
		p.look()
		p.found(nil)
		p.rest()
	}
	if p.isRelay(w.nodes[4].addr) || !p.isRelay(w.nodes[0].addr) {
		t.Error("relays are not remembered for three cycles")
	}
	if p.retry() != 2*retryFirst {
		t.Errorf("retry after %v", p.retry())
	}
	for range 100 {
		p.rest()
	}
	if p.retry() != retryMost {
		t.Errorf("retry after %v", p.retry())
	}
}

func foundAt(c contact) found { return found{contact: c, token: some(Token{})} }
