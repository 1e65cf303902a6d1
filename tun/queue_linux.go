package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// queue reads packets from a file with virtio-net headers. It gathers what is waiting, so that a burst of small packets
// is one batch, while wireguard/tun returns one packet, or one large packet cut, at a time.
type queue struct {
	name string
	log  *slog.Logger
	conn syscall.RawConn

	mu    sync.Mutex // guards the fields below
	b     []byte     // what was read last
	cut   cutter     // what is left of it
	n     int        // outcome of wait or poll
	errno error
	wait  func(fd uintptr) bool // reads when there is something
	poll  func(fd uintptr) bool // reads if there is something
}

func newQueue(file *os.File, name string, log *slog.Logger) (*queue, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &queue{name: name, log: log, conn: conn, b: make([]byte, virtioLen+maxPacket)}
	q.poll = func(fd uintptr) bool { // made once, because a closure is an allocation
		for {
			q.n, q.errno = unix.Read(int(fd), q.b)
			if !errors.Is(q.errno, unix.EINTR) {
				return true
			}
		}
	}
	q.wait = func(fd uintptr) bool { return q.poll(fd) && !errors.Is(q.errno, unix.EAGAIN) }
	return q, nil
}

// Read is [Device.Read].
func (q *queue) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(bufs) {
		size, err := q.cut.cut(bufs[n][offset:])
		if err != nil {
			q.drop(err)
			continue
		}
		if size > 0 {
			sizes[n] = size
			n++
			continue
		}
		if n > 0 && q.cut.large() {
			break // that was a batch by itself; what comes next must not make it wait
		}
		if err := q.next(n == 0); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			if n > 0 {
				break // it comes again
			}
			return 0, err
		}
	}
	return n, nil
}

// next reads a packet, and if wait is set it waits for one. It returns EAGAIN if there is none.
func (q *queue) next(wait bool) error {
	read := q.poll
	if wait {
		read = q.wait
	}
	q.cut = cutter{}
	if err := q.conn.Read(read); err != nil {
		return os.ErrClosed // the only reason, as there are no deadlines
	}
	switch {
	case errors.Is(q.errno, unix.EBADFD): // the interface was removed
		return fmt.Errorf("interface %s is gone: %w", q.name, os.ErrClosed)
	case q.errno != nil:
		return q.errno
	}
	if err := q.cut.start(q.b[:q.n]); err != nil {
		q.cut = cutter{}
		q.drop(err)
	}
	return nil
}

func (q *queue) drop(err error) {
	q.log.Debug("a packet from the host was dropped", "interface", q.name, "error", err)
}
