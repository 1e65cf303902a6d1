package dht

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"omegatun/dht/key"
)

func randomID(r *rand.Rand) (id key.Target) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	return id
}

// near returns an id that shares the given number of bits with id.
func near(r *rand.Rand, id key.Target, bits int) key.Target {
	other := randomID(r)
	for i := range bits {
		mask := byte(0x80) >> (i % 8)
		other[i/8] = other[i/8]&^mask | id[i/8]&mask
	}
	return other
}

// TestTableAgainstAList compares the table with a plain list, under random operations.
func TestTableAgainstAList(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tab := newTable(randomID(r))
	var list []*node // in the order of being heard
	for step := range 5000 {
		switch op := r.IntN(10); {
		case op < 6:
			n := &node{id: near(r, tab.own, r.IntN(12))}
			sameRow := 0
			for _, m := range list {
				if prefixLen(tab.own, m.id) == prefixLen(tab.own, n.id) {
					sameRow++
				}
			}
			if got, want := tab.add(n), sameRow < bucketSize; got != want {
				t.Fatalf("step %d: add = %v, want %v", step, got, want)
			} else if got {
				list = append(list, n)
			}
		case op < 8 && len(list) > 0:
			i := r.IntN(len(list))
			tab.remove(list[i])
			tab.remove(list[i]) // again: nothing happens
			list = slices.Delete(list, i, i+1)
		case len(list) > 0:
			i := r.IntN(len(list))
			n := list[i]
			list = append(slices.Delete(list, i, i+1), n)
			tab.heard(n)
		}
		var order []*node
		for n := tab.oldest; n != nil; n = n.newer {
			order = append(order, n)
		}
		if !slices.Equal(order, list) || tab.n != len(list) {
			t.Fatalf("step %d: order of being heard differs", step)
		}
		target := near(r, tab.own, r.IntN(14))
		want := slices.Clone(list)
		slices.SortFunc(want, func(a, b *node) int { return compareDistance(target, a.id, b.id) })
		limit := r.IntN(bucketSize + 1)
		want = want[:min(limit, len(want))]
		if got := tab.closest(target, limit); !slices.Equal(got, want) {
			t.Fatalf("step %d: closest %d of %d differ", step, limit, len(list))
		}
		if n := tab.random(); (n == nil) != (len(list) == 0) || n != nil && tab.get(n.id) != n {
			t.Fatalf("step %d: random node %v", step, n)
		}
	}
	kept := tab.n
	own := randomID(r)
	next := tab.renamed(own)
	count := 0
	for n := next.oldest; n != nil; n = n.newer {
		if next.get(n.id) != n {
			t.Errorf("renamed table does not find %v", n.id)
		}
		count++
	}
	if count != next.n || count == 0 || count > kept {
		t.Errorf("renamed table has %d nodes, says %d, had %d", count, next.n, kept)
	}
}

func TestAlarmsRingInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	start := time.Unix(0, 0)
	var s alarms
	var rung []time.Time
	all := make([]alarm, 200)
	want := []time.Time{}
	for i := range all {
		at := start.Add(time.Duration(r.IntN(1000)) * time.Second)
		s.set(&all[i], at, func(now time.Time) { t.Error("an alarm rang as it was set first") })
		at = start.Add(time.Duration(r.IntN(1000)) * time.Second)
		switch i % 4 {
		case 0, 1:
			s.set(&all[i], at, func(now time.Time) { rung = append(rung, now) })
		case 2: // after most of the others, as those of requests are
			at = at.Add(time.Duration(i) * 10 * time.Second)
			s.setLast(&all[i], at, ringFunc(func(now time.Time) { rung = append(rung, now) }))
		case 3: // and then as others are
			s.setLast(&all[i], at.Add(time.Hour), ringFunc(func(now time.Time) { t.Error("an alarm rang as it was set first") }))
			s.set(&all[i], at, func(now time.Time) { rung = append(rung, now) })
		}
		if i%3 == 0 {
			s.stop(&all[i])
			s.stop(&all[i])
		} else {
			want = append(want, at)
		}
	}
	slices.SortFunc(want, time.Time.Compare)
	for next := s.next(); !next.IsZero(); next = s.next() {
		if _, ok := s.due(next.Add(-1)); ok {
			t.Fatal("an alarm rang too early")
		}
		f, ok := s.due(next)
		if !ok {
			t.Fatal("an alarm did not ring")
		}
		f(next)
	}
	if !slices.Equal(rung, want) {
		t.Errorf("%d alarms rang, want %d, or in another order", len(rung), len(want))
	}
}

