package lab_test

import (
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"omegatun/punch/lab"
)

// flood sends count numbered datagrams, one a millisecond, and returns the numbers that arrive, in order, and when.
func flood(t *testing.T, a, b *lab.Conn, to netip.AddrPort, count int) (numbers []int, times []time.Duration) {
	t.Helper()
	start := time.Now()
	go func() {
		for i := range count {
			a.WriteToUDPAddrPort([]byte(strconv.Itoa(i)), to)
			time.Sleep(time.Millisecond)
		}
	}()
	for {
		text, _, ok := next(b)
		if !ok {
			return numbers, times
		}
		i, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, i)
		times = append(times, time.Since(start)-time.Duration(i)*time.Millisecond)
	}
}

// faults tells what flood saw.
type faults struct {
	lost, twice, overtaken int
	least, most            time.Duration
}

func count(sent int, numbers []int, times []time.Duration) faults {
	f := faults{least: math.MaxInt64}
	seen := make(map[int]bool)
	highest := -1
	for i, num := range numbers {
		if seen[num] {
			f.twice++
			continue
		}
		seen[num] = true
		if num < highest {
			f.overtaken++
		}
		highest = max(highest, num)
		f.least, f.most = min(f.least, times[i]), max(f.most, times[i])
	}
	f.lost = sent - len(seen)
	return f
}

func TestLinkFaults(t *testing.T) {
	const sent = 10000
	ms := time.Millisecond
	near := func(got int, share float64) bool { return math.Abs(float64(got)-share*sent) < 0.2*share*sent+1 }
	tests := []struct {
		name string
		link lab.Link
		ok   func(f faults) bool
	}{
		{"perfect", lab.Link{}, func(f faults) bool { return f == faults{} }},
		{"latency", lab.Link{Latency: 30 * ms}, func(f faults) bool { return f == faults{least: 30 * ms, most: 30 * ms} }},
		{"jitter keeps the order", lab.Link{Latency: 30 * ms, Jitter: 20 * ms}, func(f faults) bool {
			return f.lost+f.twice+f.overtaken == 0 && f.least >= 30*ms && f.most > 48*ms && f.most < 50*ms
		}},
		{"loss 5 %", lab.Link{Loss: 0.05}, func(f faults) bool { return near(f.lost, 0.05) && f.twice+f.overtaken == 0 }},
		{"loss 20 %", lab.Link{Loss: 0.2}, func(f faults) bool { return near(f.lost, 0.2) }},
		{"duplication", lab.Link{Duplicate: 0.1}, func(f faults) bool { return near(f.twice, 0.1) && f.lost+f.overtaken == 0 }},
		{"reordering", lab.Link{Latency: 10 * ms, Reorder: 0.1}, func(f faults) bool {
			return near(f.overtaken, 0.1) && f.lost+f.twice == 0 && f.most == 15*ms
		}},
	}
	for _, tt := range tests {
		for _, where := range []string{"core", "cable"} {
			t.Run(where+" "+tt.name, func(t *testing.T) {
				bubble(t, lab.Config{Seed: 5}, func(t *testing.T, n *lab.Network) {
					ha, hb := n.Host("a", serverA), n.Host("b", serverB)
					if where == "core" {
						n.SetLink(tt.link)
					} else {
						hb.SetLink(tt.link)
					}
					numbers, times := flood(t, listen(t, ha, 0), listen(t, hb, 7), at(serverB, 7), sent)
					if f := count(sent, numbers, times); !tt.ok(f) {
						t.Errorf("%d packets: %+v", sent, f)
					}
				})
			})
		}
	}
}

func TestRateAndQueue(t *testing.T) {
	bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
		ha, hb := n.Host("a", serverA), n.Host("b", serverB)
		// 1000 bytes of payload and headers each; ten a second, and five wait.
		ha.SetLinks(lab.Link{Rate: 10000, Queue: 5000}, lab.Link{})
		a, b := listen(t, ha, 0), listen(t, hb, 7)
		start := time.Now()
		for range 20 {
			send(t, a, at(serverB, 7), strings.Repeat("x", 1000-28))
		}
		for i := range 5 {
			next(b)
			if took := time.Since(start); took != time.Duration(i+1)*100*time.Millisecond {
				t.Errorf("packet %d arrives after %v", i, took)
			}
		}
		wantNothing(t, b, "the queue holds five packets")
		if lost := n.Stats().Lost["queue full"]; lost != 15 {
			t.Errorf("%d packets lost to the queue, want 15", lost)
		}
	})
}

