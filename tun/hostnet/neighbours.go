package hostnet

import "net/netip"

// Neighbours is what else on the host has to do with where packets go: see [Look].
type Neighbours struct {
	// Tunnels are the interfaces of other VPNs that are up.
	Tunnels []Tunnel
	// Default4 and Default6 name the interfaces that packets to the Internet leave by; empty: they do not.
	Default4, Default6 string
	// Uplinks are the interfaces with a default route in the main table.
	Uplinks []string
	// Overlaps are routes of others into the blocks that were asked about.
	Overlaps []Overlap
	// Strict are those Uplinks that drop packets whose answer would leave by another interface (rp_filter = 1).
	Strict []string
}

// Tunnel is an interface of another VPN.
type Tunnel struct {
	Name string
	Kind string // as the kernel says: "wireguard", "tun", "ppp", …
}

// Overlap is a route of somebody else to addresses that may be ours.
type Overlap struct {
	Prefix    netip.Prefix
	Interface string // empty: the packets are not sent anywhere, as by a route of type blackhole
	Table     int
	// Local: it is the network of one of the host's own addresses.
	Local bool
	// First: it is looked up before the main table, where our routes are, and so takes our packets.
	First bool
}

// IsTunnel reports whether an interface of that name belongs to another VPN.
func (n *Neighbours) IsTunnel(name string) bool {
	for _, t := range n.Tunnels {
		if t.Name == name {
			return true
		}
	}
	return false
}