func TestCongestionWindow(t *testing.T) {
	now := time.Unix(0, 0)
	var w congestionWindow
	fill := func() (sent int) {
		for {
			until, full := w.full(now)
			if full {
				if wait := until.Sub(now); wait <= 0 || wait > windowSlot {
					t.Fatalf("full for %v", wait)
				}
				return sent
			}
			w.sent(now)
			sent++
		}
	}
	for slot, want := range []int{80, 80, 0, 0, 80, 80} { // 160 altogether; forgotten after four slots
		if got := fill(); got != want {
			t.Errorf("slot %d: %d requests sent, want %d", slot, got, want)
		}
		now = now.Add(windowSlot)
	}
	w.ended(now) // nothing was sent in this slot
	if got := fill(); got != 0 {
		t.Errorf("%d requests sent for an answer that belongs to another slot", got)
	}
	now = now.Add(time.Hour)
	if got := fill(); got != 80 {
		t.Errorf("%d requests sent after an hour, want 80", got)
	}
	w.ended(now)
	if got := fill(); got != 1 {
		t.Errorf("%d requests sent after an answer, want 1", got)
	}
}

func TestTokensExpire(t *testing.T) {
	host, other := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("1.2.3.5")
	start := time.Unix(0, 0)
	for _, row := range []struct {
		issued, checked time.Duration
		want            bool
	}{
		{0, 0, true},
		{0, 14900 * time.Millisecond, true},
		{0, 15 * time.Second, false},
		{7400 * time.Millisecond, 14900 * time.Millisecond, true},
		{7400 * time.Millisecond, 15100 * time.Millisecond, false},
		{0, 24 * time.Hour, false},
	} {
		var s tokens
		s.advance(start)
		token := s.issue(host, start.Add(row.issued))
		if got := s.valid(token, host, start.Add(row.checked)); got != row.want {
			t.Errorf("issued at %v, at %v: %v, want %v", row.issued, row.checked, got, row.want)
		}
		if token = s.issue(host, start.Add(row.checked)); s.valid(token, other, start.Add(row.checked)) {
			t.Errorf("the token of %v is valid for %v", host, other)
		}
	}
}

func TestHealth(t *testing.T) {
	type tick struct{ answered, lost int }
	for _, row := range []struct {
		name  string
		ticks []tick
		want  string // after each tick: o online, d degraded, x offline
	}{
		{"healthy", []tick{{9, 0}, {9, 0}, {9, 0}, {9, 0}}, "oooo"},
		{"idle says nothing", []tick{{9, 0}, {9, 0}, {9, 0}, {9, 0}, {0, 3}, {0, 3}, {0, 3}}, "ooooooo"},
		{"offline after two ticks", []tick{{9, 0}, {9, 0}, {9, 0}, {9, 0}, {0, 4}, {0, 4}, {0, 4}, {1, 9}}, "oooooxxo"},
		{"degraded after four", []tick{{9, 0}, {9, 0}, {9, 0}, {9, 0}, {4, 5}, {4, 5}, {4, 5}, {4, 5}, {5, 4}, {5, 4}, {5, 4}, {5, 4}}, "ooooooodddoo"},
		{"idle does not reset", []tick{{9, 0}, {9, 0}, {9, 0}, {9, 0}, {0, 4}, {0, 0}, {0, 4}}, "oooooox"},
	} {
		var h health
		responses, timeouts := 0, 0
		var got strings.Builder
		for i, tick := range row.ticks {
			was := h
			responses += tick.answered
			timeouts += tick.lost
			changed := h.update(responses, timeouts)
			if changed != (was.offline != h.offline || was.degraded != h.degraded) {
				t.Errorf("%s, tick %d: changed = %v", row.name, i, changed)
			}
			switch {
			case h.offline:
				got.WriteString("x")
			case h.degraded:
				got.WriteString("d")
			default:
				got.WriteString("o")
			}
		}
		want := row.want
		if row.name == "degraded after four" { // stays until all four are healthy
			want = "oooooooddddo"
		}
		if got.String() != want {
			t.Errorf("%s: %s, want %s", row.name, got.String(), want)
		}
	}
}

