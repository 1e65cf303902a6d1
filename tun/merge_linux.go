package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxGroups = 16 // large packets under construction
	// maxSegments is how many packets become one large one. The kernel cuts UDP into no more (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxMerged bounds a large packet: what an IPv4 header can say.
	maxMerged = 65535
	// batchBuffers is how many packets of one write are looked at together.
	batchBuffers = 256
)

// merger writes packets, those of a flow as one large packet where the kernel would have cut one to get them. It
// copies nothing: the payloads are gathered where they lie. A merger serves one call at a time.
//
// The kernel trusts what a virtio header says, and these packets come from other machines. So whatever is merged, or
// marked as unfinished, has been parsed here, and all that the kernel will rely on (lengths, the sum of the pseudo-header, the
// place of the checksum) is computed here and not taken from the packet.
type merger struct {
	q      *queue
	groups [maxGroups]group
	order  [maxGroups]int // of the groups in use, oldest first
	count  int
	next   [batchBuffers]int16 // the packet that follows in the same group, by index; -1: none

	bufs   [][]byte // of the call in progress
	offset int
	err    error // the first one
	failed int   // packets that were not written

	iovecs  [maxSegments + 1]unix.Iovec
	nio     int
	errno   unix.Errno
	attempt func(fd uintptr) bool // reports whether it is done, or must wait
	try     func(fd uintptr)
}

// group is a large packet under construction.
type group struct {
	shape
	first, last int // packets, by index
	segments    int
	bytes       int  // of payload
	closed      bool // nothing may follow
	checked     bool // the checksum of the first packet is known to be right, or unfinished
	unfinished  bool // of the first packet
}

// shape is what a packet looks like to the merger.
type shape struct {
	packet  []byte // all of it
	ip      int    // length of the IP header
	headers int    // length of the IP header and the transport header
	tcp     bool
	size    int // bytes of payload
}

func newMerger(q *queue) *merger {
	m := &merger{q: q}
	m.attempt = func(fd uintptr) bool {
		for {
			_, _, m.errno = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&m.iovecs[0])), uintptr(m.nio))
			if m.errno != unix.EINTR {
				return m.errno != unix.EAGAIN
			}
		}
	}
	m.try = func(fd uintptr) { m.attempt(fd) }
	return m
}

// WriteLarge is [Large.WriteLarge].
func (q *queue) WriteLarge(bufs [][]byte, offset int, unfinished []bool) (int, error) {
	m := q.mergers.Get().(*merger)
	m.offset, m.err, m.failed = offset, nil, 0
	bytes := 0
	for start := 0; start < len(bufs); start += batchBuffers {
		end := min(start+batchBuffers, len(bufs))
		m.bufs = bufs[start:end]
		for i, b := range m.bufs {
			bytes += len(b) - offset
			m.add(i, unfinished != nil && unfinished[start+i])
		}
		m.flush()
	}
	q.written.Add(int64(bytes))
	err, failed := m.err, m.failed
	m.bufs, m.err = nil, nil
	clear(m.iovecs[:]) // do not keep the caller's memory
	for i := range m.groups {
		m.groups[i].packet = nil
	}
	q.mergers.Put(m)
	return len(bufs) - failed, err
}

// add takes packet i: into a group, or straight to the kernel.
func (m *merger) add(i int, unfinished bool) {
	packet := m.bufs[i][m.offset:]
	s, ok := parseTransport(packet)
	if unfinished && !ok {
		m.fail(1, errBadPacket)
		return
	}
	if !ok {
		if !isICMP(packet) { // it may be anybody's, a fragment for instance: keep the order
			m.flush()
		}
		m.single(i, s, false)
		return
	}
	g := -1
	for j := m.count - 1; j >= 0; j-- {
		if sameFlow(&m.groups[m.order[j]].shape, &s) {
			g = j
			break
		}
	}
	can := m.q.merge.Load() && m.mergeable(&s)
	if g >= 0 {
		if can && m.extend(&m.groups[m.order[g]], i, s, unfinished) {
			return
		}
		m.write(g)
	}
	if !can {
		m.single(i, s, unfinished)
		return
	}
	if m.count == maxGroups {
		m.write(0)
	}
	free := m.freeGroup()
	m.order[m.count] = free
	m.count++
	m.groups[free] = group{
		shape: s, first: i, last: i, segments: 1, bytes: s.size, unfinished: unfinished, checked: unfinished,
		closed: s.tcp && packet[s.ip+tcpFlags]&(flagPSH|flagFIN) != 0,
	}
	m.next[i] = -1
}

