package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

// kernel stands for the other side of the device: it takes what is written.
type kernel struct {
	q    *queue
	file *os.File
}

func newKernel(t testing.TB) *kernel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { _, _ = far.Close(), near.Close() })
	q, err := newQueue(near, "test0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	q.uso = true
	return &kernel{q, far}
}

// frames returns what has been written since the last call.
func (k *kernel) frames(t testing.TB) (frames [][]byte) {
	t.Helper()
	raw, err := k.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for {
		b := make([]byte, 1<<17)
		var n int
		if e := raw.Read(func(fd uintptr) bool { n, err = unix.Read(int(fd), b); return true }); e != nil {
			t.Fatal(e)
		}
		if errors.Is(err, unix.EAGAIN) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, b[:n])
	}
}

// given is a packet from a peer.
type given struct {
	packet     []byte
	unfinished bool
}

// write puts packets through WriteLarge, as they would come: behind one another, with only the headroom between them.
func (k *kernel) write(batch []given) (int, error) {
	const offset = 16
	var arena []byte
	var ends []int
	for _, g := range batch {
		arena = append(append(arena, make([]byte, offset)...), g.packet...)
		ends = append(ends, len(arena))
	}
	bufs, unfinished := make([][]byte, len(batch)), make([]bool, len(batch))
	start := 0
	for i, end := range ends {
		bufs[i], unfinished[i] = arena[start:end:end], batch[i].unfinished
		start = end
	}
	return k.q.WriteLarge(bufs, offset, unfinished)
}

// recut returns the packets that a kernel would make of what was written: an independent path, as cutting is tested on
// its own.
func recut(t testing.TB, frames [][]byte) (packets [][]byte) {
	t.Helper()
	for _, frame := range frames {
		var c cutter
		if err := c.start(bytes.Clone(frame)); err != nil {
			t.Fatalf("the kernel would not understand %x: %v", frame[:min(len(frame), 80)], err)
		}
		for {
			out := make([]byte, maxPacket)
			n, err := c.copyTo(out)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			packets = append(packets, out[:n])
		}
	}
	return packets
}

// tcp returns a segment of a flow, whose first byte has the sequence number seq.
func segment(from, to netip.AddrPort, seq, size int, flags byte, change ...func(*tuntest.Segment)) []byte {
	s := tuntest.Segment{Seq: 0xfffff000 + uint32(seq), Ack: 9, Flags: flags, Payload: payload(size)}
	for _, f := range change {
		f(&s)
	}
	return tuntest.TCP(from, to, s)
}

// with sets a byte of the IP header and corrects its checksum.
func with(packet []byte, at int, value byte) []byte {
	packet = bytes.Clone(packet)
	packet[at] = value
	if packet[0]>>4 == 4 {
		packet[10], packet[11] = 0, 0
		binary.BigEndian.PutUint16(packet[10:], fold(sum(0, packet[:min(int(packet[0]&0xf)*4, len(packet))])))
	}
	return packet
}

// extended puts an extension header of IPv6 in front of the payload.
func extended(packet []byte, kind byte) []byte {
	header := []byte{packet[6], 0, 1, 4, 0, 0, 0, 0}
	packet = slices.Insert(bytes.Clone(packet), 40, header...)
	packet[6] = kind
	binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
	return packet
}

// optioned puts an option into an IPv4 header.
func optioned(packet []byte) []byte {
	packet = slices.Insert(bytes.Clone(packet), 20, 1, 1, 1, 0)
	packet[0] = 0x46
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	return with(packet, 1, 0)
}

// broken damages the checksum of the transport header.
func broken(packet []byte, at int) []byte {
	packet = bytes.Clone(packet)
	packet[at] ^= 0x55
	return packet
}