func TestGenerationsForget(t *testing.T) {
	start := time.Unix(0, 0)
	const age = 30 * time.Minute // turned over every 20
	for _, row := range []struct {
		name    string
		keep    bool
		put     time.Duration
		reads   []time.Duration
		present []bool
	}{
		{"untouched, put early", true, 0, []time.Duration{40*time.Minute - 1}, []bool{true}},
		{"untouched, put early, late", true, 0, []time.Duration{40 * time.Minute}, []bool{false}},
		{"untouched, put late", true, 19 * time.Minute, []time.Duration{40 * time.Minute}, []bool{false}},
		{"read", true, 0, []time.Duration{39 * time.Minute, 59 * time.Minute, 120 * time.Minute}, []bool{true, true, false}},
		{"read without keeping", false, 0, []time.Duration{39 * time.Minute, 41 * time.Minute}, []bool{true, false}},
		{"long sleep", true, 0, []time.Duration{1000 * time.Hour}, []bool{false}},
	} {
		g := newGenerations[int, string](10, age, row.keep)
		g.advance(start)
		g.set(1, "v", start.Add(row.put))
		for i, at := range row.reads {
			if _, ok := g.get(1, start.Add(at)); ok != row.present[i] {
				t.Errorf("%s: after %v present %v, want %v", row.name, at, ok, row.present[i])
			}
		}
	}
}

func TestGenerationsAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	g := newGenerations[int, []byte](100, time.Hour, true)
	for i := range 1000 {
		g.set(i, nil, now)
		if g.len() > 200 {
			t.Fatalf("%d entries", g.len())
		}
		if _, ok := g.get(i, now); !ok {
			t.Fatalf("entry %d is gone at once", i)
		}
	}
	g.weigh, g.maxBytes = func(v []byte) int { return len(v) }, 1000
	for i := range 1000 {
		g.set(i, make([]byte, 100), now)
		g.set(i, make([]byte, 90), now) // replaced, not counted twice
		if g.len() > 24 && i > 200 {
			t.Fatalf("%d entries of 90 bytes", g.len())
		}
	}
	g.remove(999)
	if _, ok := g.get(999, now); ok {
		t.Error("a removed entry is there")
	}
}

