package relay

import (
	"bytes"
	"net/netip"
	"testing"

	"omegatun/session/udx"
)

func TestPathCarriesDatagrams(t *testing.T) {
	r := newTestRelay(t, Config{})
	r.newTestLink()
	relayAddr := netip.MustParseAddrPort("203.0.113.5:49737")
	var wire sink
	a, b := NewPath(&wire, relayAddr, 0x111), NewPath(&wire, relayAddr, 0x222)
	// cross gives the relay what was sent, and returns what arrives for a stream.
	cross := func(from netip.AddrPort, want udx.ID) (got []string) {
		t.Helper()
		for _, s := range wire.take() {
			if s.to != relayAddr {
				t.Errorf("sent to %v, want %v", s.to, relayAddr)
			}
			if !r.Receive(r.sock, s.b, from) {
				t.Errorf("%x is not for the link", s.b)
			}
		}
		for _, s := range r.sock.take() {
			id, d, ok := Unwrap(s.b)
			if !ok {
				continue // a heartbeat
			}
			if id != want {
				t.Errorf("for stream %x, want %x", id, want)
			}
			got = append(got, string(d))
		}
		return got
	}
	for _, p := range []*Path{a, b} {
		if err := p.Heartbeat(); err != nil {
			t.Fatal(err)
		}
		cross(map[*Path]netip.AddrPort{a: hostA, b: hostB}[p], 0)
	}
	if err := a.Send([]byte("one"), netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	if got := cross(hostA, 0xb1); len(got) != 1 || got[0] != "one" {
		t.Errorf("arrived: %q", got)
	}
	long := bytes.Repeat([]byte{7}, 1300)
	if err := b.SendBatch([][]byte{long, long, []byte("end")}, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	if wire.calls != 1 {
		t.Errorf("%d calls, want 1", wire.calls)
	}
	if got := cross(hostB, 0xa1); len(got) != 3 || got[0] != string(long) || got[2] != "end" {
		t.Errorf("arrived: %d datagrams", len(got))
	}
	var slow plain
	if err := NewPath(&slow, relayAddr, 1).SendBatch([][]byte{long, []byte("end")}, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	if got := slow.s.take(); len(got) != 2 || len(got[1].b) != udx.HeaderSize+3 {
		t.Errorf("without batches: %v", got)
	}
}

func TestPacketsThatCarryNoDatagram(t *testing.T) {
	for name, b := range map[string][]byte{
		"no packet":             []byte("x"),
		"data":                  packet(1, udx.FlagData, "x"),
		"heartbeat":             packet(1, udx.FlagHeartbeat, ""),
		"padding beyond itself": udx.Header{Flags: udx.FlagMessage, Offset: 5, ID: 1}.Append(nil),
	} {
		if _, d, ok := Unwrap(b); ok {
			t.Errorf("%s: unwrapped %q", name, d)
		}
	}
	padded := append(udx.Header{Flags: udx.FlagMessage, Offset: 2, ID: 9}.Append(nil), "..datagram"...)
	if id, d, ok := Unwrap(padded); !ok || id != 9 || string(d) != "datagram" {
		t.Errorf("with padding: %d %q, %v", id, d, ok)
	}
}

func BenchmarkPath(b *testing.B) {
	p := NewPath(&counting{}, netip.AddrPort{}, 1)
	batch := make([][]byte, 32)
	for i := range batch {
		batch[i] = make([]byte, 1300)
	}
	b.SetBytes(32 * 1300)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.SendBatch(batch, netip.AddrPort{}); err != nil {
			b.Fatal(err)
		}
	}
}
