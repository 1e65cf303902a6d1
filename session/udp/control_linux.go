package udp

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A control message is, in the byte order and word size of the machine:
//
//	word   length, of this header and the data
//	int32  level
//	int32  type
//	data, then padding to a multiple of the word
//
// Source: linux/socket.h, struct cmsghdr.
const wordSize = unix.SizeofCmsghdr - 8

const (
	// receiveControlSize holds what we ask for: IPV6_PKTINFO, UDP_GRO and SO_RXQ_OVFL, 88 bytes on 64-bit machines.
	receiveControlSize = 128
	// sendControlSize holds IPV6_PKTINFO and UDP_SEGMENT.
	sendControlSize = 64
)

// parseControl reads the control messages in b. What it does not know, and what is cut short, it leaves out.
func parseControl(b []byte, zones *zoneCache) (c control) {
	for len(b) >= unix.SizeofCmsghdr {
		var length uint64
		if wordSize == 8 {
			length = binary.NativeEndian.Uint64(b)
		} else {
			length = uint64(binary.NativeEndian.Uint32(b))
		}
		if length < unix.SizeofCmsghdr || length > uint64(len(b)) {
			return c
		}
		level := int32(binary.NativeEndian.Uint32(b[wordSize:]))
		kind := int32(binary.NativeEndian.Uint32(b[wordSize+4:]))
		c.take(level, kind, b[unix.SizeofCmsghdr:length], zones)
		b = b[min(unix.CmsgSpace(int(length)-unix.SizeofCmsghdr), len(b)):]
	}
	return c
}

// take reads one control message's data.
func (c *control) take(level, kind int32, data []byte, zones *zoneCache) {
	switch {
	case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(data) >= 4:
		// int: bytes of each datagram
		if n := binary.NativeEndian.Uint32(data); n <= math.MaxUint16 {
			c.segment = int(n)
		}
	case level == unix.SOL_SOCKET && kind == unix.SO_RXQ_OVFL && len(data) >= 4:
		// uint32: count of drops
		c.overflow, c.hasOverflow = binary.NativeEndian.Uint32(data), true
	case level == unix.SOL_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		// int: interface; in_addr: our address to answer from; in_addr: destination of the packet, which may be a broadcast
		c.local = netip.AddrFrom4([4]byte(data[4:8]))
	case level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		// in6_addr: destination; int: interface
		c.local = netip.AddrFrom16([16]byte(data[:16])).Unmap()
		if c.local.IsLinkLocalUnicast() && c.local.Is6() {
			c.local = c.local.WithZone(zones.toName(binary.NativeEndian.Uint32(data[16:])))
		}
	}
}

// appendControl appends the header of a control message and n zero bytes of data, padded, and returns the data too.
func appendControl(b []byte, level, kind int32, n int) (all, data []byte) {
	at := len(b)
	b = append(b, make([]byte, unix.CmsgSpace(n))...)
	if wordSize == 8 {
		binary.NativeEndian.PutUint64(b[at:], uint64(unix.CmsgLen(n)))
	} else {
		binary.NativeEndian.PutUint32(b[at:], uint32(unix.CmsgLen(n)))
	}
	binary.NativeEndian.PutUint32(b[at+wordSize:], uint32(level))
	binary.NativeEndian.PutUint32(b[at+wordSize+4:], uint32(kind))
	return b, b[at+unix.SizeofCmsghdr : at+unix.CmsgLen(n)]
}

// appendSegment appends the size of a train's datagrams.
func appendSegment(b []byte, segment int) []byte {
	b, data := appendControl(b, unix.SOL_UDP, unix.UDP_SEGMENT, 2)
	binary.NativeEndian.PutUint16(data, uint16(segment))
	return b
}

// appendTTL appends a time to live to a copy of b.
func appendTTL(b []byte, v6 bool, ttl int) []byte {
	level, kind := int32(unix.SOL_IP), int32(unix.IP_TTL)
	if v6 {
		level, kind = unix.SOL_IPV6, unix.IPV6_HOPLIMIT
	}
	b, data := appendControl(slices.Clip(b), level, kind, 4)
	binary.NativeEndian.PutUint32(data, uint32(ttl))
	return b
}

// sourceControl returns the control message that chooses local as the source address.
func sourceControl(local netip.Addr) []byte {
	if local.Is4() {
		b, data := appendControl(nil, unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		a := local.As4()
		copy(data[4:], a[:])
		return b
	}
	b, data := appendControl(nil, unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	a := local.As16()
	copy(data, a[:])
	binary.NativeEndian.PutUint32(data[16:], new(zoneCache).toIndex(local.Zone()))
	return b
}
