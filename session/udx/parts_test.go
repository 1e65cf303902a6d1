package udx

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestRangesetAgainstAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		base := seq(rng.Uint32())
		if round%4 == 0 {
			base = ^seq(19) // across the wrap
		}
		var set rangeset
		model := map[seq]bool{}
		for range 60 {
			start := base + seq(rng.IntN(100))
			switch rng.IntN(4) {
			case 0, 1, 2:
				end := start + seq(rng.IntN(6))
				set.add(start, end)
				for q := start; q != end; q++ {
					model[q] = true
				}
			case 3:
				start = base + seq(rng.IntN(20))
				set.removeBefore(start)
				for q := range model {
					if q.before(start) {
						delete(model, q)
					}
				}
			}
			for i, r := range set {
				if !r.start.before(r.end) || i > 0 && !set[i-1].end.before(r.start) {
					t.Fatalf("%v is not in order", set)
				}
			}
			for q := base; q != base+110; q++ {
				if set.contains(q) != model[q] {
					t.Fatalf("%v contains %d: %v", set, q, !model[q])
				}
			}
			a, b := base+seq(rng.IntN(50)), base+seq(50+rng.IntN(60))
			missing := map[seq]bool{}
			for _, g := range set.appendMissing(nil, a, b) {
				for q := g.start; q != g.end; q++ {
					missing[q] = true
				}
			}
			for q := a; q != b; q++ {
				if missing[q] == model[q] {
					t.Fatalf("%v, missing from %d to %d: %v", set, a, b, missing)
				}
			}
		}
	}
}

func TestSeqWraps(t *testing.T) {
	for _, c := range []struct {
		a, b   seq
		before bool
	}{{0, 1, true}, {1, 0, false}, {5, 5, false}, {^seq(0), 0, true}, {0, ^seq(0), false}, {1 << 30, 1 << 31, true}} {
		if got := c.a.before(c.b); got != c.before {
			t.Errorf("%d before %d: %v", c.a, c.b, got)
		}
	}
}

func TestWindowedBestIsNeverBetterThanTheWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const width = 50
	var f windowedBest[int]
	type sample struct {
		at int64
		v  int
	}
	var all []sample
	at := int64(0)
	for range 5000 {
		at += rng.Int64N(10)
		v := rng.IntN(1000)
		all = append(all, sample{at, v})
		f.update(width, at, v, atLeast)
		best, recent := 0, 0
		for _, s := range all {
			if at-s.at <= width {
				best = max(best, s.v)
			}
			if at-s.at <= width/4 {
				recent = max(recent, s.v)
			}
		}
		if got := f.get(); got > best || got < recent {
			t.Fatalf("at %d: best %d, want between %d and %d", at, got, recent, best)
		}
	}
}

func TestRTO(t *testing.T) {
	var r rttEstimator
	if got := r.rto(); got != time.Second {
		t.Errorf("without a sample: %v", got)
	}
	r.sample(1, 100*time.Millisecond)
	if r.smoothed != 100*time.Millisecond || r.variance != 50*time.Millisecond || r.rto() != rtoMin {
		t.Errorf("after a sample: %+v, rto %v", r, r.rto())
	}
	r.sample(2, 200*time.Millisecond)
	if r.variance != 62500*time.Microsecond || r.smoothed != 112500*time.Microsecond {
		t.Errorf("after two samples: %v, %v", r.smoothed, r.variance)
	}
	r.sample(3, time.Minute) // a machine that slept
	if r.smoothed > time.Second {
		t.Errorf("an outlier moved the estimate to %v", r.smoothed)
	}
	if got := r.min(); got != 100*time.Millisecond {
		t.Errorf("shortest %v", got)
	}
}

func TestPacerKeepsTheRate(t *testing.T) {
	p := pacer{}
	now := instant(1)
	p.setRate(now, 10e6, 0)
	sent := 0
	for now < instant(time.Second) {
		for p.ready(now) {
			p.sent(1500)
			sent += 1500
		}
		next := p.next(now)
		if next <= now {
			t.Fatalf("wait of %v", next.sub(now))
		}
		now = next
	}
	if sent < 9.9e6 || sent > 10.1e6+pacerInitial {
		t.Errorf("%d bytes in a second, want 10,000,000", sent)
	}
	now = now.add(time.Minute) // unused time is not saved up
	sent = 0
	for p.ready(now) {
		p.sent(1500)
		sent += 1500
	}
	if sent > 10e6*4/1000+1500 {
		t.Errorf("a burst of %d bytes", sent)
	}
}

