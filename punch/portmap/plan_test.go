package portmap

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testLease(at time.Time, lifetime time.Duration) lease {
	return lease{
		protocol: PCP, external: netip.MustParseAddrPort("192.88.99.1:4000"),
		at: at, lifetime: lifetime, epoch: readEpoch(1000, at),
	}
}

// attempts returns when p asks, after t0, in a world where nothing succeeds, until the end of d.
func attempts(p *plan, now time.Time, d time.Duration) (at []time.Duration) {
	for {
		next := p.next()
		if next.After(t0.Add(d)) {
			return at
		}
		if p.expire(next) {
			continue
		}
		if next.Before(now) {
			next = now
		}
		now = next
		at = append(at, now.Sub(t0))
		p.begin(now)
		p.fail()
	}
}

func TestPlanSearchesLessAndLessOften(t *testing.T) {
	var p plan
	got := attempts(&p, t0, 2*time.Hour+10*time.Minute)
	var want []time.Duration
	for _, minutes := range []int{0, 1, 3, 7, 15, 31, 63, 95, 127} {
		want = append(want, time.Duration(minutes)*time.Minute)
	}
	if !slices.Equal(got, want) {
		t.Errorf("searches at %v, want %v", got, want)
	}
	p.hurry(t0.Add(3 * time.Hour))
	if got := p.next(); got.After(t0.Add(3 * time.Hour)) {
		t.Errorf("after hurry at 3h the next is at %v", got.Sub(t0))
	}
}

func TestPlanRenewsAtHalfLifeThenHalvesTheRest(t *testing.T) {
	var p plan
	p.begin(t0)
	p.grant(testLease(t0, 64*time.Second))
	got := attempts(&p, t0, 63*time.Second)
	want := []time.Duration{32 * time.Second, 48 * time.Second, 56 * time.Second, 60 * time.Second}
	if !slices.Equal(got, want) {
		t.Errorf("renewals at %v, want %v", got, want)
	}
	if p.expire(t0.Add(64*time.Second - 1)) {
		t.Error("the lease expired early")
	}
	if !p.expire(t0.Add(64 * time.Second)) {
		t.Error("the lease did not expire")
	}
	if p.lease.valid() {
		t.Error("an expired lease is still held")
	}
}

func TestPlanKeepsItsDistance(t *testing.T) {
	var p plan
	p.begin(t0)
	p.grant(testLease(t0, minLifetime))
	p.hurry(t0)
	if got := p.next().Sub(t0); got != minGap {
		t.Errorf("hurried round %v after the last, want %v", got, minGap)
	}
	p.restart(t0)
	if got := p.next().Sub(t0); got != minGap || p.lease.valid() {
		t.Errorf("round at a new gateway %v after the last, want %v; lease %v", got, minGap, p.lease)
	}
}

func TestPlanBelievesAnnouncementsOfLossOnly(t *testing.T) {
	const half = 15 * time.Minute
	at := t0.Add(5 * time.Minute) // the epoch should be 1300 then
	mapped := testLease(t0, 2*half).external.Addr()
	for _, tt := range []struct {
		name string
		a    announcement
		want time.Duration
	}{
		{"restarted", announcement{PCP, 0, netip.Addr{}}, 5*time.Minute + 3*time.Second},
		{"nothing lost", announcement{PCP, 1300, netip.Addr{}}, half},
		{"another protocol", announcement{NATPMP, 0, mapped}, half},
		{"same address", announcement{PCP, 1300, mapped}, half},
		{"new address", announcement{PCP, 1300, netip.MustParseAddr("192.88.99.2")}, 5*time.Minute + 3*time.Second},
	} {
		p := plan{asked: t0}
		p.grant(testLease(t0, 2*half))
		p.announced(tt.a, at, 3*time.Second)
		if got := p.next().Sub(t0); got != tt.want {
			t.Errorf("%s: next round after %v, want %v", tt.name, got, tt.want)
		}
		p.announced(announcement{PCP, 0, netip.Addr{}}, at, 4*time.Second)
		p.begin(at.Add(time.Second))
		p.announced(announcement{PCP, 0, netip.Addr{}}, at.Add(2*time.Second), 0)
		if got := p.next().Sub(at); got != time.Second+restartGap {
			t.Errorf("%s: announced again: next round %v later, want %v", tt.name, got, time.Second+restartGap)
		}
	}
}

func TestPlanTellsARestart(t *testing.T) {
	p := plan{lease: testLease(t0, time.Hour)}
	next := testLease(t0.Add(30*time.Minute), time.Hour) // the epoch should have gone on
	if !p.grant(next) {
		t.Error("a renewal with an old epoch is no restart")
	}
	later := next
	later.epoch = readEpoch(1060, next.at.Add(time.Minute))
	if p.grant(later) {
		t.Error("an epoch in step is a restart")
	}
	other := next
	other.protocol = NATPMP
	if p.grant(other) {
		t.Error("epochs of two protocols were compared")
	}
}

func TestIsPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"192.88.99.1": true, "8.8.8.8": true, "2001:db8::1": true, "100.128.0.1": true, "192.0.1.1": true,
		"10.0.0.1": false, "192.168.1.1": false, "172.16.0.1": false, "100.64.0.1": false, "100.127.255.255": false,
		"127.0.0.1": false, "169.254.1.1": false, "0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false,
		"240.0.0.1": false, "255.255.255.255": false, "192.0.0.2": false, "198.18.0.1": false, "198.19.0.1": false,
		"fd00::1": false, "fe80::1": false, "::1": false, "::": false,
	} {
		if got := isPublic(netip.MustParseAddr(addr)); got != want {
			t.Errorf("isPublic(%s) = %t", addr, got)
		}
	}
	if isPublic(netip.Addr{}) {
		t.Error("the zero address is public")
	}
}
