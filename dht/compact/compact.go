// Package compact implements the byte encodings that HyperDHT's messages are made of.
//
// All integers are little-endian unless a name says otherwise:
//
//	uint          1, 3, 5 or 9 bytes: a value up to 0xfc as itself; else 0xfd and a u16,
//	              0xfe and a u32, or 0xff and a u64. Longer forms than needed are accepted.
//	buffer        uint length, bytes
//	array         uint count, items
//	IPv4 address  4 octets as written, then the port as u16
//	IPv6 address  16 octets as written, then the port as u16
//
// Encoding appends to a slice. Decoding goes through a [Reader], which remembers the first error, so that
// a message is read field by field and checked once. Bytes left over after a message are not an error:
// that is how later versions add fields.
//
// Source: npm compact-encoding 3.5.2 and compact-encoding-net.
package compact

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

var (
	// ErrShort reports that the input ended before the value did.
	ErrShort = errors.New("compact: input ends within a value")
	// ErrRange reports a number that the reference implementation cannot represent, or a count above its limit.
	ErrRange = errors.New("compact: number out of range")
)

const (
	// MaxUint is the largest integer that the reference implementation decodes: 2^53 - 1.
	MaxUint = 1<<53 - 1
	// MaxCount is the largest number of items that an array may announce.
	MaxCount = 0x100000

	// AddrSize is the length of an encoded IPv4 address and port in bytes.
	AddrSize = 6
	// Addr6Size is the length of an encoded IPv6 address and port in bytes.
	Addr6Size = 18
)

// AppendUint appends v in the shortest form.
func AppendUint(b []byte, v uint64) []byte {
	switch {
	case v <= 0xfc:
		return append(b, byte(v))
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16(append(b, 0xfd), uint16(v))
	case v <= 0xffffffff:
		return binary.LittleEndian.AppendUint32(append(b, 0xfe), uint32(v))
	}
	return binary.LittleEndian.AppendUint64(append(b, 0xff), v)
}

// AppendUint16 appends v as two bytes.
func AppendUint16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }

// AppendUint32 appends v as four bytes.
func AppendUint32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }

// AppendUint64 appends v as eight bytes.
func AppendUint64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

// AppendBuffer appends the length of v and v itself.
func AppendBuffer(b, v []byte) []byte { return append(AppendUint(b, uint64(len(v))), v...) }

// AppendString appends the length of v in bytes and v itself.
func AppendString(b []byte, v string) []byte { return append(AppendUint(b, uint64(len(v))), v...) }

// AppendAddr appends an IPv4 address and port. An address that is not IPv4 (nor IPv4 mapped into IPv6),
// the zero value among them, is written as 0.0.0.0.
func AppendAddr(b []byte, a netip.AddrPort) []byte {
	var octets [4]byte
	if ip := a.Addr().Unmap(); ip.Is4() {
		octets = ip.As4()
	}
	return AppendUint16(append(b, octets[:]...), a.Port())
}

// AppendAddr6 appends an IPv6 address and port. The zero address is written as "::".
func AppendAddr6(b []byte, a netip.AddrPort) []byte {
	var octets [16]byte
	if a.Addr().IsValid() {
		octets = a.Addr().As16()
	}
	return AppendUint16(append(b, octets[:]...), a.Port())
}

// AppendAddrs appends an array of IPv4 addresses.
func AppendAddrs(b []byte, addrs []netip.AddrPort) []byte {
	b = AppendUint(b, uint64(len(addrs)))
	for _, a := range addrs {
		b = AppendAddr(b, a)
	}
	return b
}

// AppendAddrs6 appends an array of IPv6 addresses.
func AppendAddrs6(b []byte, addrs []netip.AddrPort) []byte {
	b = AppendUint(b, uint64(len(addrs)))
	for _, a := range addrs {
		b = AppendAddr6(b, a)
	}
	return b
}

// A Reader decodes values from the front of a slice. After the first error every method returns a zero
// value and [Reader.Err] tells what went wrong. A Reader is a value; copying it copies the position.
type Reader struct {
	b   []byte
	err error
}

// NewReader returns a Reader over b. Byte slices that it returns alias b.
func NewReader(b []byte) Reader { return Reader{b: b} }

// Err returns the first error: [ErrShort], [ErrRange], or nil.
func (r *Reader) Err() error { return r.err }

// Len returns the number of bytes not yet read.
func (r *Reader) Len() int { return len(r.b) }