func TestMTUSearch(t *testing.T) {
	for path := minMTU; path <= maxMTU; path++ {
		var m mtuSearch
		m.reset()
		if _, ok := m.padding(1, m.size); ok {
			t.Fatal("probed before anything arrived")
		}
		m.works()
		probes := 0
		for {
			pad, ok := m.padding(1, m.size)
			if !ok {
				break
			}
			if probes++; pad > maxExtension || probes > 100 {
				t.Fatalf("path of %d: probe %d with %d bytes of padding", path, probes, pad)
			}
			if size := m.size + pad; size <= path {
				m.carried(1, size)
			} else {
				m.lost(1, size, false)
			}
		}
		if m.size > path || m.size <= path-mtuStep || path == maxMTU && probes != 2 {
			t.Errorf("path of %d: found %d with %d probes", path, m.size, probes)
		}
		if _, ok := m.padding(instant(mtuAgain)+1, m.size); ok != (m.size < maxMTU) {
			t.Errorf("path of %d: probes again after %v: %v", path, mtuAgain, ok)
		}
	}
}

func TestRack(t *testing.T) {
	var rtts rttEstimator
	rtts.sample(1, 100*time.Millisecond)
	ms := func(n int) instant { return instant(n) * instant(time.Millisecond) }
	var r rack
	sent := func(q seq, at int) *packet {
		return &packet{packetBooks: packetBooks{seq: q, sentAt: ms(at), sends: 1, n: 1}}
	}
	first, second, third := sent(0, 10), sent(1, 20), sent(2, 30)
	r.arrived(ms(120), second, &rtts, false, true)
	if lost, wait := r.lost(ms(120), third, 0); lost || wait != 0 {
		t.Errorf("a packet sent later: %v, %v", lost, wait)
	}
	window := r.window(&rtts, false)
	if window != 25*time.Millisecond {
		t.Errorf("reorder window %v, want a quarter of a round trip", window)
	}
	if lost, wait := r.lost(ms(120), first, window); lost || wait != 15*time.Millisecond {
		t.Errorf("a packet sent earlier: %v, %v, want to wait 15ms", lost, wait)
	}
	if lost, _ := r.lost(ms(135), first, window); !lost {
		t.Error("a packet sent earlier is not lost after the window")
	}
	if got := r.window(&rtts, true); got != 0 {
		t.Errorf("reorder window in a hurry: %v", got)
	}
	r.arrived(ms(136), first, &rtts, true, true) // it was late
	if !r.reordering || r.disordered() {
		t.Errorf("after one packet that was overtaken: %+v", r)
	}
	if got := r.window(&rtts, true); got != 50*time.Millisecond || !r.reordering {
		t.Errorf("reorder window after a mistake: %v", got)
	}
	for range reorderRounds {
		r.recovered()
	}
	if got := r.window(&rtts, true); got != 25*time.Millisecond {
		t.Errorf("reorder window long after a mistake: %v", got)
	}
}

func TestAcks(t *testing.T) {
	var a acks
	now := instant(5)
	a.received(now, false, false)
	if a.ready(now) || a.due != now.add(ackDelay) {
		t.Errorf("one packet in order: %+v", a)
	}
	if !a.ready(now.add(ackDelay)) {
		t.Error("not ready after the delay")
	}
	a.received(now, false, false)
	if !a.ready(now) {
		t.Error("two packets at the start of a stream wait")
	}
	a.sent()
	for range ackStart {
		a.received(now, false, false)
	}
	a.sent()
	for i := range ackEvery {
		if a.ready(now) {
			t.Fatalf("ready after %d packets", i)
		}
		a.received(now, false, false)
	}
	if !a.ready(now) {
		t.Errorf("not ready after %d packets", ackEvery)
	}
	a.sent()
	a.received(now, true, false)
	if !a.ready(now) {
		t.Error("a packet out of order waits")
	}
}

func TestReadBuffer(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var r readBuffer
	var in, out []byte
	for range 3000 {
		if rng.IntN(3) > 0 {
			b := make([]byte, rng.IntN(3000))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			in = append(in, b...)
			r.add(b)
		} else if b := r.take(); b != nil {
			out = append(out, b...)
			recycleBlock(b)
		}
		if r.len != len(in)-len(out) {
			t.Fatalf("len %d, want %d", r.len, len(in)-len(out))
		}
	}
	for b := r.take(); b != nil; b = r.take() {
		out = append(out, b...)
	}
	if !bytes.Equal(in, out) {
		t.Errorf("%d bytes in, %d bytes out, or others", len(in), len(out))
	}
}

