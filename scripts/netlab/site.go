//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"omegatun/punch/lab"
)

// provider is the internet's address on every access link.
const provider = "169.254.0.1"

// NAT describes a site: a home router on the internet and the hosts behind it.
type NAT struct {
	// WAN is the router's public address.
	WAN netip.Addr
	// LAN is the network inside; the router has its first address, the hosts .10 and following.
	LAN netip.Prefix
	// Hosts behind the router, on one LAN; 0 means 1, less none.
	Hosts int
	// Behind, if not nil, is the router whose LAN this one's public address belongs to: a carrier's. WAN is in Behind.LAN.
	Behind *Site
	// Box, if not nil, is what a router in user space does with UDP; it passes nothing else. Public is ignored: it is WAN.
	Box *lab.NATConfig
	// NoUDP makes the router drop all UDP.
	NoUDP bool
	// Random makes the router map each flow to a random port, so that no punched port can be foretold.
	Random bool
	// IPv6, if valid, is a public /64 of the site, not translated: its router lets in answers only, unless it is one in user
	// space. The hosts have ::10 and following. Not with Behind.
	IPv6 netip.Prefix
	// Link, if not nil, is what happens to packets on the cable between router and internet.
	Link *Impairment
}

// Site is a router and its hosts.
type Site struct {
	NAT
	Router *Net
	Hosts  []*Net
	Addrs  []netip.Addr // of Hosts, on the LAN
	Addrs6 []netip.Addr // of Hosts, IPv6
	Link   *Link        // nil without an Impairment

	lab *Lab
	box *box // nil: netfilter translates
}

// Host returns the first host of the site.
func (s *Site) Host() *Net { return s.Hosts[0] }

// routerRules are what a home router does: masquerade what goes out, let answers in, drop the rest without a
// word. (A router that let strangers' packets reach itself would record them as flows of its own, and then
// move a host's packet to the same stranger to another port: that breaks hole punching.)
const routerRules = `table ip nat {
  chain postrouting {
    type nat hook postrouting priority srcnat
    oifname "wan" masquerade %s
  }
}
table inet filter {
  chain input {
    type filter hook input priority filter
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname "wan" drop
  }
  chain forward {
    type filter hook forward priority filter; policy drop
    %s
    ct state established,related accept
    iifname "lan" accept
  }
}
`

// Site adds a NAT router and its hosts; name is the first host's, name2 the second's, name-router the router's.
func (l *Lab) Site(name string, nat NAT) (*Site, error) {
	s := &Site{NAT: nat, lab: l}
	var err error
	if s.Router, err = l.newNet(name + "-router"); err != nil {
		return nil, err
	}
	if err := s.Router.router(); err != nil {
		return nil, err
	}
	upstream := l.Internet
	if nat.Behind != nil {
		upstream = nat.Behind.Router
	}
	if s.Link, err = l.cable(upstream, "to-"+name, s.Router, "wan", nat.Link); err != nil {
		return nil, err
	}
	if err := s.translate("to-" + name); err != nil {
		return nil, err
	}
	gateway := nat.LAN.Masked().Addr().Next()
	lan := func(a netip.Addr) string { return netip.PrefixFrom(a, nat.LAN.Bits()).String() }
	err = errors.Join(
		s.Router.Run("ip", "link", "add", "lan", "type", "bridge"),
		s.Router.Run("ip", "link", "set", "lan", "up"),
		s.Router.Run("ip", "addr", "add", lan(gateway), "dev", "lan"),
	)
	if err != nil {
		return nil, err
	}
	addr := gateway
	for range 9 {
		addr = addr.Next()
	}
	if nat.Hosts == 0 {
		nat.Hosts = 1
	}
	for i := range max(0, nat.Hosts) {
		n, port := name, "port"+strconv.Itoa(i+1)
		if i > 0 {
			n += strconv.Itoa(i + 1)
		}
		h, err := l.newNet(n)
		if err == nil {
			err = s.plug(h, "eth0", port, addr)
		}
		if err != nil {
			return nil, err
		}
		s.Hosts, s.Addrs = append(s.Hosts, h), append(s.Addrs, addr)
		addr = addr.Next()
	}
	if nat.IPv6.IsValid() {
		return s, s.route6("to-" + name)
	}
	return s, nil
}

