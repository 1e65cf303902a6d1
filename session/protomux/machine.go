package protomux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"

	"omegatun/dht/compact"
)

const (
	maxName      = 255      // bytes of a protocol's name and of a channel's id, each
	maxHandshake = 64 << 10 // bytes
	messageCost  = 64       // bytes that a message is counted with, apart from its own
)

var (
	// ErrRejected reports that the peer does not open the channel: it does not speak the protocol, or not now.
	ErrRejected = errors.New("rejected by the peer")
	// ErrTooMany reports that Config.MaxChannels channels are open.
	ErrTooMany = errors.New("too many channels")
)

// state is where a channel stands.
//
//	  Open ──▶ opening ──the peer's open──▶ open ──Close, or the peer's close──▶ closed
//	              │ │                         ▲                                    ▲
//	              │ └──────Close──▶ abandoned ─┼──the peer's open, or reject──▶─────┤
//	              └──the peer's reject─────────┼───────────────────────────────────┤
//	the peer's open ──▶ offered ──Open, Accept─┘                                    │
//	                       └──Reject, or the peer's close──────────────────────────┘
type state uint8

const (
	stateOpening   state = iota // we have opened, the peer has not
	stateOffered                // the peer has opened, we have not
	stateOpen                   // both have
	stateAbandoned              // closed by us while opening: the number stays taken until the peer answers
	stateClosed
)

// message is what waits to be received.
type message struct {
	typ     int
	payload []byte
}

func (m message) cost() int { return messageCost + len(m.payload) }

// channel is one channel as the machine sees it.
type channel struct {
	name          name
	state         state
	local, remote uint64 // the numbers; 0: none
	heard         bool   // the peer has opened it
	handshake     []byte // the peer's, if it has
	err           error  // why it is closed
	queue         []message
	changed       signal // state or queue
}

// machine is the state of one end of a stream. It has no goroutine, no lock, no clock and does no I/O: frames that
// arrive and wishes of the program go in, frames to send come out in m.out, in an order that must be kept.
type machine struct {
	protocols   map[string]bool // whose offers wait to be taken; others are rejected
	maxChannels int

	local   []*channel          // by number - 1; nil: free
	free    []uint64            // local numbers that may be used again, the next one last
	remote  map[uint64]*channel // by number
	highest uint64              // the highest number that the peer has used
	opening []*channel          // opening and abandoned, in the order of their opens
	offers  []*channel          // offered and not taken, oldest first
	live    int                 // channels that are not closed

	kept    int // cost of all messages in queues
	arrived signal
	space   signal // kept has become less

	out    [][]byte
	outLen int // bytes
}

func newMachine(protocols []string, maxChannels int) machine {
	m := machine{
		protocols: make(map[string]bool), maxChannels: maxChannels,
		remote: make(map[uint64]*channel),
	}
	for _, p := range protocols {
		m.protocols[p] = true
	}
	return m
}

func (m *machine) emit(frame []byte) {
	m.out = append(m.out, frame)
	m.outLen += len(frame)
}

func (m *machine) emitID(typ, id uint64) {
	m.emit(compact.AppendUint(appendHeader(nil, 0, typ), id))
}

// number gives c a local number.
func (m *machine) number(c *channel) {
	if n := len(m.free); n > 0 {
		c.local = m.free[n-1]
		m.free = m.free[:n-1]
	} else {
		m.local = append(m.local, nil)
		c.local = uint64(len(m.local))
	}
	m.local[c.local-1] = c
}

// end closes c and frees its numbers. What has been received can still be taken.
func (m *machine) end(c *channel, err error) {
	if c.local != 0 {
		m.local[c.local-1] = nil
		m.free = append(m.free, c.local)
	}
	if c.remote != 0 {
		delete(m.remote, c.remote)
	}
	c.local, c.remote = 0, 0
	c.state = stateClosed
	if c.err == nil {
		c.err = err
	}
	m.live--
	c.changed.wake()
}

