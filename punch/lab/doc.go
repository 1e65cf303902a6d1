// Package lab is an Internet in memory: hosts, cables, routers that translate addresses, and the faults that
// real networks have. Tests of everything that punches, roams or retransmits run on it.
//
//	            core: latency, jitter, loss, duplication, reordering, MTU, hops, partitions
//	   ┌──────────────┬─────────────────────┬───────────────┐
//	 host dht1     NAT home-a            NAT carrier     firewall (routes, does not translate)
//	192.88.99.10      │ LAN                 │ LAN           │
//	               ┌──┴───┐             NAT home-b        host, with a public address
//	             host a  host a2            │
//	        192.168.1.10              host b
//
// Every line is a cable with faults of its own ([Link]). A NAT is described by the terms of RFC 4787:
// how it maps ([Behavior] of mapping), what it lets in ([Behavior] of filtering), how it picks ports, how long
// it remembers, and whether it loops traffic to its own public address back (hairpinning).
//
//	n := lab.New(lab.Config{Seed: 1, Latency: 10 * time.Millisecond})
//	server := n.Host("dht1", netip.MustParseAddr("192.88.99.10"))
//	home := n.NAT("home", lab.Linux(netip.MustParseAddr("192.88.99.101")))
//	h := home.Host("a", netip.MustParseAddr("192.168.1.10"))
//	c, err := h.Listen(netip.AddrPort{})
//
// Time is the time package's: inside a testing/synctest bubble it is fake, and a conversation of minutes takes
// no time; outside it is real. A Network and everything on it must be made and used inside one bubble, or
// wholly outside. No goroutine waits on behalf of a Network: packets under way sit in one heap with one timer,
// and a reader blocks in a way that synctest counts as idle.
//
// A Network is deterministic as far as its users are: each cable and each NAT draws from its own random
// source, made from the seed and its name, and packets that are due at one instant are handled in the order of
// their senders. So the same sends give the same losses and the same ports.
//
// # Limitations
//
//   - Multicast reaches one LAN, and hosts only.
//   - Only UDP. There is no ICMP: a packet that is too big or expires is dropped in silence, and so is one
//     to a port where nobody listens.
//   - IP fragments do not exist; every packet is sent as if DF were set.
//   - Latency across the core is the same for each pair; cables make hosts near and far.
//   - A NAT has one public address, and unlimited memory. It translates one family and routes the other.
package lab
