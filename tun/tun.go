// Package tun opens the packet device through which the host's programs send and receive IP packets.
//
//	programs ⇄ kernel ⇄ interface "omega0" ⇄ Device ⇄ our process
//
// On Linux the device is opened with virtio-net headers, and is a [Large]. Then one system call carries up to 64 KiB: what
// the kernel hands over as one large TCP or UDP packet is cut into packets that fit where it lies, small ones that are
// waiting are gathered, and packets of a flow are merged again as they are written, from where they lie. If more are waiting
// than one batch has room for, flows take turns, and of those that keep much waiting for long, packets are dropped (FQ-CoDel,
// RFC 8290, without ECN). Several queues can be read at the same time. Checksums are left to the kernel where the other side allows it. The device below is golang.zx2c4.com/wireguard/tun's, on a file opened
// here: so an interface of that name which exists already is refused instead of taken over, and no goroutine or
// netlink socket is needed for events that nobody reads. Where the kernel refuses the headers, or [Config].Plain is set,
// packets are carried by that package. Other systems use its devices as they are.
//
// The interface exists as long as the device is open: when the process ends, however it ends, the kernel removes it
// with its addresses and routes. Package tun/hostnet sets those.
//
// Limitations: packets with IPv4 options or IPv6 extension headers are not merged.
package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Errors that [Open] wraps. The text around them says what to do.
var (
	// ErrNoDevice means that the system has no packet devices: on Linux, /dev/net/tun is missing.
	ErrNoDevice = errors.New("no packet device on this system")
	// ErrPermission means that this process may not open one: on Linux, it lacks CAP_NET_ADMIN.
	ErrPermission = errors.New("not permitted to open a packet device")
	// ErrBusy means that an interface of this name exists. It is left alone, whoever made it.
	ErrBusy = errors.New("interface name is in use")
)

// DefaultMTU is the size in bytes of the largest packet unless configured: the least that IPv6 allows, and what fits
// through any path.
const DefaultMTU = 1280

// MinHeadroom is the smallest offset in bytes at which [Device.Write] accepts packets on every system.
const MinHeadroom = 10

// MergeCapacity returns the capacity that a buffer given to [Device.Write] at this offset needs so that other packets
// can be merged into it. Smaller ones are written as they are, at a much higher cost per packet.
func MergeCapacity(offset int) int { return maxPacket + 2*offset }

const maxPacket = 65535

// Device is an open packet device. All methods are safe for concurrent use.
type Device interface {
	// Name returns the name of the interface.
	Name() string

	// Read waits for packets, puts each into bufs[i][offset:] and its length into sizes[i], and returns how many there
	// are. It wants [Device.BatchSize] buffers with room for the MTU of the interface behind offset; a packet
	// that has no room is dropped. sizes must be as long as bufs, and offset at least
	// [MinHeadroom]. Close ends it with [os.ErrClosed]. Any error is final.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)

	// Write gives the packets bufs[i][offset:] to the host, in order within a flow, and returns their number. offset
	// is at least [MinHeadroom]. The bytes before offset are overwritten, and so is the capacity behind a packet, if
	// it is at least [MergeCapacity]: other packets of the flow are merged there. The elements of bufs change. All of
	// it is the caller's again when Write returns. An error may concern some of the packets only; it is
	// [os.ErrClosed] after Close.
	//
	// Packets may contain anything: what is no IP packet makes an error, not a panic.
	Write(bufs [][]byte, offset int) (int, error)

	// BatchSize returns the number of buffers that Read wants. It never changes.
	BatchSize() int

	// MTU asks the system for the size in bytes of the largest packet that it sends through the interface.
	MTU() (int, error)

	// Close removes the interface and ends Read and Write. It may be called more than once.
	Close() error
}

// Queue is where packets from the host wait. It is for one goroutine at a time.
type Queue interface {
	// ReadLarge waits for packets and returns how many there are. They are valid until the next call. Close ends it
	// with [os.ErrClosed]. Any error is final.
	ReadLarge() (int, error)

	// Packet returns packet i with all of its payload, and the length of the longest packet that it stands for. It is
	// the packet itself, if it is not a large one. The caller may change the headers, but not their length. Once Cut has been
	// called the payload is not whole any more.
	Packet(i int) (packet []byte, longest int)

	// Cut returns the next of the packets that packet i stands for, as b[offset:]; nil after the last. b is valid until
	// the next call for the same i; all of it may be changed, and the bytes before offset, which is at most
	// [MinHeadroom], are nothing's. Unless finish is set, the checksum of TCP or UDP may be unfinished: then
	// the field holds the sum of the pseudo-header only, and the receiver must be told.
	Cut(i, offset int, finish bool) (b []byte, unfinished bool)
}

// Large is a Device that carries large packets, each of which stands for many of one flow, and leaves checksums to the
// kernel. What [Open] returns is one wherever the system can do it. It is the first of its queues; whoever uses that does not call Read.
type Large interface {
	Device
	Queue

	// Queues returns all queues, as many as [Config].Queues asked for or one. Packets of a flow are always in the same
	// one, which depends on addresses and ports only; fragments of packets have no ports. Every queue has to be read.
	Queues() []Queue

	// WriteLarge is Write, but changes nothing behind a packet: buffers need no capacity, and may overlap but for
	// the packets and [MinHeadroom] bytes before each. Packet i has an unfinished checksum if unfinished[i] is set;
	// nil: none has. It returns the number of packets that were written, and the first error if those are not all.
	// One that is said to be unfinished, and is not TCP or UDP directly behind an IP header with sound lengths, is not
	// written. Packets are changed.
	WriteLarge(bufs [][]byte, offset int, unfinished []bool) (int, error)
}

// Config configures [Open].
type Config struct {
	// Name is the name of the interface. Empty: the first free one of omega0, omega1, … (on macOS, utun0, …).
	Name string
	// MTU is in bytes, 1280 to 65535. Zero: DefaultMTU.
	MTU int
	// NoMerge writes packets one by one. Some kernels fail merged writes with EINVAL (that is noticed, and merging
	// stops), others lose merged UDP packets on their way to a VXLAN (Linux before 6.8.5).
	NoMerge bool
	// Queues is how many queues packets from the host are divided into, so that as many goroutines can read them; 64 at most. Zero: one.
	// There is one wherever the device is no Large, or the kernel refuses more.
	Queues int
	// Plain leaves reading and writing to golang.zx2c4.com/wireguard/tun, as on other systems: the device is no Large.
	Plain bool
	// Logger is told about packets that could not be read and about merging being switched off. Nil: discard.
	Logger *slog.Logger
}

// Open creates an interface and returns the device behind it. The interface is down and has no addresses. Errors wrap
// [ErrNoDevice], [ErrPermission] or [ErrBusy] where one of them applies.
func Open(cfg Config) (Device, error) {
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < DefaultMTU || cfg.MTU > maxPacket {
		return nil, fmt.Errorf("tun: MTU %d is not between %d and %d", cfg.MTU, DefaultMTU, maxPacket)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// What Linux refuses, and '%', which it expands.
	const forbidden = "/:% \t\n\v\f\r\x00"
	if len(cfg.Name) > 15 || cfg.Name == "." || cfg.Name == ".." || strings.ContainsAny(cfg.Name, forbidden) {
		return nil, fmt.Errorf("tun: %q cannot be the name of an interface: "+
			"it has at most 15 characters, without space, '/', ':' or '%%'", cfg.Name)
	}
	return open(cfg)
}
