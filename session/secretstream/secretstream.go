// Package secretstream is the ordered encrypted stream that HyperDHT programs speak over UDX: messages sealed
// with libsodium's secretstream, under the keys of a finished Noise handshake.
//
//	frame         u24 length, little-endian, then length bytes
//	first frame   of each direction: 32 bytes stream id, 24 bytes secretstream header
//	other frames  byte 0: tag, encrypted; then the message, encrypted; then 16 bytes MAC
//
// The stream id is BLAKE2b-256, keyed with the handshake hash, of a constant for the sender's role: it shows that
// both ends belong to the same handshake, and that a frame is not one's own come back. Tags other than 0 are
// not sent; on receipt, tag 2 changes the key, as libsodium does, and the rest means nothing. The key also changes after
// 2^32 - 1 messages. An empty message is a keepalive. The end of the stream is the end of the transport.
//
// A [Conn] is a net.Conn over any reliable transport. [Conn.Read] and [Conn.Write] carry bytes;
// [Conn.ReadMessage] and [Conn.WriteMessage] keep the boundaries that the protocol has. The two may be mixed.
//
// # Limitations
//
//   - The end of the stream is not authenticated: whoever can end the transport can cut the stream short.
//     Protocols on top say themselves when they are complete.
//   - A silent peer is not noticed here; UDX does that, because keepalives must be acknowledged.
//   - The stream's own Noise XX handshake is not implemented; HyperDHT does not use it.
//   - Unordered messages (the reference's send) are not implemented: their keys are no secret.
//   - Keys are left to the garbage collector, not overwritten.
//
// Source: npm @hyperswarm/secret-stream 6.9.2, sodium-secretstream; libsodium, crypto_secretstream.
package secretstream

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"omegatun/dht/key"
)

const (
	// DefaultKeepAlive is how long nothing may be written before an empty message is, as in npm hyperdht.
	DefaultKeepAlive = 5 * time.Second
	// MaxMessage is the length in bytes of the longest message that a frame can carry.
	MaxMessage = 1<<24 - 1 - overhead
	// Overhead is how many bytes of frame each message costs.
	Overhead = lengthSize + overhead

	lengthSize = 3
	idSize     = 32
	idFrame    = idSize + headerSize // length of the first frame
)

var (
	// ErrHeader reports that the first frame is not that of the other side of this handshake.
	ErrHeader = errors.New("secretstream: the stream does not begin as that of this handshake")
	// ErrAuth reports a message that the peer has not sealed, or that was changed on the way.
	ErrAuth = errors.New("secretstream: message is not authentic")
	// ErrFrame reports a frame too short to carry a message.
	ErrFrame = errors.New("secretstream: frame is too short")
	// ErrTooLong reports a message longer than [Config].MaxMessage, or than a frame can carry.
	ErrTooLong = errors.New("secretstream: message is too long")
)

// Raw is the transport below a [Conn]. It delivers bytes reliably and in order. Closing it ends blocked reads and
// writes. A *udx.Stream and a *net.TCPConn are transports.
//
// If the transport has a method Reset(error), it is called in place of Close after a fatal error, so that the
// peer learns at once. If it has methods Done and Err like those of a *udx.Stream, so has the Conn.
type Raw interface {
	net.Conn
	CloseWrite() error // ends the outgoing direction after what was written
}

// Config says what the handshake came to. It prints without its keys.
type Config struct {
	Initiator bool       // whether this side began the handshake
	Tx, Rx    [32]byte   // the split keys: of what we send, of what we receive
	Hash      [64]byte   // the handshake hash
	Local     key.Public // who we are
	Remote    key.Public // who the peer is
	// KeepAlive is how long nothing may be written before an empty message is. Default: [DefaultKeepAlive]. Negative:
	// never; peers like the reference may then take the stream for dead.
	KeepAlive time.Duration
	// MaxMessage is the length in bytes of the longest message accepted from the peer. Default: [MaxMessage]. Memory is
	// used as a message arrives, not when it is announced.
	MaxMessage int
}

// Format keeps every verb from printing the keys.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "secretstream with %v", c.Remote) }

// Conn is an encrypted stream. It is a net.Conn: all methods are safe for concurrent use.
type Conn struct {
	raw      Raw
	local    key.Public
	remote   key.Public
	hash     [64]byte
	expectID key.Target // what the peer's first frame says
	limit    int        // of the length of a message received

	tasks sync.WaitGroup // writing the first frame; a keepalive that is armed or being written

	reader reader
	writer writer
	pulse  pulse
}

// pulse is the keepalive timer. It is armed at most once at a time and costs no goroutine until it fires.
type pulse struct {
	mu     sync.Mutex // guards the fields below; taken after the locks of reader and writer
	every  time.Duration
	timer  *time.Timer // nil: no keepalives
	closed bool        // by Conn.Close: the timer is not armed again
}

// New starts the encrypted stream on raw, which belongs to the Conn from then on and must be connected. The first
// frame is written at once, in the background: New does not wait for the transport, Close does wait for that.
func New(raw Raw, cfg Config) *Conn {
	return newConn(raw, cfg, func(b []byte) { rand.Read(b) }) // which never fails
}