func TestMTU(t *testing.T) {
	bubble(t, lab.Config{MTU: 1400}, func(t *testing.T, n *lab.Network) {
		ha, hb := n.Host("a", serverA), n.Host("b", serverB)
		ha.SetLink(lab.Link{MTU: 1500})
		a, b := listen(t, ha, 0), listen(t, hb, 7)
		for _, tt := range []struct {
			name    string
			payload int
			arrives bool
			err     error
		}{
			{"largest that passes", 1400 - 28, true, nil},
			{"too big for the core", 1401 - 28, false, nil},
			{"largest for the own cable", 1500 - 28, false, nil},
			{"too big for the own cable", 1501 - 28, false, syscall.EMSGSIZE},
		} {
			_, err := a.WriteToUDPAddrPort(make([]byte, tt.payload), at(serverB, 7))
			if !errors.Is(err, tt.err) {
				t.Errorf("%s: write: %v, want %v", tt.name, err, tt.err)
			}
			if _, _, ok := next(b); ok != tt.arrives {
				t.Errorf("%s: arrives %v, want %v", tt.name, ok, tt.arrives)
			}
		}
	})
}

func TestCutPartitionAndDrop(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		home := n.NAT("home", lab.Linux(homeA))
		ha, hb := home.Host("a", insideA), n.Host("b", serverB)
		a, b := listen(t, ha, 5000), listen(t, hb, 7)
		steps := []struct {
			name   string
			do     func()
			passes bool
		}{
			{"whole", func() {}, true},
			{"host's cable cut", func() { ha.Cut(true) }, false},
			{"repaired", func() { ha.Cut(false) }, true},
			{"router's cable cut", func() { home.Cut(true) }, false},
			{"router's cable repaired", func() { home.Cut(false) }, true},
			{"partition", func() { n.Partition([]netip.Addr{homeA}, []netip.Addr{serverB}) }, false},
			{"partition of others", func() { n.Partition([]netip.Addr{homeB}, []netip.Addr{serverB}) }, true},
			{"healed", func() { n.Partition() }, true},
			{"dropped by a function", func() { n.Drop(func(p lab.Packet) bool { return p.From == at(homeA, 5000) }) }, false},
			{"no function", func() { n.Drop(nil) }, true},
		}
		for _, s := range steps {
			s.do()
			send(t, a, at(serverB, 7), s.name)
			if _, _, ok := next(b); ok != s.passes {
				t.Errorf("%s: passes %v, want %v", s.name, ok, s.passes)
			}
		}
	})
}

func TestHostMoves(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		home := n.NAT("home", lab.Linux(homeA))
		phone := n.NAT("phone", lab.Carrier(homeB))
		s := newProbes(t, n)
		h := home.Host("a", insideA)
		c := listen(t, h, 5000)
		send(t, c, at(serverA, 1), "x")
		want(t, s.a1, "x")

		h.Move(phone, insideB)
		if got := h.Addrs(); len(got) != 1 || got[0] != insideB {
			t.Errorf("addresses after the move: %v", got)
		}
		send(t, s.a1, at(homeA, 5000), "to the old place")
		wantNothing(t, c, "the host is gone from there")
		send(t, c, at(serverA, 1), "x")
		from := want(t, s.a1, "x")
		if from.Addr() != homeB {
			t.Errorf("source after the move is %v", from)
		}
		send(t, s.a1, from, "to the new place")
		want(t, c, "to the new place")

		h.Attach(home, insideA) // both
		h.Cut(true)
		h.Cut(false)
		if got := h.Addrs(); len(got) != 2 {
			t.Errorf("addresses with two cables: %v", got)
		}
	})
}

func TestReceiveQueueIsBounded(t *testing.T) {
	bubble(t, lab.Config{Queue: 3}, func(t *testing.T, n *lab.Network) {
		a, b := listen(t, n.Host("a", serverA), 0), listen(t, n.Host("b", serverB), 7)
		for i := range 5 {
			send(t, a, at(serverB, 7), strconv.Itoa(i))
		}
		for i := range 3 {
			want(t, b, strconv.Itoa(i))
		}
		wantNothing(t, b, "the rest did not fit")
	})
}

// conversation runs a small exchange with all kinds of faults and returns its trace.
func conversation(t *testing.T, seed uint64) (trace string) {
	t.Helper()
	cfg := lab.Config{
		Seed: seed, Latency: 10 * time.Millisecond, Jitter: 5 * time.Millisecond,
		Loss: 0.2, Duplicate: 0.1, Reorder: 0.1, Trace: true,
	}
	t.Run("", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, n *lab.Network) {
			a := listen(t, n.NAT("home a", lab.Symmetric(homeA)).Host("a", insideA), 5000)
			b := listen(t, n.NAT("home b", lab.Carrier(homeB)).Host("b", insideB), 5000)
			s := newProbes(t, n)
			for i := range 50 {
				a.WriteToUDPAddrPort([]byte{1}, at(serverA, 1))
				b.WriteToUDPAddrPort([]byte{1}, at(serverA, uint16(1+i%2)))
				s.a1.WriteToUDPAddrPort([]byte{1, 2}, at(homeB, 5000))
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			if n.Pending() != 0 {
				t.Errorf("%d packets are still under way", n.Pending())
			}
			trace = n.Trace()
		})
	})
	return trace
}

