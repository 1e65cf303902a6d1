package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// Conn is a UDP socket of a [Host]. It has the methods of *net.UDPConn that take netip addresses.
type Conn struct {
	host  *Host
	local netip.AddrPort
	both  bool          // IPv4 too, although local is [::]
	ready chan struct{} // capacity 1: the queue is not empty
	done  chan struct{} // closed by Close

	// The fields below are guarded by the network's mu.
	queue    []*packet // a ring
	head     int
	count    int
	closed   bool
	deadline *time.Timer
	expired  chan struct{} // closed when the read deadline has passed
}

func newConn(h *Host, local netip.AddrPort) *Conn {
	return &Conn{
		host: h, local: local,
		ready: make(chan struct{}, 1), done: make(chan struct{}), expired: make(chan struct{}),
	}
}

// nowLocked returns the time. It is the only clock that packets see.
func (n *Network) nowLocked() time.Time { return time.Now() }

// Host returns the socket's host.
func (c *Conn) Host() *Host { return c.host }

// LocalAddrPort returns the address that the socket is bound to: 0.0.0.0 or :: if to none in particular.
func (c *Conn) LocalAddrPort() netip.AddrPort { return c.local }

// WriteToUDPAddrPort sends a datagram with TTL 64. It does not keep b. It fails with net.ErrClosed, ENETUNREACH,
// EAFNOSUPPORT, or EMSGSIZE if the datagram does not fit the host's own cable; every other loss is silent.
func (c *Conn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if err := c.WriteTTL(b, to, defaultTTL); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteTTL is [Conn.WriteToUDPAddrPort] with a TTL. Each NAT takes one off, the core takes Config.Hops; a packet
// whose TTL gets to zero is dropped there.
func (c *Conn) WriteTTL(b []byte, to netip.AddrPort, ttl int) error {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if err := c.write(b, to, ttl); err != nil {
		return fmt.Errorf("lab: %s: write to %v: %w", c.host.name, to, err)
	}
	return nil
}

func (c *Conn) write(b []byte, to netip.AddrPort, ttl int) error {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.host.sendLocked(c.local, c.both, to, b, ttl)
}

// ReadFromUDPAddrPort waits for a datagram and copies it to b, cutting it off if b is too short. It fails with
// net.ErrClosed, or os.ErrDeadlineExceeded once the read deadline has passed.
func (c *Conn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n := c.host.net
	for {
		n.mu.Lock()
		expired := c.expired
		if c.closed {
			n.mu.Unlock()
			return 0, netip.AddrPort{}, fmt.Errorf("lab: %s: read: %w", c.host.name, net.ErrClosed)
		}
		select {
		case <-expired:
			n.mu.Unlock()
			return 0, netip.AddrPort{}, fmt.Errorf("lab: %s: read: %w", c.host.name, os.ErrDeadlineExceeded)
		default:
		}
		if p := c.popLocked(); p != nil {
			size, from := copy(b, p.data), p.src
			n.freeLocked(p)
			n.mu.Unlock()
			return size, from, nil
		}
		n.mu.Unlock()
		select {
		case <-c.ready:
		case <-c.done:
		case <-expired:
		}
	}
}

// SetReadDeadline makes reads fail from time t on, also one that waits already. The zero time means never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.deadline != nil {
		c.deadline.Stop()
		c.deadline = nil
	}
	select {
	case <-c.expired:
		c.expired = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return nil
	}
	expired := c.expired
	wait := t.Sub(n.nowLocked())
	if wait <= 0 {
		close(expired)
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if c.deadline == timer { // neither stopped nor replaced
			c.deadline = nil
			close(expired)
		}
	})
	c.deadline = timer
	return nil
}

// Close closes the socket; a blocked read returns.
func (c *Conn) Close() error {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closeLocked()
	delete(c.host.conns, c.local)
	return nil
}

func (c *Conn) closeLocked() {
	c.closed = true
	close(c.done)
	if c.deadline != nil {
		c.deadline.Stop()
		c.deadline = nil
	}
	for p := c.popLocked(); p != nil; p = c.popLocked() {
		c.host.net.freeLocked(p)
	}
	c.queue = nil
}

// pushLocked appends p to the queue and wakes a reader. It reports whether there was room.
func (c *Conn) pushLocked(p *packet) bool {
	if c.count >= c.host.net.cfg.Queue {
		return false
	}
	if c.count == len(c.queue) {
		grown := make([]*packet, max(16, 2*len(c.queue)))
		for i := range c.count {
			grown[i] = c.queue[(c.head+i)%len(c.queue)]
		}
		c.queue, c.head = grown, 0
	}
	c.queue[(c.head+c.count)%len(c.queue)] = p
	c.count++
	c.wakeLocked()
	return true
}

// wakeLocked tells a reader that the queue is not empty. The send does not block.
func (c *Conn) wakeLocked() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

func (c *Conn) popLocked() *packet {
	if c.count == 0 {
		return nil
	}
	p := c.queue[c.head]
	c.queue[c.head] = nil
	c.head = (c.head + 1) % len(c.queue)
	c.count--
	if c.count > 0 {
		c.wakeLocked() // for a second reader
	}
	return p
}
