package netcheck

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"omegatun/tun/hostnet"
)

func TestJudge(t *testing.T) {
	const local = 4000
	host := netip.MustParseAddr("192.0.2.7")
	views := func(ports ...uint16) (list []seen) {
		for i, p := range ports {
			by := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 49737)
			list = append(list, seen{by: by, at: netip.AddrPortFrom(host, p)})
		}
		return list
	}
	for _, row := range []struct {
		name          string
		views         []seen
		ours          bool // the public address is the machine's own
		kind, mapping string
		sequential    bool
	}{
		{"no NAT", views(local, local, local), true, "consistent", "none", false},
		{"a NAT that keeps ports", views(local, local, local), false, "consistent", "endpoint-independent", false},
		{"a NAT with other ports", views(7, 7, 7), false, "consistent", "endpoint-independent", false},
		{"random ports", views(5000, 61000, 1200, 33000), false, "random", "endpoint-dependent", false},
		{"one port after the other", views(5000, 5001, 5003, 5004), false, "random", "endpoint-dependent", true},
		{"one node", views(7), false, "unknown", "unknown", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := checker{report: Report{NAT: NAT{Kind: "unknown", Mapping: "unknown"}}}
			if row.ours {
				c.state.Addrs = []netip.Addr{host}
			}
			c.judge(local, row.views)
			n := c.report.NAT
			if n.Kind != row.kind || n.Mapping != row.mapping || n.Public != host ||
				(n.Sequential != nil && *n.Sequential) != row.sequential || *n.PreservesPort != (row.views[0].at.Port() == local) {
				t.Errorf("%+v, want %s, %s", n, row.kind, row.mapping)
			}
		})
	}
}

func TestChoosePrefersHostsOfTheirOwn(t *testing.T) {
	a := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	nodes := []netip.AddrPort{a("192.0.2.1:1"), a("192.0.2.1:2"), a("192.0.2.2:1"), a("192.0.2.3:1")}
	if got, want := choose(nodes, 3), []netip.AddrPort{nodes[0], nodes[2], nodes[3]}; !slices.Equal(got, want) {
		t.Errorf("choose = %v, want %v", got, want)
	}
	if got := choose(nodes, 9); len(got) != 4 {
		t.Errorf("choose of more than there are: %v", got)
	}
}

func TestConflicts(t *testing.T) {
	for _, row := range []struct {
		name   string
		n      hostnet.Neighbours
		status Status
		kind   string
		text   string
		remedy string
	}{
		{"nothing", hostnet.Neighbours{Default4: "eth0"}, Good, "", "none", ""},
		{
			"another VPN beside",
			hostnet.Neighbours{Default4: "eth0", Tunnels: []hostnet.Tunnel{{Name: "wg0", Kind: "wireguard"}}},
			Good, "tunnel", "wg0 (wireguard)", "",
		},
		{
			"a VPN that takes everything",
			hostnet.Neighbours{Default4: "wg0", Default6: "wg0", Tunnels: []hostnet.Tunnel{{Name: "wg0", Kind: "wireguard"}}},
			Note, "full-tunnel", "through the VPN wg0", "exclude",
		},
		{
			"a table that comes first",
			hostnet.Neighbours{Overlaps: []hostnet.Overlap{{Prefix: netip.MustParsePrefix("::/0"), Interface: "tailscale0", Table: 52, First: true}}},
			Bad, "shadow", "comes before ours", "sudo ip -6 rule add",
		},
		{
			"a network of the host's",
			hostnet.Neighbours{Overlaps: []hostnet.Overlap{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Interface: "eth0", Table: 254, Local: true}}},
			Note, "route", "overlaps virtual IPv4", "another ipv4",
		},
		{
			"two uplinks",
			hostnet.Neighbours{Default4: "eth0", Uplinks: []string{"eth0", "wlan0"}, Strict: []string{"eth0"}},
			Note, "rp-filter", "2 uplinks", "sudo sysctl",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			var told []Finding
			c := checker{neighbours: row.n, emit: func(f Finding) { told = append(told, f) }}
			c.tellConflicts()
			if len(told) != 1 || told[0].Status != row.status || !strings.Contains(told[0].Text, row.text) ||
				!strings.Contains(told[0].Remedy, row.remedy) {
				t.Errorf("%+v, want one finding, %s, with %q", told, row.status, row.text)
			}
			if kinds := c.report.Conflicts; row.kind != "" && (len(kinds) == 0 || kinds[0].Kind != row.kind) || row.kind == "" && len(kinds) > 0 {
				t.Errorf("conflicts %+v, want %q", kinds, row.kind)
			}
		})
	}
}
