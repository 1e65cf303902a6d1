package quick

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noWait makes a call fail that would wait: RWF_NOWAIT of linux/fs.h.
const noWait = 8

// file does one kind of call on a file.
type file struct {
	f    *os.File
	raw  syscall.RawConn
	trap uintptr // the call: preadv2 or pwritev2

	call  func(fd uintptr) // makes the call, bound once, because binding it allocates
	iov   unix.Iovec
	flags uintptr
	n     int
	errno unix.Errno
	never bool // it cannot say that it would wait
}

func newFile(f *os.File, trap uintptr) *file {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	c := &file{f: f, raw: raw, trap: trap, flags: noWait}
	c.call = func(fd uintptr) {
		const here = ^uintptr(0) // where the file stands; the offset has two halves
		n, _, errno := unix.RawSyscall6(c.trap, fd, uintptr(unsafe.Pointer(&c.iov)), 1, here, here, c.flags)
		c.n, c.errno = int(n), errno
	}
	return c
}

// try moves as much of b as can be moved at once.
func (c *file) try(b []byte) (n int) {
	if c.never || len(b) == 0 {
		return 0
	}
	c.iov.Base = unsafe.SliceData(b)
	c.iov.SetLen(len(b))
	err := c.raw.Control(c.call)
	if c.errno == unix.EOPNOTSUPP && c.trap == unix.SYS_PREADV2 && c.flags != 0 && c.inMemory() {
		c.flags = 0
		err = c.raw.Control(c.call)
	}
	c.iov.Base = nil // do not keep the caller's memory
	switch {
	case err != nil:
		return 0
	case c.errno == unix.EAGAIN || c.errno == unix.EINTR:
		return 0
	case c.errno != 0:
		c.never = true // or it fails for good, as the ordinary call will say
		return 0
	}
	return c.n
}

// inMemory reports whether the file is one of those that lie in memory. The kernel does not offer to read them without
// waiting, but there is nothing to wait for.
func (c *file) inMemory() (is bool) {
	err := c.raw.Control(func(fd uintptr) {
		var s unix.Stat_t
		var fs unix.Statfs_t
		is = unix.Fstat(int(fd), &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFREG &&
			unix.Fstatfs(int(fd), &fs) == nil && fs.Type == unix.TMPFS_MAGIC
	})
	return is && err == nil
}

// fileReader reads from a file.
type fileReader struct{ *file }

func newReader(r io.Reader) io.Reader {
	if f, ok := r.(*os.File); ok {
		if c := newFile(f, unix.SYS_PREADV2); c != nil {
			return fileReader{c}
		}
	}
	return r
}

// Read implements [io.Reader].
func (r fileReader) Read(b []byte) (int, error) {
	if n := r.try(b); n > 0 {
		return n, nil
	}
	return r.f.Read(b) // waits, or says that there is nothing more, or what is wrong
}

// fileWriter writes to a file.
type fileWriter struct{ *file }

func newWriter(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok {
		if c := newFile(f, unix.SYS_PWRITEV2); c != nil {
			return fileWriter{c}
		}
	}
	return w
}

// Write implements [io.Writer].
func (w fileWriter) Write(b []byte) (int, error) {
	n := w.try(b)
	if n == len(b) && n > 0 {
		return n, nil
	}
	m, err := w.f.Write(b[n:])
	return n + m, err
}
