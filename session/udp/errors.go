package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

var (
	// ErrTooLarge reports that a datagram is larger than the MTU of the interface it would leave by, or than UDP allows.
	// Smaller ones pass. It comes wrapped in a [*SendError].
	ErrTooLarge = errors.New("datagram is too large for the interface")

	// ErrDestination reports a destination that the socket can never send to: none, port 0, or of the other address family.
	// It comes wrapped in a [*SendError].
	ErrDestination = errors.New("not a destination for this socket")

	errTTL     = errors.New("TTL is not within 1 to 255")
	errHub     = errors.New("udp: a Hub receives from this socket")
	errSegment = errors.New("segment size is not positive")
)

// SendError reports a datagram that did not leave. The socket goes on working.
type SendError struct {
	To   netip.AddrPort
	Size int   // of the datagram, in bytes
	Err  error // ErrTooLarge, ErrDestination, or the system's error
}

func (e *SendError) Error() string {
	return fmt.Sprintf("udp: send %d bytes to %v: %v", e.Size, e.To, e.Err)
}

// Unwrap returns e.Err.
func (e *SendError) Unwrap() error { return e.Err }

// InUseError reports that another program, or another socket of this one, has the port already.
type InUseError struct {
	Addr netip.AddrPort
	Err  error
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("udp: port %d of %v is in use; stop the program that has it, choose another port, "+
		"or port 0 for any free one", e.Addr.Port(), e.Addr.Addr())
}

// Unwrap returns the system's error.
func (e *InUseError) Unwrap() error { return e.Err }

// sendFailed counts the failure of one datagram and returns what the caller is told: nil if it only got lost.
func (c *Conn) sendFailed(err error, size int, to netip.AddrPort) error {
	switch {
	case c.closed.Load() || errors.Is(err, net.ErrClosed):
		return net.ErrClosed
	case isTooLarge(err):
		c.counters.sendTooLarge.Add(1)
		err = ErrTooLarge
	case isNoBuffer(err):
		c.counters.sendDropped.Add(1)
		return nil
	default:
		c.counters.sendErrors.Add(1)
	}
	return &SendError{To: to, Size: size, Err: err}
}
