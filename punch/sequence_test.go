package punch

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

var counting = netip.MustParseAddr("50.0.0.1")

func countingPorts(ports ...uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for _, p := range ports {
		list = append(list, netip.AddrPortFrom(counting, p))
	}
	return list
}

func TestCountersAreFound(t *testing.T) {
	elsewhere := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("50.0.0.2"), port) }
	for _, row := range []struct {
		name      string
		seen      []netip.AddrPort
		low, high uint16
		step      uint16 // 0: none
	}{
		{"one by one", countingPorts(4000, 4001, 4002, 4003), 4000, 4003, 1},
		{"answers overtake each other", countingPorts(4002, 4000, 4003, 4001), 4000, 4003, 1},
		{"steps of two", countingPorts(4000, 4002, 4004, 4006), 4000, 4006, 2},
		{"other traffic takes some", countingPorts(4000, 4003, 4004, 4011), 4000, 4011, 1},
		{"other traffic takes some of steps of two", countingPorts(4000, 4006, 4010, 4012), 4000, 4012, 2},
		{"three must do", countingPorts(4000, 4001, 4002), 4000, 4002, 1},
		{"after the last port", countingPorts(65534, 65535, 1024, 1025), 65534, 1025, 1},
		{"after the last port by two", countingPorts(65532, 65534, 1024, 1026), 65532, 1026, 2},
		{"a liar", countingPorts(4000, 60000, 4001, 4002), 4000, 4002, 1},
		{"a liar who names another host", append(countingPorts(4000, 4001, 4002), elsewhere(4003)), 4000, 4002, 1},
		{"two liars among four", countingPorts(4000, 60000, 20000, 4001), 0, 0, 0},
		{"two liars among five", countingPorts(4000, 60000, 20000, 4001, 4002), 0, 0, 0},
		{"two samples", countingPorts(4000, 4001), 0, 0, 0},
		{"random", countingPorts(4000, 61234, 23456, 31000), 0, 0, 0},
		{"random, two close by chance", countingPorts(4000, 4010, 23456, 31000), 0, 0, 0},
		{"long steps", countingPorts(4000, 4020, 4040, 4060), 0, 0, 0},
		{"too far apart", countingPorts(4000, 4065, 4130, 4195), 0, 0, 0},
		{"low ports are not counted", countingPorts(1, 2, 3, 4), 0, 0, 0},
		{"one port", countingPorts(4000, 4000, 4000, 4000), 0, 0, 0},
		{"none", nil, 0, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			var a analysis
			for i, seen := range row.seen {
				a.add(seen, nodeList(len(row.seen))[i])
			}
			a.conclude()
			low, high, step, ok := a.counted()
			if ok != (row.step > 0) || low.Port() != row.low || high.Port() != row.high || step != row.step {
				t.Fatalf("counted %v to %v by %d, %v, want %d to %d by %d", low, high, step, ok, row.low, row.high, row.step)
			}
			for _, opened := range []bool{true, false} {
				s := a.sequence(opened)
				told := s.announce(a.addresses())
				if s.valid() != ok || announced(told) != s {
					t.Errorf("%+v is told as %v and understood as %+v", s, told, announced(told))
				}
				if ok && (told[0].Port() != 0 || told[0].Addr() != counting) {
					t.Errorf("told %v, of which the reference looks at the first", told)
				}
			}
		})
	}
}

func TestAnnouncedCounters(t *testing.T) {
	for _, row := range []struct {
		name string
		told []netip.AddrPort
		next uint16
		step uint16 // 0: none
	}{
		{"a counter", countingPorts(0, 4000, 4001), 4000, 1},
		{"the longest step", countingPorts(0, 4000, 4000+maxStep), 4000, maxStep},
		{"around the end", countingPorts(0, 65535, 1024), 65535, 1},
		{"the reference", countingPorts(0), 0, 0},
		{"a step too long", countingPorts(0, 4000, 4001+maxStep), 0, 0},
		{"backwards", countingPorts(0, 4000, 3999), 0, 0},
		{"no step", countingPorts(0, 4000, 4000), 0, 0},
		{"no port 0", countingPorts(3999, 4000, 4001), 0, 0},
		{"low ports", countingPorts(0, 22, 23), 0, 0},
		{"a low port at the end", countingPorts(0, 1024, 1), 0, 0},
		{"too many", countingPorts(0, 4000, 4001, 4002), 0, 0},
		{"another host", []netip.AddrPort{
			netip.AddrPortFrom(counting, 0), netip.MustParseAddrPort("60.0.0.1:4000"), netip.MustParseAddrPort("60.0.0.1:4001"),
		}, 0, 0},
		{"nobody's host", []netip.AddrPort{
			netip.MustParseAddrPort("224.0.0.1:0"), netip.MustParseAddrPort("224.0.0.1:4000"), netip.MustParseAddrPort("224.0.0.1:4001"),
		}, 0, 0},
		{"nothing", nil, 0, 0},
	} {
		if got := announced(row.told); got.next.Port() != row.next || got.step != row.step {
			t.Errorf("%s: %+v, want %d by %d", row.name, got, row.next, row.step)
		}
	}
}

// A counter says nothing of a host that is not proved to be the peer's.
func TestCountersOfOtherHosts(t *testing.T) {
	var r remote
	p := payload{firewall: 3, addresses: countingPorts(0, 4000, 4001)}
	r.update(&p, netip.Addr{})
	if r.counter().valid() {
		t.Error("an unproved host's counter is used")
	}
	if _, ok := r.proved(sweep); ok {
		t.Error("an unproved host is swept")
	}
	r.update(&p, netip.MustParseAddr("50.0.0.2"))
	if _, ok := r.proved(sweep); ok || r.counter().valid() {
		t.Error("another host's counter is used")
	}
	r.update(&p, counting)
	if target, ok := r.proved(sweep); !ok || target.Addr() != counting || !r.counter().valid() {
		t.Errorf("proved: %v, %v", target, ok)
	}
	p.firewall = 2
	if r.update(&p, counting); r.counter().valid() {
		t.Error("a consistent NAT counts")
	}
}