// freeGroup returns a group that is not in use. There is one.
func (m *merger) freeGroup() int {
	var used [maxGroups]bool
	for _, g := range m.order[:m.count] {
		used[g] = true
	}
	for g, u := range used {
		if !u {
			return g
		}
	}
	panic("tun: no group is free")
}

// parseTransport finds TCP or UDP directly behind the IP header. It reports false for everything else: fragments,
// extension headers, lengths that do not fit.
func parseTransport(packet []byte) (s shape, ok bool) {
	s.packet = packet
	if len(packet) < 20 {
		return s, false
	}
	var proto byte
	switch packet[0] >> 4 {
	case 4:
		s.ip = int(packet[0]&0xf) * 4
		if s.ip < 20 || int(binary.BigEndian.Uint16(packet[2:])) != len(packet) ||
			binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 {
			return s, false
		}
		proto = packet[9]
	case 6:
		s.ip = 40
		if len(packet) < s.ip || int(binary.BigEndian.Uint16(packet[4:])) != len(packet)-s.ip {
			return s, false
		}
		proto = packet[6]
	default:
		return s, false
	}
	switch proto {
	case unix.IPPROTO_TCP:
		if len(packet) < s.ip+tcpLen {
			return s, false
		}
		header := int(packet[s.ip+tcpDataOffset]>>4) * 4
		s.headers, s.tcp = s.ip+header, true
		if header < tcpLen || len(packet) < s.headers {
			return s, false
		}
	case unix.IPPROTO_UDP:
		s.headers = s.ip + udpLen
		if len(packet) < s.headers || int(binary.BigEndian.Uint16(packet[s.ip+4:])) != len(packet)-s.ip {
			return s, false
		}
	default:
		return s, false
	}
	s.size = len(packet) - s.headers
	return s, true
}

// isICMP reports whether the packet is a message of ICMP or ICMPv6, which belongs to no flow.
func isICMP(packet []byte) bool {
	return len(packet) > 40 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_ICMPV6 ||
		len(packet) > 20 && packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_ICMP
}

// sameFlow reports whether both packets have the same protocol, addresses and ports.
func sameFlow(a, b *shape) bool {
	if a.tcp != b.tcp || a.packet[0]>>4 != b.packet[0]>>4 {
		return false
	}
	if a.packet[0]>>4 == 4 {
		return binary.NativeEndian.Uint64(a.packet[12:]) == binary.NativeEndian.Uint64(b.packet[12:]) &&
			binary.NativeEndian.Uint32(a.packet[a.ip:]) == binary.NativeEndian.Uint32(b.packet[b.ip:])
	}
	return binary.NativeEndian.Uint32(a.packet[40:]) == binary.NativeEndian.Uint32(b.packet[40:]) &&
		bytes.Equal(a.packet[8:40], b.packet[8:40])
}

// mergeable reports whether a packet may be part of a large one at all.
func (m *merger) mergeable(s *shape) bool {
	if s.size == 0 || s.packet[0]>>4 == 4 && (s.ip != 20 || s.packet[6]&0x40 == 0) { // options, or may be fragmented
		return false
	}
	if s.tcp {
		// Of the flags, acknowledgement and congestion echo must be the same in all, and push and FIN end a large packet.
		return s.packet[s.ip+tcpFlags]&^(flagFIN|flagPSH|flagECE) == flagACK
	}
	return m.q.uso && binary.BigEndian.Uint16(s.packet[s.ip+udpSum:]) != 0
}

