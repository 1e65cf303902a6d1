package punch

import (
	"cmp"
	"net/netip"
	"slices"

	"omegatun/dht"
)

const (
	wantSamples = 3  // that agree, before a NAT counts as consistent
	maxSamples  = 64 // more are not looked at
)

// analysis finds out what kind of NAT one socket is behind, from how others see the socket's address.
type analysis struct {
	firewall dht.Firewall

	frozen  bool // later samples change nothing, because the peer has been told
	by      []netip.AddrPort
	samples []sample // by first appearance
}

// sample is an address that others see, and how many do.
type sample struct {
	addr netip.AddrPort
	hits int
}

// add takes note that the node at by sees the socket as seen. Each node counts once.
//
// Source: npm hyperdht 6.34.0, lib/nat.js.
func (a *analysis) add(seen, by netip.AddrPort) {
	if !seen.Addr().Is4() || seen.Port() == 0 || len(a.by) >= maxSamples || slices.Contains(a.by, by) {
		return
	}
	// A node in our own LAN, or behind the same carrier's NAT, sees an address that the rest of the world does
	// not. It says nothing if there are others.
	if bogon := IsBogon(seen.Addr()); len(a.samples) > 0 && bogon != IsBogon(a.samples[0].addr.Addr()) {
		if bogon {
			return
		}
		a.samples, a.by = nil, nil
	}
	a.by = append(a.by, by)
	if i := slices.IndexFunc(a.samples, func(s sample) bool { return s.addr == seen }); i >= 0 {
		a.samples[i].hits++
	} else {
		a.samples = append(a.samples, sample{addr: seen, hits: 1})
	}
	if !a.frozen {
		a.classify()
	}
}

func (a *analysis) classify() {
	count := len(a.by)
	if count < wantSamples {
		return
	}
	ranked := a.ranked()
	switch most := ranked[0].hits; {
	case most >= wantSamples:
		a.firewall = dht.FirewallConsistent
	case most == 1:
		a.firewall = dht.FirewallRandom
	case len(a.hosts()) == 1 && count > 3:
		a.firewall = dht.FirewallRandom
	case len(a.hosts()) > 1 && ranked[1].hits >= 2:
		a.firewall = dht.FirewallConsistent
	case count > 4:
		a.firewall = dht.FirewallRandom
	}
}

// conclude decides by what there is, when there will be no more samples. Two that agree, or one alone, count as
// consistent: that is what most routers are, and a network of one or two nodes shall work too.
func (a *analysis) conclude() {
	switch {
	case a.frozen || a.firewall != dht.FirewallUnknown:
	case len(a.by) == 0:
	case len(a.samples) == 1 || a.ranked()[0].hits > 1:
		a.firewall = dht.FirewallConsistent
	default:
		a.firewall = dht.FirewallRandom
	}
}

// addresses returns what to tell the peer: where a consistent NAT can be reached, or the host of a random one with
// port 0. It is nil while nothing is known.
func (a *analysis) addresses() []netip.AddrPort {
	switch a.firewall {
	case dht.FirewallUnknown, dht.FirewallOpen:
		return nil
	case dht.FirewallConsistent:
		var addrs []netip.AddrPort
		for i, s := range a.ranked() {
			if i < 2 || s.hits >= 2 {
				addrs = append(addrs, s.addr)
			}
		}
		return addrs
	case dht.FirewallRandom:
	}
	return []netip.AddrPort{netip.AddrPortFrom(a.hosts()[0].addr.Addr(), 0)}
}

// ranked returns the samples by hits, most first.
func (a *analysis) ranked() []sample { return rank(slices.Clone(a.samples)) }

// hosts returns the hosts among the samples by hits, most first; the ports are 0.
func (a *analysis) hosts() []sample {
	var hosts []sample
	for _, s := range a.samples {
		host := netip.AddrPortFrom(s.addr.Addr(), 0)
		if i := slices.IndexFunc(hosts, func(h sample) bool { return h.addr == host }); i >= 0 {
			hosts[i].hits += s.hits
		} else {
			hosts = append(hosts, sample{addr: host, hits: s.hits})
		}
	}
	return rank(hosts)
}

func rank(s []sample) []sample {
	slices.SortStableFunc(s, func(x, y sample) int { return cmp.Compare(y.hits, x.hits) })
	return s
}
