package session

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// badLines are what real lines do to packets, in each direction between a home and the Internet. connect is how long 19 of 20
// connections may take.
func badLines() []badLine {
	return []badLine{
		{name: "5 % loss", link: lab.Link{Loss: 0.05}, connect: 2 * time.Second},
		{name: "20 % loss", link: lab.Link{Loss: 0.2}, connect: 5 * time.Second},
		{name: "50 % loss", link: lab.Link{Loss: 0.5}, connect: 30 * time.Second},
		{name: "20 % loss on both sides", link: lab.Link{Loss: 0.2}, connect: 5 * time.Second, both: true},
		{name: "50 % loss on both sides", link: lab.Link{Loss: 0.5}, connect: 30 * time.Second, both: true},
		{name: "5 % loss in bursts of ten", link: lab.Link{Loss: 0.05, Burst: 10}, connect: 2 * time.Second},
		{name: "20 % loss in bursts of ten", link: lab.Link{Loss: 0.2, Burst: 10}, connect: 5 * time.Second},
		{
			name: "25 % overtaken", connect: 2 * time.Second,
			link: lab.Link{Latency: 20 * time.Millisecond, Jitter: 20 * time.Millisecond, Reorder: 0.25},
		},
		{name: "20 % twice", link: lab.Link{Duplicate: 0.2}, connect: 2 * time.Second},
		{name: "5 % damaged", link: lab.Link{Corrupt: 0.05}, connect: 2 * time.Second},
		{name: "some of everything", connect: 2 * time.Second, link: lab.Link{
			Loss: 0.03, Burst: 3, Latency: 10 * time.Millisecond, Reorder: 0.1, Duplicate: 0.1, Corrupt: 0.02,
		}},
	}
}

type badLine struct {
	name    string
	link    lab.Link
	connect time.Duration
	both    bool // sides have such a line, not one
}

// spoil gives the homes that line.
func (l *badLine) spoil(natA, natB *lab.NAT) {
	natA.SetLink(l.link)
	if l.both {
		natB.SetLink(l.link)
	}
}

func TestConnectsOverBadLines(t *testing.T) {
	tries := uint64(40)
	if testing.Short() {
		tries = 5
	}
	for _, row := range badLines() {
		t.Run(row.name, func(t *testing.T) {
			var times []time.Duration
			for seed := range tries {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
					ha, hb, natA, natB := w.homes()
					a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
					b.listen(t)
					row.spoil(natA, natB)
					began := time.Now()
					a.Peer(b.public()).Connect()
					a.connected(t, b.public())
					times = append(times, time.Since(began))
					for { // a packet gets there, too
						if err := a.Peer(b.public()).Send([][]byte{packet("hello")}); err != nil {
							t.Fatal(err)
						}
						select {
						case <-b.got:
							return
						case <-time.After(100 * time.Millisecond):
						}
						if time.Since(began) > 20*time.Minute {
							t.Fatal("no packet arrives")
						}
					}
				})
			}
			slices.Sort(times)
			t.Logf("median %v, p95 %v, most %v", times[len(times)/2], times[len(times)*19/20-1], times[len(times)-1])
			if late := countOver(times, row.connect); tries >= 40 && late > atMost(0.05, len(times)) {
				t.Errorf("%d of %d took longer than %v", late, len(times), row.connect)
			}
		})
	}
}

// countOver counts the times that are longer than limit.
func countOver(times []time.Duration, limit time.Duration) (n int) {
	for _, d := range times {
		if d > limit {
			n++
		}
	}
	return n
}

// atMost returns how many of n may be of a kind that has the given share of all: five standard deviations more than on average, as
// chance has less than once in a million times where the share is half of that.
func atMost(share float64, n int) int {
	return int(share*float64(n) + 5*math.Sqrt(share*(1-share)*float64(n)))
}

// TestPathsAreSteadyOnBadLines counts the changes of path where a relay stands by: at most two a minute. The worst line has 0.4 a
// minute, but not evenly, so the rate is that of several runs together.
func TestPathsAreSteadyOnBadLines(t *testing.T) {
	const minutes = 5 // a run
	runs := 5
	if testing.Short() || raceEnabled {
		runs = 3
	}
	for _, row := range badLines() {
		t.Run(row.name, func(t *testing.T) {
			changes := make([]int, runs)
			for seed := range changes {
				synctest.Test(t, func(t *testing.T) { changes[seed] = row.pathChanges(t, uint64(seed), minutes) })
			}
			sum := 0
			for _, n := range changes {
				sum += n
			}
			t.Logf("changes of path in %d minutes each: %v", minutes, changes)
			if sum > 2*minutes*runs {
				t.Errorf("%d changes of path in %d minutes", sum, minutes*runs)
			}
		})
	}
}

// pathChanges counts them in a busy tunnel that has such a line and a relay.
func (l *badLine) pathChanges(t *testing.T, seed uint64, minutes int) (changes int) {
	t.Helper()
	w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
	w.relay("r", pubR)
	ha, hb, natA, natB := w.behind(lab.Linux, lab.Linux)
	a, b := w.through(ha, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
	b.listen(t)
	a.Peer(b.public()).Connect()
	a.connected(t, b.public())
	b.connected(t, a.public())
	l.spoil(natA, natB)
	startFlow(t, a, b)
	last := a.Peer(b.public()).Status().Path
	for range minutes * 600 {
		time.Sleep(100 * time.Millisecond)
		if now := a.Peer(b.public()).Status().Path; now != last {
			changes, last = changes+1, now
		}
	}
	return changes
}