// mergeRows are batches of packets, and how many writes they should take. The same packets go through the
// kernel in TestBothPathsCarryTheSame.
var mergeRows = func() []mergeRow {
	const ack, psh, fin = tuntest.ACK, tuntest.PSH, tuntest.FIN
	times := func(n, size int, from, to netip.AddrPort) (list [][]byte) {
		for i := range n {
			list = append(list, segment(from, to, i*size, size, ack))
		}
		return list
	}
	stamp := func(v byte) func(*tuntest.Segment) {
		return func(s *tuntest.Segment) { s.Options = []byte{1, 1, 8, 10, 0, 0, 0, v, 0, 0, 0, 7} }
	}
	other := netip.AddrPortFrom(us4.Addr(), 3000)
	udps := func(n, size int, from, to netip.AddrPort) (list [][]byte) {
		for i := range n {
			list = append(list, tuntest.UDP(from, to, payload(size + i)[:size]))
		}
		return list
	}
	var rows []mergeRow
	add := func(name string, writes int, packets ...[]byte) {
		rows = append(rows, mergeRow{name, packets, writes})
	}
	for _, v := range []struct {
		name     string
		from, to netip.AddrPort
		transp   int
	}{{"IPv4", them4, us4, 20}, {"IPv6", them6, us6, 40}} {
		from, to := v.from, v.to
		seg := func(seq, size int, flags byte, change ...func(*tuntest.Segment)) []byte {
			return segment(from, to, seq, size, flags, change...)
		}
		in := func(name string, writes int, packets ...[]byte) { add(name+" over "+v.name, writes, packets...) }
		in("one segment", 1, seg(0, 1000, ack))
		in("segments of a flow", 1, times(40, 1228, from, to)...)
		in("more than fit into one packet", 2, times(60, 1228, from, to)...)
		in("more than the kernel would cut", 2, times(100, 100, from, to)...)
		in("odd segments", 1, times(9, 777, from, to)...)
		in("segments of one byte", 1, times(9, 1, from, to)...)
		in("a shorter one is the last", 2, seg(0, 500, ack), seg(500, 300, ack), seg(800, 300, ack))
		in("a longer one begins anew", 2, seg(0, 300, ack), seg(300, 500, ack), seg(800, 500, ack))
		in("push ends it", 2, seg(0, 500, ack), seg(500, 500, ack|psh), seg(1000, 500, ack), seg(1500, 500, ack))
		in("push on the first", 2, seg(0, 500, ack|psh), seg(500, 500, ack))
		in("FIN ends it", 1, seg(0, 500, ack), seg(500, 500, ack|fin))
		in("SYN stands alone", 2, seg(0, 500, tuntest.SYN|ack), seg(500, 500, ack))
		in("RST stands alone", 3, seg(0, 500, ack), seg(500, 500, tuntest.RST|ack), seg(1000, 500, ack))
		in("URG stands alone", 3, seg(0, 500, ack), seg(500, 500, tuntest.URG|ack), seg(1000, 500, ack))
		in("CWR stands alone", 3, seg(0, 500, ack), seg(500, 500, tuntest.CWR|ack), seg(1000, 500, ack))
		in("no ACK", 2, seg(0, 500, 0), seg(500, 500, 0))
		in("ECE in all", 1, seg(0, 500, ack|tuntest.ECE), seg(500, 500, ack|tuntest.ECE))
		in("ECE in one", 2, seg(0, 500, ack), seg(500, 500, ack|tuntest.ECE))
		in("a gap", 2, seg(0, 500, ack), seg(600, 500, ack))
		in("the wrong order", 2, seg(500, 500, ack), seg(0, 500, ack))
		in("twice the same", 2, seg(0, 500, ack), seg(0, 500, ack))
		in("nothing but acknowledgements", 3, seg(0, 0, ack), seg(0, 0, ack), seg(0, 0, ack))
		in("an acknowledgement between", 3, seg(0, 500, ack), seg(500, 0, ack), seg(500, 500, ack))
		in("another acknowledgement number", 2, seg(0, 500, ack), seg(500, 500, ack, func(s *tuntest.Segment) { s.Ack = 10 }))
		in("equal timestamps", 1, seg(0, 500, ack, stamp(1)), seg(500, 500, ack, stamp(1)), seg(1000, 20, ack, stamp(1)))
		in("other timestamps", 2, seg(0, 500, ack, stamp(1)), seg(500, 500, ack, stamp(2)))
		in("options in one", 2, seg(0, 500, ack), seg(500, 500, ack, stamp(2)))
		in("all the options there can be", 1,
			seg(0, 500, ack, func(s *tuntest.Segment) { s.Options = slices.Repeat([]byte{1}, 40) }),
			seg(500, 500, ack, func(s *tuntest.Segment) { s.Options = slices.Repeat([]byte{1}, 40) }))
		in("congestion marks in all", 1, ecn(seg(0, 500, ack), 3), ecn(seg(500, 500, ack), 3))
		in("a congestion mark in one", 2, ecn(seg(0, 500, ack), 2), ecn(seg(500, 500, ack), 3))
		in("datagrams", 1, udps(30, 64, from, to)...)
		in("datagrams and a shorter one", 1, append(udps(3, 64, from, to), tuntest.UDP(from, to, payload(10)))...)
		in("datagrams of all sizes", 4, tuntest.UDP(from, to, payload(1)), tuntest.UDP(from, to, payload(9)),
			tuntest.UDP(from, to, payload(100)), tuntest.UDP(from, to, payload(1200)))
		in("empty datagrams", 3, udps(3, 0, from, to)...)
		in("a hundred datagrams", 2, udps(100, 64, from, to)...)
		in("large datagrams", 2, udps(2, 40000, from, to)...)
		in("pings", 2, tuntest.Echo(from.Addr(), to.Addr(), 1, 1, payload(56)), tuntest.Echo(from.Addr(), to.Addr(), 1, 2, payload(56)))
		in("a ping within a flow", 2, seg(0, 500, ack), tuntest.Echo(from.Addr(), to.Addr(), 1, 1, nil), seg(500, 500, ack))
		in("wrong checksums", 3, seg(0, 500, ack), broken(seg(500, 500, ack), v.transp+tcpSum), seg(1000, 500, ack))
		in("wrong data", 2, broken(seg(0, 500, ack), v.transp+100), seg(500, 500, ack), seg(1000, 500, ack))
		in("a wrong checksum of UDP", 3, udps(1, 99, from, to)[0], broken(udps(1, 99, from, to)[0], v.transp+udpSum), udps(1, 99, from, to)[0])
	}
	add("two flows, turn by turn", 2, segment(them4, us4, 0, 500, ack), segment(them4, other, 0, 400, ack),
		segment(them4, us4, 500, 500, ack), segment(them4, other, 400, 400, ack))
	add("flows of both families", 2, segment(them4, us4, 0, 500, ack), segment(them6, us6, 0, 500, ack),
		segment(them4, us4, 500, 500, ack), segment(them6, us6, 500, 500, ack))
	var many [][]byte
	for i := range 40 {
		from := netip.AddrPortFrom(them4.Addr(), uint16(4000+i%20))
		many = append(many, segment(from, us4, i/20*100, 100, ack))
	}
	add("more flows than are kept", 40, many...)
	add("IPv4 options", 2, optioned(segment(them4, us4, 0, 500, ack)), optioned(segment(them4, us4, 500, 500, ack)))
	add("may be fragmented", 2, with(segment(them4, us4, 0, 500, ack), 6, 0), with(segment(them4, us4, 500, 500, ack), 6, 0))
	add("fragments", 3, with(segment(them4, us4, 0, 512, ack), 6, 0x20), with(segment(them4, us4, 512, 512, ack), 7, 64),
		segment(them4, us4, 1024, 500, ack))
	add("another TTL", 2, segment(them4, us4, 0, 500, ack), with(segment(them4, us4, 500, 500, ack), 8, 7))
	add("another hop limit", 2, segment(them6, us6, 0, 500, ack), with(segment(them6, us6, 500, 500, ack), 7, 7))
	add("another flow label", 2, segment(them6, us6, 0, 500, ack), with(segment(them6, us6, 500, 500, ack), 3, 7))
	for name, kind := range map[string]byte{"hop-by-hop": 0, "routing": 43, "fragment": 44, "destination": 60} {
		add("an extension header: "+name, 2, extended(segment(them6, us6, 0, 500, ack), kind),
			extended(segment(them6, us6, 500, 500, ack), kind))
	}
	unsummed := tuntest.UDP(them4, us4, payload(80))
	unsummed[20+udpSum], unsummed[20+udpSum+1] = 0, 0
	add("UDP without checksum", 2, unsummed, unsummed)
	return rows
}()