func TestSeedDecidesEverything(t *testing.T) {
	first := conversation(t, 1)
	if again := conversation(t, 1); again != first {
		t.Errorf("the same seed gave two traces:\n%s\n---\n%s", first, again)
	}
	if other := conversation(t, 2); other == first {
		t.Error("another seed gave the same trace")
	}
	for _, part := range []string{"lost: loss", "(copy)", "lost: no mapping at home b", "server a at 1"} {
		if !strings.Contains(first, part) {
			t.Errorf("the trace does not contain %q:\n%s", part, first)
		}
	}
}

func TestTraceLines(t *testing.T) {
	cfg := lab.Config{Seed: 1, Latency: 20 * time.Millisecond, Trace: true, Describe: func(b []byte) string {
		return strconv.Quote(string(b))
	}}
	bubble(t, cfg, func(t *testing.T, n *lab.Network) {
		a := listen(t, n.NAT("home a", lab.Linux(homeA)).Host("a", insideA), 5000)
		b := listen(t, n.NAT("home b", lab.Linux(homeB)).Host("b", insideB), 6000)
		a.WriteTTL([]byte("low"), at(homeB, 6000), 5)
		time.Sleep(time.Millisecond)
		send(t, b, at(homeA, 5000), "hi")
		time.Sleep(time.Millisecond)
		const want = `0s  a  192.168.1.10:5000 > 192.88.99.102:6000  "low" ttl 5  lost: ttl
1ms  b  192.168.2.10:6000 > 192.88.99.101:5000  "hi"  under way
`
		if got := n.Trace(); got != want {
			t.Errorf("trace:\n%swant:\n%s", got, want)
		}
		time.Sleep(time.Second)
		if got, want := n.Trace(), "a at 21ms from 192.88.99.102:6000\n"; !strings.HasSuffix(got, want) {
			t.Errorf("trace:\n%swant an end like %q", got, want)
		}
	})
}

func TestThousandsOfHosts(t *testing.T) {
	bubble(t, lab.Config{Seed: 1, Latency: 10 * time.Millisecond}, func(t *testing.T, n *lab.Network) {
		const hosts = 3000
		s := listen(t, n.Host("server", serverA), 1)
		for i := range hosts {
			public := netip.AddrFrom4([4]byte{192, 88, byte(i >> 8), byte(i)}).Next()
			home := n.NAT("home"+strconv.Itoa(i), lab.Linux(netip.AddrFrom4([4]byte{44, 0, public.As4()[2], public.As4()[3]})))
			send(t, listen(t, home.Host("h"+strconv.Itoa(i), insideA), 5000), at(serverA, 1), strconv.Itoa(i))
		}
		seen := make(map[netip.AddrPort]bool)
		for range hosts {
			_, from, ok := next(s)
			if !ok {
				break
			}
			seen[from] = true
		}
		if len(seen) != hosts {
			t.Errorf("heard from %d hosts, want %d", len(seen), hosts)
		}
	})
}

// BenchmarkRealTime passes datagrams through a NAT and a core with latency, 64 under way at a time.
func BenchmarkRealTime(b *testing.B) {
	n := lab.New(lab.Config{Seed: 1, Latency: time.Millisecond})
	defer n.Close()
	hb := n.Host("b", serverB)
	from, err := n.NAT("home", lab.Linux(homeA)).Host("a", insideA).Listen(at(netip.IPv4Unspecified(), 5000))
	if err != nil {
		b.Fatal(err)
	}
	to, err := hb.Listen(at(serverB, 7))
	if err != nil {
		b.Fatal(err)
	}
	window := make(chan struct{}, 512)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			if _, _, err := to.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			<-window
		}
	}()
	payload := make([]byte, 1200)
	b.ReportAllocs()
	for b.Loop() {
		window <- struct{}{}
		if _, err := from.WriteToUDPAddrPort(payload, at(serverB, 7)); err != nil {
			b.Fatal(err)
		}
	}
	to.Close()
	<-done
}

func TestBurstsAndDamage(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		ha, hb := n.Host("a", serverA), n.Host("b", serverB)
		a, b := listen(t, ha, 1), listen(t, hb, 1)
		ha.SetLink(lab.Link{Loss: 0.2, Burst: 10})
		const sent = 20000
		numbers, _ := flood(t, a, b, at(serverB, 1), sent)
		bursts, last := 0, -1
		for _, i := range numbers {
			if i != last+1 {
				bursts++
			}
			last = i
		}
		lost := sent - len(numbers)
		if share := float64(lost) / sent; share < 0.15 || share > 0.25 {
			t.Errorf("%d of %d lost, want a fifth", lost, sent)
		}
		if mean := float64(lost) / float64(bursts); mean < 8 || mean > 12 {
			t.Errorf("%.1f are lost in a row, want ten", mean)
		}

		ha.SetLink(lab.Link{Corrupt: 0.5})
		damaged := 0
		const text = "as it was"
		for range 1000 {
			send(t, a, at(serverB, 1), text)
			if got, _, ok := next(b); !ok || len(got) != len(text) {
				t.Fatalf("got %q", got)
			} else if got != text {
				damaged++
			}
		}
		if damaged < 450 || damaged > 550 {
			t.Errorf("%d of 1000 are damaged, want half", damaged)
		}
	})
}
