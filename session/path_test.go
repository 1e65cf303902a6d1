package session

import (
	"net/netip"
	"testing"
	"time"
)

// deadSocket is a Socket that is only compared.
type deadSocket struct {
	Socket
	addr netip.AddrPort
}

func (s *deadSocket) LocalAddr() netip.AddrPort { return s.addr }

var (
	sockA = &deadSocket{addr: netip.MustParseAddrPort("192.0.2.1:1000")}
	sockB = &deadSocket{addr: netip.MustParseAddrPort("192.0.2.1:2000")}
	peerA = netip.MustParseAddrPort("198.51.100.1:1")
	peerB = netip.MustParseAddrPort("198.51.100.1:2")
)

func TestProberBacksOffAndRests(t *testing.T) {
	start := time.Unix(1000, 0)
	var p prober
	p.add(sockA, peerA, PathDirect, 6, start)
	var at []time.Duration
	for now := start; !now.IsZero(); {
		due, wake := p.advance(now)
		for range due {
			at = append(at, now.Sub(start))
		}
		now = wake
	}
	want := []int{0, 20, 60, 140, 300, 550} // ms
	if len(at) != len(want) {
		t.Fatalf("probes at %v, want six", at)
	}
	for i, ms := range want {
		if got := int(at[i] / time.Millisecond); got != ms {
			t.Errorf("probe %d after %d ms, want %d", i, got, ms)
		}
	}
}

func TestProberKnowsItsOwnPongs(t *testing.T) {
	now := time.Unix(1000, 0)
	var p prober
	p.add(sockA, peerA, PathDirect, 3, now)
	p.add(sockA, peerB, PathDirect, 3, now)
	due, _ := p.advance(now)
	if len(due) != 2 || due[0].id == due[1].id {
		t.Fatalf("two candidates gave the probes %+v", due)
	}
	if c, _ := p.pong(due[1].id + 10); c != nil {
		t.Errorf("a pong that was never asked for belongs to %v", c.route.remote)
	}
	c, sent := p.pong(due[1].id)
	if c == nil || c.route.remote != peerB || !sent.Equal(now) {
		t.Fatalf("pong of the second probe: candidate %v, sent %v", c, sent)
	}
	if c, _ := p.pong(due[1].id); c != nil {
		t.Error("the same pong counted twice")
	}
	if c, _ := p.pong(0); c != nil {
		t.Error("id 0 matches an empty slot")
	}
	if due, _ := p.advance(now.Add(time.Second)); len(due) != 1 || due[0].route.remote != peerA {
		t.Errorf("an answered candidate is still probed: %+v", due)
	}
}

func TestProberChecksAnAddressSeldom(t *testing.T) {
	now := time.Unix(1000, 0)
	var p prober
	p.add(sockA, peerA, PathDirect, 1, now)
	if p.heard(sockA, peerB, 1, 0, now) {
		t.Error("an unknown address is taken for a candidate")
	}
	probes := 0
	for range 3000 { // a datagram every millisecond, and every probe answered at once
		now = now.Add(time.Millisecond)
		if !p.heard(sockA, peerA, 8, 0, now) {
			t.Fatal("the candidate is not known")
		}
		due, _ := p.advance(now)
		for _, d := range due {
			probes++
			p.pong(d.id)
		}
	}
	if probes < 3 || probes > 4 {
		t.Errorf("%d probes in three seconds, want one a second", probes)
	}
}

