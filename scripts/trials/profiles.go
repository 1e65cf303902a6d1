//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"omegatun/punch/lab"
	"omegatun/scripts/netlab"
)

// class is what HyperDHT tells NATs apart by: whether a machine needs punching, and whether its port can be foretold.
type class string

const (
	open       class = "open"
	consistent class = "consistent"
	random     class = "random"
	blocked    class = "blocked"
)

// profile is a kind of home.
type profile struct {
	name  string
	class class
	about string

	// What the self-check must find. Ports: "kept", "changed" (one, but another), "sequential", "random".
	mapping, filtering lab.Behavior
	ports              string

	firewall bool           // a public address behind a firewall; with open: none
	nat      netlab.NAT     // the home router
	carrier  *lab.NATConfig // a carrier's NAT in front of it, or of the host itself if direct
	direct   bool           // the host is the carrier's subscriber, as a phone is
}

var (
	eim  = lab.EndpointIndependent
	adm  = lab.AddressDependent
	apdm = lab.AddressAndPortDependent
)

// box returns a router in user space.
func box(m, f lab.Behavior, p lab.Ports) *lab.NATConfig {
	return &lab.NATConfig{Mapping: m, Filtering: f, Ports: p, RefreshInbound: true}
}

func carrierNAT(hairpin bool) *lab.NATConfig {
	return &lab.NATConfig{Ports: lab.RandomPorts, Hairpin: hairpin, RefreshInbound: true}
}

// profiles are the homes of the matrix, in its order.
var profiles = []profile{
	{name: "open", class: open, about: "a public address, no filter", filtering: eim, ports: "kept"},
	{name: "firewalled", class: consistent, about: "a public address behind a stateful firewall", filtering: apdm, ports: "kept", firewall: true},
	{name: "home", class: consistent, about: "Linux home router: netfilter's masquerade", filtering: apdm, ports: "kept"},
	{name: "full-cone", class: consistent, about: "lets everyone in once a port is mapped", filtering: eim, ports: "kept", nat: netlab.NAT{Box: box(eim, eim, lab.PreservePorts)}},
	{name: "addr-cone", class: consistent, about: "address-restricted", filtering: adm, ports: "kept", nat: netlab.NAT{Box: box(eim, adm, lab.PreservePorts)}},
	{name: "eim-random", class: consistent, about: "one random port for all destinations", filtering: apdm, ports: "changed", nat: netlab.NAT{Box: box(eim, apdm, lab.RandomPorts)}},
	{name: "carrier", class: consistent, about: "carrier NAT (RFC 6888), as a phone has it", filtering: eim, ports: "changed", carrier: carrierNAT(true), direct: true},
	{name: "double", class: consistent, about: "home router behind a carrier NAT", filtering: apdm, ports: "changed", carrier: carrierNAT(true)},
	{name: "sym-random", class: random, about: "another random port for each destination: netfilter, fully-random", mapping: apdm, filtering: apdm, ports: "random", nat: netlab.NAT{Random: true}},
	{name: "sym-seq", class: random, about: "the next port for each destination", mapping: apdm, filtering: apdm, ports: "sequential", nat: netlab.NAT{Box: box(apdm, apdm, lab.SequentialPorts)}},
}

// udpBlocked is not in the matrix proper, but in pairs of its own.
var udpBlocked = profile{name: "udp-blocked", class: blocked, about: "all UDP is dropped", nat: netlab.NAT{NoUDP: true}}

// findProfile returns the profile with that name.
func findProfile(name string) (profile, error) {
	all := append(slices.Clone(profiles), udpBlocked)
	i := slices.IndexFunc(all, func(p profile) bool { return p.name == name })
	if i < 0 {
		return profile{}, fmt.Errorf("there is no NAT profile %q", name)
	}
	return all[i], nil
}

// place is where one end of a trial is.
type place struct {
	host  *netlab.Net
	outer *netlab.Site   // whose cable goes to the internet
	sites []*netlab.Site // all routers on the way
}

// forget makes every router on the way forget its flows.
func (p place) forget() error {
	for _, s := range p.sites {
		if s.Router == p.host {
			continue
		}
		if err := s.Forget(); err != nil {
			return err
		}
	}
	return nil
}

// number tells the two ends of a pair apart.
type number int

func (n number) name() string    { return [...]string{"a", "b"}[n] }
func (n number) wan() netip.Addr { return netip.AddrFrom4([4]byte{192, 88, 99, 101 + byte(n)}) }
func (n number) lan() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1 + byte(n), 0}), 24)
}

// prefix6 is one of a range that is used, but not here: those for examples count as no addresses of the Internet.
func (n number) prefix6() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb7, 0, 1 + byte(n)}), 64)
}

func (n number) inner() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 1 + byte(n), 0}), 24)
}

