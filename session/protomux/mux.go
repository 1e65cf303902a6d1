package protomux

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	defaultMaxChannels = 256
	defaultMaxKept     = 256 << 10

	maxQueued  = 256 << 10 // bytes that may wait to be written before Send waits
	maxReplies = 64 << 10  // bytes of answers that may wait to be written, until the peer has gone too far
	maxBatch   = 32 << 10  // bytes of frames that are put into one batch
)

// Conn is the stream of messages under a Mux. A *secretstream.Conn is one.
type Conn interface {
	// ReadMessage returns the next message, which is valid until the next call. It returns [io.EOF] at the end of
	// the stream. It is called from one goroutine.
	ReadMessage() ([]byte, error)
	// WriteMessage sends b and does not keep it. It may block. It is called from one goroutine at a time, which is
	// not the one that reads.
	WriteMessage(b []byte) error
	// Close ends both calls. It may be called more than once, and by any goroutine.
	Close() error
}

// Config is the configuration of a Mux. The zero value works.
type Config struct {
	// Protocols are those that the peer may open first. Such an open waits for Open or Accept. An open of any other
	// protocol is rejected, unless a channel that Open has opened waits for it.
	Protocols []string

	// MaxChannels is how many channels there may be, those that wait for an answer of either side among them. What the
	// peer opens beyond is rejected. Default: 256.
	MaxChannels int

	// MaxKept is how many bytes of messages may wait for Receive. When there are more, nothing is read from the
	// stream until some are taken, so that it may be exceeded by one message. A message counts 64 bytes
	// beyond its own. Default: 256 KiB.
	MaxKept int
}

// Mux runs channels over one stream. Its methods are safe for concurrent use.
type Mux struct {
	conn    Conn
	maxKept int
	done    chan struct{}
	wg      sync.WaitGroup // the reader, and the writer while there is one

	mu      sync.Mutex // guards the fields below; nothing is sent while it is held
	state   machine
	err     error // why the Mux is done
	writing bool  // a goroutine writes what is in state.out
	pending int   // bytes that it has taken out of there
	replies int   // bytes in there that the peer has caused
	written signal
}

// New starts a Mux on conn, which belongs to it from then on. It ends with the stream: when the peer ends its
// direction, so does the Mux.
func New(conn Conn, cfg Config) *Mux {
	m := &Mux{
		conn: conn, done: make(chan struct{}),
		maxKept: cmp.Or(cfg.MaxKept, defaultMaxKept),
		state:   newMachine(cfg.Protocols, cmp.Or(cfg.MaxChannels, defaultMaxChannels)),
	}
	m.wg.Go(m.read)
	return m
}

// Done returns a channel that is closed when the Mux is done.
func (m *Mux) Done() <-chan struct{} { return m.done }

// Err returns why the Mux is done, nil if it is not: [io.EOF] if the peer has ended the stream, [net.ErrClosed] after
// Close, an error that wraps [ErrProtocol], or the stream's.
func (m *Mux) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Close closes the stream, and with it all channels, and waits for the Mux's goroutines. What waits to be written
// is lost; see Flush.
func (m *Mux) Close() error {
	err := m.fail(net.ErrClosed)
	m.wg.Wait()
	return err
}

// fail ends the Mux, unless it has ended.
func (m *Mux) fail(err error) error {
	m.mu.Lock()
	first := m.err == nil
	if first {
		m.err = err
		m.state.shut(err)
		m.written.wake()
		close(m.done)
	}
	m.mu.Unlock()
	if !first {
		return nil
	}
	return m.conn.Close()
}

