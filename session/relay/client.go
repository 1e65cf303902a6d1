package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"omegatun/dht/key"
	"omegatun/session/protomux"
	"omegatun/session/udx"
)

var (
	// ErrPairing reports that another Pair with the token is under way.
	ErrPairing = errors.New("already pairing")
	// ErrCancelled reports that Unpair was called for the token.
	ErrCancelled = errors.New("pairing cancelled")
	// ErrRefused reports that the relay has closed the channel or not opened it.
	ErrRefused = errors.New("the relay does not serve us")
)

// Client asks a relay to be paired. Its methods are safe for concurrent use.
type Client struct {
	ch   *protomux.Channel
	done chan struct{} // closed when the channel is
	now  context.Context
	wg   sync.WaitGroup // the goroutine that receives

	mu       sync.Mutex // guards the fields below
	requests map[Token]*request
	err      error // why the client is done
}

// request is one pairing.
type request struct {
	initiator bool
	done      chan struct{} // closed when one of the fields below is set; they are guarded by Client.mu until then
	id        udx.ID
	err       error
}

// NewClient begins to talk to the relay at the other end of mux. local is our public key on that connection. It
// does not wait for the relay. The Client must be closed; it does not close mux.
func NewClient(mux *protomux.Mux, local key.Public) (*Client, error) {
	ch, err := mux.Open(Protocol, local[:], nil)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	c := &Client{ch: ch, done: make(chan struct{}), now: ended(), requests: make(map[Token]*request)}
	c.wg.Go(c.receive)
	return c, nil
}

// ended returns a context that has ended: it makes a call do what it can do without waiting.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Done returns a channel that is closed when the relay serves us no more: what it relays for us ends as well.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the client is done, nil if it is not: [ErrRefused], [net.ErrClosed] after Close, an error that wraps
// [ErrMessage], or that of the control connection.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends what the relay does for us, and waits for the client's goroutine. It returns nil.
func (c *Client) Close() error {
	c.finish(net.ErrClosed)
	c.ch.Close()
	c.wg.Wait()
	return nil
}

// Pair waits until a peer has given the same token, in the opposite role, to the same relay. local is the id of our
// UDX stream, and the result the one that it must send to: over the socket and to the address of the control
// connection. If ctx ends before, the relay is told to forget the token; it does so anyhow some time later. The
// error is [ErrPairing], [ErrCancelled], ctx's cause, or why the client is done.
func (c *Client) Pair(ctx context.Context, initiator bool, token Token, local udx.ID) (udx.ID, error) {
	id, err := c.pair(ctx, initiator, token, local)
	if err != nil {
		return 0, fmt.Errorf("relay: pair: %w", err)
	}
	return id, nil
}

func (c *Client) pair(ctx context.Context, initiator bool, token Token, local udx.ID) (udx.ID, error) {
	r := &request{initiator: initiator, done: make(chan struct{})}
	c.mu.Lock()
	err := c.err
	if err == nil && c.requests[token] != nil {
		err = ErrPairing
	}
	if err == nil {
		c.requests[token] = r
	}
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	err = c.ch.Send(ctx, messagePair, pair{initiator: initiator, token: token, stream: local}.append(nil))
	if err == nil {
		select {
		case <-r.done:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	c.mu.Lock()
	finished := c.requests[token] != r
	if !finished {
		delete(c.requests, token)
	}
	c.mu.Unlock()
	if finished { // also if ctx has ended meanwhile
		return r.id, r.err
	}
	_ = c.ch.Send(c.now, messageUnpair, appendUnpair(nil, token)) // it times out otherwise
	return 0, explain(err)
}

// Unpair makes the relay forget a token that is waiting, or end the link that came of it. A Pair under way returns
// [ErrCancelled]. Unpair waits only while much is to be written to the control connection. The error is ctx's
// cause, or why the client is done.
func (c *Client) Unpair(ctx context.Context, token Token) error {
	c.mu.Lock()
	err := c.err
	if r := c.requests[token]; r != nil {
		c.answerLocked(token, r, 0, ErrCancelled)
	}
	c.mu.Unlock()
	if err == nil {
		err = c.ch.Send(ctx, messageUnpair, appendUnpair(nil, token))
	}
	if err != nil {
		return fmt.Errorf("relay: unpair: %w", explain(err))
	}
	return nil
}

func (c *Client) answerLocked(token Token, r *request, id udx.ID, err error) {
	delete(c.requests, token)
	r.id, r.err = id, err
	close(r.done)
}

// receive is the goroutine that receives.
func (c *Client) receive() {
	defer c.ch.Close()
	for {
		typ, b, err := c.ch.Receive(context.Background()) // Close ends it
		if err != nil {
			c.finish(explain(err))
			return
		}
		if typ != messagePair {
			continue
		}
		p, err := parsePair(b)
		if err != nil {
			c.finish(err)
			return
		}
		c.mu.Lock()
		if r := c.requests[p.token]; r != nil && r.initiator == p.initiator {
			c.answerLocked(p.token, r, p.stream, nil)
		}
		c.mu.Unlock()
	}
}

// explain says in our words what ended the channel.
func explain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, protomux.ErrRejected) {
		return ErrRefused
	}
	return err
}

// finish makes the client done, unless it is.
func (c *Client) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for token, r := range c.requests {
		c.answerLocked(token, r, 0, err)
	}
	close(c.done)
}

// knockEvery is the time between heartbeats.
const knockEvery = 100 * time.Millisecond

// Knock sends heartbeats on a stream that was just connected to a relay, one at once and one every 100 ms, until
// ctx ends. The relay learns by them where we are; until it has, relays other than ours drop what the peer sends
// us. stream is a *udx.Stream or a [Path]. The caller ends ctx once it has heard the peer. The error is
// Heartbeat's, or nil.
func Knock(ctx context.Context, stream interface{ Heartbeat() error }) error {
	ticker := time.NewTicker(knockEvery)
	defer ticker.Stop()
	for {
		if err := stream.Heartbeat(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