// open opens a channel: the oldest offer with the name, or a new one.
func (m *machine) open(n name, handshake []byte) (*channel, error) {
	if i := slices.IndexFunc(m.offers, func(c *channel) bool { return c.name == n }); i >= 0 {
		c := m.offers[i]
		m.offers = slices.Delete(m.offers, i, i+1)
		m.accept(c, handshake)
		return c, nil
	}
	if m.live >= m.maxChannels {
		return nil, ErrTooMany
	}
	c := &channel{name: n}
	m.live++
	m.number(c)
	m.opening = append(m.opening, c)
	m.emit(opening{c.local, n, handshake}.append(nil))
	return c, nil
}

// take takes the oldest offer of a protocol for accept or reject, nil if there is none.
func (m *machine) take(protocol string) *channel {
	i := slices.IndexFunc(m.offers, func(c *channel) bool { return c.name.protocol == protocol })
	if i < 0 {
		return nil
	}
	c := m.offers[i]
	m.offers = slices.Delete(m.offers, i, i+1)
	return c
}

// accept opens our side of a channel that was taken, and is offered still.
func (m *machine) accept(c *channel, handshake []byte) {
	m.number(c)
	c.state = stateOpen
	m.emit(opening{c.local, c.name, handshake}.append(nil))
	c.changed.wake()
}

// close closes c for the program and drops what it has not received. It may be closed already.
func (m *machine) close(c *channel) {
	m.drop(c)
	switch c.state {
	case stateOpening:
		m.emitID(typeClose, c.local)
		c.state, c.err = stateAbandoned, net.ErrClosed
		c.changed.wake()
	case stateOffered:
		m.emitID(typeReject, c.remote)
		m.end(c, net.ErrClosed)
	case stateOpen:
		m.emitID(typeClose, c.local)
		m.end(c, net.ErrClosed)
	case stateAbandoned, stateClosed:
	}
	c.err = net.ErrClosed
}

// send emits a message on a channel that is opening or open.
func (m *machine) send(c *channel, typ uint64, payload []byte) {
	b := appendHeader(make([]byte, 0, 18+len(payload)), c.local, typ)
	m.emit(append(b, payload...))
}

// next takes the oldest message that waits in c.
func (m *machine) next(c *channel) (message, bool) {
	if len(c.queue) == 0 {
		return message{}, false
	}
	msg := c.queue[0]
	c.queue[0] = message{}
	c.queue = c.queue[1:]
	m.kept -= msg.cost()
	m.space.wake()
	return msg, true
}

func (m *machine) drop(c *channel) {
	for _, msg := range c.queue {
		m.kept -= msg.cost()
	}
	c.queue = nil
	m.space.wake()
}

// shut closes all channels because the stream has ended.
func (m *machine) shut(err error) {
	for _, c := range m.local {
		if c != nil {
			m.end(c, err)
		}
	}
	for _, c := range m.remote {
		m.end(c, err)
	}
	m.opening, m.offers, m.out, m.outLen = nil, nil, nil, 0
	m.arrived.wake()
	m.space.wake()
}

// receive handles a frame. After an error, which wraps ErrProtocol, the stream must end.
func (m *machine) receive(frame []byte) error {
	if len(frame) == 0 {
		return nil
	}
	channel, typ, rest, err := parseHeader(frame)
	if err != nil {
		return err
	}
	if channel == 0 && typ == typeBatch {
		return eachItem(rest, func(channel uint64, item []byte) error {
			r := compact.NewReader(item)
			typ := r.Uint()
			if err := r.Err(); err != nil {
				return violation("item of a batch: %v", err)
			}
			if channel == 0 && typ == typeBatch { // the reference would recurse
				return violation("a batch within a batch")
			}
			return m.handle(channel, typ, r.Rest())
		})
	}
	return m.handle(channel, typ, rest)
}

