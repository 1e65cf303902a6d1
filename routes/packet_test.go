package routes

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"omegatun/tun/tuntest"
)

var (
	us4, them4 = netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("10.64.0.2")
	us6, them6 = netip.MustParseAddr("fd6f:6d65:6761::1"), netip.MustParseAddr("fd6f:6d65:6761::2")
)

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// edit returns packet with the given bytes at offset; pairs of (offset, byte).
func edit(packet []byte, pairs ...int) []byte {
	packet = bytes.Clone(packet)
	for i := 0; i < len(pairs); i += 2 {
		packet[pairs[i]] = byte(pairs[i+1])
	}
	return packet
}

func TestParsePacket(t *testing.T) {
	v4 := tuntest.UDP(port(us4, 1), port(them4, 2), []byte("data"))
	v6 := tuntest.UDP(port(us6, 1), port(them6, 2), []byte("data"))
	mapped := netip.AddrFrom16(us4.As16())
	for _, row := range []struct {
		name   string
		packet []byte
		ok     bool
		length int
	}{
		{"IPv4", v4, true, len(v4)},
		{"IPv6", v6, true, len(v6)},
		{"IPv4 with bytes behind", append(bytes.Clone(v4), 1, 2, 3), true, len(v4)},
		{"IPv6 with bytes behind", append(bytes.Clone(v6), 1, 2, 3), true, len(v6)},
		{"version 0", edit(v4, 0, 0x05), false, 0},
		{"version 5", edit(v4, 0, 0x55), false, 0},
		{"version 15", edit(v6, 0, 0xf0), false, 0},
		{"IPv4 header of 16 bytes", edit(v4, 0, 0x44), false, 0},
		{"IPv4 header longer than the packet", edit(v4, 0, 0x4f), false, 0},
		{"IPv4 length below the header", edit(v4, 3, 19), false, 0},
		{"IPv4 length of the header", edit(v4, 3, 20), true, 20},
		{"IPv4 length zero", edit(v4, 2, 0, 3, 0), false, 0},
		{"IPv4 length above the packet", edit(v4, 3, len(v4)+1), false, 0},
		{"IPv4 length far above the packet", edit(v4, 2, 0xff, 3, 0xff), false, 0},
		{"IPv6 length above the packet", edit(v6, 5, len(v6)-40+1), false, 0},
		{"IPv6 length zero", edit(v6, 5, 0), true, 40},
		{"IPv6 from a mapped address", tuntest.IP(mapped, them6, 17, nil), false, 0},
		{"IPv6 to a mapped address", tuntest.IP(us6, mapped, 17, nil), false, 0},
	} {
		src, dst, length, ok := parsePacket(row.packet)
		if ok != row.ok || ok && length != row.length {
			t.Errorf("%s: length %d, %v, want %d, %v", row.name, length, ok, row.length, row.ok)
		}
		if ok && (src != us4 && src != us6 || dst != them4 && dst != them6) {
			t.Errorf("%s: from %v to %v", row.name, src, dst)
		}
	}
	for _, packet := range [][]byte{v4, v6} {
		for n := range packet { // every truncation is refused
			if _, _, _, ok := parsePacket(packet[:n]); ok {
				t.Errorf("the first %d of %d bytes were accepted", n, len(packet))
			}
		}
	}
}

func TestChecksum(t *testing.T) {
	for _, row := range []struct {
		name string
		sum  uint64
		b    []byte
		want uint16
	}{
		{"nothing", 0, nil, 0xffff},
		{"RFC 1071, 3", 0, []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, ^uint16(0xddf2)},
		{"odd length", 0, []byte{0x12, 0x34, 0x56}, ^uint16(0x1234 + 0x5600)},
		{"one byte", 0, []byte{0xff}, ^uint16(0xff00)},
		{"bytes before", 0xffff, []byte{0, 1}, ^uint16(1)},
		{"carries twice", 0xfffe, []byte{0xff, 0xff, 0xff, 0xff}, ^uint16(0xfffe)},
	} {
		if got := checksum(row.sum, row.b); got != row.want {
			t.Errorf("%s: checksum = %#04x, want %#04x", row.name, got, row.want)
		}
	}
}

