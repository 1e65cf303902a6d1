package tun

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"golang.org/x/sys/unix"
)

// A read from the file gives a header (struct virtio_net_hdr, linux/virtio_net.h, in the machine's byte order) and one
// packet, which can be a large one that stands for many:
//
//	| flags | gso type | header len | gso size | csum start | csum offset |  1, 1, 2, 2, 2 and 2 bytes
//
// flags & 1: the checksum at csum start + csum offset has only the sum of the pseudo-header. gso size is the payload of
// each packet but the last. header len is not to be trusted: it can cover the whole packet.
const virtioLen = 10

// Of the transport headers. Sources: RFC 9293, 3.1; RFC 3168, 6.1; RFC 768.
const (
	tcpLen, tcpSum   = 20, 16
	udpLen, udpSum   = 8, 6
	tcpSeq, tcpFlags = 4, 13
	tcpDataOffset    = 12

	flagFIN, flagPSH, flagACK, flagECE, flagCWR = 0x01, 0x08, 0x10, 0x40, 0x80
)

var errBadPacket = errors.New("what the kernel says of a packet does not fit it")

// maxHeaders bounds the headers of a large packet: IPv4 and TCP with all their options have 120 bytes, and some room for
// extension headers of IPv6.
const maxHeaders = 256

// cutter makes of what was read the packets it stands for, one after the other, where they lie: the headers of each are
// written over the end of the payload before it, which is not needed any more. The zero value has none.
type cutter struct {
	b         []byte // what was read, from the virtio header on; nil: nothing is left
	headers   int    // length of the headers that every packet gets; zero: the packet is an ordinary one
	transport int    // offset of the TCP or UDP header
	sum       int    // offset of the checksum in that header
	needsSum  bool   // the checksum is not finished
	plain     bool   // TCP or UDP directly behind the IP header, and no fragment
	tcp       bool
	udp       bool
	size      int    // payload of each packet but the last
	pseudo    uint64 // unfolded sum of the pseudo-header, without the length
	next      int    // offset in b of the payload not yet cut
	index     int    // of the next packet
	ipSum     uint64 // unfolded sum of the IPv4 header, without length, identification and checksum
	saved     [maxHeaders]byte
}

// clear forgets everything but saved, which says nothing without the rest.
func (c *cutter) clear() {
	c.b, c.headers, c.needsSum, c.plain, c.tcp, c.udp, c.index = nil, 0, false, false, false, false, 0
}

