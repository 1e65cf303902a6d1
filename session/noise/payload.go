package noise

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// PayloadVersion is the version of the payload that this package reads and writes.
const PayloadVersion = 1

// ErrPayload is wrapped by the errors of [ParsePayload].
var ErrPayload = errors.New("malformed handshake payload")

// ErrorCode says why a peer does not want the connection.
type ErrorCode uint64

// Error codes of a payload. Others may be received.
const (
	ErrorNone            ErrorCode = 0
	ErrorAborted         ErrorCode = 1
	ErrorVersionMismatch ErrorCode = 2
	ErrorTryLater        ErrorCode = 3
)

// String returns the code in words.
func (c ErrorCode) String() string {
	switch c {
	case ErrorNone:
		return "no error"
	case ErrorAborted:
		return "aborted"
	case ErrorVersionMismatch:
		return "version mismatch"
	case ErrorTryLater:
		return "try later"
	}
	return fmt.Sprintf("error %d", uint64(c))
}

// Payload is what each side tells the other inside the handshake.
//
//	version uint = 1, flags uint, error uint, firewall uint, then for each flag that is set, in this order
//	  1   holepunch       id uint, array of (relay address, peer address)
//	  2   addresses4      array of IPv4 addresses
//	  4   addresses6      array of IPv6 addresses
//	  8   udx             version uint = 1, features uint (1: reusable socket), stream id uint, seq uint
//	  16  secretStream    version uint = 1
//	  32  relayThrough    version uint = 1, flags uint = 0, public key 32, token 32
//	  64  relayAddresses  array of IPv4 addresses
//	then the trailer: whatever is left
//
// Each version field is written as 1 when it is zero, so a caller need not set it.
type Payload struct {
	// Version other than [PayloadVersion] means that nothing else was read: the rest is zero. Append writes
	// nothing else either.
	Version      uint64
	Error        ErrorCode
	Firewall     uint64            // a dht.Firewall, but any number may be received; above random counts as random
	Holepunch    *HolepunchInfo    // nil: absent
	Addresses4   []netip.AddrPort  // IPv4; absent when empty
	Addresses6   []netip.AddrPort  // IPv6, not unmapped; absent when empty
	UDX          *UDXInfo          // nil: absent
	SecretStream *SecretStreamInfo // nil: absent
	RelayThrough *RelayThrough     // nil: absent
	// RelayAddresses is sent by a server only, IPv4; nil: absent. Empty but not nil is present and empty.
	RelayAddresses []netip.AddrPort
	// Trailer is the bytes after the last field, which HyperDHT ignores; nil when there are none.
	Trailer []byte
}

// HolepunchInfo says how to reach a server with hole punching messages.
type HolepunchInfo struct {
	ID     uint64 // the server's number for this attempt
	Relays []RelayPair
}

// RelayPair is a node that forwards to the server, and the server's address as that node sees it. Both are
// IPv4.
type RelayPair struct{ Relay, Peer netip.AddrPort }

// UDXInfo describes the sender's end of the UDX stream.
type UDXInfo struct {
	Version  uint64
	Reusable bool   // the sender can use the socket again for another stream
	ID       uint32 // the sender's id for the stream: what the receiver writes into its packets
	Seq      uint64 // 0 so far
}

// SecretStreamInfo describes the encrypted stream on top of it.
type SecretStreamInfo struct{ Version uint64 }

// RelayThrough asks to meet at a blind relay.
type RelayThrough struct {
	Version uint64
	Relay   key.Public
	Token   [32]byte // names the pair at the relay
}

// Flags of the wire form; each announces a field.
const (
	flagHolepunch      = 1
	flagAddresses4     = 2
	flagAddresses6     = 4
	flagUDX            = 8
	flagSecretStream   = 16
	flagRelayThrough   = 32
	flagRelayAddresses = 64

	featureReusable = 1

	relayPairSize = 2 * compact.AddrSize
)

func (p *Payload) flags() (flags uint64) {
	for _, f := range []struct {
		flag    uint64
		present bool
	}{
		{flagHolepunch, p.Holepunch != nil},
		{flagAddresses4, len(p.Addresses4) > 0},
		{flagAddresses6, len(p.Addresses6) > 0},
		{flagUDX, p.UDX != nil},
		{flagSecretStream, p.SecretStream != nil},
		{flagRelayThrough, p.RelayThrough != nil},
		{flagRelayAddresses, p.RelayAddresses != nil},
	} {
		if f.present {
			flags |= f.flag
		}
	}
	return flags
}