func TestProberSendsNoMoreToAClaimedAddressThanItMay(t *testing.T) {
	now := time.Unix(1000, 0)
	var p prober
	probes := func(span time.Duration) (n int, last uint64) {
		for range span / time.Millisecond {
			due, _ := p.advance(now)
			n += len(due)
			for _, d := range due {
				last = d.id
			}
			now = now.Add(time.Millisecond)
		}
		return n, last
	}
	p.claim(sockA, peerA, PathDirect, 8, probeSize+1, nil, now)
	p.wake(probesToOpen, now)
	if n, _ := probes(10 * time.Second); n != 1 {
		t.Errorf("%d probes for a datagram that allows of one", n)
	}
	for i, want := range []int{1, 2, 1} { // what is left over adds up
		p.heard(sockA, peerA, 8, probeSize+probeSize/2, now)
		if n, _ := probes(10 * time.Second); n != want {
			t.Errorf("%d probes after datagram %d, want %d", n, i, want)
		}
	}
	for range 100 { // but not for ever
		p.heard(sockA, peerA, 8, probeSize, now)
	}
	p.wake(probesToOpen, now)
	if n, _ := probes(time.Minute); n != 8 {
		t.Errorf("%d probes after a hundred datagrams, want 8", n)
	}
	p.heard(sockA, peerA, 8, probeSize, now)
	n, id := probes(time.Millisecond)
	if n != 1 {
		t.Fatalf("%d probes at once", n)
	}
	p.pong(id)
	p.wake(8, now)
	if n, _ := probes(10 * time.Second); n != 8 {
		t.Errorf("%d probes of an address that has answered, want 8", n)
	}

	for _, row := range []struct {
		name  string
		known func()
	}{
		{"that the peer has named", func() { p.add(sockA, peerB, PathDirect, 8, now) }},
		{"of a relay", func() { p.claim(sockA, peerB, PathRelay, 8, 0, nil, now) }},
	} {
		p = prober{}
		if row.name != "of a relay" {
			p.claim(sockA, peerB, PathDirect, 8, 0, nil, now)
		}
		row.known()
		if n, _ := probes(10 * time.Second); n != 8 {
			t.Errorf("%d probes of an address %s, want 8", n, row.name)
		}
	}
}

func TestProberIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	var p prober
	for i := range 10 * maxCandidates {
		p.add(sockA, netip.AddrPortFrom(peerA.Addr(), uint16(i+1)), PathDirect, 1, now)
	}
	if len(p.cands) != maxCandidates {
		t.Errorf("%d candidates, want at most %d", len(p.cands), maxCandidates)
	}
	if c := p.add(sockA, netip.AddrPortFrom(peerA.Addr(), 1), PathDirect, 1, now); c == nil {
		t.Error("a full prober has forgotten a candidate that it knows")
	}
}

func TestBetterRoute(t *testing.T) {
	now := time.Unix(1000, 0)
	mk := func(kind PathKind, heardAgo time.Duration) *route {
		r := &route{sock: sockB, remote: peerA, kind: kind}
		r.heard.Store(now.Add(-heardAgo).UnixNano())
		return r
	}
	sent := now.Add(-50 * time.Millisecond)
	same := mk(PathDirect, 0)
	for _, tt := range []struct {
		name      string
		cur, next *route
		want      bool
	}{
		{"the first one", nil, mk(PathRelay, 0), true},
		{"itself", same, same, false},
		{"the local network beats the detour", mk(PathDirect, 0), mk(PathLAN, 0), true},
		{"direct beats a relay", mk(PathRelay, 0), mk(PathDirect, 0), true},
		{"an equal one while the old one works", mk(PathDirect, 10*time.Millisecond), mk(PathDirect, 0), false},
		{"an equal one after the peer moved", mk(PathDirect, time.Second), mk(PathDirect, 0), true},
		{"a worse one while the old one is quiet for a moment", mk(PathLAN, time.Second), mk(PathDirect, 0), false},
		{"a worse one after the old one died", mk(PathLAN, 7*time.Second), mk(PathDirect, 0), true},
	} {
		if got := betterRoute(tt.cur, tt.next, false, sent, now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTally(t *testing.T) {
	for _, row := range []struct {
		name     string
		outcomes string // of probes: a is answered, x is not
		want     bool
	}{
		{"nothing is known", "", false},
		{"too few to tell", "xxx", false},
		{"a good path", "aaaaaaaaaaaaaaaa", false},
		{"half are lost", "axaxaxax", false},
		{"most are lost", "axxxaxxx", true},
		{"it has become bad", "aaaaaaaaaaaaaaaaxxxxxxxxxxxxxxxx", true},
		{"it has become good", "xxxxxxxxxxxxxxxxaaaaaaaaaaaaaaaa", false},
	} {
		var got tally
		for _, o := range row.outcomes {
			if got.ask(); o == 'a' {
				got.answer()
			}
		}
		if got.lossy() != row.want {
			t.Errorf("%s: lossy is %v after %+v", row.name, got.lossy(), got)
		}
	}
}
