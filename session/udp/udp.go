package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// MaxDatagram is the largest payload of one datagram in bytes, over IPv4. Trains are no longer either.
	MaxDatagram = 65507
	// MaxTrain is the largest number of datagrams that leave as one train.
	MaxTrain = 64

	// DefaultReadBuffer is the size of the receive buffer in bytes. The package comment gives the reasons.
	DefaultReadBuffer = 1 << 20
	// DefaultWriteBuffer is the size of the send buffer in bytes.
	DefaultWriteBuffer = 256 << 10
)

// Features are the ways in which the system speeds up a socket.
type Features uint8

const (
	// FeatureBatch is sending and receiving several messages with one call (sendmmsg, recvmmsg).
	FeatureBatch Features = 1 << iota
	// FeatureSegment is sending a train of equal datagrams as one message (UDP_SEGMENT). It needs FeatureBatch.
	FeatureSegment
	// FeatureMerge is receiving a train of equal datagrams as one message (UDP_GRO). It needs FeatureBatch.
	FeatureMerge

	// AllFeatures is all of the above.
	AllFeatures = FeatureBatch | FeatureSegment | FeatureMerge
)

// String returns the names of the features, such as "batch,segment,merge", or "none".
func (f Features) String() string {
	var names []string
	for i, name := range []string{"batch", "segment", "merge"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ",")
}

// Config says how to open a socket. Its zero value opens one on any IPv4 address and port.
type Config struct {
	// Addr is the local address and port; port 0 is any free one. An IPv6 address opens a socket for IPv6 only.
	// A zero Addr stands for 0.0.0.0.
	Addr netip.AddrPort

	// ReadBuffer and WriteBuffer are the sizes of the socket's buffers in bytes. Zero: DefaultReadBuffer and
	// DefaultWriteBuffer. Negative: the system's default. The system may grant less; Stats tells. On slow lines the send
	// buffer becomes smaller.
	ReadBuffer, WriteBuffer int

	// Disable names features to do without, even where the system has them.
	Disable Features

	// NoOffload is short for Disable: FeatureSegment | FeatureMerge.
	NoOffload bool

	// PacketInfo makes Batch.Local tell which of the host's addresses a datagram was sent to, for use with Conn.From.
	// It is for sockets bound to all addresses of a host that has several. Linux only; elsewhere it does nothing.
	PacketInfo bool

	// Mark is the socket's firewall mark (Linux SO_MARK), for policy routing; zero is none. Setting one needs
	// CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17; Listen fails without, and on systems that know no marks.
	Mark int

	// Logger gets the few things worth knowing: a buffer granted smaller, an offload given up. Nil: none.
	Logger *slog.Logger
}

// Conn is a UDP socket. Its methods may be called from any number of goroutines at once, except that at most one may be
// in Receive. It starts no goroutine.
type Conn struct {
	udp      *net.UDPConn
	raw      syscall.RawConn
	local    netip.AddrPort
	portable bool // only what the net package offers, from the start; never changes
	hubbed   bool // it is in a Hub
	log      *slog.Logger
	cfg      Config // with the defaults; never changes

	features atomic.Uint32 // Features in use
	closed   atomic.Bool
	counters counters

	ttlMu sync.RWMutex // portable only: held for writing while the socket's TTL is changed

	fragmentMu sync.Mutex // held while the socket may send fragments

	sourcesMu sync.Mutex             // guards sources
	sources   map[netip.Addr]*Source // made by the first From

	system // what the system's own calls need
}

// Listen opens a socket. If the port is taken the error is an [*InUseError].
func Listen(cfg Config) (*Conn, error) {
	addr := cfg.fill()
	return bind(cfg, addr, setOptions)
}

// bind opens a socket whose options, but for those that are the same for all, set makes.
func bind(cfg Config, addr netip.AddrPort, set func(fd uintptr, addr netip.Addr, cfg Config) error) (*Conn, error) {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6" // this sets IPV6_V6ONLY too
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = set(fd, addr.Addr(), cfg) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if isInUse(err) {
		return nil, &InUseError{Addr: addr, Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	c := &Conn{udp: pc.(*net.UDPConn), log: cfg.Logger, cfg: cfg}
	if c.raw, err = c.udp.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("udp: %w", err), c.udp.Close())
	}
	c.local = c.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	c.local = netip.AddrPortFrom(c.local.Addr().Unmap(), c.local.Port())
	c.start(cfg)
	return c, nil
}