// Append appends the wire form of p to b.
func (p *Payload) Append(b []byte) []byte {
	version := cmp.Or(p.Version, PayloadVersion)
	b = compact.AppendUint(b, version)
	if version != PayloadVersion {
		return b
	}
	b = compact.AppendUint(b, p.flags())
	b = compact.AppendUint(b, uint64(p.Error))
	b = compact.AppendUint(b, p.Firewall)
	if h := p.Holepunch; h != nil {
		b = compact.AppendUint(b, h.ID)
		b = compact.AppendUint(b, uint64(len(h.Relays)))
		for _, pair := range h.Relays {
			b = compact.AppendAddr(b, pair.Relay)
			b = compact.AppendAddr(b, pair.Peer)
		}
	}
	if len(p.Addresses4) > 0 {
		b = compact.AppendAddrs(b, p.Addresses4)
	}
	if len(p.Addresses6) > 0 {
		b = compact.AppendAddrs6(b, p.Addresses6)
	}
	if u := p.UDX; u != nil {
		var features uint64
		if u.Reusable {
			features |= featureReusable
		}
		b = compact.AppendUint(b, cmp.Or(u.Version, 1))
		b = compact.AppendUint(b, features)
		b = compact.AppendUint(b, uint64(u.ID))
		b = compact.AppendUint(b, u.Seq)
	}
	if s := p.SecretStream; s != nil {
		b = compact.AppendUint(b, cmp.Or(s.Version, 1))
	}
	if r := p.RelayThrough; r != nil {
		b = compact.AppendUint(b, cmp.Or(r.Version, 1))
		b = compact.AppendUint(b, 0)
		b = append(b, r.Relay[:]...)
		b = append(b, r.Token[:]...)
	}
	if p.RelayAddresses != nil {
		b = compact.AppendAddrs(b, p.RelayAddresses)
	}
	return append(b, p.Trailer...)
}

// ParsePayload decodes b. The error wraps [ErrPayload]. A payload of another version is no error: see
// [Payload.Version]. The trailer aliases b, everything else is copied. Flags that this version does not know
// are ignored, and their fields become part of the trailer.
func ParsePayload(b []byte) (Payload, error) {
	r := compact.NewReader(b)
	p := Payload{Version: r.Uint()}
	if p.Version == PayloadVersion {
		p.read(&r)
	}
	if err := r.Err(); err != nil {
		return Payload{}, fmt.Errorf("noise: %w: %w", ErrPayload, err)
	}
	return p, nil
}

// read decodes what follows the version. Fields are in the order of the wire.
func (p *Payload) read(r *compact.Reader) {
	flags := r.Uint()
	p.Error = ErrorCode(r.Uint())
	p.Firewall = r.Uint()
	if flags&flagHolepunch != 0 {
		p.Holepunch = &HolepunchInfo{ID: r.Uint()}
		for range r.Count(relayPairSize) {
			p.Holepunch.Relays = append(p.Holepunch.Relays, RelayPair{Relay: r.Addr(), Peer: r.Addr()})
		}
	}
	if flags&flagAddresses4 != 0 {
		p.Addresses4 = r.Addrs()
	}
	if flags&flagAddresses6 != 0 {
		p.Addresses6 = r.Addrs6()
	}
	if flags&flagUDX != 0 {
		p.UDX = &UDXInfo{
			Version:  r.Uint(),
			Reusable: r.Uint()&featureReusable != 0,
			ID:       uint32Field(r),
			Seq:      r.Uint(),
		}
	}
	if flags&flagSecretStream != 0 {
		p.SecretStream = &SecretStreamInfo{Version: r.Uint()}
	}
	if flags&flagRelayThrough != 0 {
		p.RelayThrough = &RelayThrough{Version: r.Uint()}
		r.Uint() // flags, none defined
		p.RelayThrough.Relay = r.Fixed32()
		p.RelayThrough.Token = r.Fixed32()
	}
	if flags&flagRelayAddresses != 0 {
		if p.RelayAddresses = r.Addrs(); p.RelayAddresses == nil {
			p.RelayAddresses = []netip.AddrPort{}
		}
	}
	if r.Len() > 0 {
		p.Trailer = r.Bytes(r.Len())
	}
}

// uint32Field reads an integer of variable length that must fit into 32 bits.
func uint32Field(r *compact.Reader) uint32 {
	v := r.Uint()
	if v > 1<<32-1 {
		r.Fail(compact.ErrRange)
		return 0
	}
	return uint32(v)
}