// newConn is New with the source of the random header.
func newConn(raw Raw, cfg Config, random func([]byte)) *Conn {
	c := &Conn{
		raw: raw, local: cfg.Local, remote: cfg.Remote, hash: cfg.Hash,
		expectID: streamID(cfg.Hash, !cfg.Initiator),
		limit:    MaxMessage,
	}
	if cfg.MaxMessage > 0 {
		c.limit = min(cfg.MaxMessage, MaxMessage)
	}
	c.reader.key = cfg.Rx
	c.writer.mu.Lock()
	c.tasks.Go(func() {
		defer c.writer.mu.Unlock()
		c.beginLocked(cfg, random)
	})
	if c.pulse.every = cfg.KeepAlive; c.pulse.every == 0 {
		c.pulse.every = DefaultKeepAlive
	}
	if c.pulse.every > 0 {
		c.pulse.timer = time.AfterFunc(math.MaxInt64, c.keepAlive)
		c.arm(c.pulse.every)
	}
	return c
}

// streamID returns what the first frame of one side begins with.
func streamID(hash [64]byte, initiator bool) key.Target {
	role := byte(1)
	if initiator {
		role = 0
	}
	namespace := key.Namespace("hyperswarm/secret-stream", role)
	return key.KeyedHash(hash[:], namespace[:])
}

// LocalKey returns the public key of this side.
func (c *Conn) LocalKey() key.Public { return c.local }

// RemoteKey returns the public key of the peer, as the handshake proved it.
func (c *Conn) RemoteKey() key.Public { return c.remote }

// HandshakeHash returns the handshake hash, which is the same on both sides and known to the nodes that forwarded
// the handshake.
func (c *Conn) HandshakeHash() [64]byte { return c.hash }

// LocalAddr returns the transport's local address.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr returns the transport's remote address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Done returns a channel that is closed when both directions of the transport have ended, or it has failed, also if nobody reads
// or writes. What was received before can still be read. It is nil if the transport does not tell (see [Raw]).
func (c *Conn) Done() <-chan struct{} {
	if t, ok := c.raw.(teller); ok {
		return t.Done()
	}
	return nil
}

// Err returns why the transport failed: nil if it did not, if both directions ended properly, or if it does not tell.
func (c *Conn) Err() error {
	if t, ok := c.raw.(teller); ok {
		return t.Err()
	}
	return nil
}

// teller is a transport that tells how it ended.
type teller interface {
	Done() <-chan struct{}
	Err() error
}

// SetDeadline sets both deadlines. A read or write that times out leaves the stream usable.
func (c *Conn) SetDeadline(t time.Time) error {
	c.writer.deadline.Store(&t)
	return c.raw.SetDeadline(t)
}

// SetReadDeadline sets the time after which reads fail.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.raw.SetReadDeadline(t) }

// SetWriteDeadline sets the time after which writes fail. What [Conn.Write] has then sealed but not handed to the
// transport goes out with the next write or keepalive. After that time nothing is sealed.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writer.deadline.Store(&t)
	return c.raw.SetWriteDeadline(t)
}

// Close closes the transport, which ends blocked reads and writes, and waits for what the Conn does in the
// background. What becomes of bytes that the transport has not delivered yet is up to the transport.
func (c *Conn) Close() error {
	c.pulse.mu.Lock()
	first := !c.pulse.closed
	c.pulse.closed = true
	stopped := c.pulse.timer != nil && c.pulse.timer.Stop()
	c.pulse.mu.Unlock()
	if stopped {
		c.tasks.Done()
	}
	var err error
	if first {
		err = c.raw.Close()
	}
	c.tasks.Wait()
	return err
}

// Reset ends the stream at once, in both directions, as far as the transport can (see [Raw]): the peer reads an error
// and not the end, and what was not delivered is dropped. Reads and writes fail with err or as after Close; [Conn.Err]
// returns err. It waits as Close does, which need not be called any more.
func (c *Conn) Reset(err error) {
	c.fail(err)
	c.Close() //nolint:errcheck // the transport has ended
}

// fail ends the stream because the peer broke the protocol.
func (c *Conn) fail(err error) {
	if r, ok := c.raw.(interface{ Reset(error) }); ok {
		r.Reset(err)
		return
	}
	c.raw.Close() // err is what matters
}

// arm starts the keepalive timer.
func (c *Conn) arm(after time.Duration) {
	c.pulse.mu.Lock()
	defer c.pulse.mu.Unlock()
	if !c.pulse.closed {
		c.tasks.Add(1)
		c.pulse.timer.Reset(after)
	}
}

// keepAlive runs when the timer fires. Writes do not touch the timer; it looks how long ago the last one was.
func (c *Conn) keepAlive() {
	defer c.tasks.Done()
	if !c.writer.mu.TryLock() { // somebody is writing
		c.arm(c.pulse.every)
		return
	}
	defer c.writer.mu.Unlock()
	wait, ok := c.keepAliveLocked(time.Now())
	if ok {
		c.arm(wait)
	}
}
