package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"omegatun/moderate"
)

const (
	hubEvents = 64 // sockets that one call finds readable
	hubSlots  = 64 // messages that one call receives

	// hubSlot is a trainSlot and a bit: places that are a power of two apart are the same places in the processor's cache.
	// Of most slots only the first page is ever touched.
	hubSlot = trainSlot + smallSlot + 64
)

// hub waits for its sockets with an epoll of its own. The Go runtime's does not know them, but the bell, so that waiting
// costs what it costs for any goroutine: a system call that blocks, as epoll_wait would, has the runtime's monitor look
// after it for milliseconds each time, which is ten times the work of answering. The bell is an epoll that has the other one
// in it, to be switched off while datagrams come fast: the runtime would be told of each.
type hub struct {
	portable *portableHub // instead of everything else, where a sandbox has no epoll, none in another, or no recvmmsg

	epoll, wake int // wake is an eventfd: readable when it is time to end
	bell        *os.File
	senders     sync.Pool
	done        chan struct{} // closed when the goroutine has ended

	mu      sync.RWMutex // guards the fields below
	closed  bool
	members []*member // by slot; nil: free
	free    []int32   // slots
	uses    int32     // of slots so far
}

// member is a socket's part in its hub. It stands in for the net package's: it is the Conn's syscall.RawConn.
type member struct {
	g    *hub
	conn *Conn
	h    Handler
	slot int32
	use  int32 // tells the members apart that a slot has had

	mu sync.RWMutex // guards fd: it is not closed while in use
	fd int          // -1: closed
}

func (g *hub) start() error {
	_, noMany := recvmmsg(^uintptr(0), make([]mmsghdr, 1))
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil || noMany == unix.ENOSYS {
		g.portable = &portableHub{}
		if err == nil {
			return unix.Close(epoll)
		}
		return nil
	}
	bell, ring, err := newBell(epoll)
	if err != nil {
		g.portable = &portableHub{}
		return unix.Close(epoll)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1})
		if err != nil {
			err = errors.Join(err, unix.Close(wake))
		}
	}
	if err != nil {
		return fmt.Errorf("udp: %w", errors.Join(err, bell.Close(), unix.Close(epoll)))
	}
	g.epoll, g.wake, g.bell = epoll, wake, bell
	g.senders.New = func() any { return newSender() }
	g.done = make(chan struct{})
	go g.run(ring)
	return nil
}

// newBell returns a file that the Go runtime can wait for, and that is readable when the epoll is.
func newBell(epoll int) (*os.File, syscall.RawConn, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, epoll, &unix.EpollEvent{Events: unix.EPOLLIN})
	if err == nil {
		err = unix.SetNonblock(fd, true) // the runtime takes it for a file that can be waited for
	}
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	bell := os.NewFile(uintptr(fd), "epoll")
	err = bell.SetReadDeadline(time.Time{}) // fails unless it can
	ring, e := bell.SyscallConn()
	if err = errors.Join(err, e); err != nil {
		return nil, nil, errors.Join(err, bell.Close())
	}
	return bell, ring, nil
}

func (g *hub) listen(cfg Config, h Handler) (*Conn, error) {
	if g.portable != nil || cfg.Disable&FeatureBatch != 0 {
		return g.listenPortable(cfg, h)
	}
	addr := cfg.fill()
	m := &member{g: g, h: h}
	c := &Conn{raw: m, log: cfg.Logger, hubbed: true}
	c.member, c.senders = m, &g.senders
	m.conn = c
	var err error
	if m.fd, err = open(addr, cfg); err != nil {
		return nil, err
	}
	c.start(cfg)
	if c.local, err = boundTo(m.fd); err == nil {
		err = g.add(m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("udp: %w", err), unix.Close(m.fd))
	}
	return c, nil
}

func (g *hub) listenPortable(cfg Config, h Handler) (*Conn, error) {
	g.mu.Lock()
	if g.portable == nil {
		g.portable = &portableHub{closed: g.closed}
	}
	p := g.portable
	g.mu.Unlock()
	return p.listen(cfg, h)
}

// open opens a socket and binds it.
func open(addr netip.AddrPort, cfg Config) (int, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("udp: %w", os.NewSyscallError("socket", err))
	}
	var at unix.Sockaddr
	if family == unix.AF_INET {
		at = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	} else {
		at = &unix.SockaddrInet6{
			Port: int(addr.Port()), Addr: addr.Addr().As16(), ZoneId: new(zoneCache).toIndex(addr.Addr().Zone()),
		}
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = setOptions(uintptr(fd), addr.Addr(), cfg)
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, at))
	}
	switch {
	case err == nil:
		return fd, nil
	case isInUse(err):
		err = &InUseError{Addr: addr, Err: err}
	default:
		err = fmt.Errorf("udp: %w", err)
	}
	_ = unix.Close(fd) // nothing was sent, so nothing is lost
	return -1, err
}

// boundTo returns the address that a socket is bound to.
func boundTo(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr).WithZone(new(zoneCache).toName(sa.ZoneId))
		return netip.AddrPortFrom(a, uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, errors.New("getsockname: neither IPv4 nor IPv6")
}

// add gives m a slot, and has its socket waited for.
func (g *hub) add(m *member) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	if last := len(g.free) - 1; last >= 0 {
		m.slot, g.free = g.free[last], g.free[:last]
	} else {
		m.slot = int32(len(g.members))
		g.members = append(g.members, nil)
	}
	g.uses++
	m.use = g.uses
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: m.slot, Pad: m.use}
	if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, m.fd, &event); err != nil {
		g.free = append(g.free, m.slot)
		return os.NewSyscallError("epoll_ctl", err)
	}
	g.members[m.slot] = m
	return nil
}