// TestHolesAreFilledWhenThereIsNoRoom wants packets that were lost to find room, although those sent after them have taken all
// that is for them, and the room to end.
func TestHolesAreFilledWhenThereIsNoRoom(t *testing.T) {
	const every = 30
	a := assembly{limit: 1 << 20}
	data := make([]byte, 1400)
	q := seq(1)
	for ; q%every == 0 || a.add(q, FlagData, data) == outOfOrder; q++ {
	}
	filled := 0
	for hole := seq(every); hole < q; hole += every {
		if got := a.add(hole, FlagData, data); got != outOfOrder {
			t.Fatalf("hole at %d of %d: %d", hole, q, got)
		}
		filled++
	}
	if filled < 50 || a.add(q, FlagData, data) != refused {
		t.Errorf("%d holes filled, and room behind the end", filled)
	}
	if got := a.add(0, FlagData, data); got != holeFilled || a.expected < q {
		t.Errorf("the packet expected next: %d, then %d", got, a.expected)
	}
	a = assembly{limit: 1 << 20}
	a.add(1<<17, FlagData, data)
	n := 0
	for q := seq(1); a.add(q, FlagData, data) == outOfOrder; q++ {
		n++
	}
	if most := a.most() / len(data); n > most {
		t.Errorf("%d packets before one far ahead, want %d at most", n, most)
	}
}