// handle handles a frame that is not a batch.
func (m *machine) handle(channel, typ uint64, rest []byte) error {
	if channel != 0 {
		m.receiveMessage(channel, typ, rest)
		return nil
	}
	switch typ {
	case typeOpen:
		o, err := parseOpening(rest)
		if err != nil {
			return err
		}
		return m.receiveOpen(o)
	case typeReject:
		id, err := parseID(rest)
		if err != nil {
			return err
		}
		return m.receiveReject(id)
	case typeClose:
		id, err := parseID(rest)
		if err != nil {
			return err
		}
		m.receiveClose(id)
	}
	return nil
}

func (m *machine) receiveMessage(id, typ uint64, payload []byte) {
	c := m.remote[id]
	if c == nil || typ > math.MaxInt32 { // sent before the peer saw our close; a type that no protocol has
		return
	}
	msg := message{int(typ), bytes.Clone(payload)}
	c.queue = append(c.queue, msg)
	m.kept += msg.cost()
	c.changed.wake()
}

func (m *machine) receiveOpen(o opening) error {
	if o.channel == 0 {
		m.emitID(typeReject, 0)
		return nil
	}
	if m.remote[o.channel] != nil || o.channel > m.highest+1 {
		return violation("open of channel %d", o.channel)
	}
	m.highest = max(m.highest, o.channel)

	i := slices.IndexFunc(m.opening, func(c *channel) bool { return c.name == o.name })
	if i < 0 && (!m.protocols[o.name.protocol] || len(o.name.id) > maxName || m.live >= m.maxChannels) {
		m.emitID(typeReject, o.channel)
		return nil
	}
	if len(o.handshake) > maxHandshake {
		return violation("handshake of %d bytes", len(o.handshake))
	}
	if i < 0 {
		c := &channel{name: o.name, state: stateOffered, remote: o.channel}
		c.heard, c.handshake = true, bytes.Clone(o.handshake)
		m.live++
		m.remote[c.remote] = c
		m.offers = append(m.offers, c)
		m.arrived.wake()
		return nil
	}
	c := m.opening[i]
	m.opening = slices.Delete(m.opening, i, i+1)
	if c.state == stateAbandoned {
		// The reference forgets a close that comes before its own open. It ignores a second one, else.
		m.emitID(typeClose, c.local)
		m.end(c, net.ErrClosed)
		return nil
	}
	c.remote, c.state = o.channel, stateOpen
	c.heard, c.handshake = true, bytes.Clone(o.handshake)
	m.remote[c.remote] = c
	c.changed.wake()
	return nil
}

func (m *machine) receiveReject(id uint64) error {
	i := slices.IndexFunc(m.opening, func(c *channel) bool { return c.local == id })
	if i < 0 {
		return violation("reject of channel %d", id)
	}
	c := m.opening[i]
	m.opening = slices.Delete(m.opening, i, i+1)
	m.end(c, ErrRejected)
	return nil
}

func (m *machine) receiveClose(id uint64) {
	c := m.remote[id]
	if c == nil {
		return
	}
	if c.state == stateOffered {
		// The peer can use its number again once we have answered its open.
		m.offers = slices.DeleteFunc(m.offers, func(o *channel) bool { return o == c })
		m.emitID(typeReject, id)
		m.drop(c)
	}
	m.end(c, io.EOF)
}

// check returns why a channel with the name cannot be opened, if so.
func (n name) check() error {
	switch {
	case n.protocol == "" || len(n.protocol) > maxName:
		return fmt.Errorf("protocol name of %d bytes", len(n.protocol))
	case len(n.id) > maxName:
		return fmt.Errorf("channel id of %d bytes", len(n.id))
	}
	return nil
}

// signal wakes everybody who waits for a change. It is guarded by the lock of what changes. The zero value is ready.
type signal struct{ c chan struct{} }

// wait returns a channel that the next wake closes.
func (s *signal) wait() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) wake() {
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
