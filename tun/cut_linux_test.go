package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

var (
	us4, them4 = netip.MustParseAddrPort("10.64.0.1:1000"), netip.MustParseAddrPort("10.64.0.2:2000")
	us6, them6 = netip.MustParseAddrPort("[fd6f::1]:1000"), netip.MustParseAddrPort("[fd6f::2]:2000")
)

// virtio returns what the kernel would hand over for a packet.
func virtio(flags, kind byte, size, start, offset int, packet []byte) []byte {
	b := []byte{flags, kind}
	for _, v := range []int{len(packet), size, start, offset} { // the header length is not to be trusted
		b = binary.NativeEndian.AppendUint16(b, uint16(v))
	}
	return append(b, packet...)
}

// unfinish replaces the transport checksum by what the kernel leaves there, the sum of the pseudo-header.
func unfinish(packet []byte, start, offset int) []byte {
	packet = bytes.Clone(packet)
	addrs, proto := packet[12:20], uint64(packet[9])
	if packet[0]>>4 == 6 {
		addrs, proto = packet[8:40], uint64(packet[6])
	}
	pseudo := ^fold(sum(proto+uint64(len(packet)-start), addrs))
	binary.BigEndian.PutUint16(packet[start+offset:], pseudo)
	return packet
}

// cutAll returns all packets of b, which must be sound.
func cutAll(t *testing.T, b []byte) [][]byte {
	t.Helper()
	var c cutter
	if err := c.start(b); err != nil {
		t.Fatalf("start: %v", err)
	}
	var packets [][]byte
	for {
		out := make([]byte, 2000)
		n, err := c.copyTo(out)
		if err != nil {
			t.Fatalf("cut: %v", err)
		}
		if n == 0 {
			return packets
		}
		packets = append(packets, out[:n])
	}
}