// start takes b, which was read from the file, and keeps and changes it until everything is cut or start is called
// again. The packet begins at b[virtioLen].
func (c *cutter) start(b []byte) error {
	c.clear()
	if len(b) < virtioLen+1 {
		return errBadPacket
	}
	needsSum := b[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	kind := b[1] &^ unix.VIRTIO_NET_HDR_GSO_ECN
	size := int(binary.NativeEndian.Uint16(b[4:]))
	start, offset := int(binary.NativeEndian.Uint16(b[6:])), int(binary.NativeEndian.Uint16(b[8:]))
	packet := b[virtioLen:]
	if kind == unix.VIRTIO_NET_HDR_GSO_NONE {
		if needsSum {
			if start+offset+2 > len(packet) {
				return errBadPacket
			}
			c.needsSum, c.transport, c.sum = true, start, offset
			c.recognize(packet)
		}
		c.b = b
		return nil
	}

	version := packet[0] >> 4
	switch {
	case kind == unix.VIRTIO_NET_HDR_GSO_TCPV4 && version == 4, kind == unix.VIRTIO_NET_HDR_GSO_TCPV6 && version == 6:
		c.tcp = true
		if len(packet) < start+tcpLen || offset != tcpSum {
			return errBadPacket
		}
		header := int(packet[start+tcpDataOffset]>>4) * 4
		if header < tcpLen {
			return errBadPacket
		}
		c.headers = start + header
	case kind == unix.VIRTIO_NET_HDR_GSO_UDP_L4 && (version == 4 || version == 6):
		if offset != udpSum {
			return errBadPacket
		}
		c.udp = true
		c.headers = start + udpLen
	default:
		return errBadPacket
	}
	addrs := 8 // to the transport header, both addresses
	minStart := 40
	if version == 4 {
		addrs, minStart = 12, 20
		if start != int(packet[0]&0xf)*4 {
			return errBadPacket
		}
	}
	if size == 0 || start < minStart || c.headers > min(len(packet), maxHeaders) {
		return errBadPacket
	}
	c.b, c.transport, c.sum, c.size, c.next = b, start, offset, size, virtioLen+c.headers
	c.needsSum, c.plain = true, version == 4 || start == minStart
	c.pseudo = unix.IPPROTO_UDP
	if c.tcp {
		c.pseudo = unix.IPPROTO_TCP
	}
	c.pseudo = sum(c.pseudo, packet[addrs:minStart])
	copy(c.saved[:], packet[:c.headers])
	if version == 4 {
		header := c.saved[:start]
		header[2], header[3], header[10], header[11] = 0, 0, 0, 0
		c.ipSum = sum(0, header) - uint64(binary.BigEndian.Uint16(header[4:]))
	}
	return nil
}

// recognize finds out whether an ordinary packet without a finished checksum is TCP or UDP, where every receiver finds
// the checksum by itself.
func (c *cutter) recognize(packet []byte) {
	proto, addrs := byte(0), packet[:0]
	switch {
	case packet[0]>>4 == 4 && len(packet) >= 20 && int(packet[0]&0xf)*4 == c.transport && c.transport >= 20:
		if binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 { // a fragment
			return
		}
		proto, addrs = packet[9], packet[12:20]
	case packet[0]>>4 == 6 && len(packet) >= 40 && c.transport == 40:
		proto, addrs = packet[6], packet[8:40]
	}
	c.tcp = proto == unix.IPPROTO_TCP && c.sum == tcpSum && len(packet) >= c.transport+tcpLen
	c.udp = proto == unix.IPPROTO_UDP && c.sum == udpSum && len(packet) >= c.transport+udpLen
	if c.plain = c.tcp || c.udp; c.plain {
		c.pseudo = sum(uint64(proto), addrs)
	}
}

// packet returns all of the packet, and the length of the longest that it stands for.
func (c *cutter) packet() (packet []byte, longest int) {
	if c.b == nil {
		return nil, 0
	}
	packet = c.b[virtioLen:]
	if c.headers > 0 {
		return packet, min(len(packet), c.headers+c.size)
	}
	return packet, len(packet)
}

// large reports whether the packet stands for many.
func (c *cutter) large() bool { return c.headers > 0 }

// cut returns the next packet as b[offset:], nil if there is none left. offset is at most virtioLen; the bytes before
// the packet are the caller's to overwrite. b is valid until the next call. Unless finish is set, the checksum of TCP or UDP
// may be left unfinished: then the field has only the sum of the pseudo-header.
func (c *cutter) cut(offset int, finish bool) (b []byte, unfinished bool) {
	if c.b == nil {
		return nil, false
	}
	if c.headers == 0 {
		b = c.b[virtioLen-offset:]
		c.b = nil
		if !c.needsSum {
			return b, false
		}
		packet := b[offset:]
		if c.plain {
			return b, c.setSum(packet, finish)
		}
		field := packet[c.transport+c.sum:][:2]
		initial := uint64(binary.BigEndian.Uint16(field))
		field[0], field[1] = 0, 0
		putSum(field, fold(sum(initial, packet[c.transport:])), c.sum == udpSum)
		return b, false
	}
	start := c.next - c.headers
	end := min(c.next+c.size, len(c.b))
	b = c.b[start-offset : end : end]
	packet := b[offset:]
	index := c.index
	last := end == len(c.b)
	c.next = end
	c.index++
	if last {
		c.b = nil
	}
	if len(packet) > maxPacket {
		return c.cut(offset, finish)
	}
	copy(packet, c.saved[:c.headers])
	if packet[0]>>4 == 4 {
		length, id := uint16(len(packet)), binary.BigEndian.Uint16(packet[4:])+uint16(index)
		binary.BigEndian.PutUint16(packet[2:], length)
		binary.BigEndian.PutUint16(packet[4:], id)
		binary.BigEndian.PutUint16(packet[10:], fold(c.ipSum+uint64(length)+uint64(id)))
	} else {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
	}
	segment := packet[c.transport:]
	if c.tcp {
		binary.BigEndian.PutUint32(segment[tcpSeq:], binary.BigEndian.Uint32(segment[tcpSeq:])+uint32(index*c.size))
		if !last {
			segment[tcpFlags] &^= flagFIN | flagPSH
		}
		if index > 0 {
			segment[tcpFlags] &^= flagCWR
		}
	} else {
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	}
	return b, c.setSum(packet, finish || !c.plain)
}

// setSum sets the checksum of TCP or UDP, or only the sum of the pseudo-header unless finish is set. It reports whether
// it is unfinished.
func (c *cutter) setSum(packet []byte, finish bool) (unfinished bool) {
	segment := packet[c.transport:]
	field := segment[c.sum:][:2]
	s := c.pseudo + uint64(len(segment))
	if !finish {
		binary.BigEndian.PutUint16(field, ^fold(s))
		return true
	}
	field[0], field[1] = 0, 0
	putSum(field, fold(sum(s, segment)), c.udp)
	return false
}

// copyTo copies the next packet, finished, to out and returns its length. It returns zero if there is none left, and
// an error if out is too short, in which case that packet is lost.
func (c *cutter) copyTo(out []byte) (int, error) {
	b, _ := c.cut(0, true)
	return copyWhole(out, b)
}

var errTooShort = errors.New("a packet is larger than the buffers")

func copyWhole(out, packet []byte) (int, error) {
	if len(packet) > len(out) {
		return 0, errTooShort
	}
	return copy(out, packet), nil
}

// putSum stores a checksum; UDP's zero means that there is none.
func putSum(field []byte, sum uint16, udp bool) {
	if udp && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// sum adds the 16-bit words of b to s, without folding: in one's complement, 64 bits are four words side by side.
func sum(s uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), 0)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, 0, carry)
		s += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(rest[:]), 0)
		s += carry
	}
	return s
}

// fold makes the Internet checksum (RFC 1071) of a sum.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}
