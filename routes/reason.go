package routes

import "sync/atomic"

// Reason is why a packet was dropped. Its text is stable: status output uses it as a name.
type Reason uint8

const (
	// Malformed packets are not IPv4 or IPv6, or their length, header length or IPv4 header checksum is wrong.
	Malformed Reason = iota
	// SourceNotAllowed packets came from a peer under an address that is not that peer's.
	SourceNotAllowed
	// DestinationNotOurs packets came from a peer for an address that is not this node's.
	DestinationNotOurs
	// SourceNotOurs packets came from this host under an address that is not this node's.
	SourceNotOurs
	// NoRoute packets came from this host for an address that is no peer's.
	NoRoute
	// NoSession packets could not be sent because the session was missing or refused them.
	NoSession
	// TooBig packets did not fit into the tunnel and were answered with the size that does.
	TooBig
	// Chatter is what systems send on any interface: multicast, broadcast and link-local packets.
	Chatter
	// DeviceFailed packets were accepted from a peer, but writing them to the device failed.
	DeviceFailed

	numReasons
)

// reasonTexts has the text of each Reason. It does not change.
var reasonTexts = [numReasons]string{
	Malformed:          "malformed",
	SourceNotAllowed:   "source not allowed",
	DestinationNotOurs: "destination not ours",
	SourceNotOurs:      "source not ours",
	NoRoute:            "no route",
	NoSession:          "no session",
	TooBig:             "too big",
	Chatter:            "chatter",
	DeviceFailed:       "device failed",
}

// String returns the reason in words.
func (r Reason) String() string {
	if r < numReasons {
		return reasonTexts[r]
	}
	return "unknown reason"
}

// MarshalText is [Reason.String], so that a map of counts becomes readable JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Stats is what has been counted since the peer or the forwarder was made. Bytes are those of whole IP packets.
type Stats struct {
	RxPackets, RxBytes uint64            // accepted from the peer and written to the device
	TxPackets, TxBytes uint64            // taken by the session
	Dropped            map[Reason]uint64 // packets, without reasons that never happened
}

// counters are the live form of [Stats]. All methods are safe for concurrent use.
type counters struct {
	txPackets, txBytes atomic.Uint64
	_                  [64]byte // sending and receiving are done by different processors
	rxPackets, rxBytes atomic.Uint64
	dropped            [numReasons]atomic.Uint64
}

func (c *counters) drop(r Reason, packets int) { c.dropped[r].Add(uint64(packets)) }

func (c *counters) stats() Stats {
	s := Stats{
		RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
		TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(),
		Dropped: make(map[Reason]uint64),
	}
	for r := range c.dropped {
		if n := c.dropped[r].Load(); n > 0 {
			s.Dropped[Reason(r)] = n
		}
	}
	return s
}