func payload(n int) []byte {
	b := make([]byte, n)
	rnd := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// setID sets the identification of an IPv4 packet.
func setID(packet []byte, id uint16) []byte {
	if packet[0]>>4 == 4 {
		binary.BigEndian.PutUint16(packet[4:], id)
		packet[10], packet[11] = 0, 0
		binary.BigEndian.PutUint16(packet[10:], fold(sum(0, packet[:20])))
	}
	return packet
}

func TestLargePacketsAreCut(t *testing.T) {
	const cwr = flagCWR
	for _, row := range []struct {
		name     string
		from, to netip.AddrPort
		flags    byte
		length   int
		size     int
		want     []byte // TCP flags of each packet
	}{
		{
			"TCP over IPv4", us4, them4, tuntest.ACK | tuntest.PSH, 2500, 1000,
			[]byte{tuntest.ACK, tuntest.ACK, tuntest.ACK | tuntest.PSH},
		},
		{
			"TCP over IPv6", us6, them6, tuntest.ACK | tuntest.PSH, 2500, 1000,
			[]byte{tuntest.ACK, tuntest.ACK, tuntest.ACK | tuntest.PSH},
		},
		{
			"the last one is full", us4, them4, tuntest.ACK | tuntest.FIN, 2000, 1000,
			[]byte{tuntest.ACK, tuntest.ACK | tuntest.FIN},
		},
		{"odd sizes", us6, them6, tuntest.ACK, 2001, 667, []byte{tuntest.ACK, tuntest.ACK, tuntest.ACK}},
		{
			"congestion window reduced", us4, them4, tuntest.ACK | cwr, 1200, 400,
			[]byte{tuntest.ACK | cwr, tuntest.ACK, tuntest.ACK},
		},
		{"one is enough", us4, them4, tuntest.ACK | tuntest.PSH, 100, 1000, []byte{tuntest.ACK | tuntest.PSH}},
	} {
		data := payload(row.length)
		kind, start := byte(unix.VIRTIO_NET_HDR_GSO_TCPV4|unix.VIRTIO_NET_HDR_GSO_ECN), 20
		if row.from.Addr().Is6() {
			kind, start = unix.VIRTIO_NET_HDR_GSO_TCPV6, 40
		}
		seq := uint32(0xffffff00) // wraps around
		large := setID(tuntest.TCP(row.from, row.to, tuntest.Segment{Seq: seq, Ack: 7, Flags: row.flags, Payload: data}), 0xffff)
		got := cutAll(t, virtio(1, kind, row.size, start, tcpSum, unfinish(large, start, tcpSum)))
		if len(got) != len(row.want) {
			t.Errorf("%s: %d packets, want %d", row.name, len(got), len(row.want))
			continue
		}
		for i, flags := range row.want {
			part := data[i*row.size : min((i+1)*row.size, len(data))]
			want := tuntest.TCP(row.from, row.to,
				tuntest.Segment{Seq: seq + uint32(i*row.size), Ack: 7, Flags: flags, Payload: part})
			setID(want, 0xffff+uint16(i))
			if !bytes.Equal(got[i], want) {
				t.Errorf("%s: packet %d is %x, want %x", row.name, i, got[i], want)
			}
		}
	}
	for _, ends := range [][2]netip.AddrPort{{us4, them4}, {us6, them6}} {
		start := 20
		if ends[0].Addr().Is6() {
			start = 40
		}
		data := payload(1100)
		large := tuntest.UDP(ends[0], ends[1], data)
		got := cutAll(t, virtio(1, unix.VIRTIO_NET_HDR_GSO_UDP_L4, 500, start, udpSum, unfinish(large, start, udpSum)))
		for i, part := range [][]byte{data[:500], data[500:1000], data[1000:]} {
			if want := setID(tuntest.UDP(ends[0], ends[1], part), uint16(i)); len(got) != 3 || !bytes.Equal(got[i], want) {
				t.Fatalf("UDP from %v: packet %d of %d is %x, want %x of 3", ends[0], i, len(got), got[i], want)
			}
		}
	}
}

func TestOrdinaryPacketsAreFinished(t *testing.T) {
	tcp := tuntest.TCP(us6, them6, tuntest.Segment{Flags: tuntest.SYN, MSS: 1460})
	udp := tuntest.UDP(us4, them4, payload(33))
	// The sum of this datagram is zero, which UDP writes as all ones.
	zero := tuntest.UDP(us4, them4, []byte{0, 0})
	sumOf := ^binary.BigEndian.Uint16(zero[20+udpSum:])
	zero = tuntest.UDP(us4, them4, binary.BigEndian.AppendUint16(nil, 0xffff-sumOf))
	binary.BigEndian.PutUint16(zero[20+udpSum:], 0xffff)
	for _, row := range []struct {
		name string
		read []byte
		want []byte
	}{
		{"complete", virtio(0, 0, 0, 0, 0, udp), udp},
		{"TCP without checksum", virtio(1, 0, 0, 40, tcpSum, unfinish(tcp, 40, tcpSum)), tcp},
		{"UDP without checksum", virtio(1, 0, 0, 20, udpSum, unfinish(udp, 20, udpSum)), udp},
		{"UDP whose checksum is zero", virtio(1, 0, 0, 20, udpSum, unfinish(zero, 20, udpSum)), zero},
		{"not IP", virtio(0, 0, 0, 0, 0, []byte{0xff}), []byte{0xff}},
	} {
		if got := cutAll(t, row.read); len(got) != 1 || !bytes.Equal(got[0], row.want) {
			t.Errorf("%s: got %x, want %x", row.name, got, row.want)
		}
	}
}

func TestInconsistentHeadersAreRefused(t *testing.T) {
	const tcp4, tcp6, udp = unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6, unix.VIRTIO_NET_HDR_GSO_UDP_L4
	p4 := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(100)})
	p6 := tuntest.TCP(us6, them6, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(100)})
	short := bytes.Clone(p4)
	short[20+tcpDataOffset] = 4 << 4
	long := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK})
	long[20+tcpDataOffset] = 6 << 4
	for _, row := range []struct {
		name string
		read []byte
	}{
		{"nothing", nil},
		{"a header alone", virtio(0, 0, 0, 0, 0, nil)},
		{"checksum behind the end", virtio(1, 0, 0, len(p4)-1, 0, p4)},
		{"checksum far behind the end", virtio(1, 0, 0, 65535, 65535, p4)},
		{"unknown kind", virtio(1, 2, 50, 20, tcpSum, p4)},
		{"fragments of UDP", virtio(1, unix.VIRTIO_NET_HDR_GSO_UDP, 50, 20, udpSum, p4)},
		{"IPv4 said to be IPv6", virtio(1, tcp6, 50, 40, tcpSum, p4)},
		{"IPv6 said to be IPv4", virtio(1, tcp4, 50, 20, tcpSum, p6)},
		{"neither", virtio(1, udp, 50, 20, udpSum, payload(100))},
		{"size zero", virtio(1, tcp4, 0, 20, tcpSum, p4)},
		{"transport header inside the IP header", virtio(1, tcp6, 50, 39, tcpSum, p6)},
		{"transport header not behind the IPv4 header", virtio(1, tcp4, 50, 24, tcpSum, p4)},
		{"transport header behind the end", virtio(1, tcp6, 50, 65000, tcpSum, p6)},
		{"wrong offset of TCP's checksum", virtio(1, tcp4, 50, 20, udpSum, p4)},
		{"wrong offset of UDP's checksum", virtio(1, udp, 50, 20, tcpSum, p4)},
		{"TCP header shorter than 20", virtio(1, tcp4, 50, 20, tcpSum, short)},
		{"TCP header longer than the packet", virtio(1, tcp4, 50, 20, tcpSum, long)},
		{"UDP header cut", virtio(1, udp, 50, 20, udpSum, p4[:27])},
	} {
		var c cutter
		if err := c.start(row.read); !errors.Is(err, errBadPacket) {
			t.Errorf("%s: start = %v, want errBadPacket", row.name, err)
		}
	}
}