// extend takes packet i into g, and reports whether it fits there.
func (m *merger) extend(g *group, i int, s shape, unfinished bool) bool {
	if g.closed || s.headers != g.headers || s.size > g.size || g.segments == maxSegments ||
		g.headers+g.bytes+s.size > maxMerged {
		return false
	}
	a, b := g.packet, s.packet
	if b[0]>>4 == 4 {
		if a[1] != b[1] || a[8] != b[8] || a[6] != b[6] { // traffic class, TTL, flags
			return false
		}
	} else if !bytes.Equal(a[:4], b[:4]) || a[7] != b[7] { // traffic class and flow label, hop limit
		return false
	}
	closed := s.size < g.size
	if s.tcp {
		ta, tb := a[g.ip:g.headers], b[g.ip:g.headers]
		const ends = flagFIN | flagPSH
		if binary.BigEndian.Uint32(tb[tcpSeq:]) != binary.BigEndian.Uint32(ta[tcpSeq:])+uint32(g.bytes) ||
			binary.NativeEndian.Uint32(ta[8:]) != binary.NativeEndian.Uint32(tb[8:]) || // acknowledgement
			ta[tcpDataOffset] != tb[tcpDataOffset] || (ta[tcpFlags]^tb[tcpFlags])&^ends != 0 ||
			binary.NativeEndian.Uint16(ta[14:]) != binary.NativeEndian.Uint16(tb[14:]) || // window
			!bytes.Equal(ta[18:], tb[18:]) { // urgent pointer, options
			return false
		}
		closed = closed || tb[tcpFlags]&ends != 0
	}
	if !g.checked { // the kernel will not look at the checksums of what is merged
		if !sumOK(&g.shape) {
			return false
		}
		g.checked = true
	}
	if !unfinished && !sumOK(&s) {
		return false
	}
	m.next[g.last], m.next[i] = int16(i), -1
	g.last, g.closed = i, closed
	g.segments++
	g.bytes += s.size
	return true
}

// sumOK verifies the checksum of TCP or UDP.
func sumOK(s *shape) bool {
	return fold(sum(s.pseudo(), s.packet[s.ip:])) == 0
}

// pseudo returns the unfolded sum of the pseudo-header of a packet as long as s.packet.
func (s *shape) pseudo() uint64 {
	proto := uint64(unix.IPPROTO_UDP)
	if s.tcp {
		proto = unix.IPPROTO_TCP
	}
	addrs := s.packet[12:20]
	if s.packet[0]>>4 == 6 {
		addrs = s.packet[8:40]
	}
	return sum(proto+uint64(len(s.packet)-s.ip), addrs)
}

// flush writes all groups, the oldest first.
func (m *merger) flush() {
	for m.count > 0 {
		m.write(0)
	}
}

