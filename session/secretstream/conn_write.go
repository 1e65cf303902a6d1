package secretstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// writeChunk is the length of the messages that Write makes of more than it. Longer ones are hardly faster to
	// carry, and the receiver can use no byte of a message before it has the whole.
	writeChunk = 64 << 10
	// firstChunk is how much ReadFrom reads at once to begin with: idle streams are many.
	firstChunk = 4 << 10
	// writeBatch is how many bytes are sealed before they are handed to the transport.
	writeBatch = writeChunk
	// splitFrom is how long the last message of a Write must be to be split in two if it is not a multiple of 8: from
	// there on a MAC of its own costs both ends more than another message of up to 7 bytes.
	splitFrom = 4 << 10
	// keepBuffer is how large a buffer is kept for the next use.
	keepBuffer = 128 << 10

	// Where ReadFrom reads a message to, and what may follow it: its MAC, and a message of the last bytes.
	bodyAt    = headroom + lengthSize + 1
	afterBody = macSize + Overhead
)

// writer is the outgoing direction.
type writer struct {
	mu   sync.Mutex // guards the fields below
	seal state
	// buf is headroom and then frames, of which those from sent on are yet to be handed to the transport.
	buf   []byte
	sent  int
	last  time.Time // of the last write
	err   error     // nothing can be written any more
	ended bool      // CloseWrite was called

	deadline atomic.Pointer[time.Time] // nil, zero: none; not guarded, because it is set while a write waits
}

// expired reports whether it is too late to seal anything.
func (w *writer) expired() bool {
	d := w.deadline.Load()
	return d != nil && !d.IsZero() && !time.Now().Before(*d)
}

// beginLocked writes the first frame.
func (c *Conn) beginLocked(cfg Config, random func([]byte)) {
	w := &c.writer
	header := make([]byte, headerSize)
	random(header)
	w.seal.init(cfg.Tx, header)
	id := streamID(cfg.Hash, cfg.Initiator)
	w.buf = make([]byte, headroom, headroom+lengthSize+idFrame)
	w.sent = headroom
	w.buf = append(w.buf, idFrame, 0, 0)
	w.buf = append(w.buf, id[:]...)
	w.buf = append(w.buf, header...)
	c.flushLocked() //nolint:errcheck // kept in w.err, or to be tried again
}