type mergeRow struct {
	name    string
	packets [][]byte
	writes  int
}

// ecn sets the congestion bits.
func ecn(packet []byte, bits byte) []byte {
	if packet[0]>>4 == 4 {
		return with(packet, 1, bits)
	}
	return with(packet, 1, bits<<4)
}

// finishable reports whether a packet can travel with an unfinished checksum.
func finishable(packet []byte) (start, offset int, ok bool) {
	s, ok := parseTransport(packet)
	if s.tcp {
		return s.ip, tcpSum, ok
	}
	return s.ip, udpSum, ok
}

// withoutID sets the identification of an IPv4 packet to zero: it says nothing in packets that may not be fragmented, and
// those that were merged are numbered anew.
func withoutID(packet []byte) []byte { return setID(bytes.Clone(packet), 0) }

// flowOf tells packets apart that must keep their order.
func flowOf(packet []byte) string {
	s, ok := parseTransport(packet)
	if !ok {
		return "other"
	}
	if packet[0]>>4 == 4 {
		return fmt.Sprintf("%v %x %x", s.tcp, packet[12:20], packet[s.ip:s.ip+4])
	}
	return fmt.Sprintf("%v %x %x", s.tcp, packet[8:40], packet[40:44])
}

// wantSame fails the test unless got are the packets want, in the same order within each flow.
func wantSame(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	flows := func(packets [][]byte) map[string][][]byte {
		m := make(map[string][][]byte)
		for _, p := range packets {
			key := flowOf(p)
			if len(p) >= 20 && p[0] == 0x45 && p[6]&0x40 != 0 {
				p = withoutID(p)
			}
			m[key] = append(m[key], p)
		}
		return m
	}
	a, b := flows(got), flows(want)
	for key, packets := range b {
		if len(a[key]) != len(packets) {
			t.Errorf("%s: %d packets of flow %s arrive, want %d", what, len(a[key]), key, len(packets))
			continue
		}
		for i, p := range packets {
			if !bytes.Equal(a[key][i], p) {
				t.Errorf("%s: packet %d of flow %s arrives as %x, want %x", what, i, key, a[key][i], p)
				break
			}
		}
		delete(a, key)
	}
	for key := range a {
		t.Errorf("%s: packets of flow %s arrive, and none was sent", what, key)
	}
}

