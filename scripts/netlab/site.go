//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// provider is the internet's address on every access link.
const provider = "169.254.0.1"

// NAT describes a site: a home router on the internet and the hosts behind it.
type NAT struct {
	// WAN is the router's public address.
	WAN netip.Addr
	// LAN is the network inside; the router has its first address, the hosts .10 and following.
	LAN netip.Prefix
	// Hosts behind the router, on one LAN; 0 means 1.
	Hosts int
	// Random makes the router map each flow to a random port, so that no punched port can be foretold.
	Random bool
	// Link, if not nil, is what happens to packets on the cable between router and internet.
	Link *Impairment
}

// Site is a router and its hosts.
type Site struct {
	NAT
	Router *Net
	Hosts  []*Net
	Addrs  []netip.Addr // of Hosts, on the LAN
	Link   *Link        // nil without an Impairment
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
    iifname "wan" drop
  }
  chain forward {
    type filter hook forward priority filter; policy drop
    ct state established,related accept
    iifname "lan" accept
  }
}
`

// Site adds a NAT router and its hosts; name is the first host's, name2 the second's, name-router the router's.
func (l *Lab) Site(name string, nat NAT) (*Site, error) {
	s := &Site{NAT: nat}
	var err error
	if s.Router, err = l.newNet(name + "-router"); err != nil {
		return nil, err
	}
	if err := s.Router.router(); err != nil {
		return nil, err
	}
	if s.Link, err = l.cable(l.Internet, "to-"+name, s.Router, "wan", nat.Link); err != nil {
		return nil, err
	}
	flags := ""
	if nat.Random {
		flags = "fully-random"
	}
	gateway := nat.LAN.Masked().Addr().Next()
	lan := func(a netip.Addr) string { return netip.PrefixFrom(a, nat.LAN.Bits()).String() }
	err = errors.Join(
		l.access("to-"+name, s.Router, "wan", nat.WAN),
		s.Router.Input(fmt.Sprintf(routerRules, flags), "nft", "-f", "-"),
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
	for i := range max(1, nat.Hosts) {
		n, port := name, "port"+strconv.Itoa(i+1)
		if i > 0 {
			n += strconv.Itoa(i + 1)
		}
		h, err := l.newNet(n)
		if err != nil {
			return nil, err
		}
		if _, err := l.cable(s.Router, port, h, "eth0", nil); err != nil {
			return nil, err
		}
		err = errors.Join(
			s.Router.Run("ip", "link", "set", port, "master", "lan"),
			h.Run("ip", "addr", "add", lan(addr), "dev", "eth0"),
			h.Run("ip", "route", "add", "default", "via", gateway.String()),
		)
		if err != nil {
			return nil, err
		}
		s.Hosts, s.Addrs = append(s.Hosts, h), append(s.Addrs, addr)
		addr = addr.Next()
	}
	return s, nil
}

// Open adds a host with a public address: no router, no filter.
func (l *Lab) Open(name string, addr netip.Addr) (*Net, error) {
	h, err := l.newNet(name)
	if err != nil {
		return nil, err
	}
	if _, err := l.cable(l.Internet, "to-"+name, h, "eth0", nil); err != nil {
		return nil, err
	}
	return h, l.access("to-"+name, h, "eth0", addr)
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
