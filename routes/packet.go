package routes

import (
	"encoding/binary"
	"net/netip"
)

// Sizes in bytes and protocol numbers of the headers looked at. Sources: RFC 791, 8200, 9293, IANA.
const (
	headerLen4   = 20 // without options
	headerLen6   = 40
	maxHeaderLen = 60 // of IPv4, with options
	maxPacket    = 65535

	protoICMP4 = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
)

// parsePacket checks the header of the IP packet at the start of b and returns its addresses and the length of the
// whole packet, at most len(b). Whether an IPv4 header's checksum is right is left to [headerSumOK].
func parsePacket(b []byte) (src, dst netip.Addr, length int, ok bool) {
	if len(b) < headerLen4 {
		return src, dst, 0, false
	}
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0xf) * 4
		length = int(binary.BigEndian.Uint16(b[2:]))
		if header < headerLen4 || length < header || length > len(b) {
			return src, dst, 0, false
		}
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), length, true
	case 6:
		if len(b) < headerLen6 {
			return src, dst, 0, false
		}
		length = headerLen6 + int(binary.BigEndian.Uint16(b[4:]))
		if length > len(b) {
			return src, dst, 0, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		// A mapped address on the wire is nobody's: it must not pass for the IPv4 address inside it.
		return src, dst, length, !src.Is4In6() && !dst.Is4In6()
	}
	return src, dst, 0, false
}

// headerSumOK reports whether the header of packet, which [parsePacket] accepts, has the right checksum. IPv6 has none.
func headerSumOK(packet []byte) bool {
	if packet[0]>>4 != 4 {
		return true
	}
	return checksum(0, packet[:int(packet[0]&0xf)*4]) == 0
}

// transport returns the protocol and the payload of a packet that [parsePacket] accepts. ok is false for fragments
// other than the first, and if the payload starts with an IPv6 extension header its protocol is that header's.
func transport(packet []byte) (proto byte, payload []byte, ok bool) {
	if packet[0]>>4 == 6 {
		return packet[6], packet[headerLen6:], true
	}
	const fragmentOffset = 0x1fff
	if binary.BigEndian.Uint16(packet[6:])&fragmentOffset != 0 {
		return packet[9], nil, false
	}
	return packet[9], packet[int(packet[0]&0xf)*4:], true
}

// canBeUnfinished reports whether a whole packet that [parsePacket] accepts has the checksum of TCP or UDP where a
// kernel that is to finish it would look for it.
func canBeUnfinished(packet []byte) bool {
	const (
		minTCP         = 20
		minUDP         = 8
		moreFragments  = 0x20
		firstOfSeveral = 6 // offset in IPv4's header
	)
	proto, payload, ok := transport(packet)
	if !ok || packet[0]>>4 == 4 && packet[firstOfSeveral]&moreFragments != 0 {
		return false
	}
	switch proto {
	case protoTCP:
		return len(payload) >= minTCP && payload[12]>>4 >= minTCP/4 && len(payload) >= int(payload[12]>>4)*4
	case protoUDP:
		return len(payload) >= minUDP && int(binary.BigEndian.Uint16(payload[4:])) == len(payload)
	}
	return false
}

// checksum returns the Internet checksum (RFC 1071) of b, added to sum, which is the unfolded sum of bytes before it.
func checksum(sum uint64, b []byte) uint16 {
	for len(b) >= 4 {
		sum += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