// TestMergedPacketsAreCutIntoTheSame writes each batch with finished and with unfinished checksums, merged and one by
// one. What a kernel cuts from it must be what was given.
func TestMergedPacketsAreCutIntoTheSame(t *testing.T) {
	k := newKernel(t)
	for _, row := range mergeRows {
		for _, way := range []struct {
			name       string
			unfinished func(i int) bool
			merge      bool
		}{
			{"finished", func(int) bool { return false }, true},
			{"unfinished", func(int) bool { return true }, true},
			{"some unfinished", func(i int) bool { return i%3 == 1 }, true},
			{"unfinished, one by one", func(int) bool { return true }, false},
			{"finished, one by one", func(int) bool { return false }, false},
		} {
			name := row.name + ", " + way.name
			batch := make([]given, len(row.packets))
			for i, p := range row.packets {
				batch[i].packet = bytes.Clone(p)
				if start, offset, ok := finishable(p); ok && way.unfinished(i) && tuntest.Check(p) == nil && !isZeroSum(p) {
					batch[i] = given{unfinish(p, start, offset), true}
				}
			}
			k.q.merge.Store(way.merge)
			if n, err := k.write(batch); n != len(batch) || err != nil {
				t.Errorf("%s: WriteLarge = %d, %v, want %d", name, n, err, len(batch))
			}
			frames := k.frames(t)
			want := row.writes
			if !way.merge {
				want = len(batch)
			}
			if len(frames) != want {
				t.Errorf("%s: %d writes, want %d", name, len(frames), want)
			}
			wantSame(t, name, recut(t, frames), row.packets)
		}
	}
}