// Write sends b, as one message or several. It returns how many bytes were sealed: if that is less than len(b),
// the error says why. After a timeout, bytes that it counts may not have reached the transport yet; they do before
// anything that is written later.
func (c *Conn) Write(b []byte) (n int, err error) {
	w := &c.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := c.readyLocked(); err != nil {
		return 0, err
	}
	if w.expired() {
		return 0, c.lateError()
	}
	for len(b) > 0 {
		sealed := 0
		for len(b) > 0 && len(w.buf) < writeBatch {
			m := nextMessage(len(b))
			w.appendLocked(b[:m])
			b = b[m:]
			sealed += m
		}
		err := c.flushLocked()
		if err == nil || isTimeout(err) {
			n += sealed
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// ReadFrom sends what r has until that ends, and returns how many bytes were sealed: as many at a time as a read brings,
// sealed where they were read into, without a copy. Nothing is locked while r is waited for, so writes and keepalives may
// come between. The errors are r's, except for io.EOF, and those of Write; what was read last may not have been sealed then.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	size := firstChunk
	var buf []byte
	for empty := 0; ; {
		if len(buf) < bodyAt+size+afterBody {
			buf = make([]byte, bodyAt+size+afterBody)
		}
		m, end := r.Read(buf[bodyAt : bodyAt+size])
		if m > 0 {
			empty = 0
			var sealed int
			sealed, buf, err = c.writeInPlace(buf, m)
			if n += int64(sealed); err != nil {
				return n, err
			}
		}
		switch {
		case errors.Is(end, io.EOF):
			return n, nil
		case end != nil:
			return n, end
		case m == size:
			size = writeChunk
		case m == 0:
			if empty++; empty == maxEmpty {
				return n, io.ErrNoProgress
			}
		}
	}
}

// writeInPlace sends the length bytes at buf[bodyAt:], of which there are not more than writeChunk, and takes buf for that. It
// returns how many bytes were sealed, and another buffer, of any length.
func (c *Conn) writeInPlace(buf []byte, length int) (sealed int, other []byte, err error) {
	w := &c.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := c.readyLocked(); err != nil {
		return 0, nil, err
	}
	if w.expired() {
		return 0, nil, c.lateError()
	}
	first := nextMessage(length)
	var rest [7]byte // the first message's MAC comes to lie there
	n := copy(rest[:], buf[bodyAt+first:bodyAt+length])
	other, w.buf = w.buf[:cap(w.buf)], buf[:headroom]
	w.sealLocked(first)
	if n > 0 {
		w.appendLocked(rest[:n])
	}
	if err = c.flushLocked(); err == nil || isTimeout(err) {
		sealed = length
	}
	return sealed, other, err
}

// lateError reports a write that began after its deadline.
func (c *Conn) lateError() error {
	return &net.OpError{Op: "write", Net: "secretstream", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.ErrDeadlineExceeded}
}

// nextMessage returns how much of n bytes to put into one message.
func nextMessage(n int) int {
	switch {
	case n >= writeChunk:
		return writeChunk
	case n >= splitFrom:
		return n &^ 7 // the rest makes another message
	}
	return n
}

// WriteMessage sends b as one message. It fails with [ErrTooLong] above [MaxMessage] bytes. An empty message is not
// delivered by peers that use keepalives. After a timeout the message may have been sealed: it is then sent with
// the next write, and must not be written again; [Conn.Write] tells the difference.
func (c *Conn) WriteMessage(b []byte) error {
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %d bytes", ErrTooLong, len(b))
	}
	w := &c.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := c.readyLocked(); err != nil {
		return err
	}
	if w.expired() {
		return c.lateError()
	}
	w.appendLocked(b)
	return c.flushLocked()
}

// CloseWrite ends the outgoing direction: the peer reads io.EOF after what was written. Keepalives stop. Later writes
// fail with io.ErrClosedPipe.
func (c *Conn) CloseWrite() error {
	w := &c.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil
	}
	if err := c.readyLocked(); err != nil {
		return err
	}
	w.ended = true
	return c.raw.CloseWrite()
}

// readyLocked returns nil if a message can be sealed: nothing waits to be handed to the transport.
func (c *Conn) readyLocked() error {
	switch w := &c.writer; {
	case w.err != nil:
		return w.err
	case w.ended:
		return fmt.Errorf("secretstream: write after CloseWrite: %w", io.ErrClosedPipe)
	}
	return c.flushLocked()
}

// appendLocked seals a message into the buffer.
func (w *writer) appendLocked(message []byte) {
	w.buf = slices.Grow(w.buf, Overhead+len(message))
	at := len(w.buf) + lengthSize + 1
	copy(w.buf[at:at+len(message)], message)
	w.sealLocked(len(message))
}

// sealLocked seals the message of that length that lies in the buffer's capacity, where it belongs.
func (w *writer) sealLocked(message int) {
	length := overhead + message
	w.buf = append(w.buf, byte(length), byte(length>>8), byte(length>>16))
	at := len(w.buf) // of the body
	w.buf = w.buf[:at+length]
	w.seal.seal(w.buf, at, message, tagMessage)
}

// flushLocked hands what is sealed to the transport. An error other than a timeout is final.
func (c *Conn) flushLocked() error {
	w := &c.writer
	if w.sent == len(w.buf) {
		return w.err
	}
	w.last = time.Now()
	n, err := c.raw.Write(w.buf[w.sent:])
	w.sent += n
	if err != nil {
		if !isTimeout(err) {
			w.err = err
		}
		return err
	}
	w.sent = headroom
	if cap(w.buf) > keepBuffer {
		w.buf = make([]byte, headroom)
	}
	w.buf = w.buf[:headroom]
	return nil
}

// keepAliveLocked writes an empty message if nothing was written for long enough. It returns when to look again, and
// false if never.
func (c *Conn) keepAliveLocked(now time.Time) (wait time.Duration, ok bool) {
	w := &c.writer
	if w.err != nil || w.ended {
		return 0, false
	}
	if wait = c.pulse.every - now.Sub(w.last); wait > 0 {
		return wait, true
	}
	if w.sent == len(w.buf) {
		w.appendLocked(nil)
	}
	c.flushLocked() //nolint:errcheck // kept in w.err, or to be tried again
	return c.pulse.every, w.err == nil
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
