package punch

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"omegatun/dht"
)

func TestAnalysisVectors(t *testing.T) {
	var vectors struct {
		Firewall []struct {
			Name             string
			NodeIsFirewalled bool
			Samples          []struct{ SeenAs, By vectorAddr }
			AfterEach        []struct {
				Sampled   int
				Firewall  string
				Addresses []vectorAddr
			}
		}
	}
	readVectors(t, "nat.json", &vectors)
	if len(vectors.Firewall) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Firewall {
		t.Run(v.Name, func(t *testing.T) {
			if !v.NodeIsFirewalled {
				t.Skip("npm tells no address of a host that is open, and its peer gives up; we tell where the punch socket is")
			}
			var a analysis
			for i, s := range v.Samples {
				a.add(s.SeenAs.addr(), s.By.addr())
				want := v.AfterEach[i]
				if got := strings.ToUpper(a.firewall.String()); got != want.Firewall {
					t.Errorf("after sample %d: %v, want %v", i+1, got, want.Firewall)
				}
				if len(a.by) != want.Sampled {
					t.Errorf("after sample %d: %d counted, want %d", i+1, len(a.by), want.Sampled)
				}
				if got := a.addresses(); !slices.Equal(got, addrs(want.Addresses)) {
					t.Errorf("after sample %d: addresses %v, want %v", i+1, got, want.Addresses)
				}
			}
		})
	}
}

func TestAnalysisOfFewSamples(t *testing.T) {
	a, b := netip.MustParseAddrPort("1.1.1.1:7"), netip.MustParseAddrPort("1.1.1.1:8")
	tests := []struct {
		name string
		seen []netip.AddrPort
		want dht.Firewall
	}{
		{"none", nil, dht.FirewallUnknown},
		{"one", []netip.AddrPort{a}, dht.FirewallConsistent},
		{"two that agree", []netip.AddrPort{a, a}, dht.FirewallConsistent},
		{"two that differ", []netip.AddrPort{a, b}, dht.FirewallRandom},
		{"two of three agree", []netip.AddrPort{a, b, a}, dht.FirewallConsistent},
	}
	for _, tt := range tests {
		var s analysis
		for i, seen := range tt.seen {
			s.add(seen, netip.AddrPortFrom(netip.MustParseAddr("9.9.9.9"), uint16(i+1)))
		}
		if s.conclude(); s.firewall != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, s.firewall, tt.want)
		}
	}
}

// One liar changes nothing, however many hosts of one network it has; and where there is only one network, it must do.
func TestSurveyCountsNetworks(t *testing.T) {
	a, b := netip.MustParseAddrPort("50.0.0.1:7"), netip.MustParseAddrPort("60.0.0.1:7")
	type voice struct {
		by   string
		seen netip.AddrPort
	}
	for _, row := range []struct {
		name  string
		heard []voice
		kind  dht.Firewall
		first netip.AddrPort // of the addresses that are told to the peer
	}{
		{"a liar among four", []voice{{"1.0.0.1:1", b}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}, {"4.0.0.1:1", a}}, dht.FirewallConsistent, a},
		{"a liar with four hosts", []voice{
			{"1.0.0.1:1", b}, {"1.0.0.2:1", b}, {"1.0.0.3:1", b}, {"1.0.0.4:1", b}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}, {"4.0.0.1:1", a},
		}, dht.FirewallConsistent, a},
		{"two against two of one network", []voice{{"1.0.0.1:1", b}, {"1.0.0.2:1", b}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}}, dht.FirewallConsistent, a},
		{"one network alone", []voice{{"1.0.0.1:1", a}, {"1.0.0.2:1", a}, {"1.0.0.3:1", a}}, dht.FirewallConsistent, a},
		{"one network, to which each port differs", []voice{
			{"1.0.0.1:1", a}, {"1.0.0.2:1", netip.AddrPortFrom(a.Addr(), 8)}, {"1.0.0.3:1", netip.AddrPortFrom(a.Addr(), 9)},
		}, dht.FirewallRandom, netip.AddrPortFrom(a.Addr(), 0)},
		{"a private network", []voice{{"10.0.0.1:1", a}, {"10.0.0.1:2", a}, {"10.0.0.1:3", a}}, dht.FirewallConsistent, a},
	} {
		s := newSurvey(time.Time{}, nil)
		s.pending = len(row.heard)
		for _, v := range row.heard {
			s.pong(v.seen, netip.MustParseAddrPort(v.by))
		}
		s.advance(time.Time{})
		if addrs := s.addresses(); !s.done || s.firewall != row.kind || len(addrs) == 0 || addrs[0] != row.first {
			t.Errorf("%s: done %v, %v, %v; want %v, %v", row.name, s.done, s.firewall, addrs, row.kind, row.first)
		}
	}
}