func TestSearchTriesCountedPortsFirst(t *testing.T) {
	start := time.Unix(1000, 0)
	count := sequence{netip.AddrPortFrom(counting, 65530), 2}
	p := newGuesser(start, rand.New(rand.NewPCG(1, 1)), search, &fakeSocket{}, netip.AddrPortFrom(counting, 0), count)
	lead := count.ahead()
	n, again := 0, 0
	end := runProber(t, &p, start, 0, func(_ time.Time, q probe) {
		if q.to.Addr() != counting || q.to.Port() < firstGuess {
			t.Fatalf("probe to %v", q.to)
		}
		if n < leadCycles*len(lead) && q.to != lead[n%len(lead)] {
			t.Fatalf("probe %d goes to %v, want %v", n, q.to, lead[n%len(lead)])
		}
		if slices.Contains(lead, q.to) {
			again++
		}
		n++
	})
	if n != searchProbes || again < (leadCycles+leadMore)*len(lead) || again > n/2 || end.Sub(start) > 35*time.Second {
		t.Errorf("%d probes, %d of them to expected ports, in %v", n, again, end.Sub(start))
	}
	if next := count.after(3); next.Port() != 1024 || next.Addr() != counting {
		t.Errorf("three steps after 65530 is %v", next)
	}
	if count.after(3) != (sequence{netip.AddrPortFrom(counting, 1026), 2}).after(-1) {
		t.Error("after(-1) does not undo a step around the end")
	}
}

func TestSweep(t *testing.T) {
	for _, tt := range []struct {
		name        string
		more, socks int
	}{
		{"all sockets open", 1000, sweepSockets},
		{"only some open", 19, 20},
		{"none opens", 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			count := sequence{netip.AddrPortFrom(counting, 4000), 1}
			p := newGuesser(start, rand.New(rand.NewPCG(1, 1)), sweep, &fakeSocket{}, netip.AddrPortFrom(counting, 0), count)
			type flow struct {
				sock Socket
				to   netip.AddrPort
			}
			sent := make(map[flow]int)
			n := 0
			end := runProber(t, &p, start, tt.more, func(_ time.Time, q probe) {
				f := flow{q.sock, q.to}
				if low := q.ttl == lowTTL; low != (sent[f] == 0) {
					t.Fatalf("TTL %d after %d probes of one flow", q.ttl, sent[f])
				}
				sent[f]++
				n++
			})
			if n != tt.socks*sweepRounds*sweepCycles || n > spreadSockets+spreadProbes || len(sent) != tt.socks*sweepRounds {
				t.Errorf("%d probes in %d flows", n, len(sent))
			}
			if end.Sub(start) > 40*time.Second {
				t.Errorf("it took %v", end.Sub(start))
			}
		})
	}
}

// busyRouter has the host send to another address 20 times a second from now on, as others behind its router would.
func busyRouter(t *testing.T, h *lab.Host, seed uint64) {
	t.Helper()
	c, err := h.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 39999))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(seed, 3))
	var sending sync.WaitGroup
	stop := make(chan struct{})
	sending.Go(func() {
		for port := uint16(1); ; port++ {
			c.WriteToUDPAddrPort([]byte("other traffic"), netip.AddrPortFrom(counting, port))
			select {
			case <-time.After(time.Duration(random.ExpFloat64() * float64(50*time.Millisecond))):
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		sending.Wait()
		c.Close()
	})
}

// TestCountingRoutersAreMetSoon has 20 tries of each pair of which a side, or both, are behind a router that counts its ports up,
// with nothing else behind it, and with 20 new mappings of others a second.
func TestCountingRoutersAreMetSoon(t *testing.T) {
	const tries = 20
	for _, row := range []struct {
		server, client string
		busy, closed   bool
		soon           time.Duration
		atLeast        int
	}{
		{server: "linux", client: "symseq", soon: 300 * time.Millisecond, atLeast: 18},
		{server: "symseq", client: "linux", soon: 400 * time.Millisecond, atLeast: 18},
		{server: "linux", client: "symseq", closed: true, soon: 400 * time.Millisecond, atLeast: 18},
		{server: "linux", client: "symseq", busy: true, soon: 400 * time.Millisecond, atLeast: 15},
		{server: "symseq", client: "linux", busy: true, soon: 400 * time.Millisecond, atLeast: 15},
		{server: "symseq", client: "symseq", soon: time.Second, atLeast: 18},
		{server: "symseq", client: "symseq", busy: true, soon: 2 * time.Second, atLeast: 15},
	} {
		t.Run(fmt.Sprintf("%s : %s, busy %v, closed %v", row.server, row.client, row.busy, row.closed), func(t *testing.T) {
			var took []time.Duration
			for seed := range uint64(tries) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, delayed(seed), row.server, row.client)
					w.noFastOpen = row.closed
					if row.busy {
						busyRouter(t, w.server.host, seed)
						busyRouter(t, w.client.host, seed+100)
						time.Sleep(time.Second)
					}
					if o := w.meet(t); o.err != nil {
						t.Logf("seed %d: %v", seed, o.err)
						took = append(took, time.Hour)
					} else {
						took = append(took, o.took)
					}
				})
			}
			slices.Sort(took)
			t.Logf("median %v, longest %v", took[tries/2], took[tries-1])
			if took[row.atLeast-1] > row.soon {
				t.Errorf("%v, want %d within %v", took, row.atLeast, row.soon)
			}
		})
	}
}
