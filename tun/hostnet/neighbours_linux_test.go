package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"omegatun/tun/tuntest"
)

func TestLook(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	blocks := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/10"), netip.MustParsePrefix("fd6f:6d65:6761::/48")}
	look := func() Neighbours {
		t.Helper()
		n, err := Look(blocks)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	wan := addVeth(t, "192.0.2.5/24")
	index := wan.Attrs().Index
	add := func(r *netlink.Route) {
		t.Helper()
		r.LinkIndex = index
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	add(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: netip.MustParseAddr("192.0.2.1").AsSlice()})
	configure(t, testConfig(openDevice(t).Name())) // is not a neighbour
	name := wan.Attrs().Name
	n := look()
	if n.Default4 != name || n.Default6 != "" || !slices.Equal(n.Uplinks, []string{name}) ||
		len(n.Overlaps) > 0 || len(n.Tunnels) > 0 {
		t.Errorf("Look of a plain host: %+v, want %s as the way out and nothing else", n, name)
	}

	add(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.0.0.0/8")), Scope: netlink.SCOPE_LINK})
	add(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("fd6f:6d65:6761:1::/64"))})
	add(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), Scope: netlink.SCOPE_LINK})
	want := []Overlap{
		{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Interface: name, Table: 254},
		{Prefix: netip.MustParsePrefix("fd6f:6d65:6761:1::/64"), Interface: name, Table: 254},
	}
	if got := look().Overlaps; !slices.Equal(got, want) {
		t.Errorf("Overlaps = %+v, want %+v", got, want)
	}

	// As Tailscale does for an exit node: a table before the main one.
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Family = 5270, 52, netlink.FAMILY_V4
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	add(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Table: 52, Scope: netlink.SCOPE_LINK})
	first := Overlap{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: name, Table: 52, First: true}
	if got := look().Overlaps; !slices.Contains(got, first) {
		t.Errorf("Overlaps = %+v, want %+v among them", got, first)
	}

	// As wg-quick does: the main table, default routes left out, comes first, and our routes are in it.
	main := netlink.NewRule()
	main.Priority, main.Table, main.Family, main.SuppressPrefixlen = 5269, 254, netlink.FAMILY_V4, 0
	if err := netlink.RuleAdd(main); err != nil {
		t.Fatal(err)
	}
	if got := look().Overlaps; slices.Contains(got, first) {
		t.Errorf("Overlaps = %+v, want none that comes before the main table", got)
	}

	other := openDevice(t).Name() // of somebody else, as it has not our mark
	link, err := netlink.LinkByName(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if n := look(); !slices.Equal(n.Tunnels, []Tunnel{{other, "tun"}}) || !n.IsTunnel(other) || n.IsTunnel(name) {
		t.Errorf("Tunnels = %+v, want %s", n.Tunnels, other)
	}
}
