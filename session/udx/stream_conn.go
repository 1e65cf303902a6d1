package udx

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Addr is the address of a stream's end: where its packets come from or go to, and its id there.
type Addr struct {
	AddrPort netip.AddrPort // invalid if not known
	ID       ID
}

// Network returns "udx".
func (Addr) Network() string { return "udx" }

// String returns the address and port alone.
func (a Addr) String() string { return a.AddrPort.String() }

// side is what readers, or writers, wait with. It is guarded by the lock of its stream.
type side struct {
	wake     sync.Cond
	busy     bool // one of them is at work
	deadline time.Time
	timer    *time.Timer // broadcasts at the deadline
}

func (d *side) expired() bool { return !d.deadline.IsZero() && !time.Now().Before(d.deadline) }

// setDeadline sets the deadline and wakes whoever waits to look at it.
func (d *side) setDeadline(t time.Time) {
	d.deadline = t
	switch {
	case t.IsZero():
		if d.timer != nil {
			d.timer.Stop()
		}
	case d.timer == nil:
		d.timer = time.AfterFunc(time.Until(t), func() {
			d.wake.L.Lock()
			defer d.wake.L.Unlock()
			d.wake.Broadcast()
		})
	default:
		d.timer.Reset(time.Until(t))
	}
	d.wake.Broadcast()
}

// opError dresses an error as those of package net are.
func (s *Stream) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udx", Err: err}
}

// Read reads what has arrived, and waits if that is nothing. It returns io.EOF at the end of the peer's data.
// After a failure it first returns what had arrived in order; after Close and Reset, nothing more.
func (s *Stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.readers.expired():
			return 0, s.opError("read", os.ErrDeadlineExceeded)
		case s.assembly.discard:
			return 0, s.opError("read", s.closedErrLocked())
		case s.readers.busy:
		case len(s.unread) > 0 || s.assembly.buf.len > 0:
			n := s.readLocked(b)
			s.readers.wake.Signal() // another reader, for what is left
			return n, nil
		case s.assembly.ended:
			return 0, io.EOF
		case s.finished:
			return 0, s.opError("read", s.closedErrLocked())
		}
		s.readers.wake.Wait()
	}
}

// readLocked fills b with what is there. It copies without the lock.
func (s *Stream) readLocked(b []byte) (n int) {
	s.readers.busy = true
	defer func() { s.readers.busy = false }()
	for n < len(b) {
		if len(s.unread) == 0 {
			if s.block = s.assembly.buf.take(); s.block == nil {
				break
			}
			s.unread = s.block
		}
		unread := s.unread
		s.mu.Unlock()
		m := copy(b[n:], unread)
		s.mu.Lock()
		n += m
		if s.unread = unread[m:]; len(s.unread) == 0 {
			recycleBlock(s.block)
			s.unread, s.block = nil, nil
		}
	}
	if !s.finished {
		if now := s.mux.now(); s.growth.consumed(now, n, s.assembly.limit, s.sender.rtt.min()) {
			s.growLocked()
		}
		s.countLocked()
		s.openWindowLocked()
	}
	return n
}

// openWindowLocked tells the peer when reading has made much more room than it knows of.
func (s *Stream) openWindowLocked() {
	if s.finished || s.assembly.ended {
		return
	}
	share := s.shareLocked()
	if w := s.assembly.window(share); s.window == 0 && w > 0 || int(w)-int(s.window) >= share/4 {
		s.acks.demand(s.mux.now())
		s.wakeLocked()
	}
}

// Write queues b to be sent, and waits while too much is queued. It does not keep b. It returns ErrNotConnected before
// Connect, and io.ErrClosedPipe after CloseWrite.
func (s *Stream) Write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writers.busy {
		if err := s.writeErrLocked(); err != nil {
			return 0, err
		}
		s.writers.wake.Wait()
	}
	s.writers.busy = true
	defer func() {
		s.writers.busy = false
		s.writers.wake.Broadcast()
		if s.sender.queue.len > 0 {
			s.wakeLocked()
		}
	}()
	for {
		if err := s.writeErrLocked(); err != nil || len(b) == 0 {
			return n, err
		}
		room := s.sender.room()
		if room == 0 {
			s.writers.wake.Wait()
			continue
		}
		m := s.queueLocked(b[:min(room, len(b), blockSize)])
		n += m
		b = b[m:]
		if s.dueLocked(s.mux.now()) {
			s.wakeLocked()
		}
	}
}

// queueLocked queues b and returns how much of it. It copies without the lock.
func (s *Stream) queueLocked(b []byte) (n int) {
	n = s.sender.topUp(b)
	size := s.sender.payloadSize()
	var cut packetList
	s.mu.Unlock()
	for n < len(b) {
		p := newPacket()
		n += p.fill(b[n:], size)
		cut.push(p)
	}
	s.mu.Lock()
	gone := s.finished || s.sender.endQueued
	for p := cut.first; p != nil; p = cut.first {
		cut.remove(p)
		if gone {
			n -= p.n
			p.free()
			continue
		}
		s.sender.append(p)
	}
	return n
}

// writeErrLocked returns why nothing can be written, nil if it can.
func (s *Stream) writeErrLocked() error {
	switch {
	case s.finished || s.closing:
		return s.opError("write", s.closedErrLocked())
	case s.sender.endQueued:
		return s.opError("write", io.ErrClosedPipe)
	case s.path.sock == nil:
		return s.opError("write", ErrNotConnected)
	case s.writers.expired():
		return s.opError("write", os.ErrDeadlineExceeded)
	}
	return nil
}

// LocalAddr returns the address of the socket, if it has a method LocalAddr() netip.AddrPort, and the local id. It
// is an Addr.
func (s *Stream) LocalAddr() net.Addr {
	s.mu.Lock()
	sock := s.path.sock
	s.mu.Unlock()
	a := Addr{ID: s.id}
	if l, ok := sock.(local); ok {
		a.AddrPort = l.LocalAddr()
	}
	return a
}

// RemoteAddr returns where packets go, and the id there. It is an Addr.
func (s *Stream) RemoteAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Addr{s.path.addr, s.path.id}
}

// SetDeadline sets the deadlines of Read and Write.
func (s *Stream) SetDeadline(t time.Time) error {
	return s.setDeadlines(t, &s.readers, &s.writers)
}

// SetReadDeadline sets when Read, also one under way, gives up with os.ErrDeadlineExceeded. Zero: never.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadlines(t, &s.readers) }

// SetWriteDeadline sets when Write, also one under way, gives up with os.ErrDeadlineExceeded. Zero: never.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadlines(t, &s.writers) }

func (s *Stream) setDeadlines(t time.Time, sides ...*side) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return s.opError("set deadline", net.ErrClosed)
	}
	for _, d := range sides {
		d.setDeadline(t)
	}
	return nil
}
