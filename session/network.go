package session

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"omegatun/punch"
	"omegatun/session/udp"
)

// Network is where a [Host] gets its sockets: the operating system, or a laboratory in a test.
type Network interface {
	// Listen binds a UDP port. Port 0 means any free one.
	Listen(addr netip.AddrPort) (Socket, error)
	// Addrs returns the addresses of the machine's interfaces, loopback not among them.
	Addrs() []netip.Addr
}

// A Socket is one bound UDP port. Implementations are pointers, comparable, and safe for concurrent use;
// only Receive has a single caller.
type Socket interface {
	punch.Socket

	// SendBatch sends datagrams to one address. All have the same length but the last, which may be
	// shorter. The datagrams are not kept.
	SendBatch(b [][]byte, to netip.AddrPort) error

	// Receive waits for datagrams. The Batch and its datagrams are valid until the next call. After
	// Close the error is [net.ErrClosed]; any other error is final as well.
	Receive() (Batch, error)
}

// A Batch is a number of datagrams received together. *[udp.Batch] is one.
type Batch interface {
	Len() int
	// Datagram returns datagram i of Len and its source. The caller may change the bytes.
	Datagram(i int) ([]byte, netip.AddrPort)
}

// A Receiver receives a part of what comes in at a [Socket]. It has a single caller.
type Receiver interface {
	// Receive is [Socket.Receive].
	Receive() (Batch, error)
}

// sharedSocket is what a Socket may implement to be received from in several goroutines: what comes from one address and
// port always comes to the same receiver.
type sharedSocket interface {
	// share returns n receivers in all, the first of which is the Socket, or as many as the system allows. It is called once,
	// before anything is received. Closing the Socket closes them.
	share(n int) []Receiver
}

// receivers returns n receivers of s, or as many as it can have.
func receivers(s Socket, n int) []Receiver {
	if shared, ok := s.(sharedSocket); ok && n > 1 {
		return shared.share(n)
	}
	return []Receiver{s}
}

// osNetwork is the Network of the operating system.
type osNetwork struct{ cfg udp.Config }

// osSocket is a udp.Conn with the arena that it receives into.
type osSocket struct {
	*udp.Conn
	batch *udp.Batch
	large bool        // the arena is a large one
	bulk  atomic.Bool // it is to be one
	log   *slog.Logger

	more []*osSocket // other receivers at the same port; see share
}

// bulkSocket is what a Socket may implement to be told that it will carry more than a few datagrams.
type bulkSocket interface{ useBulk() }

// useBulk tells s that it will carry more than a few datagrams.
func useBulk(s Socket) {
	if b, ok := s.(bulkSocket); ok {
		b.useBulk()
	}
}

func (s *osSocket) useBulk() {
	s.bulk.Store(true)
	for _, other := range s.more {
		other.useBulk()
	}
}

func (s *osSocket) share(n int) []Receiver {
	list := []Receiver{s}
	for len(list) < n {
		c, err := s.Beside()
		if err != nil {
			s.log.Debug("a port has fewer receivers", "local", s.LocalAddr(), "receivers", len(list), "error", err)
			break
		}
		other := &osSocket{Conn: c, log: s.log}
		other.bulk.Store(s.bulk.Load())
		s.more = append(s.more, other)
		list = append(list, other)
	}
	return list
}

// Close closes the socket and all that share its port.
func (s *osSocket) Close() error {
	err := s.Conn.Close()
	for _, other := range s.more {
		err = errors.Join(err, other.Conn.Close())
	}
	return err
}

func (n osNetwork) Listen(addr netip.AddrPort) (Socket, error) {
	cfg := n.cfg
	cfg.Addr = addr
	c, err := udp.Listen(cfg)
	if err != nil {
		return nil, err
	}
	return &osSocket{Conn: c, log: n.cfg.Logger}, nil
}

func (s *osSocket) Receive() (Batch, error) {
	switch {
	case s.large:
	case s.bulk.Load():
		s.batch, s.large = udp.NewBatch(), true
	case s.batch == nil:
		s.batch = udp.NewSmallBatch()
	}
	if err := s.Conn.Receive(s.batch); err != nil {
		return nil, err
	}
	return s.batch, nil
}

// ListenGroup implements GroupNetwork.
func (osNetwork) ListenGroup(group netip.AddrPort) (Group, error) { return udp.ListenGroup(group) }

func (osNetwork) Addrs() []netip.Addr {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, ifi := range ifaces {
		if ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagLoopback != 0 {
			continue
		}
		list, err := ifi.Addrs()
		if err != nil {
			continue
		}
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				addrs = append(addrs, p.Addr().Unmap())
			}
		}
	}
	return addrs
}