// at builds a home of the given profile at one end, with a cable that takes delay each way.
func (p profile) at(l *netlab.Lab, n number, delay time.Duration) (place, error) {
	link := &netlab.Impairment{Delay: delay}
	switch {
	case p.class == open || p.firewall:
		s, err := l.Public(n.name(), n.wan(), link)
		if err != nil {
			return place{}, err
		}
		if p.firewall {
			err = s.Host().Firewall()
		}
		return place{s.Host(), s, nil}, err
	case p.direct:
		s, err := l.Site(n.name(), netlab.NAT{WAN: n.wan(), LAN: n.inner(), Box: p.carrier, Link: link})
		if err != nil {
			return place{}, err
		}
		return place{s.Host(), s, []*netlab.Site{s}}, nil
	case p.carrier != nil:
		c, err := l.Site(n.name()+"c", netlab.NAT{WAN: n.wan(), LAN: n.inner(), Box: p.carrier, Link: link, Hosts: -1})
		if err != nil {
			return place{}, err
		}
		h, err := subscriber(l, c, n.name(), n.lan(), 20)
		if err != nil {
			return place{}, err
		}
		return place{h.Host(), c, []*netlab.Site{c, h}}, nil
	}
	nat := p.nat
	nat.WAN, nat.LAN, nat.Link = n.wan(), n.lan(), link
	s, err := l.Site(n.name(), nat)
	if err != nil {
		return place{}, err
	}
	return place{s.Host(), s, []*netlab.Site{s}}, nil
}

// subscriber adds a home router behind a carrier.
func subscriber(l *netlab.Lab, carrier *netlab.Site, name string, lan netip.Prefix, last byte) (*netlab.Site, error) {
	a := carrier.LAN.Addr().As4()
	a[3] = last
	return l.Site(name, netlab.NAT{WAN: netip.AddrFrom4(a), LAN: lan, Behind: carrier})
}

var bothConsistent = [2]class{consistent, consistent}

// special are pairs of places that do not come from two profiles.
var special = []struct {
	name    string
	about   string
	classes [2]class // of server and client, as far as they matter
	want    string   // relay, lan, direct, none: what there can be at best
	build   func(l *netlab.Lab, delay time.Duration) ([2]place, error)
}{
	{"lan", "two hosts behind one home router without hairpin", bothConsistent, "lan", oneLAN(netlab.NAT{})},
	{"lan-hairpin", "two hosts behind one router with hairpin", bothConsistent, "lan", oneLAN(netlab.NAT{
		Box: &lab.NATConfig{Filtering: apdm, Hairpin: true, RefreshInbound: true},
	})},
	{"same-prefix", "two homes with the same network and host address inside", bothConsistent, "direct", func(l *netlab.Lab, delay time.Duration) ([2]place, error) {
		var ends [2]place
		for i := range ends {
			s, err := l.Site(number(i).name(), netlab.NAT{
				WAN: number(i).wan(), LAN: number(0).lan(), Link: &netlab.Impairment{Delay: delay},
			})
			if err != nil {
				return ends, err
			}
			ends[i] = place{s.Host(), s, []*netlab.Site{s}}
		}
		return ends, nil
	}},
	{"carrier-hairpin", "two homes behind one carrier NAT with hairpin", bothConsistent, "direct", oneCarrier(true)},
	{"carrier-no-hairpin", "two homes behind one carrier NAT without hairpin", bothConsistent, "relay", oneCarrier(false)},
	{"ipv6", "two homes with random ports, and IPv6 of their own", [2]class{random, random}, "direct", func(l *netlab.Lab, delay time.Duration) ([2]place, error) {
		var ends [2]place
		for i := range ends {
			s, err := l.Site(number(i).name(), netlab.NAT{
				WAN: number(i).wan(), LAN: number(i).lan(), IPv6: number(i).prefix6(), Random: true, Link: &netlab.Impairment{Delay: delay},
			})
			if err != nil {
				return ends, err
			}
			ends[i] = place{s.Host(), s, []*netlab.Site{s}}
		}
		return ends, nil
	}},
	{"blocked:home", "the server has no UDP", [2]class{blocked, consistent}, "none", mixed("udp-blocked", "home")},
	{"home:blocked", "the client has no UDP", [2]class{consistent, blocked}, "none", mixed("home", "udp-blocked")},
}

func mixed(server, client string) func(*netlab.Lab, time.Duration) ([2]place, error) {
	return func(l *netlab.Lab, delay time.Duration) (ends [2]place, err error) {
		for i, name := range []string{server, client} {
			p, err := findProfile(name)
			if err != nil {
				return ends, err
			}
			if ends[i], err = p.at(l, number(i), delay); err != nil {
				return ends, err
			}
		}
		return ends, nil
	}
}

func oneLAN(nat netlab.NAT) func(*netlab.Lab, time.Duration) ([2]place, error) {
	return func(l *netlab.Lab, delay time.Duration) ([2]place, error) {
		nat := nat
		nat.WAN, nat.LAN, nat.Hosts, nat.Link = number(0).wan(), number(0).lan(), 2, &netlab.Impairment{Delay: delay}
		s, err := l.Site("a", nat)
		if err != nil {
			return [2]place{}, err
		}
		return [2]place{{s.Hosts[0], s, []*netlab.Site{s}}, {s.Hosts[1], s, nil}}, nil
	}
}

func oneCarrier(hairpin bool) func(*netlab.Lab, time.Duration) ([2]place, error) {
	return func(l *netlab.Lab, delay time.Duration) (ends [2]place, err error) {
		c, err := l.Site("c", netlab.NAT{
			WAN: number(0).wan(), LAN: number(0).inner(), Box: carrierNAT(hairpin), Link: &netlab.Impairment{Delay: delay}, Hosts: -1,
		})
		if err != nil {
			return ends, err
		}
		for i := range ends {
			h, err := subscriber(l, c, number(i).name(), number(i).lan(), 20+byte(i))
			if err != nil {
				return ends, err
			}
			ends[i] = place{h.Host(), c, []*netlab.Site{h}}
		}
		ends[0].sites = append(ends[0].sites, c)
		return ends, nil
	}
}
