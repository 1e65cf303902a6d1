package routes

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"

	"omegatun/dht/key"
)

// ErrUnreachable is what a [Session] returns (or wraps) when its peer cannot be reached now and waiting does not
// help: programs that sent to it are told at once with an ICMP message, where they would otherwise wait.
var ErrUnreachable = errors.New("peer is unreachable")

// Session carries packets to one peer.
type Session interface {
	// SendFrom seals and sends the IP packets that next returns, in order. Packet b[offset:] is valid until the next call and
	// may be changed, as may the bytes before it; offset is at most [MaxOffset]. nil: there are no more. Unless finish is set, the
	// checksum of TCP or UDP may be unfinished, so that its field holds only the sum of the pseudo-header:
	// it is for a peer that can finish it.
	//
	// An error concerns all of the packets; they are counted as [NoSession] and, for [ErrUnreachable], answered. It is called
	// from the goroutines of [Forwarder.Run] and [Forwarder.RunQueue], perhaps from several at once, but never with packets of the same flow;
	// and it should not block: everyone's packets wait meanwhile.
	SendFrom(next func(offset int, finish bool) (b []byte, unfinished bool)) error
}

// MaxOffset is the most room in bytes that a [Session] can have before each packet.
const MaxOffset = 10

// PeerConfig describes a peer to [Forwarder.AddPeer].
type PeerConfig struct {
	Key      key.Public
	Prefixes []netip.Prefix // what the peer may send from and receive at: its addresses, and networks behind it
	Session  Session        // nil: none yet, see Peer.SetSession
	MTU      int            // see Peer.SetMTU; zero: MinMTU
}

// MinMTU is the smallest size in bytes of a tunnel's packets: what IPv6 requires of any link (RFC 8200, 5).
const MinMTU = 1280

// Peer is one remote key with its addresses and counters. Its methods are safe for concurrent use.
type Peer struct {
	key      key.Public
	prefixes []netip.Prefix
	session  atomic.Pointer[Session]
	whole    atomic.Int32 // see SetMTU
	counters counters
}

func newPeer(cfg PeerConfig) *Peer {
	p := &Peer{key: cfg.Key, prefixes: slices.Clone(cfg.Prefixes)}
	p.SetSession(cfg.Session)
	p.SetMTU(cfg.MTU)
	return p
}

// Key returns the public key of the peer.
func (p *Peer) Key() key.Public { return p.key }

// Prefixes returns a copy of the prefixes the peer was added with.
func (p *Peer) Prefixes() []netip.Prefix { return slices.Clone(p.prefixes) }

// SetSession makes the packets that follow go to s; nil: nowhere. The batch in progress may still go to the old one.
func (p *Peer) SetSession(s Session) {
	if s == nil {
		p.session.Store(nil)
		return
	}
	p.session.Store(&s)
}

// SetMTU sets the size in bytes of the largest IP packet that travels whole to this peer; 0 and less: MinMTU. TCP connections are
// held to it. If it is less than MinMTU, the [Session] carries packets of up to MinMTU all the same, in parts.
func (p *Peer) SetMTU(mtu int) {
	if mtu <= 0 {
		mtu = MinMTU
	}
	p.whole.Store(int32(max(leastWhole, min(mtu, maxPacket))))
}

// MTU returns the size in bytes of the largest IP packet that may be sent to this peer, from [MinMTU] to 65535.
func (p *Peer) MTU() int { return max(MinMTU, int(p.whole.Load())) }

// leastWhole bounds in bytes what SetMTU takes, so that segments do not become tiny.
const leastWhole = 256

// Stats returns what has been counted for this peer.
func (p *Peer) Stats() Stats { return p.counters.stats() }
