package udp

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls are made here and not through golang.org/x/net/ipv4, whose ReadBatch allocates two objects for each message
// and whose WriteBatch lets in one sender at a time (on two cores, two senders of full trains get through 1.5 times as
// much without). The waiting is the Go runtime's, through syscall.RawConn, in both.

// mmsghdr is struct mmsghdr. Its padding comes by itself: Go too rounds a struct's size up to its alignment.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received or sent
}

// mmsgFunc is the shape of both calls. It returns how many of the messages were moved, at least one unless it fails.
type mmsgFunc func(fd uintptr, m []mmsghdr) (int, unix.Errno)

func recvmmsg(fd uintptr, m []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), 0, 0, 0)
	return int(n), errno
}

func sendmmsg(fd uintptr, m []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), 0, 0, 0)
	return int(n), errno
}

// sockaddr has room for both families' addresses; the layouts are unix.RawSockaddrInet4's and …Inet6's.
type sockaddr = unix.RawSockaddrInet6

// setSockaddr stores a in s and returns its length.
func setSockaddr(s *sockaddr, a netip.AddrPort, zones *zoneCache) uint32 {
	if a.Addr().Is4() {
		s4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(s))
		*s4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: bigEndian(a.Port()), Addr: a.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	*s = unix.RawSockaddrInet6{
		Family: unix.AF_INET6, Port: bigEndian(a.Port()), Addr: a.Addr().As16(), Scope_id: zones.toIndex(a.Addr().Zone()),
	}
	return unix.SizeofSockaddrInet6
}

// getSockaddr returns the address in s, the zero AddrPort if it is of no family that we know.
func getSockaddr(s *sockaddr, length uint32, zones *zoneCache) netip.AddrPort {
	switch {
	case s.Family == unix.AF_INET && length >= unix.SizeofSockaddrInet4:
		s4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(s))
		return netip.AddrPortFrom(netip.AddrFrom4(s4.Addr), bigEndian(s4.Port))
	case s.Family == unix.AF_INET6 && length >= unix.SizeofSockaddrInet6:
		a := netip.AddrFrom16(s.Addr)
		if s.Scope_id != 0 && !a.Is4In6() {
			a = a.WithZone(zones.toName(s.Scope_id))
		}
		return netip.AddrPortFrom(a, bigEndian(s.Port))
	}
	return netip.AddrPort{}
}

// bigEndian turns a port from the machine's byte order to the network's, or back.
func bigEndian(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
