package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSystem is what recvmmsg needs for a Batch: one header, address and control buffer for each slot, set up once.
type batchSystem struct {
	headers  []mmsghdr
	iovecs   []unix.Iovec
	names    []sockaddr
	controls [][receiveControlSize]byte
	zones    zoneCache
	dirty    int // headers that the last call has written to

	// The running call. recv is receive, bound once, because binding it allocates.
	recv  func(fd uintptr) bool
	call  mmsgFunc
	n     int
	errno unix.Errno
}

func (s *batchSystem) init(b *Batch) {
	slots := len(b.messages)
	s.headers = make([]mmsghdr, slots)
	s.iovecs = make([]unix.Iovec, slots)
	s.names = make([]sockaddr, slots)
	s.controls = make([][receiveControlSize]byte, slots)
	for i := range s.headers {
		s.iovecs[i].Base = unsafe.SliceData(b.slotBytes(i))
		s.iovecs[i].SetLen(b.slot)
		h := &s.headers[i].hdr
		h.Iov = &s.iovecs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Control = &s.controls[i][0]
	}
	s.dirty = slots
	s.recv = s.receive
}

// control returns the control buffer of message m.
func (s *batchSystem) control(m int) []byte { return s.controls[m][:] }

func (s *batchSystem) parse(b []byte) control { return parseControl(b, &s.zones) }

// receive makes one call and reports whether it is done, or must wait for the socket to become readable.
func (s *batchSystem) receive(fd uintptr) bool {
	for {
		s.n, s.errno = s.call(fd, s.headers)
		if s.errno != unix.EINTR {
			return s.errno != unix.EAGAIN
		}
	}
}

// receiveMany is receiveOne for up to as many messages as b has slots.
func (c *Conn) receiveMany(b *Batch) error {
	c.suitMerge(b)
	s := &b.system
	for i := range s.headers[:s.dirty] {
		h := &s.headers[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(receiveControlSize)
	}
	s.call = c.recvmmsg
	s.dirty = len(s.headers)
	if err := c.raw.Read(s.recv); err != nil {
		return err
	}
	if s.errno == unix.ENOSYS { // a sandbox
		c.giveUp(AllFeatures, s.errno)
		return nil
	}
	if s.errno != 0 {
		return s.errno
	}
	s.dirty = s.n
	var packets, size int
	for i := range s.n {
		m := &s.headers[i]
		truncated := m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0
		info := s.parse(s.controls[i][:min(m.hdr.Controllen, receiveControlSize)])
		p, n := c.accept(b, i, int(m.n), truncated, info, getSockaddr(&s.names[i], m.hdr.Namelen, &s.zones))
		packets += p
		size += n
	}
	c.countReceived(packets, size, s.n)
	return nil
}

// suitMerge turns UDP_GRO on if b has room for whole trains, else off: what does not fit into a slot is lost. It is
// called by the receiving goroutine only.
func (c *Conn) suitMerge(b *Batch) {
	on := b.slot >= trainSlot && c.has(FeatureMerge)
	if on == c.merging {
		return
	}
	c.merging = on
	if err := c.setInt(unix.SOL_UDP, unix.UDP_GRO, boolInt(on)); err != nil {
		c.giveUp(FeatureMerge, err)
	}
}