func FuzzCut(f *testing.F) {
	tcp := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(300)})
	udp := tuntest.UDP(us6, them6, payload(300))
	f.Add(virtio(1, unix.VIRTIO_NET_HDR_GSO_TCPV4, 100, 20, tcpSum, tcp))
	f.Add(virtio(1, unix.VIRTIO_NET_HDR_GSO_UDP_L4, 100, 40, udpSum, udp))
	f.Add(virtio(1, 0, 0, 40, udpSum, udp))
	f.Add(virtio(0, 0, 0, 0, 0, tcp))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c cutter
		if c.start(bytes.Clone(b)) != nil {
			return
		}
		// Of a large packet without extension headers or options, every piece must be sound.
		sound, proto := c.large(), byte(unix.IPPROTO_UDP)
		if c.tcp {
			proto = unix.IPPROTO_TCP
		}
		if packet := b[virtioLen:]; packet[0] == 0x45 {
			sound = sound && packet[9] == proto
		} else {
			sound = sound && c.transport == 40 && packet[6] == proto
		}
		out := make([]byte, 500)
		for range len(b) + 1 {
			n, err := c.copyTo(out)
			if err != nil {
				continue // lost, and on to the next
			}
			if n == 0 {
				return
			}
			if sound && tuntest.Check(out[:n]) != nil {
				t.Errorf("%x was cut into %x: %v", b, out[:n], tuntest.Check(out[:n]))
			}
		}
		t.Errorf("%x never ends", b)
	})
}

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for length := range 200 {
		b := payload(length)
		if length%3 == 0 { // carries
			for i := range b {
				b[i] = 0xff
			}
		}
		start := rnd.Uint64()
		want := start%0xffff + 0 // the plain way, in the arithmetic of one's complement
		for i, c := range b {
			if i%2 == 0 {
				want += uint64(c) << 8
			} else {
				want += uint64(c)
			}
		}
		if got := ^fold(sum(start, b)); uint64(got)%0xffff != want%0xffff {
			t.Errorf("sum of %d bytes = %#x, want %#x", length, got, want%0xffff)
		}
	}
}

