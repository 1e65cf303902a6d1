package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"omegatun/dht/compact"
)

// Kind is what a control datagram is about.
type Kind uint8

// The kinds of control datagram. Those that ask are answered at once and along the path they came; the answer
// is never more than one and a half times as long as the question.
const (
	// Keepalive says that the sender is there, and no more. It is not answered.
	Keepalive Kind = 1
	// Ping asks for a [Pong]. Like any datagram it moves the path when it comes from a new address.
	Ping Kind = 2
	// Pong answers a Ping or a PathProbe.
	Pong Kind = 3
	// PathProbe asks for a [Pong] too, but says nothing about where the sender wants to be answered in future: it
	// only finds out whether a path works.
	PathProbe Kind = 4
	// MTUProbe is padded to the size in question. One that arrives is answered with an [MTUReply].
	MTUProbe Kind = 5
	// MTUReply says how long the MTUProbe was that arrived.
	MTUReply Kind = 6
	// Close says that the sender drops the session.
	Close Kind = 7
	// Retire says that the sender has another session with the receiver, and sends no packets over this one any more. It
	// receives until the receiver says the same.
	Retire Kind = 8
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case Keepalive:
		return "keepalive"
	case Ping:
		return "ping"
	case Pong:
		return "pong"
	case PathProbe:
		return "path probe"
	case MTUProbe:
		return "mtu probe"
	case MTUReply:
		return "mtu reply"
	case Close:
		return "close"
	case Retire:
		return "retire"
	}
	return fmt.Sprintf("control kind %d", uint8(k))
}

// CloseCode says why a session ends. Codes not listed here may be received.
type CloseCode uint16

// The reasons for [Close].
const (
	CloseUnspecified CloseCode = 0
	CloseShutdown    CloseCode = 1 // the sender stops
	CloseReplaced    CloseCode = 2 // a newer session takes over
	CloseIdle        CloseCode = 3 // nothing to do; it may be opened again any time
	CloseNotAllowed  CloseCode = 4 // the sender no longer accepts this peer
	CloseKeyUsedUp   CloseCode = 5 // a new handshake is needed
)

// String returns the reason in words.
func (c CloseCode) String() string {
	switch c {
	case CloseUnspecified:
		return "no reason given"
	case CloseShutdown:
		return "shutting down"
	case CloseReplaced:
		return "replaced by a newer session"
	case CloseIdle:
		return "idle"
	case CloseNotAllowed:
		return "no longer allowed"
	case CloseKeyUsedUp:
		return "key used up"
	}
	return fmt.Sprintf("reason %d", uint16(c))
}

// Control is a control datagram: the plaintext of a datagram that is meant for omegatun itself. Integers are
// little-endian.
//
//	0x01, kind u8, then by kind
//	  keepalive, retire, and kinds that are not known   nothing
//	  ping, path probe   id u64, time u64
//	  pong               id u64, time u64, family u8: 0; or 4, 4 octets, port u16; or 6, 16 octets, port u16
//	  mtu probe          id u64, size u16, zeros up to size less the overhead of a datagram
//	  mtu reply          id u64, size u16
//	  close              code u16
//
// Bytes after the last field are ignored: padding, or fields of later versions.
type Control struct {
	Kind Kind
	// ID is chosen by whoever asks, and echoed. An ID that cannot be guessed proves that the question arrived.
	ID uint64
	// Time is what the sender of a Ping or PathProbe put there, echoed: its own clock, in any unit.
	Time uint64
	// Observed is, in a Pong, where the question came from as the answering side saw it; unmapped. The zero AddrPort
	// stands for no address, as on a relayed path.
	Observed netip.AddrPort
	// Size is, in an MTUProbe and its reply, the length of the whole datagram in bytes: the UDP payload.
	Size uint16
	Code CloseCode // in a Close
}

// Address families of [Control.Observed].
const (
	familyNone = 0
	familyIPv4 = 4
	familyIPv6 = 6
)

// minMTUProbe is the least Size of an MTUProbe: nothing but its fields.
const minMTUProbe = Overhead + 2 + 8 + 2

// Append appends the plaintext to b. An MTUProbe gets its padding; one whose Size is less than its fields need is
// that long instead.
func (c Control) Append(b []byte) []byte {
	start := len(b)
	b = append(b, contentControl, byte(c.Kind))
	switch c.Kind {
	case Ping, PathProbe:
		b = binary.LittleEndian.AppendUint64(b, c.ID)
		b = binary.LittleEndian.AppendUint64(b, c.Time)
	case Pong:
		b = binary.LittleEndian.AppendUint64(b, c.ID)
		b = binary.LittleEndian.AppendUint64(b, c.Time)
		b = appendObserved(b, c.Observed)
	case MTUProbe:
		size := max(c.Size, minMTUProbe)
		b = binary.LittleEndian.AppendUint64(b, c.ID)
		b = binary.LittleEndian.AppendUint16(b, size)
		b = append(b, make([]byte, int(size)-Overhead-(len(b)-start))...)
	case MTUReply:
		b = binary.LittleEndian.AppendUint64(b, c.ID)
		b = binary.LittleEndian.AppendUint16(b, c.Size)
	case Close:
		b = binary.LittleEndian.AppendUint16(b, uint16(c.Code))
	case Keepalive, Retire:
	}
	return b
}

func appendObserved(b []byte, a netip.AddrPort) []byte {
	switch ip := a.Addr().Unmap(); {
	case ip.Is4():
		return compact.AppendAddr(append(b, familyIPv4), a)
	case ip.Is6():
		return compact.AppendAddr6(append(b, familyIPv6), a)
	}
	return append(b, familyNone)
}

// ParseControl decodes a plaintext of [ContentControl]. A kind that is not known is no error: only Kind is set, and
// the datagram is to be ignored. The error wraps [ErrControl].
func ParseControl(plaintext []byte) (Control, error) {
	r := compact.NewReader(plaintext)
	if r.Uint8() != contentControl {
		r.Fail(errors.New("first byte"))
	}
	c := Control{Kind: Kind(r.Uint8())}
	switch c.Kind {
	case Ping, PathProbe:
		c.ID, c.Time = readUint64(&r), readUint64(&r)
	case Pong:
		c.ID, c.Time = readUint64(&r), readUint64(&r)
		c.Observed = readObserved(&r)
	case MTUProbe:
		c.ID, c.Size = readUint64(&r), r.Uint16()
		if int(c.Size) != len(plaintext)+Overhead {
			r.Fail(errors.New("size of the mtu probe is not what it says"))
		}
	case MTUReply:
		c.ID, c.Size = readUint64(&r), r.Uint16()
	case Close:
		c.Code = CloseCode(r.Uint16())
	case Keepalive, Retire:
	}
	if err := r.Err(); err != nil {
		return Control{}, fmt.Errorf("%w: %w", ErrControl, err)
	}
	return c, nil
}

// readUint64 reads eight bytes of any value, unlike the method of the same name.
func readUint64(r *compact.Reader) uint64 {
	if v := r.Bytes(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func readObserved(r *compact.Reader) netip.AddrPort {
	switch family := r.Uint8(); family {
	case familyNone:
	case familyIPv4:
		return r.Addr()
	case familyIPv6:
		a := r.Addr6()
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	default:
		r.Fail(fmt.Errorf("address family %d", family))
	}
	return netip.AddrPort{}
}
