package quick

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection. Its Read and Write wait on Go's poller, as those of the net package do; deadlines work, and so does
// Close. Only one goroutine at a time may read, and one may write.
type Conn struct {
	*net.TCPConn
	read, write half
}

// half does one kind of call on a connection.
type half struct {
	wait func(func(fd uintptr) bool) error

	call  func(fd uintptr) bool // makes the call on b, bound once, because binding it allocates
	b     []byte
	n     int
	errno unix.Errno
}

// NewConn returns c, which belongs to the Conn from then on.
func NewConn(c *net.TCPConn) *Conn {
	q := &Conn{TCPConn: c}
	raw, err := c.SyscallConn()
	if err != nil { // it is not a connection: the ordinary calls will say so
		return q
	}
	q.read.init(raw.Read, unix.SYS_RECVFROM)
	q.write.init(raw.Write, unix.SYS_SENDTO)
	return q
}

func (h *half) init(wait func(func(fd uintptr) bool) error, trap uintptr) {
	h.wait = wait
	h.call = func(fd uintptr) bool {
		for {
			// A connection that is broken must not end the program, as it does not with the net package.
			n, _, errno := unix.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(h.b))), uintptr(len(h.b)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			h.n, h.errno = int(n), errno
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	}
}

// do makes the call on b, as soon as it does not wait.
func (h *half) do(b []byte) (int, error) {
	h.b = b
	err := h.wait(h.call)
	h.b = nil // do not keep the caller's memory
	switch {
	case err != nil:
		return 0, err
	case h.errno != 0:
		return 0, h.errno
	}
	return h.n, nil
}

// Read implements [net.Conn].
func (c *Conn) Read(b []byte) (int, error) {
	if c.read.wait == nil || len(b) == 0 {
		return c.TCPConn.Read(b)
	}
	n, err := c.read.do(b)
	switch {
	case err != nil:
		return 0, c.opError("read", "recvfrom", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements [net.Conn].
func (c *Conn) Write(b []byte) (n int, err error) {
	if c.write.wait == nil || len(b) == 0 {
		return c.TCPConn.Write(b)
	}
	for n < len(b) {
		m, err := c.write.do(b[n:])
		if err != nil {
			return n, c.opError("write", "sendto", err)
		}
		n += m
	}
	return n, nil
}

// opError dresses an error as the net package does.
func (c *Conn) opError(op, call string, err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		err = e.Err // of the poller: raw-read, raw-write
	} else if e, ok := errors.AsType[syscall.Errno](err); ok {
		err = os.NewSyscallError(call, e)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
