package dht

import (
	"net/netip"
	"time"

	"omegatun/dht/key"
)

// Info is a snapshot of a node's state.
type Info struct {
	// ID names the node in the network once it is persistent; before, it is a random place to look from.
	ID key.Target
	// Persistent: the node is a member of the network, and stores and answers for others.
	Persistent bool
	// Firewalled: the port of the server socket is not known to be reachable.
	Firewalled bool
	// Online: the latest requests were not all lost. True until shown otherwise.
	Online bool
	// Degraded: more than half of the latest requests were lost.
	Degraded bool
	// Suspended: see [Node.Suspend].
	Suspended bool
	// NAT is the kind of NAT the node is behind: Open if anyone can reach it, Consistent if others see the same
	// port, Random if they see different ones, Unknown while too few agree.
	NAT Firewall
	// Bootstrapped: the first look around has ended, see [Node.Ready].
	Bootstrapped bool
	// Host is the node's address as others see it; invalid while unknown.
	Host netip.Addr
	// Port is the node's port as others see it: of the client socket while firewalled, else of the server
	// socket. 0 while unknown, or if others see different ports ("randomized").
	Port uint16
	// Nodes is the number of members in the routing table.
	Nodes int
	// Requests counts the requests in flight.
	Requests int
	// Records counts the peers, announcements and values stored for others.
	Records int
}

// Pong is the answer to a ping.
type Pong struct {
	From netip.AddrPort // who answered
	To   netip.AddrPort // our address as the other side sees it
	RTT  time.Duration  // from the first attempt to the answer
}

// PeerReply is one node's answer to [Node.FindPeer].
type PeerReply struct {
	From netip.AddrPort // the node that answered: it forwards handshakes to the peer
	To   netip.AddrPort // our address as that node sees it
	Peer Record
}

// HandshakeReply is the answer to [Node.Handshake].
type HandshakeReply struct {
	Noise   []byte         // the server's Noise message; owned by the caller
	Server  netip.AddrPort // the server's socket as the relay sees it, or the relay itself when it is the server
	Self    netip.AddrPort // our socket as the relay sees it
	Relay   netip.AddrPort // the node asked
	Relayed bool           // the answer came from elsewhere through the node asked
}

// HolepunchReply is the answer to [Node.Holepunch].
type HolepunchReply struct {
	Payload []byte         // the sealed answer; owned by the caller
	Peer    netip.AddrPort // the server's socket as the relay sees it
	Self    netip.AddrPort // our socket as the relay sees it
}

// Server receives the messages for an announced key. Its methods are called from whichever goroutine handed
// the datagram to [Node.Receive], several at a time; they must return quickly. Nothing is sent unless Reply is
// called, which may happen later, from any goroutine, and counts once.
type Server interface {
	HandleHandshake(*HandshakeRequest)
	HandleHolepunch(*HolepunchRequest)
}

// RelayPair is a node that forwards messages to us, and the address it forwards them to.
type RelayPair struct {
	Relay netip.AddrPort
	Peer  netip.AddrPort // our default socket as the relay sees it
}

// Firewall is the kind of NAT that a peer says it is behind. Kinds above FirewallRandom count as it.
type Firewall uint8

// The kinds of firewall, as on the wire.
const (
	FirewallUnknown    Firewall = iota // not known yet
	FirewallOpen                       // reachable from everywhere
	FirewallConsistent                 // one public port per socket, whoever it sends to
	FirewallRandom                     // another public port for each destination
)

// String returns the kind in a word.
func (f Firewall) String() string {
	switch f {
	case FirewallUnknown:
		return "unknown"
	case FirewallOpen:
		return "open"
	case FirewallConsistent:
		return "consistent"
	case FirewallRandom:
		return "random"
	}
	return "random"
}
