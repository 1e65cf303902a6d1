package udp

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sendMessages = 64  // in one sendmmsg
	sendIovecs   = 256 // for all of them
)

// sender builds the messages of one SendBatch or SendTo and sends them. Conn keeps some for reuse.
type sender struct {
	c       *Conn
	to      netip.AddrPort // of what is added now
	base    int            // messages from here on go there
	control []byte         // for every message: the source address
	segment bool           // trains are allowed
	most    int            // bytes of a train
	first   error          // the first error
	limit   int            // datagrams of this size to limitTo were found to be too large; 0: none yet
	limitTo netip.AddrPort

	name    sockaddr // to
	nameLen uint32
	zones   zoneCache
	n       int // messages built
	iov     int // iovecs used
	names   [sendMessages]sockaddr
	trains  [sendMessages]train
	headers [sendMessages]mmsghdr
	iovecs  [sendIovecs]unix.Iovec
	cmsgs   [sendMessages][sendControlSize]byte

	// The running call: headers[at:n]. try and attempt are bound once, because binding them allocates.
	attempt func(fd uintptr) bool
	try     func(fd uintptr)
	began   time.Time // when it began to wait for room in the send buffer, which it does after others; zero: it did not
	at      int
	sent    int
	errno   unix.Errno
}

// train is a message under construction, or a finished one.
type train struct {
	to      netip.AddrPort
	segment int // bytes of each datagram
	size    int // bytes of all
	count   int // datagrams
	iov     int // its first iovec
	iovs    int
	end     uintptr // address just behind the last iovec's bytes; only compared
	room    int     // bytes there that belong to the same array
	closed  bool    // nothing may follow: the last datagram is shorter
}

func newSender() *sender {
	s := &sender{}
	s.attempt = func(fd uintptr) bool {
		done := s.send(fd)
		if !done && s.began.IsZero() {
			s.began = time.Now()
		}
		return done
	}
	s.try = func(fd uintptr) { s.send(fd) }
	return s
}

// sendTrains sends the datagrams of batch, or else b cut into segment bytes each.
func (c *Conn) sendTrains(batch [][]byte, b []byte, segment int, to netip.AddrPort, control []byte) error {
	s := c.sender(control)
	s.setTo(to)
	for _, d := range batch {
		s.add(d)
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		s.add(b[:n])
		b = b[n:]
	}
	return s.finish()
}

// sendTo sends each datagram of b to the address in to.
func (c *Conn) sendTo(b [][]byte, to []netip.AddrPort, control []byte) error {
	s := c.sender(control)
	valid := false
	for i, d := range b {
		if i == 0 || to[i] != to[i-1] {
			a, err := c.checked(to[i], len(d))
			if valid = err == nil; valid {
				s.setTo(a)
			} else {
				s.note(err)
			}
		} else if !valid {
			c.counters.sendErrors.Add(1)
		}
		if valid {
			s.add(d)
		}
	}
	return s.finish()
}

// sender returns a sender for one call.
func (c *Conn) sender(control []byte) *sender {
	s := c.senders.Get().(*sender)
	s.c, s.control, s.segment, s.first, s.limit = c, control, c.has(FeatureSegment), nil, 0
	s.most = min(int(c.writeBuffer.Load()), MaxDatagram)
	return s
}

// setTo makes to, which is checked, the destination of what is added from now on.
func (s *sender) setTo(to netip.AddrPort) {
	s.to, s.base = to, s.n
	s.nameLen = setSockaddr(&s.name, to, &s.zones)
}

// finish sends what was added, gives s back and returns the first error.
func (s *sender) finish() error {
	s.flush()
	c, err := s.c, s.first
	s.c, s.first, s.control = nil, nil, nil
	c.senders.Put(s)
	return err
}

// add takes d into the train under construction, or starts another one.
func (s *sender) add(d []byte) {
	if s.n > s.base && s.segment && s.extend(&s.trains[s.n-1], d) {
		return
	}
	if s.n == sendMessages || s.iov == sendIovecs {
		s.flush()
	}
	t := &s.trains[s.n]
	*t = train{to: s.to, segment: len(d), size: len(d), count: 1, iov: s.iov, iovs: 1}
	h := &s.headers[s.n]
	*h = mmsghdr{}
	s.names[s.n] = s.name
	h.hdr.Name, h.hdr.Namelen = (*byte)(unsafe.Pointer(&s.names[s.n])), s.nameLen
	h.hdr.Iov = &s.iovecs[s.iov]
	h.hdr.SetIovlen(1)
	s.setControl(s.n, s.control)
	s.addIovec(t, d)
	s.n++
}

