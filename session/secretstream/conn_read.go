package secretstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

const (
	firstBuffer = 1 << 10   // the read buffer to begin with: idle streams are many
	bulkBuffer  = 128 << 10 // how far it grows because much arrives; one long message may need more
	maxEmpty    = 100       // reads of nothing in a row before the transport is found broken

	gatherBelow = 4 << 10 // messages of less are gathered by WriteTo
	gatherMost  = 16 << 10
)

// reader is the incoming direction.
type reader struct {
	mu   sync.Mutex // guards the fields below
	key  [32]byte
	open state
	// buf holds what came from the transport and is not opened yet in buf[start:end]. There are always headroom
	// bytes in front of start.
	buf        []byte
	start, end int
	full       bool   // the last read filled the buffer: a larger one would help
	begun      bool   // the peer's first frame has come
	message    []byte // what Read has not returned yet of the last message; aliases buf
	err        error  // nothing more will be read
}

// Read fills b with bytes of one message or, if several have arrived, of several. It returns io.EOF when the peer
// has ended its direction between two messages, io.ErrUnexpectedEOF within one or before the first frame, and
// [ErrHeader], [ErrAuth], [ErrFrame] or [ErrTooLong] when the peer broke the protocol, which ends the stream.
func (c *Conn) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	r := &c.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	for n < len(b) {
		if len(r.message) == 0 {
			if n > 0 && !r.messageBuffered() {
				break // would have to wait
			}
			if r.message, err = c.messageLocked(); err != nil {
				r.message = nil
				break
			}
		}
		m := copy(b[n:], r.message)
		n += m
		r.message = r.message[m:]
	}
	if n > 0 {
		return n, nil // the error will come again
	}
	return 0, err
}

// ReadMessage returns the next message that is not empty, or what Read left of the one before. It is valid until the
// next call of Read or ReadMessage, so only one goroutine at a time can use it. The errors are those of Read.
func (c *Conn) ReadMessage() ([]byte, error) {
	r := &c.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.message; len(m) > 0 {
		r.message = nil
		return m, nil
	}
	return c.messageLocked()
}

// WriteTo writes what the peer sends to w until the peer ends its direction, and returns how many bytes that was: long messages
// from where they were opened, without a copy, and short ones that have arrived together at once. The errors are w's and those of
// Read; at the end there is none. Other reads wait until it returns.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	r := &c.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	var gathered []byte
	for {
		b := r.message
		r.message = nil
		if len(b) == 0 {
			b, err = c.messageLocked()
		}
		if err == nil && len(b) < gatherBelow && r.messageBuffered() {
			gathered = append(slices.Grow(gathered[:0], gatherMost), b...)
			for err == nil && r.messageBuffered() && len(gathered)+r.frameLength() <= gatherMost {
				if b, err = c.messageLocked(); err == nil {
					gathered = append(gathered, b...)
				}
			}
			b = gathered
		}
		if len(b) > 0 {
			m, e := w.Write(b)
			if n += int64(m); e == nil && m < len(b) {
				e = io.ErrShortWrite
			}
			if e != nil {
				return n, e
			}
		}
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// messageLocked returns the next message that is not empty. It aliases the buffer.
func (c *Conn) messageLocked() ([]byte, error) {
	r := &c.reader
	for {
		if r.err != nil {
			return nil, r.err
		}
		at, end, err := c.frameLocked()
		switch {
		case err != nil:
		case !r.begun:
			err = c.beganLocked(r.buf[at:end])
		case !r.open.open(r.buf, at, end):
			err = ErrAuth
		case end-at > overhead:
			return r.buf[at+1 : end-macSize], nil
		}
		if err != nil {
			return nil, c.readFailedLocked(err)
		}
	}
}

// beganLocked takes the peer's first frame.
func (c *Conn) beganLocked(body []byte) error {
	r := &c.reader
	if !bytes.Equal(body[:idSize], c.expectID[:]) {
		return fmt.Errorf("%w: it has another stream id", ErrHeader)
	}
	r.open.init(r.key, body[idSize:])
	r.begun = true
	return nil
}

// readFailedLocked decides what an error means for the stream.
func (c *Conn) readFailedLocked(err error) error {
	r := &c.reader
	switch {
	case isTimeout(err):
		return err
	case errors.Is(err, io.EOF):
		if !r.begun || r.start < r.end {
			err = io.ErrUnexpectedEOF
		}
	case errors.Is(err, ErrHeader), errors.Is(err, ErrAuth), errors.Is(err, ErrFrame), errors.Is(err, ErrTooLong):
		c.fail(err)
	}
	r.err = err
	r.buf, r.start, r.end = nil, 0, 0
	return err
}

// messageBuffered reports whether a frame has arrived whole, and is not empty: after an empty one messageLocked would wait.
func (r *reader) messageBuffered() bool {
	return r.end-r.start >= lengthSize && r.frameLength() > overhead && r.end-r.start >= lengthSize+r.frameLength()
}

func (r *reader) frameLength() int {
	b := r.buf[r.start:r.end]
	return int(b[0]) | int(b[1])<<8 | int(b[2])<<16
}

// frameLocked waits for the next frame and consumes it. Its body is buf[at:end].
func (c *Conn) frameLocked() (at, end int, err error) {
	r := &c.reader
	if err := c.fillLocked(lengthSize); err != nil {
		return 0, 0, err
	}
	length := r.frameLength()
	switch {
	case !r.begun && length != idFrame:
		return 0, 0, fmt.Errorf("%w: its first frame has %d bytes", ErrHeader, length)
	case length < overhead:
		return 0, 0, fmt.Errorf("%w: %d bytes", ErrFrame, length)
	case r.begun && length > c.limit+overhead:
		return 0, 0, fmt.Errorf("%w: %d bytes", ErrTooLong, length-overhead)
	}
	if err := c.fillLocked(lengthSize + length); err != nil {
		return 0, 0, err
	}
	at = r.start + lengthSize
	end = at + length
	r.start = end
	return at, end, nil
}

// fillLocked reads until at least n bytes are buffered.
func (c *Conn) fillLocked(n int) error {
	r := &c.reader
	for empty := 0; r.end-r.start < n; {
		r.makeRoom(n)
		m, err := c.raw.Read(r.buf[r.end:])
		r.end += m
		r.full = r.end == len(r.buf)
		switch {
		case m > 0:
			empty = 0 // the error will come again
		case err != nil:
			return err
		default:
			if empty++; empty == maxEmpty {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// makeRoom makes room for a read on the way to n buffered bytes. The buffer grows by doubling, and only when it is
// full: with what has arrived, not with what was announced.
func (r *reader) makeRoom(n int) {
	if r.start == r.end || r.start+n > len(r.buf) {
		r.end = headroom + copy(r.buf[min(headroom, len(r.buf)):], r.buf[r.start:r.end])
		r.start = headroom
	}
	size := len(r.buf)
	switch {
	case size == 0:
		size = firstBuffer
	case r.end == size:
		size = min(2*size, headroom+n)
	case r.full && size < bulkBuffer:
		size *= 2
	case r.start == r.end && size > keepBuffer: // of a long message that has been read
		size = bulkBuffer
	}
	r.full = false
	if size != len(r.buf) {
		buf := make([]byte, size)
		copy(buf[r.start:], r.buf[min(r.start, len(r.buf)):min(r.end, len(r.buf))])
		r.buf = buf
	}
}
