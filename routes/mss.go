package routes

import "encoding/binary"

// ClampMSS lowers the maximum segment size that a TCP SYN packet announces so that the segments it asks for fit into
// packets of mtu bytes, and corrects the checksum. It changes packet in place and reports whether it did. Anything
// that is not a well-formed SYN with the option is left alone. packet is one whole IP packet.
func ClampMSS(packet []byte, mtu int) bool {
	const (
		minTCP  = 20
		flags   = 13
		syn     = 1 << 1
		sum     = 16
		kindEnd = 0
		kindNop = 1
		kindMSS = 2
		lenMSS  = 4
	)
	// Cheapest question first: hardly any packet gets past it.
	if len(packet) < headerLen4+minTCP {
		return false
	}
	if proto := packet[6]; packet[0]>>4 == 6 && proto != protoTCP {
		return false
	} else if packet[0]>>4 == 4 && packet[9] != protoTCP {
		return false
	}
	_, _, length, ok := parsePacket(packet)
	if !ok {
		return false
	}
	_, tcp, ok := transport(packet[:length])
	if !ok || len(tcp) < minTCP || tcp[flags]&syn == 0 {
		return false
	}
	header := int(tcp[12]>>4) * 4
	if header < minTCP || header > len(tcp) {
		return false
	}
	want := mtu - (headerLen4 + minTCP)
	if packet[0]>>4 == 6 {
		want = mtu - (headerLen6 + minTCP)
	}
	if want <= 0 || want > maxPacket {
		return false
	}
	for options := tcp[minTCP:header]; len(options) > 0; {
		switch {
		case options[0] == kindEnd:
			return false
		case options[0] == kindNop:
			options = options[1:]
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return false
		case options[0] == kindMSS:
			if options[1] != lenMSS {
				return false
			}
			have := binary.BigEndian.Uint16(options[2:])
			if int(have) <= want {
				return false
			}
			binary.BigEndian.PutUint16(options[2:], uint16(want))
			odd := (header-len(options))%2 != 0 // the value straddles two words of the sum
			updateSum(tcp[sum:sum+2], have, uint16(want), odd)
			return true
		default:
			options = options[options[1]:]
		}
	}
	return false
}

// updateSum corrects the Internet checksum in sum for a 16-bit value that changed (RFC 1624, equation 3). odd says
// that the value starts at an odd offset, where its bytes count the other way round.
func updateSum(sum []byte, from, to uint16, odd bool) {
	if odd {
		from, to = from<<8|from>>8, to<<8|to>>8
	}
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^from) + uint32(to)
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}
