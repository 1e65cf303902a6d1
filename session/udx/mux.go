package udx

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ID names a stream at its receiver, which chose it. Every value is valid.
type ID uint32

// Config is the configuration of a Mux. The zero value works.
type Config struct {
	Logger *slog.Logger // nil: discard
	Clock  Clock        // nil: the system's
}

// Mux is the table of the streams of one host, across all of its sockets. Its methods are safe for concurrent use.
//
// A stream that does nothing costs its entry here and neither a goroutine nor a timer.
type Mux struct {
	log   *slog.Logger
	clock Clock // nil: the system's
	start time.Time
	wg    sync.WaitGroup // goroutines of streams
	grown atomic.Int64   // bytes by which read buffers have grown

	standing     atomic.Int64 // bytes that stand in read buffers which have not grown
	standingMost int          // bytes; constant, but for tests

	mu      sync.RWMutex // guards the fields below; taken after Stream.mu, never before
	streams map[ID]*Stream
	linger  linger
	closed  bool
}

// NewMux returns a Mux without streams.
func NewMux(cfg Config) *Mux {
	m := &Mux{log: cfg.Logger, clock: cfg.Clock, start: time.Now(), standingMost: standingMost, streams: make(map[ID]*Stream)}
	if m.clock != nil {
		m.start = time.Unix(0, 0)
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.linger.entries = make(map[ID]lingering)
	return m
}

// Close resets all streams, waits until their goroutines have ended, and refuses new streams from then on.
// It must not be called from a callback of a stream.
func (m *Mux) Close() error {
	m.mu.Lock()
	m.closed = true
	streams := make([]*Stream, 0, len(m.streams))
	for _, s := range m.streams {
		streams = append(streams, s)
	}
	m.linger.stop()
	m.mu.Unlock()
	for _, s := range streams {
		s.Reset(net.ErrClosed)
	}
	m.wg.Wait()
	return nil
}

// Drain waits until the streams on which [Stream.Close] was called have delivered what was written, or failed. It
// returns ctx's cause if ctx ends first. Streams that are closed later are not waited for.
func (m *Mux) Drain(ctx context.Context) error {
	m.mu.RLock()
	streams := slices.Collect(maps.Values(m.streams))
	m.mu.RUnlock()
	for _, s := range streams {
		s.mu.Lock()
		closing := s.closing
		s.mu.Unlock()
		if !closing {
			continue
		}
		select {
		case <-s.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Receive handles one datagram, which arrived on s. It reports whether it was meant for a stream of this Mux, living
// or lately closed: then nobody else should look at it. It does not keep b, may be called from several
// goroutines at once, and does not wait: what is to be sent is sent by others. It calls the callbacks of the stream.
// Datagrams that come together are cheaper through a [Burst].
func (m *Mux) Receive(s Socket, b []byte, from netip.AddrPort) bool {
	h, rest, err := ParseHeader(b)
	if err != nil {
		return false
	}
	from = unmap(from)
	stream, known := m.find(s, h, from)
	if stream != nil {
		now := m.now()
		stream.receive(now, s, h, rest, from)
		stream.settle(now)
	}
	return known
}

// find returns the stream that a packet is meant for, nil if there is none or none any more: then it answers in its place.
// known says that the packet is meant for one of either kind.
func (m *Mux) find(s Socket, h Header, from netip.AddrPort) (stream *Stream, known bool) {
	m.mu.RLock()
	stream = m.streams[h.ID]
	var gone lingering
	if stream == nil && len(m.linger.entries) > 0 {
		gone, known = m.linger.entries[h.ID]
	}
	m.mu.RUnlock()
	if known {
		gone.answer(s, h, from)
	}
	return stream, known || stream != nil
}

// NewStream registers a stream, so that packets for it are seen from now on, and returns it unconnected.
// It returns ErrIDInUse if cfg.ID is taken, and net.ErrClosed after Close.
func (m *Mux) NewStream(cfg StreamConfig) (*Stream, error) {
	s := newStream(m, cfg)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("udx: new stream: %w", net.ErrClosed)
	}
	for s.id == 0 || m.takenLocked(s.id) {
		if cfg.ID != 0 {
			return nil, fmt.Errorf("udx: new stream %d: %w", cfg.ID, ErrIDInUse)
		}
		var b [4]byte
		rand.Read(b[:]) // never fails
		s.id = ID(binary.LittleEndian.Uint32(b[:]))
	}
	m.streams[s.id] = s
	return s, nil
}

func (m *Mux) takenLocked(id ID) bool {
	if _, ok := m.streams[id]; ok {
		return true
	}
	_, ok := m.linger.entries[id]
	return ok
}

// forget takes a stream out of the table and lets an entry answer in its place, unless that is nil.
func (m *Mux) forget(s *Stream, l *lingering) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[s.id] == s {
		delete(m.streams, s.id)
	}
	if l != nil && !m.closed {
		m.linger.add(m, s.id, *l)
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}
