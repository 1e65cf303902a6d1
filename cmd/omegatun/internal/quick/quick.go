// Package quick reads and writes without telling Go's scheduler, as long as nothing has to be waited for. A system call that is
// announced may lose its processor when it takes more than 20 us, as 64 KiB can, and wakes the scheduler's monitor, which looks every
// 20 us from then on: a sixth of all CPU time of a fast stream. What would wait is done in the ordinary way.
//
// On systems other than Linux everything is done in the ordinary way.
package quick

import (
	"io"
	"net"
)

// NewReader returns a reader of the same bytes, r itself if nothing is to be gained. Only files, pipes and sockets gain. Only one
// goroutine at a time may read from what it returns.
func NewReader(r io.Reader) io.Reader { return newReader(r) }

// NewWriter returns a writer to the same place, w itself if nothing is to be gained. Only one goroutine at a time may write to what
// it returns.
func NewWriter(w io.Writer) io.Writer { return newWriter(w) }

var _ net.Conn = (*Conn)(nil)

// WriteTo keeps io.Copy from that of the TCP connection, which does not know of Read.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{c}) }

// ReadFrom likewise.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{c}, r) }

// Reset closes the connection at once, so that the other side reads an error and not the end. What err is tells nobody.
func (c *Conn) Reset(error) {
	c.SetLinger(0) //nolint:errcheck // it is closed in any case
	c.Close()      //nolint:errcheck // likewise
}
