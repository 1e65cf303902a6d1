package tuntest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// TCP header flags (RFC 9293, 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Segment is what a TCP packet says beside its ports.
type Segment struct {
	Seq, Ack uint32
	Flags    byte
	MSS      uint16 // zero: the option is absent
	Options  []byte // further ones; padded with no-operations
	Payload  []byte
}

// Protocol numbers (IANA).
const (
	protoICMP4 = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
)

// UDP returns an IP packet with a UDP datagram. Both addresses must be of the same family, here and below, or it
// panics. All checksums are right.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	return finish(src.Addr(), dst.Addr(), protoUDP, append(b, payload...), 6)
}

// TCP returns an IP packet with a TCP segment.
func TCP(src, dst netip.AddrPort, s Segment) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	options := s.Options
	if s.MSS != 0 {
		options = append([]byte{2, 4, byte(s.MSS >> 8), byte(s.MSS)}, options...)
	}
	for len(options)%4 != 0 {
		options = append(slices.Clip(options), 1)
	}
	b = append(b, byte(5+len(options)/4)<<4, s.Flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, options...)
	return finish(src.Addr(), dst.Addr(), protoTCP, append(b, s.Payload...), 16)
}

// Echo returns an ICMP or ICMPv6 echo request ("ping").
func Echo(src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	return echo(src, dst, 8, 128, id, seq, payload)
}

// EchoReply returns the answer to [Echo].
func EchoReply(src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	return echo(src, dst, 0, 129, id, seq, payload)
}

func echo(src, dst netip.Addr, type4, type6 byte, id, seq uint16, payload []byte) []byte {
	proto, typ := byte(protoICMP4), type4
	if src.Is6() {
		proto, typ = protoICMP6, type6
	}
	b := []byte{typ, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, seq)
	return finish(src, dst, proto, append(b, payload...), 2)
}

// IP returns an IP packet with any payload, which is not looked at.
func IP(src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is4() != dst.Is4() {
		panic(fmt.Sprintf("tuntest: a packet from %v to %v", src, dst))
	}
	if src.Is4() {
		b := []byte{0x45, 0}
		b = binary.BigEndian.AppendUint16(b, uint16(20+len(payload)))
		b = append(b, 0, 0, 0x40, 0, 64, proto, 0, 0) // do not fragment
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[10:], checksum(b))
		return append(b, payload...)
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, proto, 64)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, payload...)
}

// finish puts the checksum into payload at sumAt and returns the packet.
func finish(src, dst netip.Addr, proto byte, payload []byte, sumAt int) []byte {
	binary.BigEndian.PutUint16(payload[sumAt:], transportSum(src, dst, proto, payload))
	return IP(src, dst, proto, payload)
}

// transportSum returns the checksum of a payload, for which its checksum field is zero, or zero if the field is right.
func transportSum(src, dst netip.Addr, proto byte, payload []byte) uint16 {
	if proto == protoICMP4 {
		return checksum(payload)
	}
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	return checksum(append(pseudo, payload...))
}

// Check returns an error if the length or a checksum of a packet is wrong. It knows IPv4 without options, IPv6
// without extension headers, and in them ICMP, TCP and UDP.
func Check(packet []byte) error {
	if len(packet) < 20 {
		return fmt.Errorf("tuntest: %d bytes are no IP packet", len(packet))
	}
	var src, dst netip.Addr
	var proto byte
	var payload []byte
	switch version := packet[0] >> 4; {
	case packet[0] == 0x45:
		if n := int(binary.BigEndian.Uint16(packet[2:])); n != len(packet) {
			return fmt.Errorf("tuntest: total length is %d in a packet of %d bytes", n, len(packet))
		}
		if sum := checksum(packet[:20]); sum != 0 {
			return fmt.Errorf("tuntest: IPv4 header checksum is off by %#x", sum)
		}
		proto, payload = packet[9], packet[20:]
		src, _ = netip.AddrFromSlice(packet[12:16])
		dst, _ = netip.AddrFromSlice(packet[16:20])
	case version == 6 && len(packet) >= 40:
		if n := int(binary.BigEndian.Uint16(packet[4:])); n != len(packet)-40 {
			return fmt.Errorf("tuntest: payload length is %d in a packet of %d bytes", n, len(packet))
		}
		proto, payload = packet[6], packet[40:]
		src, _ = netip.AddrFromSlice(packet[8:24])
		dst, _ = netip.AddrFromSlice(packet[24:40])
	default:
		return fmt.Errorf("tuntest: no IP packet this package knows: %x", packet[:20])
	}
	switch proto {
	case protoICMP4, protoTCP, protoUDP, protoICMP6:
		if sum := transportSum(src, dst, proto, payload); sum != 0 {
			return fmt.Errorf("tuntest: checksum of protocol %d is off by %#x", proto, sum)
		}
	}
	return nil
}

// checksum is the Internet checksum (RFC 1071), the plain way.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