// testQueue returns a queue, and the socket whose datagrams it takes for reads from the device.
func testQueue(t *testing.T) (q *queue, feed func([]byte), file *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { _, _ = far.Close(), file.Close() })
	if q, err = newQueue(file, "test0", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return q, func(b []byte) {
		t.Helper()
		if _, err := far.Write(b); err != nil {
			t.Fatal(err)
		}
	}, file
}

func TestQueueGathers(t *testing.T) {
	const offset = 16
	q, feed, file := testQueue(t)
	small := tuntest.UDP(us4, them4, payload(20))
	large := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(1000)})
	one, many := virtio(0, 0, 0, 0, 0, small), virtio(1, unix.VIRTIO_NET_HDR_GSO_TCPV4, 100, 20, tcpSum, large)
	huge := virtio(0, 0, 0, 0, 0, payload(500))
	bad := virtio(1, 99, 0, 0, 0, small)
	bufs, sizes := packets(8, offset+200, offset+200), make([]int, 8)
	for _, step := range []struct {
		name string
		feed [][]byte
		want []int // packets of each Read
	}{
		{"one", [][]byte{one}, []int{1}},
		{"what is waiting", [][]byte{one, one, one}, []int{3}},
		{"more than a batch", [][]byte{one, one, one, one, one, one, one, one, one}, []int{8, 1}},
		{"a large one that needs two batches", [][]byte{many}, []int{8, 2}},
		{"a large one and one more", [][]byte{many, one}, []int{8, 3}},
		{"small ones before a large one", [][]byte{one, many}, []int{8, 3}},
		{"what does not fit or is wrong is left out", [][]byte{huge, one, bad, huge, one, bad}, []int{2}},
	} {
		for _, b := range step.feed {
			feed(b)
		}
		for i, want := range step.want {
			n, err := q.Read(bufs, sizes, offset)
			if n != want || err != nil {
				t.Fatalf("%s: Read %d = %d, %v, want %d", step.name, i, n, err, want)
			}
			for j := range n {
				if p := bufs[j][offset : offset+sizes[j]]; tuntest.Check(p) != nil {
					t.Errorf("%s: packet %d is %x: %v", step.name, j, p, tuntest.Check(p))
				}
			}
		}
	}

	done := make(chan error, 1)
	go func() {
		n, err := q.Read(bufs, sizes, offset)
		if n != 0 {
			t.Errorf("%d packets were read, and nothing was there", n)
		}
		done <- err
	}()
	time.Sleep(10 * time.Millisecond) // so that it waits, most of the time
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read of a closed file: %v, want ErrClosed", err)
	}
	if _, err := q.Read(bufs, sizes, offset); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after that: %v, want ErrClosed", err)
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	q, feed, _ := testQueue(t)
	large := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(1000)})
	many := virtio(1, unix.VIRTIO_NET_HDR_GSO_TCPV4, 100, 20, tcpSum, large)
	bufs, sizes := packets(16, 300, 300), make([]int, 16)
	if allocs := testing.AllocsPerRun(100, func() {
		feed(many)
		if n, err := q.Read(bufs, sizes, 16); n != 10 || err != nil {
			t.Errorf("Read = %d, %v, want 10", n, err)
		}
	}); allocs != 0 {
		t.Errorf("Read allocates %v times, want 0", allocs)
	}
}

func BenchmarkCut(b *testing.B) {
	large := tuntest.TCP(us4, them4, tuntest.Segment{Flags: tuntest.ACK, Payload: payload(46 * 1360)})
	read := virtio(1, unix.VIRTIO_NET_HDR_GSO_TCPV4, 1360, 20, tcpSum, large)
	out := make([]byte, 1500)
	b.SetBytes(int64(len(large)))
	for b.Loop() {
		var c cutter
		if err := c.start(read); err != nil {
			b.Fatal(err)
		}
		for {
			n, err := c.copyTo(out)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
	}
}
