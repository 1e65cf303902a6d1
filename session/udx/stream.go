package udx

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	defaultReadBuffer = 4 << 20   // bytes, the window every peer of the network announces
	maxReadBuffer     = 128 << 20 // bytes, that it grows to
	minReadBuffer     = 4 << 10

	// growthBudget is what the read buffers of all streams of a Mux may grow together.
	growthBudget = 256 << 20
)

// StreamConfig is the configuration of one stream. The zero value works.
type StreamConfig struct {
	// ID is the local id, which the peer puts on its packets. Zero: a random one that is free.
	ID ID

	// Accept is asked about each packet that does not come over the stream's current or previous path: all of them
	// before Connect, later those from another socket or address. The packet is handled if it returns true, and
	// otherwise dropped without an answer. It may call Connect or ChangeRemote with what it is given, before it
	// returns; then the packet already counts as one of the new path. It is called from Mux.Receive with no lock
	// held, must return quickly, and may be called from several goroutines at once. Packets are not authenticated:
	// anybody who knows the id can cause the call. Nil: drop them all.
	Accept func(s Socket, from netip.AddrPort) bool

	// OnMessage is called with each unordered message, which may be empty, and where it came from; it must not keep b. It is
	// called like Accept. A call may still be under way when Close or Reset returns. Nil: messages are dropped.
	OnMessage func(s Socket, from netip.AddrPort, b []byte)

	// OnStray is told of each packet that is not handled because Accept refused it: message is what it carries if it
	// is an unordered message, possibly empty, and nil otherwise; it must not be kept. It is called like Accept. Nil:
	// nobody is told.
	OnStray func(s Socket, from netip.AddrPort, message []byte)

	// OnDone is called once, after Done was closed, in a goroutine of its own that Mux.Close waits for. Nil: nobody is told.
	OnDone func()

	// ReadBuffer is how many bytes may wait to be read before the peer is made to stop; as many again may wait for a
	// packet that was lost. Memory is taken only as data comes. At least 4 KiB. Zero: 4 MiB, which doubles up to 128 MiB
	// while data is read so fast, on so long a path, that the peer would have to wait; 256 MiB more in all for a Mux.
	// Streams of a Mux that are read slowly share 64 MiB: the more waits in all of them, the less room each announces.
	ReadBuffer int
}

// path is a way to the peer: a socket, an address, and the id of the stream there.
type path struct {
	sock Socket
	addr netip.AddrPort
	id   ID
}

// Stream is a reliable, ordered stream of bytes in both directions with a peer, and unordered messages beside it. It
// is a net.Conn. Its methods are safe for concurrent use, except that a Read or Write waits for an earlier one to
// finish.
//
// Each direction ends by itself (CloseWrite, and io.EOF from Read). The stream is done when both have, or when it
// was reset, or the peer is gone.
type Stream struct {
	mux       *Mux
	id        ID
	accept    func(Socket, netip.AddrPort) bool
	onMessage func(Socket, netip.AddrPort, []byte)
	onStray   func(Socket, netip.AddrPort, []byte)
	onDone    func()
	done      chan struct{} // closed when the stream is done

	mu       sync.Mutex // guards all below; no callback and no send while it is held
	path     path       // zero: not connected
	previous path
	sender   sender
	assembly assembly
	acks     acks
	window   uint32 // announced last
	growth   growth
	standing int // bytes, as the Mux counts them
	quiet    quiet

	finished bool  // done is closed
	err      error // why, nil if both directions ended
	destroy  bool  // a DESTROY is to be sent
	closing  bool  // Close was called
	closeBy  instant
	closeEnd instant // not later in any case

	flushing bool // a goroutine is sending, and looks again before it ends

	readable, writable bool // there is something to wake a reader, or the writers, for

	timer   Timer   // calls tick; nil until needed
	timerAt instant // zero: stopped

	readers, writers side
	unread, block    []byte // what the reader holds of the front block of the buffer, and that block

	received counters
	heard    instant // when a packet of the peer came last; zero: never
}

type counters struct{ packets, bytes, duplicates, outOfOrder, refused uint64 }

var _ net.Conn = (*Stream)(nil)

func newStream(m *Mux, cfg StreamConfig) *Stream {
	s := &Stream{
		mux: m, id: cfg.ID, accept: cfg.Accept, onMessage: cfg.OnMessage, onStray: cfg.OnStray, onDone: cfg.OnDone,
		done:   make(chan struct{}),
		sender: newSender(),
	}
	s.assembly.limit = defaultReadBuffer
	s.growth.most = maxReadBuffer
	if cfg.ReadBuffer != 0 {
		s.growth.most = 0
		s.assembly.limit = max(cfg.ReadBuffer, minReadBuffer)
	}
	s.window = s.windowLocked()
	s.readers.wake.L, s.writers.wake.L = &s.mu, &s.mu
	return s
}