// write writes the group at this place of the order.
func (m *merger) write(place int) {
	g := &m.groups[m.order[place]]
	copy(m.order[place:], m.order[place+1:m.count])
	m.count--
	if g.segments == 1 {
		m.single(g.first, g.shape, g.unfinished)
		return
	}
	first := g.packet // its headers become those of the large packet
	length := [2]byte{first[2], first[3]}
	if g.packet[0]>>4 == 6 {
		length = [2]byte{first[4], first[5]}
	}
	transport := first[g.ip:g.headers]
	udpLength := [2]byte{transport[4], transport[5]}
	flags := transport[min(tcpFlags, len(transport)-1)]
	field := transport[udpSum:][:2]
	if g.tcp {
		field = transport[tcpSum:][:2]
		last := m.bufs[g.last][m.offset:]
		transport[tcpFlags] |= last[g.ip+tcpFlags] & (flagFIN | flagPSH)
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(udpLen+g.bytes))
	}
	finished := [2]byte(field)
	total := g.headers + g.bytes
	m.setLength(&g.shape, total)
	partial := g.pseudo() - uint64(len(g.packet)) + uint64(total)
	binary.BigEndian.PutUint16(field, ^fold(partial))

	header := m.header(g.first)
	g.describe(header)
	header[1] = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	switch {
	case g.tcp && first[0]>>4 == 4:
		header[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
	case g.tcp:
		header[1] = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	binary.NativeEndian.PutUint16(header[2:], uint16(g.headers))
	binary.NativeEndian.PutUint16(header[4:], uint16(g.size))

	m.gather(m.bufs[g.first][m.offset-virtioLen:])
	for i := m.next[g.first]; i >= 0; i = m.next[i] {
		m.gather(m.bufs[i][m.offset+g.headers:])
	}
	err := m.call()
	m.q.judgeMerging(err)
	if err == nil {
		return
	}
	if !errors.Is(err, unix.EINVAL) {
		m.fail(g.segments, err)
		return
	}
	// Take everything back, and write them one by one.
	if g.packet[0]>>4 == 4 {
		m.setLength(&g.shape, int(binary.BigEndian.Uint16(length[:])))
	} else {
		copy(first[4:], length[:])
	}
	if g.tcp {
		transport[tcpFlags] = flags
	} else {
		copy(transport[4:], udpLength[:])
	}
	copy(field, finished[:])
	unfinished := g.unfinished
	for i := int16(g.first); i >= 0; i = m.next[i] {
		s, ok := parseTransport(m.bufs[i][m.offset:])
		// Whether the others were unfinished is not known any more; that a finished one is right has been checked.
		m.single(int(i), s, ok && (unfinished || !sumOK(&s)))
	}
}

// setLength sets the length of the IP packet.
func (m *merger) setLength(s *shape, total int) {
	if s.packet[0]>>4 == 6 {
		binary.BigEndian.PutUint16(s.packet[4:], uint16(total-40))
		return
	}
	binary.BigEndian.PutUint16(s.packet[2:], uint16(total))
	s.packet[10], s.packet[11] = 0, 0
	binary.BigEndian.PutUint16(s.packet[10:], fold(sum(0, s.packet[:s.ip])))
}

// header returns the room of the virtio header before packet i, cleared.
func (m *merger) header(i int) []byte {
	header := m.bufs[i][m.offset-virtioLen : m.offset]
	clear(header)
	return header
}

// describe tells the kernel where the unfinished checksum is.
func (s *shape) describe(header []byte) {
	offset := udpSum
	if s.tcp {
		offset = tcpSum
	}
	header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[6:], uint16(s.ip))
	binary.NativeEndian.PutUint16(header[8:], uint16(offset))
}

// single writes packet i as it is.
func (m *merger) single(i int, s shape, unfinished bool) {
	header := m.header(i)
	if unfinished {
		s.describe(header)
		field := s.packet[s.ip+udpSum:][:2]
		if s.tcp {
			field = s.packet[s.ip+tcpSum:][:2]
		}
		binary.BigEndian.PutUint16(field, ^fold(s.pseudo()))
	}
	m.gather(m.bufs[i][m.offset-virtioLen:])
	if err := m.call(); err != nil {
		m.fail(1, err)
	}
}

func (m *merger) gather(b []byte) {
	m.iovecs[m.nio].Base = unsafe.SliceData(b)
	m.iovecs[m.nio].SetLen(len(b))
	m.nio++
}

// call makes one write of what was gathered.
func (m *merger) call() error {
	// Control, unlike Write, lets several writers into the kernel at once.
	err := m.q.out.Control(m.try)
	if err == nil && m.errno == unix.EAGAIN {
		err = m.q.out.Write(m.attempt)
	}
	m.nio = 0
	switch {
	case err != nil, m.errno == unix.EBADFD:
		return os.ErrClosed
	case m.errno != 0:
		return m.errno
	}
	return nil
}

func (m *merger) fail(packets int, err error) {
	m.failed += packets
	if m.err == nil {
		m.err = err
	}
}

// judgeMerging is told the outcome of a merged write, and gives merging up if it never works.
func (q *queue) judgeMerging(err error) {
	switch {
	case err == nil:
		if !q.merged.Load() {
			q.merged.Store(true)
		}
	case errors.Is(err, unix.EINVAL):
		if q.merged.Swap(false) {
			q.failures.Store(0)
		}
		if q.failures.Add(1) == maxMergeFailures {
			q.merge.Store(false)
			q.log.Warn("the kernel refuses merged packets; they are written one by one from now on",
				"interface", q.name, "error", err)
		}
	}
}
