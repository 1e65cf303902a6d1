//go:build linux

// Package netlab builds small Internets out of Linux network namespaces, to try omegatun in: a public
// segment, NAT routers, hosts behind them, and cables that lose, repeat, reorder or damage packets.
//
//	                internet                 routes between the sites; DHT nodes live here,
//	      192.88.99.10, .11, … on lo         each on a public address of its own
//	     ┌──────────────┴──────────────┐
//	192.88.99.101                 192.88.99.102
//	  a-router  masquerade          b-router  what nobody inside asked for is dropped
//	 192.168.1.1                   192.168.2.1
//	     │ lan                         │ lan
//	a  192.168.1.10               b  192.168.2.10
//
// Public addresses are taken from 192.88.99.0/24: reserved and unused since RFC 7526, but not on the lists
// of private and documentation ranges that HyperDHT ignores when it picks an address.
//
// The internet drops what arrives with a TTL of 8 or less, because the real one is that deep: a probe that
// is only meant to open the sender's own NAT does not reach the other side.
//
// # Nothing is left behind
//
// [Enter] moves the program into mount, process, network and (without root) user namespaces of its own, with
// a private /run. Everything a lab makes exists only in there, so that the kernel itself clears it away when
// the program ends, however it ends. Nothing in the machine's own network is touched, names cannot clash,
// and any number of labs run side by side.
//
// # Limitations
//
// Links have no rate of their own. IPv4 only between the sites. NATs are the kernel's, whose mapping is
// endpoint-independent, or random with [NAT].Random, and whose filtering is by address and port; or, with [NAT].Box, of any kind
// but in user space and for UDP only.
package netlab