func TestAnalysisIsBoundedAndCanBeFrozen(t *testing.T) {
	var a analysis
	for i := range 1000 {
		a.add(netip.AddrPortFrom(netip.MustParseAddr("1.1.1.1"), uint16(i+1)),
			netip.AddrPortFrom(netip.MustParseAddr("9.9.9.9"), uint16(i+1)))
		a.frozen = i >= 10
	}
	if len(a.by) != maxSamples || a.firewall != dht.FirewallRandom {
		t.Errorf("%d samples kept, %v", len(a.by), a.firewall)
	}
	var f analysis
	f.frozen = true
	for i := range 4 {
		f.add(netip.MustParseAddrPort("1.1.1.1:7"), netip.AddrPortFrom(netip.MustParseAddr("9.9.9.9"), uint16(i+1)))
	}
	if f.conclude(); f.firewall != dht.FirewallUnknown {
		t.Errorf("frozen, but became %v", f.firewall)
	}
}

func TestAnalysisPrefersPublicAddresses(t *testing.T) {
	lan, public := netip.MustParseAddrPort("192.168.1.10:7"), netip.MustParseAddrPort("1.1.1.1:7")
	for _, seen := range [][]netip.AddrPort{
		{lan, lan, lan, public, public, public}, {public, lan, public, lan, lan, public}, {public, public, public, lan},
	} {
		var a analysis
		for i, s := range seen {
			a.add(s, netip.AddrPortFrom(netip.MustParseAddr("9.9.9.9"), uint16(i+1)))
		}
		if got := a.addresses(); a.firewall != dht.FirewallConsistent || !slices.Equal(got, []netip.AddrPort{public}) {
			t.Errorf("samples %v: %v at %v, want consistent at %v", seen, a.firewall, got, public)
		}
	}
}

func TestMatchAddrVectors(t *testing.T) {
	var vectors struct {
		AddressMatch []struct {
			Mine, Theirs []netip.Addr
			Match        *netip.Addr
		}
	}
	readVectors(t, "nat.json", &vectors)
	for _, v := range vectors.AddressMatch {
		var theirs []netip.AddrPort
		for _, a := range v.Theirs {
			theirs = append(theirs, netip.AddrPortFrom(a, 7))
		}
		got, ok := MatchAddr(v.Mine, theirs)
		switch {
		case ok != (v.Match != nil):
			t.Errorf("MatchAddr(%v, %v) = %v, %v, want %v", v.Mine, v.Theirs, got, ok, v.Match)
		case ok && got != netip.AddrPortFrom(*v.Match, 7):
			t.Errorf("MatchAddr(%v, %v) = %v, want %v", v.Mine, v.Theirs, got, v.Match)
		}
	}
}

func TestMatchAddrSkipsIPv6(t *testing.T) {
	six := netip.MustParseAddr("::1")
	if got, ok := MatchAddr([]netip.Addr{six}, []netip.AddrPort{netip.AddrPortFrom(six, 1)}); ok {
		t.Errorf("MatchAddr of IPv6 addresses = %v", got)
	}
}

func TestAddressClassVectors(t *testing.T) {
	var vectors struct {
		AddressClasses []struct {
			Host                     netip.Addr
			Private, Reserved, Bogon bool
		}
	}
	readVectors(t, "nat.json", &vectors)
	for _, v := range vectors.AddressClasses {
		for _, a := range []netip.Addr{v.Host, netip.AddrFrom16(v.Host.As16())} { // also mapped into IPv6
			if IsPrivate(a) != v.Private || IsReserved(a) != v.Reserved || IsBogon(a) != v.Bogon {
				t.Errorf("%v: private %v, reserved %v, bogon %v, want %v, %v, %v",
					a, IsPrivate(a), IsReserved(a), IsBogon(a), v.Private, v.Reserved, v.Bogon)
			}
		}
	}
	if six := netip.MustParseAddr("fe80::1"); IsBogon(six) {
		t.Errorf("%v is a bogon", six)
	}
}

