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

	flagFIN, flagPSH, flagCWR = 0x01, 0x08, 0x80
)

var errBadPacket = errors.New("what the kernel says of a packet does not fit it")

// cutter makes of what was read the packets it stands for. The zero value has none.
type cutter struct {
	packet    []byte // all of it; nil: nothing is left
	headers   int    // length of the headers that every packet gets; zero: the packet is an ordinary one
	transport int    // offset of the TCP or UDP header
	size      int    // payload of each packet but the last
	tcp       bool
	pseudo    uint64 // unfolded sum of the pseudo-header, without the length
	next      int    // offset of the payload not yet cut
	index     int    // of the next packet
}

// start takes b, which was read from the file, and keeps it until everything is cut or start is called again.
func (c *cutter) start(b []byte) error {
	*c = cutter{}
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
			field := packet[start+offset:][:2]
			initial := uint64(binary.BigEndian.Uint16(field))
			field[0], field[1] = 0, 0
			putSum(field, fold(sum(initial, packet[start:])), offset == udpSum)
		}
		c.packet = packet
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
	if size == 0 || start < minStart || c.headers > len(packet) {
		return errBadPacket
	}
	c.packet, c.transport, c.size, c.next = packet, start, size, c.headers
	c.pseudo = unix.IPPROTO_UDP
	if c.tcp {
		c.pseudo = unix.IPPROTO_TCP
	}
	c.pseudo = sum(c.pseudo, packet[addrs:minStart])
	return nil
}

// large reports whether the packet stands for many.
func (c *cutter) large() bool { return c.headers > 0 }

// cut writes the next packet to out and returns its length. It returns zero if there is none left, and an error if
// out is too short, in which case that packet is lost.
func (c *cutter) cut(out []byte) (int, error) {
	if c.packet == nil {
		return 0, nil
	}
	if c.headers == 0 {
		packet := c.packet
		c.packet = nil
		return copyWhole(out, packet)
	}
	payload := c.packet[c.next:min(c.next+c.size, len(c.packet))]
	total := c.headers + len(payload)
	index := c.index
	c.next += len(payload)
	c.index++
	last := c.next == len(c.packet)
	headers := c.packet[:c.headers]
	if last {
		c.packet = nil
	}
	if total > len(out) || total > maxPacket {
		return 0, errTooShort
	}
	out = out[:total]
	copy(out, headers)
	copy(out[c.headers:], payload)

	if out[0]>>4 == 4 {
		header := out[:c.transport]
		binary.BigEndian.PutUint16(header[2:], uint16(total))
		binary.BigEndian.PutUint16(header[4:], binary.BigEndian.Uint16(header[4:])+uint16(index))
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], fold(sum(0, header)))
	} else {
		binary.BigEndian.PutUint16(out[4:], uint16(total-40))
	}
	segment := out[c.transport:]
	field := segment[udpSum:][:2]
	if c.tcp {
		field = segment[tcpSum:][:2]
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
	field[0], field[1] = 0, 0
	putSum(field, fold(sum(c.pseudo+uint64(len(segment)), segment)), !c.tcp)
	return total, nil
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
