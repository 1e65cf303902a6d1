package udp

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// system is what batches need. The functions are the kernel's; tests put others in their place.
type system struct {
	recvmmsg, sendmmsg mmsgFunc
	senders            *sync.Pool // of *sender
	member             *member    // nil: the socket is in no Hub
	merging            bool       // UDP_GRO is on; the receiving goroutine's

	writeBuffer     atomic.Int32 // size of the send buffer, as asked for
	mostWriteBuffer int          // what it may become; never changes
}

// setOptions prepares a socket before it is bound.
func setOptions(s uintptr, addr netip.Addr, cfg Config) error {
	fd := int(s)
	if cfg.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, cfg.Mark); err != nil {
			return fmt.Errorf("set firewall mark %#x: %w", cfg.Mark, err)
		}
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, cfg.ReadBuffer)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, cfg.WriteBuffer)

	level, df, pktinfo := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PKTINFO
	if addr.Is6() {
		level, df, pktinfo = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVPKTINFO
	}
	// IPV6_PMTUDISC_PROBE has the same value.
	if err := unix.SetsockoptInt(fd, level, df, unix.IP_PMTUDISC_PROBE); err != nil {
		cfg.Logger.Warn("udp: cannot set don't-fragment", "error", err)
	}
	if cfg.PacketInfo {
		if err := unix.SetsockoptInt(fd, level, pktinfo, 1); err != nil {
			return fmt.Errorf("ask for packet information: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
		cfg.Logger.Debug("udp: the kernel does not count dropped datagrams", "error", err)
	}
	return nil
}

// setBuffer sets a buffer's size beyond the system's limit if we may, else up to it.
func setBuffer(fd, force, plain, size int) {
	if size > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		// What it becomes, Stats tells; start logs it.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// start finds out what the kernel can do.
func (c *Conn) start(cfg Config) {
	c.recvmmsg, c.sendmmsg = recvmmsg, sendmmsg
	if c.senders == nil {
		c.senders = &sync.Pool{New: func() any { return newSender() }}
	}
	read, write := c.buffers()
	// The kernel counts twice what it is asked for, to make up for its bookkeeping.
	if read < 2*cfg.ReadBuffer || write < 2*cfg.WriteBuffer {
		c.log.Info("udp: socket buffers are smaller than asked for; see net.core.rmem_max and wmem_max",
			"read_buffer", read/2, "write_buffer", write/2)
	}
	c.mostWriteBuffer = write / 2
	c.writeBuffer.Store(int32(c.mostWriteBuffer))
	if cfg.Disable&FeatureBatch != 0 {
		c.portable = true
		return
	}
	f := FeatureBatch
	if _, err := c.getInt(unix.SOL_UDP, unix.UDP_SEGMENT); err == nil { // Linux 4.18
		f |= FeatureSegment
	}
	// Left off until Receive brings a batch with room for trains.
	if c.setInt(unix.SOL_UDP, unix.UDP_GRO, 0) == nil { // Linux 5.0
		f |= FeatureMerge
	}
	c.features.Store(uint32(f &^ cfg.Disable))
}

// What is in a send buffer has been waiting since before anything was known of a more urgent packet, and nobody sees to it that
// its flows are fair to each other. So on a slow line the buffer is made small: half of it is to leave within a few
// milliseconds.
const (
	drainLong        = 4 * time.Millisecond
	drainShort       = time.Millisecond
	leastWriteBuffer = 8 << 10 // a few datagrams
)

// suitBuffer returns the size for a send buffer of size bytes, of which half took so long to leave.
func suitBuffer(size, most int, took time.Duration) int {
	switch {
	case took > drainLong:
		fits := int(int64(size) * int64(drainLong/2) / int64(took))
		return min(size, max(fits, size/8, leastWriteBuffer))
	case took < drainShort:
		return max(size, min(2*size, most))
	}
	return size
}

// waited is told how long a sender had to wait because the send buffer was full. The kernel wakes it when half of it is
// empty.
func (c *Conn) waited(took time.Duration) {
	size := c.writeBuffer.Load()
	next := int32(suitBuffer(int(size), c.mostWriteBuffer, took))
	if next == size || c.hubbed || !c.writeBuffer.CompareAndSwap(size, next) {
		return
	}
	// An error means that it is closed, or stays as it is.
	_ = c.raw.Control(func(fd uintptr) { setBuffer(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, int(next)) })
}

// closeSocket closes the socket. It is called once.
func (c *Conn) closeSocket() error {
	if c.member != nil {
		return c.member.close()
	}
	return c.udp.Close()
}

// sendRaw sends one datagram from a socket of a hub.
func (c *Conn) sendRaw(b []byte, to netip.AddrPort, control []byte) error {
	return c.member.send(b, to, control)
}

// buffers returns the sizes of the socket's buffers as the kernel counts them.
func (c *Conn) buffers() (read, write int) {
	read, _ = c.getInt(unix.SOL_SOCKET, unix.SO_RCVBUF)
	write, _ = c.getInt(unix.SOL_SOCKET, unix.SO_SNDBUF)
	return read, write
}

func (c *Conn) getInt(level, option int) (n int, err error) {
	if e := c.raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), level, option) }); e != nil {
		return 0, e
	}
	return n, err
}

func (c *Conn) setInt(level, option, value int) (err error) {
	if e := c.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); e != nil {
		return e
	}
	return err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
