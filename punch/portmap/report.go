package portmap

import (
	"net/netip"
	"time"
)

// Protocol is a way to ask a gateway for a mapping. The zero Protocol is none.
type Protocol uint8

// The protocols, best first.
const (
	PCP Protocol = 1 + iota
	NATPMP
	UPnP
)

// String returns the protocol's usual name.
func (p Protocol) String() string {
	switch p {
	case PCP:
		return "PCP"
	case NATPMP:
		return "NAT-PMP"
	case UPnP:
		return "UPnP"
	default:
		return "none"
	}
}

// Answer is what came of one protocol when the gateway was last asked by all of them.
type Answer struct {
	Protocol Protocol
	// Speaks is set if the gateway speaks the protocol, be it that it refuses mappings.
	Speaks bool
	// External is the public address that the gateway named; zero if it named none. PCP names one only with a
	// mapping.
	External netip.Addr
	// Err says why there was no answer, or why a mapping was refused; nil if it was granted or not asked for.
	Err error
}

// Mapping is a port of the gateway that leads here.
type Mapping struct {
	Protocol Protocol
	// External is the gateway's address and port. It is of use to strangers only if Public.
	External netip.AddrPort
	// Public is false if the address is a private one: the gateway is itself behind a NAT.
	Public bool
	// Expires is when the mapping ends unless it is renewed. A permanent one is renewed all the same.
	Expires   time.Time
	Permanent bool
}

// Report is the state of a [Mapper].
type Report struct {
	// Gateway and Local are the addresses of the gateway and of this host towards it; zero: there is no gateway.
	Gateway, Local netip.Addr
	// Rounds counts the rounds of questions that have ended. Until the first has, nothing is known.
	Rounds uint64
	// Answers has one entry for each protocol that was asked, best first, of the last search. Renewals ask only
	// the protocol of the mapping.
	Answers []Answer
	// Mapping is what is mapped; Protocol is zero if nothing is.
	Mapping Mapping
	// Restarts counts how often the gateway has lost its mappings.
	Restarts uint64
}

// isPublic reports whether a can be the address of a host on the Internet.
func isPublic(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	if !a.Is4() {
		return true
	}
	b := a.As4()
	return b[0] != 0 && b[0] < 240 && // this network; reserved
		(b[0] != 100 || b[1]&0xc0 != 64) && // 100.64.0.0/10, a carrier's NAT
		(b[0] != 192 || b[1] != 0 || b[2] != 0) && // 192.0.0.0/24, DS-Lite
		(b[0] != 198 || b[1]&0xfe != 18) // 198.18.0.0/15, benchmarks
}
