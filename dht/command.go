package dht

import "strconv"

// Command says what a request asks for. Commands of the RPC layer carry the flag internalCommand, which is not
// part of the number on the wire but a flag of the packet.
type Command uint64

const internalCommand Command = 1 << 63

// The commands of the RPC layer, which every node answers.
const (
	cmdPing        = internalCommand     // empty reply
	cmdPingNAT     = internalCommand | 1 // empty reply to another port of the sender, named in the value
	cmdFindNode    = internalCommand | 2 // the nodes closest to the target
	cmdDownHint    = internalCommand | 3 // a node that the receiver told of does not answer
	cmdDelayedPing = internalCommand | 4 // empty reply after a delay in ms, named in the value
)

// The commands of HyperDHT. The first two are served by every node, the others by persistent ones.
const (
	cmdPeerHandshake Command = 0
	cmdPeerHolepunch Command = 1
	cmdFindPeer      Command = 2
	cmdLookup        Command = 3
	cmdAnnounce      Command = 4
	cmdUnannounce    Command = 5
	cmdMutablePut    Command = 6
	cmdMutableGet    Command = 7
	cmdImmutablePut  Command = 8
	cmdImmutableGet  Command = 9
)

// Internal reports whether c belongs to the RPC layer.
func (c Command) Internal() bool { return c&internalCommand != 0 }

// number returns the number of c on the wire.
func (c Command) number() uint64 { return uint64(c &^ internalCommand) }

// String returns the name of c as the protocol has it.
func (c Command) String() string {
	internal := [...]string{"PING", "PING_NAT", "FIND_NODE", "DOWN_HINT", "DELAYED_PING"}
	external := [...]string{
		"PEER_HANDSHAKE", "PEER_HOLEPUNCH", "FIND_PEER", "LOOKUP", "ANNOUNCE", "UNANNOUNCE",
		"MUTABLE_PUT", "MUTABLE_GET", "IMMUTABLE_PUT", "IMMUTABLE_GET",
	}
	switch n := c.number(); {
	case c.Internal() && n < uint64(len(internal)):
		return internal[n]
	case c.Internal():
		return "internal " + strconv.FormatUint(n, 10)
	case n < uint64(len(external)):
		return external[n]
	default:
		return "command " + strconv.FormatUint(n, 10)
	}
}
