package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// receiveTries is how many errors in a row Receive passes over. Errors of a UDP socket are those of single datagrams,
// and each call takes one away; a socket that has nothing else to give is broken.
const receiveTries = 100

// Receive waits for at least one datagram and fills b with those that are there. What b held before is gone. It
// allocates nothing. It returns net.ErrClosed once c is closed; any other error means that the socket is broken.
// Only one goroutine at a time may be in Receive. It fails if c is in a [Hub].
func (c *Conn) Receive(b *Batch) error {
	if c.hubbed {
		return errHub
	}
	return c.receive(b)
}

func (c *Conn) receive(b *Batch) error {
	b.reset()
	for tries := 1; ; {
		var err error
		if c.has(FeatureBatch) {
			err = c.receiveMany(b)
		} else {
			err = c.receiveOne(b)
		}
		switch {
		case err == nil && b.Len() > 0:
			return nil
		case err == nil: // only datagrams that we drop
			tries = 1
		case c.closed.Load() || errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case isTooLarge(err): // Windows: longer than the slot
			c.counters.receiveInvalid.Add(1)
		case tries == receiveTries:
			return fmt.Errorf("udp: receive on %v: %w", c.local, err)
		default:
			c.counters.socketErrors.Add(1)
			tries++
		}
	}
}

// receiveOne is the portable way.
func (c *Conn) receiveOne(b *Batch) error {
	c.suitMerge(b)
	n, oobn, flags, from, err := c.udp.ReadMsgUDPAddrPort(b.slotBytes(0), b.system.control(0))
	if err != nil {
		return err
	}
	packets, size := c.accept(b, 0, n, flags&truncatedFlag != 0, b.system.parse(b.system.control(0)[:oobn]), from)
	c.countReceived(packets, size, 1)
	return nil
}

// accept takes message m into b, unless it must be dropped.
func (c *Conn) accept(b *Batch, m, n int, truncated bool, info control, from netip.AddrPort) (packets, size int) {
	if info.hasOverflow {
		c.overflow(info.overflow)
	}
	if truncated || from.Port() == 0 || !from.Addr().IsValid() || from.Addr().IsUnspecified() {
		c.counters.receiveInvalid.Add(1)
		return 0, 0
	}
	return b.add(m, n, info.segment, from, info.local), n
}

func (c *Conn) countReceived(packets, size, trains int) {
	c.counters.received.Add(uint64(packets))
	c.counters.receivedBytes.Add(uint64(size))
	c.counters.receiveTrains.Add(uint64(trains))
}

// overflow takes the kernel's count of dropped datagrams, 32 bits that may wrap round, into ours.
func (c *Conn) overflow(n uint32) {
	old := c.counters.receiveOverflow.Load()
	c.counters.receiveOverflow.Store(old + uint64(n-uint32(old)))
}