// Rest returns all bytes not yet read, without reading them. It aliases the input.
func (r *Reader) Rest() []byte { return r.b }

// Fail makes err the Reader's error unless it has one, for a caller that finds a decoded value unacceptable.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

// Bytes reads n raw bytes. The result aliases the input; it is nil after an error.
func (r *Reader) Bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.Fail(ErrShort)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// Uint8 reads one byte.
func (r *Reader) Uint8() uint8 {
	if v := r.Bytes(1); v != nil {
		return v[0]
	}
	return 0
}

// Uint16 reads two bytes.
func (r *Reader) Uint16() uint16 {
	if v := r.Bytes(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

// Uint32 reads four bytes.
func (r *Reader) Uint32() uint32 {
	if v := r.Bytes(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// Uint64 reads eight bytes; a value above [MaxUint] is [ErrRange].
func (r *Reader) Uint64() uint64 {
	v := r.Bytes(8)
	if v == nil {
		return 0
	}
	n := binary.LittleEndian.Uint64(v)
	if n > MaxUint {
		r.Fail(ErrRange)
		return 0
	}
	return n
}

// Uint reads an integer of variable length; a value above [MaxUint] is [ErrRange].
func (r *Reader) Uint() uint64 {
	switch v := r.Uint8(); v {
	case 0xfd:
		return uint64(r.Uint16())
	case 0xfe:
		return uint64(r.Uint32())
	case 0xff:
		return r.Uint64()
	default:
		return uint64(v)
	}
}

// Buffer reads a length and that many bytes. The result aliases the input; it is empty, not nil, for a
// buffer of length zero, and nil after an error.
func (r *Reader) Buffer() []byte {
	n := r.Uint()
	if r.err == nil && n > uint64(len(r.b)) {
		r.Fail(ErrShort)
	}
	if r.err != nil {
		return nil
	}
	return r.Bytes(int(n))
}

// String reads a length in bytes and that many bytes of text. The text is not checked to be valid UTF-8.
func (r *Reader) String() string { return string(r.Buffer()) }

// Fixed32 reads 32 raw bytes.
func (r *Reader) Fixed32() (v [32]byte) {
	copy(v[:], r.Bytes(32))
	return v
}

// Fixed64 reads 64 raw bytes.
func (r *Reader) Fixed64() (v [64]byte) {
	copy(v[:], r.Bytes(64))
	return v
}

// Addr reads an IPv4 address and port. The result is the zero AddrPort after an error.
func (r *Reader) Addr() netip.AddrPort {
	v := r.Bytes(AddrSize)
	if v == nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(v)), binary.LittleEndian.Uint16(v[4:]))
}

// Addr6 reads an IPv6 address and port. The address is not unmapped.
func (r *Reader) Addr6() netip.AddrPort {
	v := r.Bytes(Addr6Size)
	if v == nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(v)), binary.LittleEndian.Uint16(v[16:]))
}

// Addrs reads an array of IPv4 addresses into a slice of its own. It allocates no more than the input holds.
func (r *Reader) Addrs() []netip.AddrPort { return readArray(r, AddrSize, (*Reader).Addr) }

// AppendAddrs appends what Addrs returns to dst.
func (r *Reader) AppendAddrs(dst []netip.AddrPort) []netip.AddrPort {
	for range r.Count(AddrSize) {
		dst = append(dst, r.Addr())
	}
	return dst
}

// Addrs6 reads an array of IPv6 addresses into a slice of its own. It allocates no more than the input holds.
func (r *Reader) Addrs6() []netip.AddrPort { return readArray(r, Addr6Size, (*Reader).Addr6) }

func readArray[T any](r *Reader, size int, read func(*Reader) T) []T {
	n := r.Count(size)
	if n == 0 {
		return nil
	}
	items := make([]T, n)
	for i := range items {
		items[i] = read(r)
	}
	return items
}

// Count reads the number of items of an array whose items take at least size bytes each (size > 0). It
// returns 0 after an error: [ErrRange] above [MaxCount], [ErrShort] when the input cannot hold that many.
func (r *Reader) Count(size int) int {
	n := r.Uint()
	switch {
	case r.err != nil:
		return 0
	case n > MaxCount:
		r.Fail(ErrRange)
		return 0
	case n > uint64(len(r.b)/size):
		r.Fail(ErrShort)
		return 0
	}
	return int(n)
}