// Open opens a channel of a protocol, which is named by at most 255 bytes. id tells several channels of one protocol
// apart; nil and an empty one are the same. handshake is for the peer's program, at most 64 KiB. Nothing is kept.
//
// Open does not wait. The channel may be sent on at once; [Channel.Opened] tells when the peer has opened it too.
// If the peer has opened such a channel already, that is the one. The error is [ErrTooMany], or why the Mux is
// done.
func (m *Mux) Open(protocol string, id, handshake []byte) (*Channel, error) {
	n := name{protocol, string(id)}
	err := n.check()
	if err == nil && len(handshake) > maxHandshake {
		err = fmt.Errorf("handshake of %d bytes", len(handshake))
	}
	if err != nil {
		return nil, fmt.Errorf("protomux: open %q: %w", protocol, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, fmt.Errorf("protomux: open %q: %w", protocol, m.err)
	}
	c, err := m.state.open(n, handshake)
	if err != nil {
		return nil, fmt.Errorf("protomux: open %q: %w", protocol, err)
	}
	m.writeLocked()
	return &Channel{m, c}, nil
}

// Accept waits for the peer to open a channel of one of Config.Protocols that no call of Open has waited for, and
// takes it. Each is taken once. The error is ctx's cause, or why the Mux is done.
func (m *Mux) Accept(ctx context.Context, protocol string) (*Offer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if m.err != nil {
			return nil, fmt.Errorf("protomux: accept %q: %w", protocol, m.err)
		}
		if c := m.state.take(protocol); c != nil {
			return &Offer{m, c}, nil
		}
		if err := m.waitLocked(ctx, &m.state.arrived); err != nil {
			return nil, fmt.Errorf("protomux: accept %q: %w", protocol, err)
		}
	}
}

// Flush waits until the stream has taken everything that was to be sent. The error is ctx's cause, or
// why the Mux is done.
func (m *Mux) Flush(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.err == nil {
		if !m.writing {
			return nil
		}
		if err := m.waitLocked(ctx, &m.written); err != nil {
			return fmt.Errorf("protomux: flush: %w", err)
		}
	}
	return fmt.Errorf("protomux: flush: %w", m.err)
}

// waitLocked waits for a change. m.mu is held before and after, but not while it waits.
func (m *Mux) waitLocked(ctx context.Context, s *signal) error {
	changed := s.wait()
	m.mu.Unlock()
	defer m.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read is the goroutine that reads.
func (m *Mux) read() {
	for {
		b, err := m.conn.ReadMessage()
		if err == nil {
			err = m.receive(b)
		}
		if err != nil {
			if err != io.EOF { //nolint:errorlint // a wrapped one is no end of the stream
				err = fmt.Errorf("protomux: %w", err)
			}
			_ = m.fail(err) // the error that counts is err
			return
		}
	}
}

// receive handles a frame, and waits until there is room for the next.
func (m *Mux) receive(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	before := m.state.outLen
	if err := m.state.receive(b); err != nil {
		return err
	}
	if m.replies += m.state.outLen - before; m.replies > maxReplies { // to wait could be to wait for each other
		return violation("does not read the answers to what it opens")
	}
	m.writeLocked()
	for m.state.kept > m.maxKept && m.err == nil {
		_ = m.waitLocked(context.Background(), &m.state.space) // cannot fail
	}
	return nil
}

// writeLocked sees to it that what is in state.out is written. m.mu is held, and the Mux is not done.
func (m *Mux) writeLocked() {
	if !m.writing && len(m.state.out) > 0 {
		m.writing = true
		m.wg.Go(m.write)
	}
}

// write is the goroutine that writes, while there is something to write.
func (m *Mux) write() {
	for {
		m.mu.Lock()
		frames := m.state.out
		m.pending = m.state.outLen
		m.state.out, m.state.outLen, m.replies = nil, 0, 0
		if len(frames) == 0 {
			m.writing = false
		}
		m.written.wake()
		m.mu.Unlock()
		if len(frames) == 0 {
			return
		}
		for len(frames) > 0 {
			n := batchable(frames)
			b := frames[0]
			if n > 1 {
				b = appendBatch(nil, frames[:n])
			}
			if err := m.conn.WriteMessage(b); err != nil {
				_ = m.fail(fmt.Errorf("protomux: %w", err)) // the error that counts is err
				return
			}
			frames = frames[n:]
		}
	}
}

// batchable returns how many frames, at least one, go together.
func batchable(frames [][]byte) int {
	n, size := 1, len(frames[0])
	for n < len(frames) && size+len(frames[n]) <= maxBatch {
		size += len(frames[n])
		n++
	}
	return n
}

// fullLocked reports whether so much waits to be written that senders must wait.
func (m *Mux) fullLocked() bool { return m.pending+m.state.outLen >= maxQueued }
