package tun

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"omegatun/moderate"
)

const (
	// batchPackets is how many packets, large or not, one ReadLarge gathers at most.
	batchPackets = 128
	// batchBytes is how many bytes are enough for a batch: about one large packet, because what is read later makes
	// it wait, and because all of a batch is to stay in the processor's cache.
	batchBytes = 64 << 10
)

// queue reads and writes packets, large ones too, through a file with virtio-net headers.
//
// It gathers what is waiting, so that a burst of small packets is one batch. What was read lies behind one another in one
// small arena, and is cut where it lies. If that is not all that is waiting, the rest is read too, and flows take turns.
type queue struct {
	name string
	log  *slog.Logger
	conn syscall.RawConn // what is read from
	out  syscall.RawConn // what is written to: see openQueues

	uso      bool          // the kernel takes large UDP packets
	merge    atomic.Bool   // packets may be merged
	merged   atomic.Bool   // a merged write has succeeded since the last failure
	failures atomic.Int32  // merged writes that failed with EINVAL in a row
	mergers  sync.Pool     // of *merger
	written  *atomic.Int64 // bytes of packets, through all queues of the interface

	mu     sync.Mutex // guards the fields below
	arena  []byte
	frames [batchPackets]cutter // what was read last
	count  int
	used   int  // bytes of the arena
	turn   int  // the frame that Read cuts next
	more   bool // there were more packets than the last batch had room for
	pace   moderate.Pace
	part   portion
	left   time.Time // when fill returned
	before int64     // what written was when fill looked last
	spare  bool      // there is another processor for other goroutines while this one sleeps

	waiting *backlog // packets that wait for others; nil until there were too many for a batch
	held    []int    // its slots in which the packets lie that were read last

	into  []byte // of the read in progress
	n     int    // outcome of wait or poll
	errno unix.Errno
	wait  func(fd uintptr) bool // reads when there is something
	poll  func(fd uintptr) bool // reads if there is something
}

func newQueue(file *os.File, name string, log *slog.Logger) (*queue, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &queue{name: name, log: log, conn: conn, out: conn, written: new(atomic.Int64), arena: make([]byte, batchBytes+virtioLen+maxPacket)}
	q.spare = runtime.GOMAXPROCS(0) > 1
	q.merge.Store(true)
	q.mergers.New = func() any { return newMerger(q) }
	q.poll = func(fd uintptr) bool { // made once, because a closure is an allocation
		for {
			b := q.into
			n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
			if q.n, q.errno = int(n), errno; errno != unix.EINTR {
				return true
			}
		}
	}
	q.wait = func(fd uintptr) bool { return q.poll(fd) && q.errno != unix.EAGAIN }
	return q, nil
}

// Read is [Device.Read].
func (q *queue) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		n := 0
		for n < len(bufs) && q.turn < q.count {
			size, err := q.frames[q.turn].copyTo(bufs[n][offset:])
			switch {
			case err != nil:
				q.drop(err)
			case size == 0:
				q.turn++
			default:
				sizes[n] = size
				n++
			}
		}
		if n > 0 || len(bufs) == 0 {
			return n, nil
		}
		if err := q.fill(); err != nil {
			return 0, err
		}
	}
}

// ReadLarge is [Large.ReadLarge].
func (q *queue) ReadLarge() (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.fill()
	q.turn = q.count // they are not for Read
	return q.count, err
}

// Packet is [Large.Packet].
func (q *queue) Packet(i int) (packet []byte, longest int) { return q.frames[i].packet() }

// Cut is [Large.Cut].
func (q *queue) Cut(i, offset int, finish bool) (b []byte, unfinished bool) {
	return q.frames[i].cut(offset, finish)
}

// fill waits for a packet and gathers those that are there. q.mu is held.
func (q *queue) fill() error {
	now := time.Now()
	if !q.left.IsZero() {
		q.part.adapt(now.Sub(q.left))
	}
	written := q.written.Load()
	bytes := q.used + int(written-q.before)
	q.before = written
	if q.pace.Rest(now, q.count, bytes, !q.more) && q.spare {
		moderate.Nap(moderate.Sleep)
		now = time.Now()
	}
	for _, slot := range q.held {
		q.waiting.release(slot)
	}
	q.held = q.held[:0]
	q.count, q.used, q.turn = 0, 0, 0
	var err error
	if q.more {
		err = q.fillFairly(now)
	}
	if q.count == 0 && err == nil {
		err = q.fillInOrder()
	}
	q.left = time.Now()
	return err
}

// room reports whether there is room for another packet in the batch.
func (q *queue) room() bool {
	return q.count < q.part.of(len(q.frames)) && q.used < q.part.of(batchBytes)
}

// fillInOrder is fill when few packets are waiting.
func (q *queue) fillInOrder() error {
	for q.more = true; q.room(); {
		b := q.arena[q.used:]
		empty, err := q.read(b, q.count == 0)
		if err != nil {
			return q.failed(err)
		}
		if empty {
			q.more = false
			return nil
		}
		q.take(b[:q.n])
	}
	return nil
}

// fillFairly is fill when there were more packets than a batch has room for: all of them are read first, and take turns.
// It waits for nothing.
func (q *queue) fillFairly(now time.Time) error {
	if q.waiting == nil {
		q.waiting = newBacklog()
	}
	w := q.waiting
	lost := w.lost
	q.more = false
	for bytes, reads := 0, 0; bytes < backlogBytes && reads < backlogReads; reads++ {
		slot := w.reserve(largeSlot)
		empty, err := q.read(w.bytes(slot), false)
		if empty || err != nil {
			w.release(slot)
			if err != nil && w.count == 0 {
				return err
			}
			break
		}
		w.add(slot, q.n, now)
		bytes += q.n
	}
	for q.room() {
		slot, ok := w.pop(now, w.drop)
		if !ok {
			break
		}
		q.held = append(q.held, slot)
		q.take(w.bytes(slot)[:w.slots[slot].size])
	}
	q.more = w.count > 0 || q.count > 0 // ask once more before waiting
	if w.lost > lost {
		q.log.Debug("packets from the host were dropped, as there are too many", "interface", q.name,
			"packets", w.lost-lost)
	}
	return nil
}

// take makes the packet b, which was read, the next of the batch.
func (q *queue) take(b []byte) {
	if err := q.frames[q.count].start(b); err != nil {
		q.drop(err)
		return
	}
	const line = 64 // of the processor's cache
	q.used = (q.used + len(b) + line - 1) &^ (line - 1)
	q.count++
}

// read reads a packet of q.n bytes into b. It waits for one, or reports that there is none.
func (q *queue) read(b []byte, wait bool) (empty bool, err error) {
	q.into = b
	f := q.poll
	if wait {
		f = q.wait
	}
	err = q.conn.Read(f)
	q.into = nil
	switch {
	case err != nil:
		return false, os.ErrClosed // the only reason, as there are no deadlines
	case q.errno == unix.EAGAIN:
		return true, nil
	case q.errno == unix.EBADFD: // the interface was removed
		return false, fmt.Errorf("interface %s is gone: %w", q.name, os.ErrClosed)
	case q.errno != 0:
		return false, q.errno
	}
	return false, nil
}

// failed returns err, unless there are packets to be carried first: it comes again.
func (q *queue) failed(err error) error {
	if q.count > 0 {
		return nil
	}
	return err
}

func (q *queue) drop(err error) {
	q.log.Debug("a packet from the host was dropped", "interface", q.name, "error", err)
}
