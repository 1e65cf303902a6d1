package netcheck

import (
	"fmt"
	"net"
	"strings"
)

// tellConflicts tells which other programs have a hand in where packets go.
func (c *checker) tellConflicts() {
	if c.looked != nil {
		c.emit(Finding{Check: "conflicts", Status: Note, Text: "not known on this system"})
		return
	}
	found := false
	n, r := &c.neighbours, &c.report
	bad := func(f Finding, k Conflict) {
		f.Check, found = "conflicts", true
		r.Conflicts = append(r.Conflicts, k)
		c.emit(f)
	}
	for i, name := range []string{n.Default4, n.Default6} {
		if !n.IsTunnel(name) || i == 1 && name == n.Default4 {
			continue
		}
		bad(Finding{
			Status: Note, Text: "everything to the Internet goes through the VPN " + name,
			Meaning: "peers see that VPN's address, and tunnels run inside it, slower and with smaller packets",
			Remedy:  "exclude omegatun's UDP port from it, if direct paths matter",
		}, Conflict{Kind: "full-tunnel", Interface: name})
	}
	for _, o := range n.Overlaps {
		where := o.Interface
		if where == "" {
			where = "nowhere"
		}
		k := Conflict{Kind: "route", Interface: o.Interface, Prefix: o.Prefix.String(), Table: o.Table}
		switch {
		case o.First:
			k.Kind = "shadow"
			rule := "sudo ip -6 rule add pref 100 to fd6f:6d65:6761::/48 lookup main"
			if o.Prefix.Addr().Is4() {
				rule = "sudo ip rule add pref 100 to 10.64.0.0/10 lookup main"
			}
			bad(Finding{
				Status:  Bad,
				Text:    fmt.Sprintf("packets for peers go to %s: its route to %v, in table %d, comes before ours", where, o.Prefix, o.Table),
				Meaning: "peers are connected, but their virtual addresses cannot be reached",
				Remedy:  rule,
			}, k)
		case o.Local && o.Prefix.Addr().Is4():
			bad(Finding{
				Status: Note, Text: fmt.Sprintf("the network %v on %s overlaps virtual IPv4 addresses", o.Prefix, where),
				Meaning: "peers whose IPv4 address lies in it go without; their IPv6 addresses work",
				Remedy:  "another ipv4 for such a peer in the configuration: omegatun help config",
			}, k)
		default:
			bad(Finding{
				Status: Note, Text: fmt.Sprintf("a route to %v on %s overlaps virtual addresses", o.Prefix, where),
				Meaning: "single peers are routed more precisely, and stay reachable; hosts there that have a peer's address do not",
			}, k)
		}
	}
	for _, t := range n.Tunnels {
		r.Conflicts = append(r.Conflicts, Conflict{Kind: "tunnel", Interface: t.Name})
	}
	if len(n.Strict) > 0 && len(n.Uplinks) > 1 {
		bad(Finding{
			Status: Note, Text: fmt.Sprintf("there are %d uplinks, and %s drops packets whose answer would leave by another (rp_filter)", len(n.Uplinks), join(n.Strict)),
			Meaning: "of two uplinks only the preferred one is of use",
			Remedy:  "sudo sysctl -w net.ipv4.conf.all.rp_filter=2",
		}, Conflict{Kind: "rp-filter", Interface: strings.Join(n.Strict, ",")})
	}
	if found {
		return
	}
	f := Finding{Check: "conflicts", Status: Good, Text: "none"}
	if len(n.Tunnels) > 0 {
		var names []string
		for _, t := range n.Tunnels {
			names = append(names, fmt.Sprintf("%s (%s)", t.Name, t.Kind))
		}
		f.Text = "none with the other VPNs here: " + join(names)
	}
	c.emit(f)
}

func join(list []string) string { return strings.Join(list, ", ") }

func fmtBytes(n int) string { return fmt.Sprintf("packets of %d bytes", n) }

// linkMTU returns the MTU of an interface; 0: not known.
func linkMTU(name string) int {
	if name == "" {
		return 0
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return i.MTU
}