func TestTopicStore(t *testing.T) {
	now := time.Unix(0, 0)
	s := newTopicStore(1000, 1<<30, 30*time.Minute)
	a, b := key.Target{1}, key.Target{2}
	for i := range 50 {
		s.add(a, key.Public{byte(i)}, []byte{byte(i)}, now)
	}
	s.add(b, key.Public{1}, []byte("b"), now)
	seen := make(map[string]int)
	for range 200 {
		got := s.sample(a, now)
		if len(got) != 20 {
			t.Fatalf("%d records, want 20", len(got))
		}
		once := make(map[string]bool)
		for _, w := range got {
			if once[string(w)] {
				t.Fatalf("record %x twice", w)
			}
			once[string(w)] = true
			seen[string(w)]++
		}
	}
	if len(seen) != 50 {
		t.Errorf("%d of 50 records were ever returned", len(seen))
	}
	s.add(b, key.Public{1}, []byte("c"), now) // replaced
	if got := s.sample(b, now); len(got) != 1 || string(got[0]) != "c" {
		t.Errorf("records of b: %q", got)
	}
	now = now.Add(20 * time.Minute) // old now
	s.add(b, key.Public{1}, []byte("d"), now)
	if got := s.sample(b, now); len(got) != 1 || string(got[0]) != "d" {
		t.Errorf("records of b after a turnover: %q", got)
	}
	for i := range 50 {
		s.remove(a, key.Public{byte(i)})
	}
	if got := s.sample(a, now); len(got) != 0 || s.len() != 1 {
		t.Errorf("%d records of a, %d in all, want 0 and 1", len(got), s.len())
	}
	now = now.Add(40 * time.Minute)
	if got := s.sample(b, now); len(got) != 0 {
		t.Errorf("records of b after its time: %q", got)
	}
	for i := range 5000 {
		s.add(key.Target{9, byte(i), byte(i >> 8)}, key.Public{1}, nil, now)
		if s.len() > 2000 {
			t.Fatalf("%d records", s.len())
		}
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(10, 50)
	host, other := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("1.2.3.5")
	take := func(h netip.Addr) (n int) {
		for n < 1000 && l.allow(h, 1, now) {
			n++
		}
		return n
	}
	if got := take(host); got != 50 {
		t.Errorf("%d at once, want 50", got)
	}
	if got := take(other); got != 50 {
		t.Errorf("%d at once for another host, want 50", got)
	}
	now = now.Add(2 * time.Second)
	if got := take(host); got != 20 {
		t.Errorf("%d after two seconds, want 20", got)
	}
	now = now.Add(time.Hour)
	if got := take(host); got != 50 {
		t.Errorf("%d after an hour, want 50", got)
	}
	if got := take(netip.MustParseAddr("127.0.0.1")); got != 1000 {
		t.Errorf("loopback is limited to %d", got)
	}
	for i := range 100000 {
		l.allow(testHost(i), 1, now)
	}
	if n := l.buckets.len(); n > 2*limiterHosts {
		t.Errorf("%d hosts remembered", n)
	}
}

func TestParseBootstrap(t *testing.T) {
	for _, row := range []struct {
		in   string
		want string // "" for an error
	}{
		{"1.2.3.4:5", "1.2.3.4  5"},
		{" node.example:49737 ", "invalid IP node.example 49737"},
		{"1.2.3.4@node.example:5", "1.2.3.4 node.example 5"},
		{"1.2.3.4@5.6.7.8:5", "1.2.3.4  5"},
		{"[::ffff:1.2.3.4]:5", "1.2.3.4  5"},
		{"[2001:db8::1]:5", ""},
		{"1.2.3.4", ""},
		{"1.2.3.4:0", ""},
		{"1.2.3.4:65536", ""},
		{"1.2.3.4:x", ""},
		{"0.0.0.0:5", ""},
		{"224.0.0.1:5", ""},
		{"255.255.255.255@node.example:5", ""},
		{":5", ""},
		{"", ""},
		{"x@node.example:5", ""},
	} {
		hosts, err := parseBootstrap([]string{row.in})
		got := ""
		if err == nil {
			got = fmt.Sprint(hosts[0].ip, " ", hosts[0].name, " ", hosts[0].port)
		}
		if got != row.want {
			t.Errorf("%q: %q, %v, want %q", row.in, got, err, row.want)
		}
	}
	if _, err := parseBootstrap(PublicBootstrap()); err != nil {
		t.Error(err)
	}
}

func TestCommandNames(t *testing.T) {
	for c, want := range map[Command]string{
		cmdPing: "PING", cmdDelayedPing: "DELAYED_PING", internalCommand | 9: "internal 9",
		cmdPeerHandshake: "PEER_HANDSHAKE", cmdImmutableGet: "IMMUTABLE_GET", 77: "command 77",
	} {
		if got := c.String(); got != want {
			t.Errorf("command %d is called %q, want %q", uint64(c), got, want)
		}
	}
}