// ID returns the local id.
func (s *Stream) ID() ID { return s.id }

// Done returns a channel that is closed when both directions have ended, or the stream has failed. What was received
// in order before can still be read.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Err returns why the stream is done: nil if it is not, or if both directions ended properly. It wraps ErrReset or
// ErrTimeout, or is what Reset was given.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Connect sets where packets go: the peer's address as seen from sock, and the id that the peer chose for the
// stream. Nothing is sent, unless packets have arrived already. It returns ErrConnected if the stream is connected,
// and net.ErrClosed if it is closed.
func (s *Stream) Connect(sock Socket, remote netip.AddrPort, remoteID ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.closing {
		return s.opError("connect", net.ErrClosed)
	}
	if s.path.sock != nil {
		return s.opError("connect", ErrConnected)
	}
	s.setPathLocked(path{sock, unmap(remote), remoteID})
	if s.assembly.expected != 0 || len(s.assembly.ranges) > 0 {
		s.acks.demand(s.mux.now())
	}
	s.wakeLocked()
	return nil
}

// ChangeRemote moves a connected stream to another path. Packets that are lost on the old one are sent again on the
// new one. Packets of the peer are taken from both, until the next change; but if the peer has not been heard yet only from the new
// one, and Accept is asked about all others. Nothing tells the peer. It returns ErrNotConnected before Connect, and net.ErrClosed if
// the stream is closed.
func (s *Stream) ChangeRemote(sock Socket, remote netip.AddrPort, remoteID ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return s.opError("change remote", net.ErrClosed)
	}
	if s.path.sock == nil {
		return s.opError("change remote", ErrNotConnected)
	}
	p := path{sock, unmap(remote), remoteID}
	if p == s.path {
		return nil
	}
	if s.heard != 0 { // else the peer may be at any of the addresses that are tried
		s.previous = s.path
	}
	s.setPathLocked(p)
	s.wakeLocked()
	return nil
}

func (s *Stream) setPathLocked(p path) {
	s.path = p
	s.sender.newPath(s.mux.now(), p.addr.Addr().Is6())
}

// knowsLocked reports whether a packet comes over the current or the previous path.
func (s *Stream) knowsLocked(sock Socket, from netip.AddrPort) bool {
	return s.path.sock != nil &&
		(s.path.sock == sock && s.path.addr == from || s.previous.sock == sock && s.previous.addr == from)
}

// Stats are the counters and estimates of a stream.
type Stats struct {
	RTT, RTTVar, MinRTT time.Duration // round trip; zero: not known yet
	Window              int           // congestion window, bytes
	InFlight            int           // bytes
	PeerWindow          int           // bytes the peer takes
	Rate                float64       // pacing, bytes per second
	MTU                 int           // largest IP packet known to pass

	BytesSent, PacketsSent            uint64 // numbered packets, with those sent again
	PacketsResent, Spurious           uint64 // sent again; and found to be late, not lost, before they were
	Timeouts, TailProbes              uint64
	BlackHoles                        uint64 // times the path was found not to carry large packets any more
	BytesReceived, PacketsReceived    uint64 // numbered packets that were new
	Duplicates, OutOfOrder, Refused   uint64
	BytesUnacknowledged, BytesWaiting int // written and not acknowledged; received and not read
	Room                              int // bytes that Write takes without waiting

	// Heard is when a packet came last that was meant for the stream and came from where it expects them: also one that
	// acknowledges nothing new, or carries a message. Zero: none has come. Nothing of it is authentic.
	Heard time.Time
}

// Stats returns a snapshot.
func (s *Stream) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.sender
	return Stats{
		RTT: d.rtt.smoothed, RTTVar: d.rtt.variance, MinRTT: d.rtt.min(),
		Window: d.congestion.window, InFlight: d.flightCost, PeerWindow: d.peerWindow,
		Rate: d.congestion.rate, MTU: d.mtu.size,
		BytesSent: d.stats.sentBytes, PacketsSent: d.stats.packets,
		PacketsResent: d.stats.again, Spurious: d.stats.spurious,
		Timeouts: d.stats.timeouts, TailProbes: d.stats.tails, BlackHoles: d.stats.blackHoles,
		BytesReceived: s.received.bytes, PacketsReceived: s.received.packets,
		Duplicates: s.received.duplicates, OutOfOrder: s.received.outOfOrder, Refused: s.received.refused,
		BytesUnacknowledged: d.held, BytesWaiting: s.assembly.buf.len + len(s.unread), Room: d.room(), Heard: s.mux.time(s.heard),
	}
}
