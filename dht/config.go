package dht

import (
	"context"
	"log/slog"
	"net/netip"
)

// Socket is one UDP port. Values are compared with ==, so an implementation is a pointer or holds one. It is
// safe for concurrent use.
type Socket interface {
	// Send sends one datagram. It must not block for long, and must not keep b.
	Send(b []byte, to netip.AddrPort) error
	// LocalAddr returns the address the socket is bound to; its port is never 0.
	LocalAddr() netip.AddrPort
}

// BatchSocket is a Socket that can send several datagrams with fewer system calls. A node uses it for what it has to
// send at a time: the requests of one step of a query, and the answers to a [Burst].
type BatchSocket interface {
	Socket
	// SendTo sends b[i] to to[i] for each i, in that order; both have the same length. The datagrams are independent
	// of each other: if one cannot be sent, the others are all the same, and the first error is returned. It must not
	// block for long, and must not keep either slice or what they hold.
	SendTo(b [][]byte, to []netip.AddrPort) error
}

// Mode says whether a node lends itself to the network.
type Mode uint8

const (
	// Adaptive starts as a client and becomes a full member once the node has been reachable at one address
	// for 20 minutes, and a client again after the host slept or its address changed.
	Adaptive Mode = iota
	// Ephemeral never becomes a member: others do not learn of the node, and it stores nothing for them. It
	// still forwards handshakes for peers that announced themselves through it.
	Ephemeral
	// Persistent becomes a member as soon as the node knows its own public address and that it is reachable.
	Persistent
)

// PublicBootstrap lists the nodes through which one enters the public network. The address before the "@" is
// used as long as it answers, the name is resolved if not.
//
// Source: npm hyperdht, lib/constants.js.
func PublicBootstrap() []string {
	return []string{
		"88.99.3.86@node1.hyperdht.org:49737",
		"142.93.90.113@node2.hyperdht.org:49737",
		"138.68.147.8@node3.hyperdht.org:49737",
	}
}

// Config says how a [Node] is to work. Client and Server are required; the zero value of everything else
// works.
type Config struct {
	// Client sends while the node may be behind a firewall. It sits on any free port.
	Client Socket
	// Server sits on a port that others may know. Nothing is sent from it while the node may be firewalled,
	// so that a datagram that arrives proves the port reachable. Whoever owns the sockets hands what they
	// receive to [Node.Receive] and closes them after the node.
	Server Socket
	// Bootstrap lists nodes to enter the network by, as "host:port" or "ip@host:port" (see [PublicBootstrap]).
	// Nil means the public network; empty but not nil means none: an isolated network, or its first node.
	Bootstrap []string
	// Mode says whether the node becomes a member of the network. Default: Adaptive.
	Mode Mode
	// Open says that the port of Server is known to be reachable from everywhere; nothing is probed then.
	Open bool
	// PublicAddr is the address under which others reach Server, if that is known. Together with Open it is
	// taken as a fact, and a node in mode Persistent is a member from the start, even the first of its
	// network; without Open it is only the first sample of what others report. Default: learn it. A Server
	// bound to a loopback address is its own public address when Open is set.
	PublicAddr netip.AddrPort
	// Private lets the node keep, ask and forward to nodes and peers at addresses that are not public: private,
	// loopback, documentation and so on. In the public network that would let strangers reach into ours.
	// Default: true if the node's own public address or that of a bootstrap node is one, if Server is bound to
	// a loopback address, or if there is neither a bootstrap node nor a PublicAddr.
	Private bool
	// Nodes are members of the network known from an earlier run, best first. They are asked along with the
	// bootstrap nodes, and make do without them.
	Nodes []netip.AddrPort
	// StoreBytes is about how much memory in bytes may be used for what is stored for others, at most. Default:
	// 64 MiB.
	StoreBytes int
	// LookupHost resolves the name of a bootstrap node. Default: [net.DefaultResolver].
	LookupHost func(ctx context.Context, host string) ([]netip.Addr, error)
	// Clock tells the time. Default: the system's.
	Clock Clock
	// Logger receives what may interest an operator; addresses of others only at debug level. Default: discard.
	Logger *slog.Logger
}