// extend takes d into t, unless t is complete or too different.
func (s *sender) extend(t *train, d []byte) bool {
	if t.closed || len(d) == 0 || len(d) > t.segment || t.count == MaxTrain || t.size+len(d) > s.most {
		return false
	}
	m := s.n - 1
	if t.room >= len(d) && uintptr(unsafe.Pointer(unsafe.SliceData(d))) == t.end { // right behind the one before
		iov := &s.iovecs[s.iov-1]
		iov.SetLen(int(iov.Len) + len(d))
		t.end += uintptr(len(d))
		t.room -= len(d)
	} else {
		if s.iov == sendIovecs {
			return false
		}
		s.addIovec(t, d)
		t.iovs++
		s.headers[m].hdr.SetIovlen(t.iovs)
	}
	t.size += len(d)
	t.count++
	t.closed = len(d) < t.segment
	if t.count == 2 {
		s.setControl(m, appendSegment(append(s.cmsgs[m][:0], s.control...), t.segment))
	}
	return true
}

func (s *sender) addIovec(t *train, d []byte) {
	iov := &s.iovecs[s.iov]
	iov.Base = unsafe.SliceData(d)
	iov.SetLen(len(d))
	t.end = uintptr(unsafe.Pointer(iov.Base)) + uintptr(len(d))
	t.room = cap(d) - len(d)
	s.iov++
}

// setControl gives message m the ancillary data b, which lies in s or never changes.
func (s *sender) setControl(m int, b []byte) {
	h := &s.headers[m].hdr
	h.Control = unsafe.SliceData(b)
	h.SetControllen(len(b))
}

// flush sends what was built.
func (s *sender) flush() {
	for s.at = 0; s.at < s.n; {
		err := s.call()
		s.count(s.at, s.at+s.sent)
		s.at += s.sent
		switch {
		case err != nil: // closed
			s.note(s.c.sendFailed(err, 0, s.to))
			s.at = s.n
		case s.errno != 0: // it is the first unsent message's
			s.refused(s.at, s.errno)
			s.at++
		}
	}
	clear(s.iovecs[:s.iov]) // do not keep the caller's memory
	s.n, s.iov, s.base = 0, 0, 0
}

// call sends as many messages from s.at on as the kernel takes. It waits while the send buffer is full.
func (s *sender) call() error {
	// Control, unlike Write, lets several senders into the kernel at once.
	err := s.c.raw.Control(s.try)
	if err == nil && s.errno == unix.EAGAIN {
		s.began = time.Time{}
		if err = s.c.raw.Write(s.attempt); !s.began.IsZero() {
			s.c.waited(time.Since(s.began))
		}
	}
	if err != nil {
		s.sent = 0
	}
	return err
}

// send makes one call and reports whether it is done, or must wait for the socket to become writable.
func (s *sender) send(fd uintptr) bool {
	for {
		s.sent, s.errno = s.c.sendmmsg(fd, s.headers[s.at:s.n])
		if s.errno == 0 {
			return true
		}
		s.sent = 0
		if s.errno != unix.EINTR {
			return s.errno != unix.EAGAIN
		}
	}
}

// count counts the messages from first up to end as sent.
func (s *sender) count(first, end int) {
	packets, size := 0, 0
	for _, t := range s.trains[first:end] {
		packets += t.count
		size += t.size
	}
	n := &s.c.counters
	n.sent.Add(uint64(packets))
	n.sentBytes.Add(uint64(size))
	n.sendTrains.Add(uint64(end - first))
}

// refused deals with message m, which the kernel did not take.
func (s *sender) refused(m int, errno unix.Errno) {
	t := &s.trains[m]
	isTrain := t.count > 1
	switch {
	case errno == unix.ENOSYS: // a sandbox
		s.c.giveUp(AllFeatures, errno)
		s.singly(t)
	case isLate(errno):
		s.c.counters.socketErrors.Add(1)
		s.singly(t)
	case isTrain && errno == unix.EIO:
		// The device has no checksum offload, or the route is encrypted by IPsec.
		s.noTrains(errno)
		s.singly(t)
	case isTrain && errno == unix.EMSGSIZE:
		s.singly(t) // the last, shorter one may pass
	case isTrain && (errno == unix.EINVAL || errno == unix.EOPNOTSUPP):
		// Older kernels say EINVAL instead of EMSGSIZE. If all pass one by one it was about the train.
		if s.singly(t) {
			s.noTrains(errno)
		}
	default:
		for range t.count {
			s.note(s.c.sendFailed(errno, t.segment, t.to))
		}
	}
}

func (s *sender) noTrains(why error) {
	s.c.giveUp(FeatureSegment, why)
	s.segment = false
}

// singly sends a train's datagrams one by one and reports whether all of them left.
func (s *sender) singly(t *train) bool {
	ok := true
	for _, iov := range s.iovecs[t.iov : t.iov+t.iovs] {
		b := unsafe.Slice(iov.Base, int(iov.Len))
		for more := true; more; more = len(b) > 0 {
			n := min(t.segment, len(b))
			var err error
			if s.limit != 0 && s.limitTo == t.to && n >= s.limit {
				err = s.c.sendFailed(unix.EMSGSIZE, n, t.to)
			} else {
				err = s.c.sendOne(b[:n], t.to, s.control)
			}
			if err != nil {
				ok = false
				s.note(err)
			}
			if errors.Is(err, ErrTooLarge) {
				s.limit, s.limitTo = n, t.to
			}
			b = b[n:]
		}
	}
	return ok
}

func (s *sender) note(err error) {
	if s.first == nil {
		s.first = err
	}
}