func TestClampMSS(t *testing.T) {
	syn := tuntest.Segment{Seq: 5, Flags: tuntest.SYN, MSS: 1460}
	mss4 := func(b []byte) uint16 { return binary.BigEndian.Uint16(b[42:]) }
	syn4 := tuntest.TCP(port(us4, 1), port(them4, 2), syn)
	syn6 := tuntest.TCP(port(us6, 1), port(them6, 2), syn)
	for _, row := range []struct {
		name   string
		packet []byte
		want   uint16 // zero: left alone
	}{
		{"SYN", syn4, 1240},
		{"SYN ACK", tuntest.TCP(port(us4, 1), port(them4, 2), tuntest.Segment{Flags: tuntest.SYN | tuntest.ACK, MSS: 1241}), 1240},
		{"small enough", tuntest.TCP(port(us4, 1), port(them4, 2), tuntest.Segment{Flags: tuntest.SYN, MSS: 1240}), 0},
		{"no option", tuntest.TCP(port(us4, 1), port(them4, 2), tuntest.Segment{Flags: tuntest.SYN}), 0},
		{"no SYN", tuntest.TCP(port(us4, 1), port(them4, 2), tuntest.Segment{Flags: tuntest.ACK, MSS: 1460}), 0},
		{"UDP that looks alike", edit(syn4, 9, 17), 0},
		{"fragment other than the first", edit(syn4, 7, 1), 0},
		{"header shorter than 20", edit(syn4, 32, 0x40), 0},
		{"header longer than the packet", edit(syn4, 32, 0xf0), 0},
		{"end of options before it", edit(syn4, 40, 0), 0},
		{"option of length 0", edit(syn4, 41, 0), 0},
		{"option of length 1", edit(syn4, 41, 1), 0},
		{"option longer than the header", edit(syn4, 41, 5), 0},
		{"MSS of the wrong length", edit(syn4, 41, 3), 0},
		{"another option only", edit(syn4, 40, 8), 0},
	} {
		packet := bytes.Clone(row.packet)
		changed := ClampMSS(packet, 1280)
		if changed != (row.want != 0) {
			t.Errorf("%s: ClampMSS = %v", row.name, changed)
			continue
		}
		if !changed {
			if !bytes.Equal(packet, row.packet) {
				t.Errorf("%s: changed the packet and says it did not", row.name)
			}
			continue
		}
		if got := mss4(packet); got != row.want {
			t.Errorf("%s: MSS = %d, want %d", row.name, got, row.want)
		}
		if err := tuntest.Check(packet); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}

	packet := bytes.Clone(syn6)
	if !ClampMSS(packet, 1280) || binary.BigEndian.Uint16(packet[62:]) != 1220 {
		t.Errorf("IPv6: MSS = %d, want 1220", binary.BigEndian.Uint16(packet[62:]))
	}
	if err := tuntest.Check(packet); err != nil {
		t.Errorf("IPv6: %v", err)
	}
	for _, mtu := range []int{-1, 0, 40, 1 << 20} {
		if ClampMSS(bytes.Clone(syn4), mtu) {
			t.Errorf("ClampMSS with an MTU of %d changed the packet", mtu)
		}
	}
}

// TestClampMSSAtAnyOffset moves the option with no-operations before it, and lets the checksum show whether odd
// offsets are right.
func TestClampMSSAtAnyOffset(t *testing.T) {
	for nops := range 5 {
		options := append(bytes.Repeat([]byte{1}, nops), 2, 4, 0x05, 0xb4)
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		tcp := make([]byte, 20, 40)
		tcp[12], tcp[13] = byte(20+len(options))<<2, tuntest.SYN
		tcp = append(tcp, options...)
		binary.BigEndian.PutUint16(tcp[16:], sumTCP(tcp))
		packet := tuntest.IP(us4, them4, protoTCP, tcp)
		if err := tuntest.Check(packet); err != nil {
			t.Fatal(err)
		}
		if !ClampMSS(packet, 1300) {
			t.Errorf("%d bytes before the option: not clamped", nops)
		}
		if err := tuntest.Check(packet); err != nil {
			t.Errorf("%d bytes before the option: %v", nops, err)
		}
		if got := binary.BigEndian.Uint16(packet[40+nops+2:]); got != 1260 {
			t.Errorf("%d bytes before the option: MSS = %d, want 1260", nops, got)
		}
	}
}

// sumTCP returns the checksum of a TCP segment between us4 and them4.
func sumTCP(tcp []byte) uint16 {
	pseudo := append(us4.AsSlice(), them4.AsSlice()...)
	pseudo = append(pseudo, 0, protoTCP, byte(len(tcp)>>8), byte(len(tcp)))
	return checksum(0, append(pseudo, tcp...))
}