func TestBlocksTakeTurns(t *testing.T) {
	a := assembly{limit: 4 << 20}
	for q := seq(2); q < 402; q += 2 {
		a.add(q, FlagData, []byte("x"))
	}
	seen := map[seqRange]bool{}
	for i := range 8 {
		b := a.appendBlocks(nil)
		if len(b) > maxSACKs || !slices.Contains(b, seqRange{400, 401}) || b[0] != (seqRange{2, 3}) {
			t.Errorf("list %d: %v", i, b)
		}
		for j, r := range b {
			seen[r] = true
			if j > 0 && !b[j-1].end.before(r.start) {
				t.Errorf("list %d is not ascending: %v", i, b)
			}
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d of 200 blocks reported", len(seen))
	}
}

func TestRateSample(t *testing.T) {
	// Ten packets of 1,000 bytes cost, a millisecond apart, each acknowledged 20 ms later: a megabyte a second.
	var s sampler
	ms := func(n int) instant { return instant(n+1) * instant(time.Millisecond) }
	var flight []*packet
	inFlight := 0
	var last rateSample
	for at := range 200 {
		now := ms(at)
		if at >= 20 {
			p := flight[0]
			flight = flight[1:]
			inFlight -= p.cost()
			s.arrived(now, p, 0)
			last = s.sample(now, time.Millisecond)
		}
		p := &packet{packetBooks: packetBooks{seq: seq(at), n: 1000 - packetCost, sentAt: now}}
		s.sent(now, p, inFlight)
		flight = append(flight, p)
		inFlight += p.cost()
	}
	if last.bandwidth < .95e6 || last.bandwidth > 1.05e6 || last.appLimited {
		t.Errorf("%+v, want 1,000,000 bytes per second", last)
	}
}

func TestBlocksThatMakeNoSense(t *testing.T) {
	for _, c := range []struct {
		name   string
		blocks []seqRange
		want   int // packets taken for arrived
	}{
		{"good", []seqRange{{1, 3}, {5, 6}}, 3},
		{"empty", []seqRange{{2, 2}}, 0},
		{"turned round", []seqRange{{4, 2}}, 0},
		{"before the oldest", []seqRange{{^seq(0), 3}}, 0},
		{"beyond the newest", []seqRange{{8, 11}}, 0},
		{"descending", []seqRange{{5, 6}, {1, 3}}, 1},
		{"overlapping", []seqRange{{1, 5}, {3, 7}}, 4},
		{"around the circle", []seqRange{{1 << 30, 1<<31 + 5}, {1, 1<<31 + 1}, {1 << 31, 5}, {9, 3}}, 0},
	} {
		s := newSender()
		for range 10 {
			p := newPacket()
			p.fill([]byte("x"), 1)
			s.append(p)
			s.sent(1, s.queue.first)
		}
		got := 0
		s.takeBlocks(appendSACKs(nil, c.blocks), false, func(*packet) { got++ })
		if got != c.want {
			t.Errorf("%s: %d packets arrived, want %d", c.name, got, c.want)
		}
	}
}

func TestOverrunTellsQueuesFromChance(t *testing.T) {
	const floor = 100e3
	const shortest = 20 * time.Millisecond
	run := func(rtt time.Duration, loss func(inFlight int) float64) overrun {
		var o overrun
		for i := range 200 {
			inFlight := o.limit(1000e3)
			const acked = 1000e3
			lost := int(acked * loss(inFlight))
			o.acked(instant(i+1)*instant(50*time.Millisecond),
				rateSample{acked: acked - lost, lost: lost, inFlight: inFlight - acked + lost, rtt: rtt}, true, floor, shortest*21/20)
		}
		return o
	}
	if o := run(shortest, func(int) float64 { return .01 }); o != (overrun{}) {
		t.Errorf("a little loss: %+v", o)
	}
	if o := run(shortest, func(int) float64 { return .2 }); o.bound != 0 || o.chance < .19 || o.chance > .21 {
		t.Errorf("20 %% loss by chance: %+v", o)
	}
	o := run(shortest, func(inFlight int) float64 { return max(float64(inFlight-600e3)/float64(inFlight), 0) })
	if o.bound < 400e3 || o.bound > 700e3 || o.chance != 0 {
		t.Errorf("a queue that ends at 600,000 bytes: %+v", o)
	}
	if o := run(shortest*5/4, func(int) float64 { return .2 }); o.bound > 2*floor || o.bound == 0 || o.chance != 0 {
		t.Errorf("a queue that others overrun: %+v", o)
	}
	for _, lost := range []int{50e3, 300e3} { // after trials with 5 % before
		const all = 1000e3
		o := overrun{bound: 5e5, trial: overrunTrials, before: .05}
		o.acked(1, rateSample{acked: all - lost, lost: lost, inFlight: 4e5, rtt: shortest}, true, floor, shortest*21/20)
		if chance := lost == 50e3; (o.chance > 0) != chance || (o.bound == 0) != chance || o.trial != 0 {
			t.Errorf("%d bytes of %d lost: %+v", lost, int(all), o)
		}
	}
}

// TestOverrunDoubtsChance has the loss that was found to be by chance go away, with and without a queue.
func TestOverrunDoubtsChance(t *testing.T) {
	for _, c := range []struct {
		name   string
		trip   time.Duration // without a queue
		queued bool
		span   time.Duration // after which it is looked at
		want   float64       // chance then
	}{
		{"no queue", 20 * time.Millisecond, false, overrunForget * 9 / 10, .2},
		{"no queue, for long", 20 * time.Millisecond, false, overrunForget * 11 / 10, .1},
		{"a queue for a few long rounds", 100 * time.Millisecond, true, overrunDoubts * 90 * time.Millisecond, .2},
		{"a queue for many long rounds", 100 * time.Millisecond, true, overrunDoubts * 110 * time.Millisecond, .1},
		{"a queue for some short rounds", 2 * time.Millisecond, true, overrunDoubt * 9 / 10, .2},
		{"a queue for many short rounds", 2 * time.Millisecond, true, overrunDoubt * 11 / 10, .1},
	} {
		o := overrun{chance: .2, found: 1}
		rtt := c.trip
		if c.queued {
			rtt *= 2
		}
		for now := time.Duration(0); now < c.span; now += c.trip {
			o.acked(instant(now+2), rateSample{acked: 995e3, lost: 5e3, inFlight: 1e5, rtt: rtt}, true, 1e5, c.trip*21/20)
		}
		if o.chance != c.want {
			t.Errorf("%s: %+v, want a chance of %v", c.name, o, c.want)
		}
	}
}

// TestOverrunWaitsWhereLossIsUnclear gives a stream loss that is about the limit.
func TestOverrunWaitsWhereLossIsUnclear(t *testing.T) {
	const all = overrunSample
	for _, c := range []struct {
		name    string
		lost    []int // packets, in a sample each
		trials  int
		pending bool
	}{
		{"too little", []int{3}, 0, false},
		{"unclear", []int{5}, 0, true},
		{"unclear, and then little", []int{5, 1}, 0, false},
		{"unclear, and then more", []int{5, 5}, 1, false},
		{"much", []int{9}, 1, false},
	} {
		var o overrun
		for i, n := range c.lost {
			lost := n * maxMTU
			o.acked(instant(i+1), rateSample{acked: all - lost, lost: lost, inFlight: lost, rtt: time.Millisecond}, true, 1e5, time.Millisecond)
		}
		if o.trial != c.trials || (o.passed > 0) != c.pending {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}

// TestRivalsBecomeEqual has one stream that fills a path joined by another one, as far as the bounds go.
func TestRivalsBecomeEqual(t *testing.T) {
	const path = 300 * maxMTU
	const base = 40 * time.Millisecond
	var streams [2]rivals
	windows := [2]int{path, 0}
	now := instant(1)
	round := func() (total int) {
		for i := range streams {
			windows[i] = streams[i].limit(windows[i])
			total += windows[i]
		}
		rtt := max(base*time.Duration(total)/path, base)
		now = now.add(rtt)
		for i := range streams {
			if windows[i] > 0 {
				streams[i].acked(now, rateSample{rtt: rtt, inFlight: windows[i]}, true, true, path, base, base*9/8)
			}
		}
		return total
	}
	for range 10 {
		round()
	}
	if streams[0].bound != 0 {
		t.Fatalf("alone: %+v", streams[0])
	}
	windows[1] = path / 4
	least, most := 2*path, 0
	for i := range 200 {
		windows = [2]int{2 * path, 2 * path} // what a model of the path would allow
		if i == 0 {
			windows = [2]int{path, path / 4}
		}
		total := round()
		if i > 20 {
			least, most = min(least, total), max(most, total)
		}
	}
	if share := float64(streams[1].bound) / float64(streams[0].bound+streams[1].bound); share < .45 || share > .55 {
		t.Errorf("the second one has %.2f: %+v", share, streams)
	}
	if least < path*3/4 || most > 2*path {
		t.Errorf("from %.2f to %.2f of the path in flight", float64(least)/path, float64(most)/path)
	}
}

// TestRivalsKeepTheirPart has somebody else start on a path, and fill its queue again and again.
func TestRivalsKeepTheirPart(t *testing.T) {
	const path = 300 * maxMTU
	const base = 40 * time.Millisecond
	for _, c := range []struct {
		name  string
		alone int // rounds before
		part  float64
	}{
		{"one who had it all", 10, rivalHalf},
		{"one who has just started", 0, rivalJoin},
	} {
		var v rivals
		now := instant(1)
		round := func(rtt time.Duration) {
			now = now.add(rtt)
			v.acked(now, rateSample{rtt: rtt, inFlight: v.limit(2 * path)}, true, true, path, base, base*9/8)
		}
		for range c.alone {
			round(base)
		}
		part := int(c.part * path)
		for i := range rivalStart {
			round(base * time.Duration(1+2*(i/4%2^1))) // four rounds with a queue, four without
			switch {
			case v.bound == 0 && i >= rivalSeen-1:
				t.Fatalf("%s: round %d: %+v", c.name, i, v)
			case v.bound != 0 && v.bound < part:
				t.Fatalf("%s: round %d leaves %d bytes, want at least %d: %+v", c.name, i, v.bound, part, v)
			}
		}
		for i := range 2 * rivalStart {
			round(base * time.Duration(1+2*(i/4%2^1)))
		}
		if v.bound >= part {
			t.Errorf("%s keeps %d bytes for ever: %+v", c.name, v.bound, v)
		}
	}
}

// TestRivalsGrowAnewAfterAPause has no queue for a while because little was in flight.
func TestRivalsGrowAnewAfterAPause(t *testing.T) {
	const path = 300 * maxMTU
	const base = 40 * time.Millisecond
	var v rivals
	now := instant(1)
	round := func(rtt time.Duration) {
		now = now.add(rtt)
		v.acked(now, rateSample{rtt: rtt, inFlight: v.limit(path)}, true, true, path, base, base*9/8)
	}
	for range rivalCalm {
		round(base)
	}
	for range rivalSeen {
		round(2 * base)
	}
	first := v.growth
	for range 6 {
		round(base)
	}
	bound := v.bound
	if first == 0 || v.growth < 2*first || bound == 0 {
		t.Fatalf("growth %d after %d: %+v", v.growth, first, v)
	}
	v.resume()
	if v.growth >= 2*first {
		t.Errorf("grows by %d bytes after a pause, want about %d", v.growth, first)
	}
	round(base)
	if got := v.bound - bound; got < first || got >= 2*first {
		t.Errorf("grew by %d bytes in the first round after a pause, want about %d", got, first)
	}
	v.acked(now, rateSample{rtt: base}, false, true, path, base, base*9/8)
	v.resume()
	round(2 * base)
	if v.cuts != 1 {
		t.Errorf("a round trip of before the pause hides the queue after it: %+v", v)
	}
}

// TestStartupEndsWhenThePathIsFull has the peer take no more than a window, which leaves the sender nothing to send.
func TestStartupEndsWhenThePathIsFull(t *testing.T) {
	const rate = 1e6 // bytes per second
	const base = 100 * time.Millisecond
	const path = rate / 10
	for _, c := range []struct {
		name   string
		flight int           // bytes
		idle   time.Duration // in each round, with nothing to send
		ends   bool
	}{
		{"a window of half the path", path / 2, 0, false},
		{"a window of the path", path, 0, false},
		{"a window that leaves a queue", 2 * path, 0, true},
		{"which is filled from time to time", 2 * path, base / 2, false},
		{"and a writer who is late", 2 * path, base / 100, true},
	} {
		d := newCongestion()
		now, delivered := instant(1), int64(0)
		for range 10 {
			rtt := max(base, time.Duration(float64(c.flight)/rate*float64(time.Second)))
			now = now.add(rtt)
			if c.idle > 0 {
				d.starved(now.add(-c.idle))
				d.fed(now)
			}
			prior := delivered
			delivered += int64(c.flight)
			bandwidth := float64(c.flight) / rtt.Seconds()
			// The queue may be gone at times, as after a loss.
			d.acked(now, rateSample{bandwidth: bandwidth, rtt: base, prior: prior, acked: c.flight, appLimited: true}, delivered)
		}
		if d.full != c.ends {
			t.Errorf("%s: startup ended: %v", c.name, d.full)
		}
	}
}

func TestRivalsGiveUpOnOthersThatDoNot(t *testing.T) {
	const base = 40 * time.Millisecond
	var v rivals
	now := instant(1)
	round := func(rtt time.Duration) {
		now = now.add(rtt)
		v.acked(now, rateSample{rtt: rtt, inFlight: v.limit(1e6)}, true, true, 1e6, base, base*9/8)
	}
	for range 10 {
		round(3 * base)
	}
	if v.bound < 100e3 || v.bound > 1e6/2 {
		t.Errorf("bound %d while others fill the queue", v.bound)
	}
	for range 40 {
		round(3 * base)
	}
	if v.bound != 0 || v.ignore <= now {
		t.Errorf("others that do not give way: %+v", v)
	}
	round(base)
	if v.ignore != 0 {
		t.Error("the queue went away, and the others are still ignored")
	}
}

// TestGrowthIsAheadOfThePeer lets a peer double its rate each round trip, as far as the window allows.
func TestGrowthIsAheadOfThePeer(t *testing.T) {
	const rtt = 100 * time.Millisecond
	g := growth{most: maxReadBuffer}
	limit, rate := defaultReadBuffer, 100e3
	for now := instant(1); rate < 10e6; now = now.add(rtt) { // bytes in a round trip
		for range 4 {
			if g.consumed(now, int(rate), limit, rtt) {
				limit *= 2
			}
			now = now.add(rtt / 4)
		}
		if float64(limit) < 2*rate {
			t.Fatalf("a window of %d while %.0f arrive in a round trip", limit, rate)
		}
		rate *= 2
	}
}

// TestGrowthWithoutARoundTrip wants a buffer to grow although all that would have shown the round trip was sent again: a lost
// packet is missing for as long.
func TestGrowthWithoutARoundTrip(t *testing.T) {
	const rtt = 100 * time.Millisecond
	g := growth{most: maxReadBuffer}
	grew := func(from instant) (grew bool) {
		for i := range 100 {
			grew = g.consumed(from.add(time.Duration(i)*rtt/4), defaultReadBuffer/4, defaultReadBuffer, 0) || grew
		}
		return grew
	}
	if grew(1) {
		t.Error("nothing is known of the round trip, and it grows")
	}
	now := instant(100 * rtt)
	g.received(now, false, true)
	g.received(now.add(rtt), true, false)
	if !grew(now) {
		t.Error("it does not grow")
	}
}
