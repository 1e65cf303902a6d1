package tuntest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
)

func TestPacketsAreRight(t *testing.T) {
	a4, b4 := netip.MustParseAddrPort("10.64.0.1:1000"), netip.MustParseAddrPort("10.64.0.2:2000")
	a6, b6 := netip.MustParseAddrPort("[fd6f::1]:1000"), netip.MustParseAddrPort("[fd6f::2]:2000")
	odd := []byte("odd")
	for _, row := range []struct {
		name   string
		packet []byte
	}{
		{"UDP over IPv4", UDP(a4, b4, odd)},
		{"UDP over IPv6", UDP(a6, b6, odd)},
		{"TCP over IPv4", TCP(a4, b4, Segment{Seq: 1, Flags: SYN, MSS: 1460})},
		{"TCP over IPv6", TCP(a6, b6, Segment{Seq: 1, Ack: 2, Flags: ACK | PSH, Payload: odd})},
		{"echo over IPv4", Echo(a4.Addr(), b4.Addr(), 7, 1, odd)},
		{"echo over IPv6", Echo(a6.Addr(), b6.Addr(), 7, 1, odd)},
		{"echo reply over IPv4", EchoReply(a4.Addr(), b4.Addr(), 7, 1, odd)},
		{"echo reply over IPv6", EchoReply(a6.Addr(), b6.Addr(), 7, 1, odd)},
	} {
		if err := Check(row.packet); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		for i := range row.packet { // every byte is held by a length or a checksum
			if row.packet[0]>>4 == 6 && (i < 4 || i == 6 || i == 7) {
				continue // IPv6 leaves its class, flow label and hop limit unprotected; another protocol is unknown here
			}
			broken := bytes.Clone(row.packet)
			broken[i] ^= 1
			if Check(broken) == nil {
				t.Errorf("%s: Check does not notice a flipped bit in byte %d", row.name, i)
			}
		}
	}
}

// TestEchoBytes compares with bytes that were put together by hand from RFC 791 and 792, sums computed with Python.
func TestEchoBytes(t *testing.T) {
	const want = "4500002000004000400125db0a8000010a80000208005c9000070001abcdef99"
	src, dst := netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("10.128.0.2")
	if got := hex.EncodeToString(Echo(src, dst, 7, 1, []byte{0xab, 0xcd, 0xef, 0x99})); got != want {
		t.Errorf("Echo = %s, want %s", got, want)
	}
}

func TestDeviceKeepsTheContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(t, 1280)
		bufs, sizes := make([][]byte, BatchSize), make([]int, BatchSize)
		for i := range bufs {
			bufs[i] = make([]byte, 100)
		}
		d.Inject([]byte("one"), []byte("three"))
		if n, err := d.Read(bufs, sizes, 7); n != 2 || err != nil || string(bufs[1][7:7+sizes[1]]) != "three" {
			t.Errorf("Read = %d, %v, second packet %q; want the two injected", n, err, bufs[1][7:7+sizes[1]])
		}

		out := append(make([]byte, MinHeadroom, 100), "packet"...)
		if n, err := d.Write([][]byte{out}, MinHeadroom); n != 1 || err != nil {
			t.Errorf("Write = %d, %v, want 1", n, err)
		}
		if got := d.Next(t); string(got) != "packet" {
			t.Errorf("Next = %q, want what was written", got)
		}
		if spare := out[len(out):cap(out)]; out[0] == 0 || spare[0] == 0 {
			t.Error("Write left headroom and spare capacity alone, want them scribbled over")
		}
		if _, err := d.Write([][]byte{out}, MinHeadroom-1); err == nil {
			t.Error("Write with too little headroom succeeded")
		}
		d.WantNothing(t, "a write failed")

		done := make(chan error)
		go func() {
			_, err := d.Read(bufs, sizes, 0)
			done <- err
		}()
		synctest.Wait()
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read of a closed device: %v, want ErrClosed", err)
		}
	})
}
