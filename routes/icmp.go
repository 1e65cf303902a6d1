package routes

import (
	"encoding/binary"
	"time"
)

// An ICMP error answers a packet that could not be carried. It is built for the system that sent the packet and seems
// to come from the packet's destination: an address of ours as its source would be refused there, as nothing arrives
// from oneself.
//
//	IPv4  20 header | type, code, checksum | 0, next-hop MTU | packet, all at most 576   RFC 792, 1191, 1812
//	IPv6  40 header | type, code, checksum | MTU             | packet, all at most 1280  RFC 4443
const (
	icmpHeaderLen = 8
	maxICMP4      = 576
	maxICMP6      = MinMTU
	icmpHopLimit  = 64

	// quotedLen is how much of a packet's payload an error must quote for the sender to find the socket.
	quotedLen = 8
)

// AppendTooBig appends to b the ICMP error that answers packet with the size in bytes of the largest packet that
// fits: "fragmentation needed" for IPv4, "packet too big" for IPv6. It appends nothing if the packet must not be
// answered: if it is malformed, a fragment other than the first, or itself an ICMP error. b and packet must not
// overlap.
func AppendTooBig(b, packet []byte, mtu int) []byte {
	mtu = max(0, min(mtu, maxPacket))
	return appendICMPError(b, packet, icmpError{type4: 3, code4: 4, type6: 2, code6: 0, mtu: uint16(mtu)})
}

// AppendNoRoute appends to b the ICMP error that says that packet has no destination here: "host unreachable" for
// IPv4, "no route to destination" for IPv6. Otherwise it is like [AppendTooBig].
func AppendNoRoute(b, packet []byte) []byte {
	return appendICMPError(b, packet, icmpError{type4: 3, code4: 1, type6: 1, code6: 0})
}

// AppendUnreachable appends to b the ICMP error that says that the destination of packet is known but cannot be
// reached now: "host unreachable" for IPv4, "address unreachable" for IPv6. Otherwise it is like [AppendTooBig].
func AppendUnreachable(b, packet []byte) []byte {
	return appendICMPError(b, packet, icmpError{type4: 3, code4: 1, type6: 1, code6: 3})
}

type icmpError struct {
	type4, code4 byte
	type6, code6 byte
	mtu          uint16 // zero: says nothing of it
}

func appendICMPError(b, packet []byte, e icmpError) []byte {
	src, dst, length, ok := parsePacket(packet)
	if !ok || src.IsUnspecified() || src.IsMulticast() || dst.IsMulticast() {
		return b
	}
	packet = packet[:length]
	proto, payload, ok := transport(packet)
	if !ok || isICMPError(packet[0]>>4, proto, payload) {
		return b
	}
	start := len(b)
	if packet[0]>>4 == 4 {
		quoted := packet[:min(length, maxICMP4-headerLen4-icmpHeaderLen)]
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(headerLen4+icmpHeaderLen+len(quoted)))
		b = append(b, 0, 0, 0, 0, icmpHopLimit, protoICMP4, 0, 0)
		b = append(b, packet[16:20]...)
		b = append(b, packet[12:16]...)
		b = append(b, e.type4, e.code4, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, e.mtu)
		b = append(b, quoted...)
		made := b[start:]
		binary.BigEndian.PutUint16(made[10:], checksum(0, made[:headerLen4]))
		binary.BigEndian.PutUint16(made[headerLen4+2:], checksum(0, made[headerLen4:]))
		return b
	}
	quoted := packet[:min(length, maxICMP6-headerLen6-icmpHeaderLen)]
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(icmpHeaderLen+len(quoted)))
	b = append(b, protoICMP6, icmpHopLimit)
	b = append(b, packet[24:40]...)
	b = append(b, packet[8:24]...)
	b = append(b, e.type6, e.code6, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(e.mtu))
	b = append(b, quoted...)
	made := b[start:]
	// The pseudo-header: both addresses, length, protocol.
	pseudo := uint64(len(made)-headerLen6) + protoICMP6
	pseudo += uint64(^checksum(0, made[8:40]))
	binary.BigEndian.PutUint16(made[headerLen6+2:], checksum(pseudo, made[headerLen6:]))
	return b
}

// isICMPError reports whether a packet of this version, protocol and payload is an ICMP error, or an ICMP message
// that cannot be told from one. Errors are never answered with errors (RFC 1122, 3.2.2; RFC 4443, 2.4).
func isICMPError(version, proto byte, payload []byte) bool {
	switch {
	case version == 4 && proto == protoICMP4:
		if len(payload) < quotedLen {
			return true
		}
		switch payload[0] {
		case 0, 8, 13, 14: // echo reply, echo, timestamp, timestamp reply
			return false
		}
		return true
	case version == 6 && proto == protoICMP6:
		const informational = 128 // and above
		return len(payload) < quotedLen || payload[0] < informational
	}
	return false
}

// Answers to packets of the host's own programs: enough for every socket of a busy one to learn something within a
// second, and little enough that a flood costs next to nothing.
const (
	icmpPerSecond = 200
	icmpBurst     = 50
)

// bucket limits how often something is done. The zero value is full. It is owned by one goroutine.
type bucket struct {
	used float64 // tokens, of icmpBurst
	last time.Time
}

// take reports whether it may be done now, and if so counts it.
func (b *bucket) take(now time.Time) bool {
	if passed := now.Sub(b.last); passed > 0 {
		b.used = max(0, b.used-passed.Seconds()*icmpPerSecond)
	}
	b.last = now
	if b.used > icmpBurst-1 {
		return false
	}
	b.used++
	return true
}
