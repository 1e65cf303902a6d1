package hostnet

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunnelKinds are the kinds of interface that VPNs use. Containers use others: veth, bridge, macvlan.
var tunnelKinds = []string{
	"wireguard", "ppp", "ipip", "sit", "gre", "gretap", "ip6tnl", "ip6gre", "vti", "vti6", "xfrm", "amneziawg",
}

// tunnelKind returns the kind of an interface that may belong to a VPN; else an empty text.
func tunnelKind(l netlink.Link) string {
	if tap, ok := l.(*netlink.Tuntap); ok {
		if tap.Mode != netlink.TUNTAP_MODE_TUN {
			return "" // of a virtual machine
		}
		return "tun"
	}
	if slices.Contains(tunnelKinds, l.Type()) {
		return l.Type()
	}
	return ""
}

// Look finds out what else on the host has to do with where packets go, and which routes of others lead into the blocks.
// It changes nothing, and needs no privileges.
func Look(blocks []netip.Prefix) (Neighbours, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Neighbours{}, fmt.Errorf("hostnet: netlink: %w", err)
	}
	defer nl.Close()
	links, err := listLinks(nl)
	if err != nil {
		return Neighbours{}, err
	}
	var n Neighbours
	names, ours := make(map[int]string), make(map[int]bool)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index], ours[a.Index] = a.Name, a.Alias == Alias || a.RawFlags&unix.IFF_LOOPBACK != 0
		if kind := tunnelKind(l); !ours[a.Index] && a.RawFlags&unix.IFF_UP != 0 && kind != "" {
			n.Tunnels = append(n.Tunnels, Tunnel{Name: a.Name, Kind: kind})
		}
	}
	n.Default4, n.Default6 = names[routeTo(nl, probe4).Interface], names[routeTo(nl, probe6).Interface]
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		early, err := earlyTables(nl, family)
		if err != nil {
			return Neighbours{}, err
		}
		routes, err := listRoutes(nl, family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return Neighbours{}, err
		}
		for _, r := range routes {
			if r.Table == unix.RT_TABLE_LOCAL || r.Protocol == RouteProtocol || ours[r.LinkIndex] ||
				r.Type != unix.RTN_UNICAST && r.Type != unix.RTN_BLACKHOLE && r.Type != unix.RTN_UNREACHABLE && r.Type != unix.RTN_PROHIBIT {
				continue
			}
			to, ok := prefix(r.Dst)
			isDefault := !ok || to.Bits() == 0
			if isDefault && r.Table == unix.RT_TABLE_MAIN && r.Type == unix.RTN_UNICAST {
				n.Uplinks = append(n.Uplinks, names[r.LinkIndex])
			}
			first := slices.Contains(early, r.Table)
			if isDefault {
				if !first {
					continue // every other route is more specific
				}
				to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				if family == unix.AF_INET {
					to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				}
			}
			if slices.ContainsFunc(blocks, to.Overlaps) {
				n.Overlaps = append(n.Overlaps, Overlap{
					Prefix: to, Interface: names[r.LinkIndex], Table: r.Table, First: first,
					Local: r.Scope == netlink.SCOPE_LINK && r.Protocol == unix.RTPROT_KERNEL,
				})
			}
		}
	}
	slices.Sort(n.Uplinks)
	n.Uplinks = slices.Compact(n.Uplinks)
	for _, name := range n.Uplinks {
		if rpFilter(name) == 1 {
			n.Strict = append(n.Strict, name)
		}
	}
	slices.SortFunc(n.Overlaps, func(a, b Overlap) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Table, b.Table))
	})
	return n, nil
}

// earlyTables returns the tables whose routes, default ones included, are looked up before the main table, for packets of
// any program.
func earlyTables(nl *netlink.Handle, family int) ([]int, error) {
	rules, err := list("rules", func() ([]netlink.Rule, error) { return nl.RuleList(family) })
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(rules, func(a, b netlink.Rule) int { return cmp.Compare(a.Priority, b.Priority) })
	var early []int
	for _, r := range rules {
		conditional := r.Src != nil || r.IifName != "" || r.OifName != "" || r.UIDRange != nil || r.Mark != 0 && !r.Invert
		switch {
		case r.Table == unix.RT_TABLE_MAIN: // also if default routes in it do not count (suppress_prefixlength 0)
			return early, nil
		case r.Table != unix.RT_TABLE_LOCAL && r.Table != 0 && !conditional:
			early = append(early, r.Table)
		}
	}
	return early, nil
}

// rpFilter returns how strictly the kernel checks the sources of what comes in by an interface: the larger of two values.
func rpFilter(name string) int {
	most := 0
	for _, dir := range []string{"all", name} {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", dir, "rp_filter"))
		if b = bytes.TrimSpace(b); err == nil && len(b) == 1 {
			most = max(most, int(b[0]-'0'))
		}
	}
	return most
}
