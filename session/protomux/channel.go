package protomux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// Channel is one channel of a [Mux]. Its methods are safe for concurrent use. It must be closed, also after the
// peer has.
type Channel struct {
	mux *Mux
	c   *channel
}

// Protocol returns the name of the protocol.
func (c *Channel) Protocol() string { return c.c.name.protocol }

// ID returns a copy of what tells the channel from others of the protocol, empty if nothing does.
func (c *Channel) ID() []byte { return []byte(c.c.name.id) }

// Opened waits until the peer has opened the channel as well, and returns its handshake, which must not be changed.
// The error is [ErrRejected], [net.ErrClosed] after Close, ctx's cause, or why the Mux is done.
func (c *Channel) Opened(ctx context.Context) (handshake []byte, err error) {
	m := c.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	for c.c.state == stateOpening {
		if err := m.waitLocked(ctx, &c.c.changed); err != nil {
			return nil, c.error("open", err)
		}
	}
	if c.c.heard {
		return c.c.handshake, nil
	}
	return nil, c.error("open", c.c.err)
}

// Send sends a message. typ is its number in the protocol, at least 0. payload is not kept. Send waits while much
// is to be written to the stream; if ctx has ended before, it sends only what needs no waiting. A message that was
// sent before the peer opened the channel is kept by the peer until it does, and lost if it never does.
//
// The error is [io.EOF] or [ErrRejected] if the peer has closed the channel or not opened it, [net.ErrClosed] after
// Close, ctx's cause, or why the Mux is done.
func (c *Channel) Send(ctx context.Context, typ int, payload []byte) error {
	if typ < 0 || typ > math.MaxInt32 {
		return c.error("send", fmt.Errorf("message number %d", typ))
	}
	m := c.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if c.c.state != stateOpening && c.c.state != stateOpen {
			return c.error("send", c.c.err)
		}
		if !m.fullLocked() {
			m.state.send(c.c, uint64(typ), payload)
			m.writeLocked()
			return nil
		}
		if err := m.waitLocked(ctx, &m.written); err != nil {
			return c.error("send", err)
		}
	}
}

// Receive returns the next message, and waits if there is none: its number in the protocol, which may be one that
// the protocol does not have and should be ignored then, and its payload, which belongs to the caller.
//
// Once all is received, the error is [io.EOF] if the peer has closed the channel or ended the stream, or why the
// Mux is done. It is [ErrRejected] if the peer does not open the channel, [net.ErrClosed] after Close, or ctx's
// cause.
func (c *Channel) Receive(ctx context.Context) (typ int, payload []byte, err error) {
	m := c.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if msg, ok := m.state.next(c.c); ok {
			return msg.typ, msg.payload, nil
		}
		if c.c.state != stateOpening && c.c.state != stateOpen {
			if c.c.err == io.EOF { //nolint:errorlint // what was set here; readers expect it bare
				return 0, nil, io.EOF
			}
			return 0, nil, c.error("receive", c.c.err)
		}
		if err := m.waitLocked(ctx, &c.c.changed); err != nil {
			return 0, nil, c.error("receive", err)
		}
	}
}

// Close closes the channel, tells the peer unless that has closed it, and drops what has not been received. It does not
// wait.
func (c *Channel) Close() {
	m := c.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.close(c.c)
	if m.err == nil {
		m.writeLocked()
	}
}

func (c *Channel) error(op string, err error) error {
	return fmt.Errorf("protomux: %s on %q: %w", op, c.c.name.protocol, err)
}

// Offer is a channel that the peer has opened and we have not. It must be accepted or rejected. Its methods are safe
// for concurrent use.
type Offer struct {
	mux *Mux
	c   *channel
}

// ID returns a copy of what tells the channel from others of the protocol, empty if nothing does.
func (o *Offer) ID() []byte { return []byte(o.c.name.id) }

// Handshake returns the peer's handshake. It must not be changed.
func (o *Offer) Handshake() []byte { return o.c.handshake }

// Accept opens the channel, with a handshake of our own of at most 64 KiB, and does not wait. The error is [io.EOF]
// if the peer has closed it, or why the Mux is done; it is an error to accept what was accepted or rejected before.
func (o *Offer) Accept(handshake []byte) (*Channel, error) {
	if len(handshake) > maxHandshake {
		return nil, fmt.Errorf("protomux: accept %q: handshake of %d bytes", o.c.name.protocol, len(handshake))
	}
	m := o.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if o.c.state != stateOffered {
		err := o.c.err
		if err == nil {
			err = errors.New("accepted already")
		}
		return nil, fmt.Errorf("protomux: accept %q: %w", o.c.name.protocol, err)
	}
	m.state.accept(o.c, handshake)
	m.writeLocked()
	return &Channel{m, o.c}, nil
}

// Reject tells the peer that the channel will not be opened. It does nothing if the offer is gone or was accepted.
func (o *Offer) Reject() {
	m := o.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if o.c.state == stateOffered {
		m.state.close(o.c)
		m.writeLocked()
	}
}