// route6 gives the site IPv6: the internet knows the way to its prefix, and its hosts the way out.
func (s *Site) route6(near string) error {
	const theirs, ours = "fe80::1", "fe80::2" // at the ends of the access link
	enable := func(n *Net, dev string) error { return n.Sysctl("net.ipv6.conf." + dev + ".disable_ipv6=0") }
	inside := s.IPv6.Masked().Addr()
	gateway := inside.Next()
	err := errors.Join(
		s.Router.Sysctl("net.ipv6.conf.lan.accept_dad=0"), // or it asks for nobody's Ethernet address for two seconds; see cable
		enable(s.lab.Internet, near), enable(s.Router, "wan"), enable(s.Router, "lan"),
		s.lab.Internet.Sysctl("net.ipv6.conf.all.forwarding=1"), s.Router.Sysctl("net.ipv6.conf.all.forwarding=1"),
		s.lab.Internet.Run("ip", "addr", "add", theirs+"/64", "dev", near, "nodad"),
		s.Router.Run("ip", "addr", "add", ours+"/64", "dev", "wan", "nodad"),
		s.Router.Run("ip", "addr", "add", netip.PrefixFrom(gateway, 64).String(), "dev", "lan", "nodad"),
		s.lab.Internet.Run("ip", "route", "add", s.IPv6.Masked().String(), "via", ours, "dev", near),
		s.Router.Run("ip", "route", "add", "default", "via", theirs, "dev", "wan"),
	)
	for i, h := range s.Hosts {
		a := inside.As16()
		a[15] = 0x10 + byte(i)
		addr := netip.AddrFrom16(a)
		s.Addrs6 = append(s.Addrs6, addr)
		err = errors.Join(err,
			h.Run("ip", "addr", "add", netip.PrefixFrom(addr, 64).String(), "dev", "eth0", "nodad"),
			h.Run("ip", "route", "add", "default", "via", gateway.String(), "dev", "eth0"),
		)
	}
	return err
}

// plug joins a host to the LAN, over which it then reaches everything.
func (s *Site) plug(h *Net, dev, port string, addr netip.Addr) error {
	if _, err := s.lab.cable(s.Router, port, h, dev, nil); err != nil {
		return err
	}
	return errors.Join(
		s.Router.Run("ip", "link", "set", port, "master", "lan"),
		h.Run("ip", "addr", "add", netip.PrefixFrom(addr, s.LAN.Bits()).String(), "dev", dev),
		h.Run("ip", "route", "replace", "default", "via", s.LAN.Masked().Addr().Next().String(), "dev", dev),
	)
}

// Plug joins another site's host to the LAN as well, with the given device and address, over which it then reaches everything.
func (s *Site) Plug(h *Net, dev string, addr netip.Addr) error { return s.plug(h, dev, dev, addr) }

// translate sets up the router's outside: its address, its way to the internet, and what it does with packets.
func (s *Site) translate(near string) error {
	upstream, gateway := s.lab.Internet, netip.MustParseAddr(provider)
	if s.Behind != nil {
		upstream, gateway = s.Behind.Router, s.Behind.LAN.Masked().Addr().Next()
		if err := upstream.Run("ip", "link", "set", near, "master", "lan"); err != nil {
			return err
		}
	}
	blocked := ""
	if s.NoUDP {
		blocked = "meta l4proto udp drop"
	}
	if s.Box != nil {
		return s.unpack(upstream, near, gateway)
	}
	flags := ""
	if s.Random {
		flags = "fully-random"
	}
	err := s.Router.Input(fmt.Sprintf(routerRules, flags, blocked), "nft", "-f", "-")
	if s.Behind != nil {
		return errors.Join(err,
			s.Router.Run("ip", "addr", "add", netip.PrefixFrom(s.WAN, s.Behind.LAN.Bits()).String(), "dev", "wan"),
			s.Router.Run("ip", "route", "add", "default", "via", gateway.String(), "dev", "wan"))
	}
	return errors.Join(err, s.lab.access(near, s.Router, "wan", s.WAN))
}

// unpack sets up a router in user space.
func (s *Site) unpack(upstream *Net, near string, gateway netip.Addr) error {
	cfg := *s.Box
	cfg.Public = s.WAN
	var err error
	if s.box, err = newBox(s.Router, cfg); err != nil {
		return err
	}
	s.lab.boxes = append(s.lab.boxes, s.box)
	if s.Behind == nil {
		err = errors.Join(
			upstream.Run("ip", "addr", "add", provider+"/32", "dev", near),
			upstream.Run("ip", "route", "add", s.WAN.String()+"/32", "dev", near),
		)
	}
	// The router has an address of its own that nobody sees. It answers for the public one, which is behind the device.
	return errors.Join(err,
		s.Router.Sysctl("net.ipv4.conf.wan.proxy_arp=1", "net.ipv4.neigh.wan.proxy_delay=0"),
		s.Router.Run("ip", "addr", "add", "169.254.1.2/32", "dev", "wan"),
		s.Router.Run("ip", "route", "add", gateway.String(), "dev", "wan"),
		s.Router.Run("ip", "route", "add", "default", "via", gateway.String(), "dev", "wan"),
		s.Router.Run("ip", "link", "set", boxDev, "up"),
		s.Router.Run("ip", "route", "add", s.WAN.String()+"/32", "dev", boxDev),
		s.Router.Run("ip", "rule", "add", "iif", "lan", "lookup", "100"),
		s.Router.Run("ip", "route", "add", "default", "dev", boxDev, "table", "100"),
	)
}