// close closes the socket. It is called once.
func (m *member) close() error {
	g := m.g
	g.mu.Lock()
	if g.members[m.slot] == m {
		g.members[m.slot] = nil
		g.free = append(g.free, m.slot)
	}
	g.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	fd := m.fd
	m.fd = -1
	return os.NewSyscallError("close", unix.Close(fd)) // and leaves the epoll
}

// of returns the member that an event is about, nil if it is no more.
func (g *hub) of(e *unix.EpollEvent) *member {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if e.Fd < 0 || int(e.Fd) >= len(g.members) {
		return nil
	}
	if m := g.members[e.Fd]; m != nil && m.use == e.Pad {
		return m
	}
	return nil
}

// run receives until the hub is closed.
func (g *hub) run(ring syscall.RawConn) {
	defer close(g.done)
	r := hubReceiver{
		g: g, batch: newBatch(hubSlots, hubSlot), events: make([]unix.EpollEvent, hubEvents),
		armed: true, alone: runtime.GOMAXPROCS(0) == 1,
	}
	err := ring.Read(func(fd uintptr) bool { return r.receive(int(fd)) })
	if err != nil && !g.isClosed() {
		panic("udp: wait for an epoll: " + err.Error()) // it is ours, and is closed after this
	}
}

// hubReceiver is what a hub's goroutine works with.
type hubReceiver struct {
	g      *hub
	batch  *Batch
	events []unix.EpollEvent
	pace   moderate.Pace
	armed  bool // the bell rings
	alone  bool // there is no other processor for other goroutines
}

// receive hands over what there is, until there is no more: then it returns false, to be called again when the bell has
// rung, at least once for whatever came since it looked last. It returns true if the hub is closed.
func (r *hubReceiver) receive(bell int) bool {
	for {
		n, errno := epollPoll(r.g.epoll, r.events)
		if errno != 0 {
			panic("udp: epoll_wait: " + errno.Error()) // of a descriptor and memory that are ours
		}
		messages, room := 0, n < len(r.events)
		for i := range r.events[:n] {
			if m := r.g.of(&r.events[i]); m != nil {
				k, more := m.receive(r.batch)
				messages += k
				room = room && !more
			} else if r.g.isClosed() {
				return true
			}
		}
		switch {
		case !room:
			r.pace.Rest(time.Now(), messages, 0, room)
		case messages > 0 && r.pace.Rest(time.Now(), messages, 0, room):
			r.arm(bell, false)
			moderate.Nap(moderate.Sleep)
			if r.alone {
				runtime.Gosched()
			}
		case r.arm(bell, true): // for what comes from now on; something may have come already
		default:
			return false
		}
	}
}

// arm has the bell ring or not. It reports whether that is new.
func (r *hubReceiver) arm(bell int, on bool) bool {
	if r.armed == on {
		return false
	}
	var event unix.EpollEvent
	if on {
		event.Events = unix.EPOLLIN
	}
	if err := unix.EpollCtl(bell, unix.EPOLL_CTL_MOD, r.g.epoll, &event); err != nil {
		panic("udp: epoll_ctl: " + err.Error())
	}
	r.armed = on
	return true
}

// epollPoll is epoll_wait, but does not wait, and is not announced to Go's scheduler.
func epollPoll(epoll int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (g *hub) isClosed() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.closed
}

// receive hands over what the socket has: so many messages, and perhaps it has more.
func (m *member) receive(b *Batch) (messages int, more bool) {
	b.reset()
	err := m.conn.receiveMany(b)
	switch {
	case err == nil:
		if b.Len() > 0 {
			m.h(m.conn, b)
		}
		return b.system.n, b.system.n == len(b.messages)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, net.ErrClosed):
		return 0, false
	default:
		m.conn.counters.socketErrors.Add(1) // of a datagram, taken away by the call
		return 0, true
	}
}

func (g *hub) close() error {
	g.mu.Lock()
	p, closed, members := g.portable, g.closed, g.members
	g.closed, g.members, g.free = true, make([]*member, len(g.members)), nil
	g.mu.Unlock()
	var errs []error
	if p != nil {
		errs = append(errs, p.close())
	}
	if g.done == nil {
		return errors.Join(errs...)
	}
	for _, m := range members {
		if m != nil {
			errs = append(errs, m.conn.Close())
		}
	}
	if closed {
		<-g.done
		return errors.Join(errs...)
	}
	_, err := unix.Write(g.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	errs = append(errs, err)
	<-g.done
	return errors.Join(append(errs, g.bell.Close(), unix.Close(g.epoll), unix.Close(g.wake))...)
}

// Control implements syscall.RawConn.
func (m *member) Control(f func(fd uintptr)) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(m.fd))
	return nil
}

// Read implements syscall.RawConn, but never waits.
func (m *member) Read(f func(fd uintptr) bool) error { return m.Control(func(fd uintptr) { f(fd) }) }

// Write implements syscall.RawConn, but never waits.
func (m *member) Write(f func(fd uintptr) bool) error { return m.Read(f) }

// send sends one datagram.
func (m *member) send(b []byte, to netip.AddrPort, control []byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.fd < 0 {
		return net.ErrClosed
	}
	var name sockaddr
	var zones zoneCache
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: setSockaddr(&name, to, &zones), Iov: &iov}
	h.SetIovlen(1)
	if len(control) > 0 {
		h.Control = unsafe.SliceData(control)
		h.SetControllen(len(control))
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(m.fd), uintptr(unsafe.Pointer(&h)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			return unix.ENOBUFS // it is lost
		default:
			return errno
		}
	}
}
