package tun

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

// newTestQueue returns a queue that reads what is written to the socket, packet by packet, and does not wait for more than there is.
func newTestQueue(t *testing.T) (q *queue, kernel int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "socket")
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		if err := unix.Close(fds[1]); err != nil {
			t.Error(err)
		}
	})
	for _, option := range []int{unix.SO_SNDBUF, unix.SO_SNDBUFFORCE} { // the second one needs privileges
		_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, option, 16<<20)
	}
	if q, err = newQueue(file, "test", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return q, fds[1]
}

// flowPacket returns a UDP packet with a virtio header. Its number can be read with flowNumber.
func flowPacket(from netip.AddrPort, size, number int) []byte {
	payload := binary.BigEndian.AppendUint32(nil, uint32(number))
	payload = append(payload, bytes.Repeat([]byte{byte(number)}, size-4)...)
	return append(make([]byte, virtioLen), tuntest.UDP(from, netip.MustParseAddrPort("10.64.0.2:2000"), payload)...)
}

var (
	bulkFrom  = netip.MustParseAddrPort("10.64.0.1:1000")
	quietFrom = netip.MustParseAddrPort("10.64.0.1:1001")
)

// offer writes packets until the socket is full, and returns how many.
func offer(t *testing.T, kernel, most int, packet func(i int) []byte) (n int) {
	t.Helper()
	for n < most {
		_, err := unix.Write(kernel, packet(n))
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// readAll reads batches until nothing is left, and returns the numbers of the packets of each flow, and in which batch the first
// of the quiet flow was.
func readAll(t *testing.T, q *queue) (bulk, quiet []int, batch int) {
	t.Helper()
	for at := 1; ; at++ {
		if empty := offerNothing(q); empty {
			return bulk, quiet, batch
		}
		n, err := q.ReadLarge()
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			packet, _ := q.Packet(i)
			if err := tuntest.Check(packet); err != nil {
				t.Fatalf("packet %d of batch %d: %v", i, at, err)
			}
			number := int(binary.BigEndian.Uint32(packet[28:]))
			if rest := packet[32:]; !bytes.Equal(rest, bytes.Repeat([]byte{byte(number)}, len(rest))) {
				t.Fatalf("packet %d of batch %d is damaged", i, at)
			}
			if binary.BigEndian.Uint16(packet[20:]) == bulkFrom.Port() {
				bulk = append(bulk, number)
			} else {
				quiet = append(quiet, number)
				if batch == 0 {
					batch = at
				}
			}
		}
	}
}

// offerNothing reports whether ReadLarge would wait.
func offerNothing(q *queue) bool {
	if q.waiting != nil && q.waiting.count > 0 {
		return false
	}
	empty := true
	_ = q.conn.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		empty = n == 0
	})
	return empty
}

func TestAFloodDoesNotHoldUpOtherFlows(t *testing.T) {
	for _, row := range []struct {
		name string
		size int // of the packets of the flood
		most int
		loss bool // there are more than there is room for
	}{
		{"packets of 64 KB", 60_000, 60, false},
		{"packets of 1400 bytes", 1400, 900, false},
		{"packets of 64 bytes", 64, 900, false},
		{"more large packets than there is room for", 60_000, 200, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			q, kernel := newTestQueue(t)
			n := offer(t, kernel, row.most, func(i int) []byte { return flowPacket(bulkFrom, row.size, i) })
			if n < 2*batchPackets && row.size < 10_000 || row.loss && n < row.most {
				t.Skipf("this system has room for %d packets in a socket", n)
			}
			full := false
			synctest.Test(t, func(t *testing.T) { // the clock stands still: on a busy machine packets wait too long, and are dropped
				// The quiet flow comes while the first batch is being sent.
				first, err := q.ReadLarge()
				if err != nil {
					t.Fatal(err)
				}
				if offer(t, kernel, 1, func(int) []byte { return flowPacket(quietFrom, 64, 7) }) == 0 {
					full = true
					return
				}
				bulk, quiet, batch := readAll(t, q)
				if len(quiet) != 1 || quiet[0] != 7 || batch > 2+n*row.size/backlogBytes {
					t.Errorf("the other flow's packets are %v, first in batch %d; want 7, as soon as it has been read", quiet, batch)
				}
				lost := n - first - len(bulk)
				if (lost > 0) != row.loss {
					t.Errorf("%d of %d packets were lost", lost, n)
				}
				for i := 1; i < len(bulk); i++ {
					if bulk[i] <= bulk[i-1] {
						t.Fatalf("packet %d of the flow came after %d", bulk[i], bulk[i-1])
					}
				}
				if len(q.waiting.free[smallSlot])+len(q.waiting.free[largeSlot])+len(q.held) != smallSlots+largeSlots {
					t.Error("slots were lost")
				}
			})
			if full {
				t.Skip("this system has no room for a packet where some have been read")
			}
		})
	}
}

func TestFlowsAreToldApart(t *testing.T) {
	b := newBacklog()
	six := netip.MustParseAddrPort("[fd00::1]:1000")
	sixTo := netip.MustParseAddrPort("[fd00::2]:2000")
	to := netip.MustParseAddrPort("10.64.0.2:2000")
	with := func(packet []byte) []byte { return append(make([]byte, virtioLen), packet...) }
	fragment := tuntest.UDP(bulkFrom, to, make([]byte, 100))
	fragment[6] = 0x20
	rows := []struct {
		name   string
		packet []byte
		same   []byte // a packet of the same flow; nil: none is tried
	}{
		{"UDP", with(tuntest.UDP(bulkFrom, to, nil)), with(tuntest.UDP(bulkFrom, to, make([]byte, 99)))},
		{"another port", with(tuntest.UDP(quietFrom, to, nil)), nil},
		{"TCP", with(tuntest.TCP(bulkFrom, to, tuntest.Segment{Seq: 1})), with(tuntest.TCP(bulkFrom, to, tuntest.Segment{Seq: 9}))},
		{"ICMP", with(tuntest.IP(bulkFrom.Addr(), to.Addr(), 1, make([]byte, 8))), with(tuntest.IP(bulkFrom.Addr(), to.Addr(), 1, make([]byte, 80)))},
		{"a fragment", with(fragment), nil},
		{"IPv6", with(tuntest.UDP(six, sixTo, nil)), with(tuntest.UDP(six, sixTo, make([]byte, 99)))},
		{"IPv6, the other way", with(tuntest.UDP(sixTo, six, nil)), nil},
		{"not IP", with([]byte{0xff}), with([]byte{0xfe, 1, 2})},
		{"nothing", nil, with(nil)},
	}
	for i, row := range rows {
		if row.same != nil && b.flow(row.packet) != b.flow(row.same) {
			t.Errorf("%s: two packets of the flow are in different ones", row.name)
		}
		for _, other := range rows[i+1:] {
			if b.flow(row.packet) == b.flow(other.packet) && !(row.name == "not IP" && other.name == "nothing") {
				t.Errorf("%s and %s are one flow", row.name, other.name)
			}
		}
	}
}
