package tun

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var fairStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// drain pops everything and returns the slots, those that were dropped apart.
func drain(f *fair, now time.Time) (popped, dropped []int) {
	for {
		slot, ok := f.pop(now, func(slot int) { dropped = append(dropped, slot) })
		if !ok {
			return popped, dropped
		}
		popped = append(popped, slot)
	}
}

func TestFlowsThatKeepLittleWaitingGoFirst(t *testing.T) {
	const bulk, ping = 1, 2
	f := newFair(10, 10)
	for slot := 10; slot < 20; slot++ {
		f.push(slot, bulk, 64<<10, fairStart)
	}
	f.push(0, ping, 84, fairStart)
	got, _ := drain(f, fairStart)
	want := []int{10, 0, 11, 12, 13, 14, 15, 16, 17, 18, 19}
	if !slices.Equal(got, want) {
		t.Errorf("packets leave in the order %v, want %v: one of the bulk flow, then the other's", got, want)
	}
}

func TestFlowsShareByBytes(t *testing.T) {
	const large, small = 1, 2
	f := newFair(1000, 30)
	for slot := range 1000 {
		f.push(slot, small, 1000, fairStart)
	}
	for slot := 1000; slot < 1030; slot++ {
		f.push(slot, large, 50_000, fairStart)
	}
	var bytes [2]int
	for range 500 {
		slot, _ := f.pop(fairStart, nil)
		bytes[f.kind(slot)] += int(f.slots[slot].size)
	}
	if diff := bytes[smallSlot] - bytes[largeSlot]; diff < -60_000 || diff > 60_000 {
		t.Errorf("after 500 packets the flow of small ones has had %d bytes, that of large ones %d; want the same, give or take a packet",
			bytes[smallSlot], bytes[largeSlot])
	}
}

// TestFairAgreesWithQueues compares with one plain queue for each flow.
func TestFairAgreesWithQueues(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const small, large, flows = 40, 20, 7
	f := newFair(small, large)
	queues := make(map[int][]int)
	flowOf := make(map[int]int)
	free := random.Perm(small + large)
	taken := func(what string, slot int) {
		t.Helper()
		q := queues[flowOf[slot]]
		if len(q) == 0 || q[0] != slot {
			t.Fatalf("%s packet %d, but those of its flow are %v", what, slot, q)
		}
		queues[flowOf[slot]] = q[1:]
		free = append(free, slot)
	}
	now := fairStart
	dropped := 0
	drop := func(slot int) {
		dropped++
		taken("dropped", slot)
	}
	for range 100_000 {
		now = now.Add(time.Duration(random.IntN(int(time.Millisecond))))
		switch {
		case random.IntN(2) == 0 && len(free) > 0:
			slot := free[0]
			free = free[1:]
			flow := random.IntN(flows)
			flowOf[slot] = flow
			queues[flow] = append(queues[flow], slot)
			f.push(slot, uint64(flow), 1+random.IntN(60_000), now)
		case len(free) == 0:
			kind := random.IntN(2)
			f.shed(kind, drop)
			if !slices.ContainsFunc(free, func(slot int) bool { return f.kind(slot) == kind }) {
				t.Fatalf("shed freed %v, no slot of kind %d", free, kind)
			}
		default:
			slot, ok := f.pop(now, drop)
			if ok {
				taken("popped", slot)
			} else if len(free) != small+large {
				t.Fatalf("nothing to pop, but %d packets wait", small+large-len(free))
			}
		}
		if f.count != small+large-len(free) {
			t.Fatalf("count is %d, want %d", f.count, small+large-len(free))
		}
	}
	if dropped == 0 {
		t.Error("no packet was dropped: the test is too easy")
	}
}

func TestShedTakesFromWhoHasMost(t *testing.T) {
	const flood, bulk, ping = 1, 2, 3
	f := newFair(10, 10)
	f.push(0, ping, 84, fairStart)
	for slot := 1; slot < 10; slot++ {
		f.push(slot, flood, 64, fairStart)
	}
	for slot := 10; slot < 15; slot++ {
		f.push(slot, bulk, 64<<10, fairStart)
	}
	for _, row := range []struct{ kind, want int }{{smallSlot, 1}, {smallSlot, 2}, {largeSlot, 10}, {largeSlot, 11}, {smallSlot, 3}} {
		var dropped []int
		f.shed(row.kind, func(slot int) { dropped = append(dropped, slot) })
		if !slices.Equal(dropped, []int{row.want}) {
			t.Errorf("for a slot of kind %d, packets %v were dropped, want %d", row.kind, dropped, row.want)
		}
	}
}

// dropsOf keeps a queue of count packets full for a while, each of which waits for that long, and returns how many were dropped.
func dropsOf(f *fair, count int, wait, duration time.Duration) (dropped int) {
	const flow = 1
	slots := make([]int, 0, 100)
	for slot := range 100 {
		slots = append(slots, slot)
	}
	free := func(slot int) { slots = append(slots, slot) }
	for now := fairStart; now.Before(fairStart.Add(duration)); now = now.Add(wait / time.Duration(count)) {
		for f.count < count {
			f.push(slots[0], flow, 1400, now)
			slots = slots[1:]
		}
		slot, _ := f.pop(now, func(slot int) {
			dropped++
			free(slot)
		})
		free(slot)
	}
	return dropped
}

func TestOnlyStandingQueuesLosePackets(t *testing.T) {
	for _, row := range []struct {
		name           string
		packets        int
		wait, duration time.Duration
		least, most    int
	}{
		{"a short wait for ever", 20, 18 * time.Millisecond, time.Minute, 0, 0},
		{"a long wait, for a short time", 20, 25 * time.Millisecond, 100 * time.Millisecond, 0, 0},
		{"a long wait for longer", 20, 25 * time.Millisecond, 200 * time.Millisecond, 1, 2},
		{"a long wait for a second", 20, 25 * time.Millisecond, time.Second, 10, 40},
		{"a packet at a time on a slow line", 1, 25 * time.Millisecond, time.Second, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := dropsOf(newFair(100, 0), row.packets, row.wait, row.duration)
			if got < row.least || got > row.most {
				t.Errorf("%d packets dropped, want %d to %d", got, row.least, row.most)
			}
		})
	}
}