func TestICMPErrors(t *testing.T) {
	big4 := tuntest.UDP(port(us4, 1), port(them4, 2), make([]byte, 1400))
	big6 := tuntest.UDP(port(us6, 1), port(them6, 2), make([]byte, 1400))
	tooBig := func(b, p []byte) []byte { return AppendTooBig(b, p, 1300) }
	for _, row := range []struct {
		name   string
		packet []byte
		build  func(b, packet []byte) []byte
		header []byte // type, code and what follows the checksum
	}{
		{"too big, IPv4", big4, tooBig, []byte{3, 4, 0, 0, 1300 >> 8, 1300 & 0xff}},
		{"too big, IPv6", big6, tooBig, []byte{2, 0, 0, 0, 1300 >> 8, 1300 & 0xff}},
		{"no route, IPv4", big4, AppendNoRoute, []byte{3, 1, 0, 0, 0, 0}},
		{"no route, IPv6", big6, AppendNoRoute, []byte{1, 0, 0, 0, 0, 0}},
		{"unreachable, IPv4", big4, AppendUnreachable, []byte{3, 1, 0, 0, 0, 0}},
		{"unreachable, IPv6", big6, AppendUnreachable, []byte{1, 3, 0, 0, 0, 0}},
		{"small packet", tuntest.Echo(us4, them4, 1, 2, nil), AppendNoRoute, []byte{3, 1, 0, 0, 0, 0}},
		{"echo reply", tuntest.EchoReply(us6, them6, 1, 2, nil), AppendNoRoute, []byte{1, 0, 0, 0, 0, 0}},
		{"bytes behind are not quoted", append(tuntest.Echo(us4, them4, 1, 2, nil), 9), AppendNoRoute, []byte{3, 1, 0, 0, 0, 0}},
	} {
		got := row.build([]byte("kept"), row.packet)
		if string(got[:4]) != "kept" {
			t.Errorf("%s: what was there before is gone", row.name)
		}
		got = got[4:]
		if err := tuntest.Check(got); err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		src, dst, _, _ := parsePacket(got)
		wantDst, wantSrc, length, _ := parsePacket(row.packet)
		if src != wantSrc || dst != wantDst {
			t.Errorf("%s: from %v to %v, want from %v to %v", row.name, src, dst, wantSrc, wantDst)
		}
		_, icmp, _ := transport(got)
		if header := append(bytes.Clone(icmp[:2]), icmp[4:8]...); !bytes.Equal(header, row.header) {
			t.Errorf("%s: header %x, want %x", row.name, header, row.header)
		}
		limit := 576
		if src.Is6() {
			limit = 1280
		}
		want := row.packet[:min(length, limit-(len(got)-len(icmp))-8)]
		if !bytes.Equal(icmp[8:], want) {
			t.Errorf("%s: quotes %d bytes, want the first %d of the packet", row.name, len(icmp[8:]), len(want))
		}
	}
}

func TestICMPErrorsAreNotAnsweredAndNeitherIs(t *testing.T) {
	echo4, echo6 := tuntest.Echo(us4, them4, 1, 2, nil), tuntest.Echo(us6, them6, 1, 2, nil)
	for _, row := range []struct {
		name   string
		packet []byte
	}{
		{"an ICMP error", AppendNoRoute(nil, echo4)},
		{"an ICMPv6 error", AppendNoRoute(nil, echo6)},
		{"a redirect", edit(echo4, 20, 5)},
		{"a cut ICMP message", tuntest.IP(us4, them4, protoICMP4, []byte{8, 0, 0})},
		{"a cut ICMPv6 message", tuntest.IP(us6, them6, protoICMP6, []byte{128})},
		{"a later fragment", edit(tuntest.UDP(port(us4, 1), port(them4, 2), []byte("x")), 7, 9)},
		{"a packet to a multicast group", tuntest.IP(us4, netip.MustParseAddr("224.0.0.251"), 17, nil)},
		{"a packet to an IPv6 multicast group", tuntest.IP(us6, netip.MustParseAddr("ff02::fb"), 17, nil)},
		{"a packet from nowhere", tuntest.IP(netip.IPv6Unspecified(), them6, 17, nil)},
		{"a malformed packet", echo6[:39]},
		{"nothing", nil},
	} {
		if got := AppendNoRoute([]byte("kept"), row.packet); string(got) != "kept" {
			t.Errorf("%s: was answered with %x", row.name, got)
		}
	}
}