// isZeroSum reports whether a datagram has no checksum.
func isZeroSum(packet []byte) bool {
	s, ok := parseTransport(packet)
	return ok && !s.tcp && binary.BigEndian.Uint16(packet[s.ip+udpSum:]) == 0
}

func TestUnfinishedPacketsAreChecked(t *testing.T) {
	k := newKernel(t)
	tcp, udp := segment(them4, us4, 0, 100, tuntest.ACK), tuntest.UDP(them6, us6, payload(100))
	shortHeader := bytes.Clone(tcp)
	shortHeader[20+tcpDataOffset] = 4 << 4
	longHeader := bytes.Clone(tcp)
	longHeader[20+tcpDataOffset] = 0xf0
	longHeader = with(longHeader[:60], 3, 60)
	udpLength := bytes.Clone(udp)
	udpLength[45]++
	for name, packet := range map[string][]byte{
		"nothing of use":               {0xff},
		"not IP":                       payload(100),
		"ICMP":                         tuntest.Echo(them4.Addr(), us4.Addr(), 1, 1, nil),
		"first fragment":               with(tcp, 6, 0x20),
		"later fragment":               with(tcp, 7, 10),
		"extension header":             extended(udp, 60),
		"TCP header shorter than 20":   shortHeader,
		"TCP header longer than all":   longHeader,
		"half a TCP header":            with(tcp[:30], 3, 30),
		"half a UDP header":            with(udp[:44], 5, 4),
		"UDP length":                   udpLength,
		"total length too small":       with(tcp, 3, 50),
		"payload length too large":     with(udp, 5, 200),
		"IPv4 header shorter than 20":  with(tcp, 0, 0x44),
		"half an IPv6 header":          udp[:39],
		"IPv4 header longer than that": with(tcp[:24], 0, 0x4f),
	} {
		n, err := k.write([]given{{tcp, false}, {bytes.Clone(packet), true}, {udp, false}})
		if n != 2 || !errors.Is(err, errBadPacket) {
			t.Errorf("%s: WriteLarge = %d, %v, want the two others and errBadPacket", name, n, err)
		}
		wantSame(t, name, recut(t, k.frames(t)), [][]byte{tcp, udp})
	}
}

func TestMergingStopsWhereTheKernelRefusesLargeWrites(t *testing.T) {
	k := newKernel(t)
	for i := range maxMergeFailures {
		if !k.q.merge.Load() {
			t.Fatalf("merging stopped after %d failures, want %d", i, maxMergeFailures)
		}
		k.q.judgeMerging(unix.EINVAL)
	}
	if k.q.merge.Load() {
		t.Error("merging goes on although it never works")
	}
}

// TestRefusedGroupsAreWrittenOneByOne makes the kernel refuse what is longer than a packet.
func TestRefusedGroupsAreWrittenOneByOne(t *testing.T) {
	for _, row := range mergeRows {
		for _, partial := range []bool{false, true} {
			k := newKernel(t)
			m := k.q.mergers.Get().(*merger)
			real := m.attempt
			refused := 0
			m.attempt = func(fd uintptr) bool {
				if m.nio > 1 {
					refused++
					m.errno = unix.EINVAL
					return true
				}
				return real(fd)
			}
			k.q.mergers.New = func() any { return m }
			k.q.mergers.Put(m)
			batch := make([]given, len(row.packets))
			for i, p := range row.packets {
				batch[i].packet = bytes.Clone(p)
				if start, offset, ok := finishable(p); ok && partial && tuntest.Check(p) == nil && !isZeroSum(p) {
					batch[i] = given{unfinish(p, start, offset), true}
				}
			}
			if n, err := k.write(batch); n != len(batch) || err != nil {
				t.Errorf("%s: WriteLarge = %d, %v, want %d", row.name, n, err, len(batch))
			}
			frames := k.frames(t)
			if len(frames) != len(batch) {
				t.Errorf("%s: %d writes after %d were refused, want %d", row.name, len(frames), refused, len(batch))
			}
			wantSame(t, row.name, recut(t, frames), row.packets)
		}
	}
}