// Forget makes the router forget all flows, as a restart does.
func (s *Site) Forget() error {
	if s.box != nil {
		s.box.forget()
		return nil
	}
	return s.Router.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Renumber gives a router on the internet, that netfilter makes, another public address, as providers do over night. All flows
// are forgotten.
func (s *Site) Renumber(addr netip.Addr) error {
	near := "to-" + strings.TrimPrefix(strings.TrimSuffix(s.Router.Name, "-router"), s.lab.prefix)
	a, old := addr.String(), s.WAN.String()
	if s.box != nil {
		s.box.setPublic(addr)
		s.WAN = addr
		return errors.Join(
			s.lab.Internet.Run("ip", "route", "add", a+"/32", "dev", near),
			s.lab.Internet.Run("ip", "route", "del", old+"/32", "dev", near),
			s.Router.Run("ip", "route", "add", a+"/32", "dev", boxDev),
			s.Router.Run("ip", "route", "del", old+"/32", "dev", boxDev),
		)
	}
	s.WAN = addr
	return errors.Join(
		s.lab.Internet.Run("ip", "route", "add", a+"/32", "dev", near),
		s.lab.Internet.Run("ip", "route", "del", old+"/32", "dev", near),
		s.Router.Run("ip", "addr", "add", a+"/32", "dev", "wan"),
		s.Router.Run("ip", "route", "replace", provider, "dev", "wan", "src", a),
		s.Router.Run("ip", "route", "replace", "default", "via", provider, "dev", "wan", "src", a),
		s.Router.Run("ip", "addr", "del", old+"/32", "dev", "wan"), // masquerading forgets the flows of the old one
		s.Forget(),
	)
}

// Lifetime sets for how long a router that netfilter makes remembers a flow without packets.
func (s *Site) Lifetime(d time.Duration) error {
	seconds := strconv.Itoa(int(d.Seconds()))
	return s.Router.Sysctl("net.netfilter.nf_conntrack_udp_timeout="+seconds, "net.netfilter.nf_conntrack_udp_timeout_stream="+seconds)
}

// Open adds a host with a public address: no router, no filter.
func (l *Lab) Open(name string, addr netip.Addr) (*Net, error) {
	s, err := l.Public(name, addr, nil)
	if err != nil {
		return nil, err
	}
	return s.Host(), nil
}

// Public adds a host with a public address and no filter as a site; its router is the host itself. link, if not nil, is what
// happens on its cable.
func (l *Lab) Public(name string, addr netip.Addr, link *Impairment) (*Site, error) {
	h, err := l.newNet(name)
	if err != nil {
		return nil, err
	}
	s := &Site{NAT: NAT{WAN: addr, Link: link}, Router: h, Hosts: []*Net{h}, Addrs: []netip.Addr{addr}, lab: l}
	if s.Link, err = l.cable(l.Internet, "to-"+name, h, "eth0", link); err != nil {
		return nil, err
	}
	return s, l.access("to-"+name, h, "eth0", addr)
}

// Firewall lets in only answers to what the host has sent.
func (n *Net) Firewall() error {
	return n.Input(`table inet filter {
  chain input {
    type filter hook input priority filter
    iifname "lo" accept
    ct state established,related accept
    drop
  }
}
`, "nft", "-f", "-")
}

// access gives the far end of a cable a public address.
func (l *Lab) access(near string, n *Net, far string, addr netip.Addr) error {
	a := addr.String()
	return errors.Join(
		l.Internet.Run("ip", "addr", "add", provider+"/32", "dev", near),
		l.Internet.Run("ip", "route", "add", a+"/32", "dev", near),
		n.Run("ip", "addr", "add", a+"/32", "dev", far),
		n.Run("ip", "route", "add", provider, "dev", far, "src", a),
		n.Run("ip", "route", "add", "default", "via", provider, "dev", far, "src", a),
	)
}

// cable joins two namespaces: a pair of virtual Ethernet devices, or a [Link] if it is to be impaired.
func (l *Lab) cable(a *Net, devA string, b *Net, devB string, imp *Impairment) (*Link, error) {
	var link *Link
	if imp == nil {
		err := a.Run("ip", "link", "add", devA, "type", "veth", "peer", "name", devB, "netns", b.Name)
		if err != nil {
			return nil, err
		}
	} else {
		var err error
		if link, err = newLink(a, devA, b, devB, *imp); err != nil {
			return nil, err
		}
		l.links = append(l.links, link)
	}
	// Without duplicate address detection the devices do not change any more once they are up.
	for _, end := range []struct {
		n   *Net
		dev string
	}{{a, devA}, {b, devB}} {
		if err := end.n.Sysctl("net.ipv6.conf." + end.dev + ".accept_dad=0"); err != nil {
			return nil, err
		}
	}
	return link, errors.Join(
		a.Run("ip", "link", "set", devA, "up"),
		b.Run("ip", "link", "set", devB, "up"),
	)
}
