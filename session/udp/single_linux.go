package udp

import (
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// single is what one sendmsg needs.
type single struct {
	name  sockaddr
	zones zoneCache
	iov   unix.Iovec
	hdr   unix.Msghdr
	errno unix.Errno

	try func(fd uintptr) // bound once, because binding it allocates
}

var singles = sync.Pool{New: func() any { //nolint:gochecknoglobals // a cache
	s := &single{}
	s.try = func(fd uintptr) {
		for {
			_, _, s.errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.hdr)), 0)
			if s.errno != unix.EINTR {
				return
			}
		}
	}
	return s
}}

// writeAtOnce sends one datagram without the net package, which would tell Go's scheduler that the call may take long. Its monitor
// then wakes every 20 us for a while: see ARCHITECTURE.md on system calls. It reports false if that has to be done.
func (c *Conn) writeAtOnce(b []byte, to netip.AddrPort, control []byte) (sent bool, err error) {
	if c.portable {
		return false, nil
	}
	s := singles.Get().(*single)
	s.iov.Base = unsafe.SliceData(b)
	s.iov.SetLen(len(b))
	s.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.name)), Namelen: setSockaddr(&s.name, to, &s.zones), Iov: &s.iov}
	s.hdr.SetIovlen(1)
	if len(control) > 0 {
		s.hdr.Control = unsafe.SliceData(control)
		s.hdr.SetControllen(len(control))
	}
	s.errno = 0
	err = c.raw.Control(s.try)
	if err == nil && s.errno != 0 {
		err = s.errno
	}
	s.iov, s.hdr = unix.Iovec{}, unix.Msghdr{} // do not keep the caller's memory
	errno := s.errno
	singles.Put(s)
	if errno == unix.EAGAIN || errno == unix.ENOSYS {
		return false, nil
	}
	return true, err
}