func FuzzMerge(f *testing.F) {
	for i := range 8 {
		f.Add(uint64(i), []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, seed uint64, noise []byte) {
		k := newKernel(t)
		rnd := rand.New(rand.NewPCG(seed, 1))
		var batch []given
		var want [][]byte
		seq := [4]int{}
		for range 1 + rnd.IntN(60) {
			from, to := them4, us4
			flow := rnd.IntN(4)
			if flow&1 != 0 {
				from, to = them6, us6
			}
			from = netip.AddrPortFrom(from.Addr(), uint16(1000+flow))
			size := []int{0, 1, 100, 100, 100, 1200}[rnd.IntN(6)]
			packet := tuntest.UDP(from, to, payload(size))
			if rnd.IntN(3) > 0 {
				flags := byte(tuntest.ACK)
				if rnd.IntN(6) == 0 {
					flags = byte(rnd.Uint32())
				}
				packet = segment(from, to, seq[flow], size, flags)
				seq[flow] += size
			}
			for _, b := range noise {
				if rnd.IntN(40) == 0 {
					packet[rnd.IntN(min(len(packet), 60))] ^= b
				}
			}
			g := given{packet: packet}
			start, offset, ok := finishable(packet)
			if ok && tuntest.Check(packet) == nil && !isZeroSum(packet) && rnd.IntN(2) == 0 {
				g = given{unfinish(packet, start, offset), true}
			}
			batch, want = append(batch, g), append(want, bytes.Clone(packet))
		}
		if n, err := k.write(batch); n != len(batch) || err != nil {
			t.Fatalf("WriteLarge = %d, %v, want %d", n, err, len(batch))
		}
		wantSame(t, "random packets", recut(t, k.frames(t)), want)
	})
}

func TestWritingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools at random")
	}
	k := newKernel(t)
	var made [][]byte
	for i := range 40 {
		made = append(made, append(make([]byte, 16), segment(them4, us4, i*1000, 1000, tuntest.ACK)...))
	}
	bufs, unfinished, out := make([][]byte, len(made)), make([]bool, len(made)), make([]byte, 1<<17)
	raw, err := k.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	read := func(fd uintptr) bool { _, err = unix.Read(int(fd), out); return true }
	if allocs := testing.AllocsPerRun(100, func() {
		for i, p := range made { // as they were
			binary.BigEndian.PutUint16(p[16+2:], uint16(len(p)-16))
			bufs[i], unfinished[i] = p, true
		}
		if n, err := k.q.WriteLarge(bufs, 16, unfinished); n != len(bufs) || err != nil {
			t.Errorf("WriteLarge = %d, %v", n, err)
		}
		if e := errors.Join(raw.Read(read), err); e != nil {
			t.Error(e)
		}
	}); allocs > 0.5 { // a collection may empty the pool
		t.Errorf("WriteLarge allocates %v times, want 0", allocs)
	}
}

func BenchmarkMerge(b *testing.B) {
	k := newKernel(b)
	var made [][]byte
	for i := range 48 {
		made = append(made, append(make([]byte, 16), segment(them4, us4, i*1228, 1228, tuntest.ACK)...))
	}
	m := k.q.mergers.Get().(*merger)
	m.attempt = func(uintptr) bool { m.errno = 0; return true }
	k.q.mergers.New = func() any { return m }
	k.q.mergers.Put(m)
	bufs, unfinished := make([][]byte, len(made)), make([]bool, len(made))
	for i := range unfinished {
		unfinished[i] = true
	}
	b.ReportAllocs()
	b.SetBytes(1268 * int64(len(made)))
	for b.Loop() {
		for i, p := range made { // as they were
			binary.BigEndian.PutUint16(p[16+2:], uint16(len(p)-16))
			bufs[i] = p
		}
		if _, err := k.q.WriteLarge(bufs, 16, unfinished); err != nil {
			b.Fatal(err)
		}
	}
}