// fill puts in the defaults, and returns the address to bind.
func (cfg *Config) fill() netip.AddrPort {
	addr := netip.AddrPortFrom(cfg.Addr.Addr().Unmap(), cfg.Addr.Port())
	if !addr.Addr().IsValid() {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	}
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = DefaultReadBuffer
	}
	if cfg.WriteBuffer == 0 {
		cfg.WriteBuffer = DefaultWriteBuffer
	}
	if cfg.NoOffload {
		cfg.Disable |= FeatureSegment | FeatureMerge
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return addr
}

// Beside opens another socket at the address and port of c, with the same Config, so that two goroutines can receive what comes
// there. The system divides it by the sender's address and port and its own, which does not change until another socket is opened or
// one is closed: datagrams of one sender keep their order. It makes no difference which of the sockets sends.
//
// Nobody can bind the port but programs of the same user that ask for the same, as c did not: it was free when c was opened. The
// error wraps [errors.ErrUnsupported] where the system cannot divide datagrams, or c is in a [Hub].
func (c *Conn) Beside() (*Conn, error) { return c.beside() }

// LocalAddr returns the address that the socket is bound to, with the port that was found for it.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// Close closes the socket; Receive and waiting senders return net.ErrClosed. Calls after the first do nothing.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	return c.closeSocket()
}

func (c *Conn) has(f Features) bool { return Features(c.features.Load())&f == f }

// giveUp turns f off for good.
func (c *Conn) giveUp(f Features, why error) {
	if old := c.features.And(^uint32(f)); Features(old)&f != 0 && !c.closed.Load() {
		c.log.Info("udp: the system refused an offload, going on without", "offload", f.String(), "error", why)
	}
}

// Stats are a socket's counters since it was opened. Packets are datagrams, and bytes their payload. A train is what the
// kernel handles as one message, be it of one datagram or of many: packets by trains is what the offloads bring.
type Stats struct {
	Features Features // in use

	ReceivedPackets, ReceivedBytes uint64
	ReceiveTrains                  uint64 // messages in which the packets came
	ReceiveOverflow                uint64 // dropped by the kernel because the receive buffer was full (SO_RXQ_OVFL)
	ReceiveInvalid                 uint64 // dropped here: longer than the batch's slots, or from port 0
	SocketErrors                   uint64 // errors of the socket or of datagrams long gone that were passed over

	SentPackets, SentBytes uint64
	SendTrains             uint64 // messages in which the packets left
	SendTooLarge           uint64 // datagrams refused with ErrTooLarge
	SendDropped            uint64 // datagrams lost because the system was short of buffers
	SendErrors             uint64 // datagrams refused for any other reason

	ReadBuffer, WriteBuffer int // what the system granted, in its own way of counting; 0: unknown
}

type counters struct {
	received, receivedBytes, receiveTrains        atomic.Uint64
	receiveOverflow, receiveInvalid, socketErrors atomic.Uint64
	sent, sentBytes, sendTrains                   atomic.Uint64
	sendTooLarge, sendDropped, sendErrors         atomic.Uint64
}

// Stats returns the counters. They are read one after the other, so they may be a few packets apart.
func (c *Conn) Stats() Stats {
	n := &c.counters
	s := Stats{
		Features:        Features(c.features.Load()),
		ReceivedPackets: n.received.Load(),
		ReceivedBytes:   n.receivedBytes.Load(),
		ReceiveTrains:   n.receiveTrains.Load(),
		ReceiveOverflow: n.receiveOverflow.Load(),
		ReceiveInvalid:  n.receiveInvalid.Load(),
		SocketErrors:    n.socketErrors.Load(),
		SentPackets:     n.sent.Load(),
		SentBytes:       n.sentBytes.Load(),
		SendTrains:      n.sendTrains.Load(),
		SendTooLarge:    n.sendTooLarge.Load(),
		SendDropped:     n.sendDropped.Load(),
		SendErrors:      n.sendErrors.Load(),
	}
	s.ReadBuffer, s.WriteBuffer = c.buffers()
	return s
}