func TestStrategies(t *testing.T) {
	u, o, c, r := dht.FirewallUnknown, dht.FirewallOpen, dht.FirewallConsistent, dht.FirewallRandom
	tests := []struct {
		local, remote dht.Firewall
		want          strategy
	}{
		{u, u, impossible},
		{u, c, impossible},
		{c, u, impossible},
		{u, r, impossible},
		{o, o, exchange},
		{o, c, exchange},
		{c, o, exchange},
		{c, c, exchange},
		{c, r, search},
		{o, r, search},
		{r, c, spread},
		{r, o, spread},
		{r, r, impossible},
		{r, r + 5, impossible},
	}
	for _, tt := range tests {
		if got := strategyFor(tt.local, tt.remote, false); got != tt.want {
			t.Errorf("strategyFor(%v, %v) = %d, want %d", tt.local, tt.remote, got, tt.want)
		}
		want := tt.want
		if tt.local >= r && tt.remote >= r {
			want = sweep
		}
		if got := strategyFor(tt.local, tt.remote, true); got != want {
			t.Errorf("strategyFor(%v, %v) of routers that count = %d, want %d", tt.local, tt.remote, got, want)
		}
	}
}

func nodeList(n int) []netip.AddrPort {
	var list []netip.AddrPort
	for i := range n {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, byte(i), 9}), 1))
	}
	return list
}

func TestSurvey(t *testing.T) {
	seen := netip.MustParseAddrPort("1.1.1.1:7")
	start := time.Unix(1000, 0)
	tests := []struct {
		name    string
		nodes   int
		answers func(asked int) (netip.AddrPort, bool) // of the n-th node asked, counted from 0
		asked   int
		took    time.Duration
		want    dht.Firewall
	}{
		{"all answer alike", 20, func(int) (netip.AddrPort, bool) { return seen, true }, 4, 0, dht.FirewallConsistent},
		{"every port differs", 20, func(n int) (netip.AddrPort, bool) {
			return netip.AddrPortFrom(seen.Addr(), uint16(n+1)), true
		}, 4, 0, dht.FirewallRandom},
		{
			"the first four are silent", 20, func(n int) (netip.AddrPort, bool) { return seen, n >= 4 }, 8,
			surveyPatience, dht.FirewallConsistent,
		},
		{"two nodes in all", 2, func(int) (netip.AddrPort, bool) { return seen, true }, 2, 0, dht.FirewallConsistent},
		{"no nodes", 0, nil, 0, 0, dht.FirewallUnknown},
		{"nobody answers", 50, func(int) (netip.AddrPort, bool) { return seen, false }, 16, surveyTime, dht.FirewallUnknown},
		{"one answers", 3, func(n int) (netip.AddrPort, bool) { return seen, n == 0 }, 3, surveyTime, dht.FirewallConsistent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSurvey(start, nodeList(tt.nodes))
			now := start
			asked := 0
			for !s.done {
				ping, wake := s.advance(now)
				for _, by := range ping {
					if answer, ok := tt.answers(asked); ok {
						s.pong(answer, by)
					}
					asked++
				}
				if more, _ := s.advance(now); len(more) > 0 {
					t.Fatalf("asks %d more at the same time", len(more))
				}
				if s.done {
					break
				}
				if !wake.After(now) {
					t.Fatalf("wants to be called at %v, it is %v", wake, now)
				}
				now = wake
			}
			if s.firewall != tt.want || asked != tt.asked || now.Sub(start) != tt.took {
				t.Errorf("%v after %d pings and %v, want %v after %d and %v",
					s.firewall, asked, now.Sub(start), tt.want, tt.asked, tt.took)
			}
		})
	}
}

func TestSurveyAsksSilentNodesAgain(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newSurvey(now, nodeList(3))
	asked := 0
	for range 10 {
		ping, _ := s.advance(now)
		asked += len(ping)
		for _, by := range ping {
			s.miss(by)
		}
	}
	if !s.done || s.firewall != dht.FirewallUnknown || asked != surveyLimit {
		t.Errorf("done %v after %d pings, %v", s.done, asked, s.firewall)
	}
}

func TestSurveyPassesOverTheNodesHeardLast(t *testing.T) {
	now := time.Unix(1000, 0)
	nodes := nodeList(9)
	s := newSurvey(now, slices.Clone(nodes))
	if ping, _ := s.advance(now); !slices.Equal(ping, nodes[5:9]) {
		t.Errorf("asks %v", ping)
	}
	if !slices.Equal(s.nodes, nodes[:5]) {
		t.Errorf("has left %v", s.nodes)
	}
}
