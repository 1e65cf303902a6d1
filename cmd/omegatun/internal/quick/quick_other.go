//go:build !linux

package quick

import (
	"io"
	"net"
)

func newReader(r io.Reader) io.Reader { return r }
func newWriter(w io.Writer) io.Writer { return w }

// Conn is a TCP connection.
type Conn struct{ *net.TCPConn }

// NewConn returns c.
func NewConn(c *net.TCPConn) *Conn { return &Conn{c} }
