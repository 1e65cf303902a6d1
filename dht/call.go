package dht

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"time"

	"omegatun/dht/key"
)

const (
	attemptTimeout = time.Second
	defaultRetries = 3 // so four attempts
	queryRetries   = 5
)

// callKey names a request in flight. An answer counts only from the address asked.
type callKey struct {
	to  netip.AddrPort
	tid uint16
}

// callSpec says what to ask.
type callSpec struct {
	sock    Socket // nil: the default socket
	to      netip.AddrPort
	member  bool // to is known as a member; it is dropped from the table if it does not answer
	token   optional[Token]
	command Command
	target  optional[key.Target]
	value   []byte
	retries int
	timeout time.Duration // of an attempt; 0: attemptTimeout

	late func(now time.Time) // the first attempt was not answered in time; may be nil
}

// call is a request of ours in flight. Its done is called once, with the node's mutex held, unless the call is
// canceled.
type call struct {
	callSpec
	tid     uint16
	wire    []byte
	sent    int
	started time.Time
	alarm   alarm
	over    bool
	done    func(now time.Time, a *answer, err error)
}

// answer is the response to a call. It may be kept.
type answer struct {
	response
	from netip.AddrPort
	sock Socket // where it arrived
	rtt  time.Duration
}

// call sends a request. It returns nil, and done is called at once, if the node is closed or suspended.
func (n *Node) call(now time.Time, spec callSpec, done func(now time.Time, a *answer, err error)) *call {
	if n.closed {
		done(now, nil, ErrClosed)
		return nil
	}
	if n.suspended {
		done(now, nil, ErrSuspended)
		return nil
	}
	if spec.sock == nil {
		spec.sock = n.defaultSocket()
	}
	c := &call{callSpec: spec, started: now, done: done}
	for { // a tid that nobody can guess, and that is free; the table of calls is far from full
		c.tid = uint16(rand.Uint32())
		if n.calls[c.key()] == nil {
			break
		}
	}
	p := request{
		tid: c.tid, to: c.to, id: n.idFor(c.sock), token: c.token,
		command: c.command, target: c.target, value: c.value,
	}
	c.wire = p.append(make([]byte, 0, 160+len(c.value)))
	n.calls[c.key()] = c
	n.attempt(now, c)
	return c
}

func (c *call) key() callKey { return callKey{to: c.to, tid: c.tid} }

// attempt sends c, or puts it into the queue if there are too many requests on the way.
func (n *Node) attempt(now time.Time, c *call) {
	if until, full := n.window.full(now); full {
		n.queue = append(n.queue, c)
		if n.drain.index == 0 {
			n.alarms.set(&n.drain, until, n.drainQueue)
		}
		return
	}
	n.sendCall(now, c)
}

// drainQueue sends the requests for which there is room now.
func (n *Node) drainQueue(now time.Time) {
	for len(n.queue) > 0 {
		until, full := n.window.full(now)
		if full {
			n.alarms.set(&n.drain, until, n.drainQueue)
			return
		}
		c := n.queue[0]
		n.queue[0] = nil
		n.queue = n.queue[1:]
		if !c.over {
			n.sendCall(now, c)
		}
	}
	n.queue = nil
	n.alarms.stop(&n.drain)
}

func (n *Node) sendCall(now time.Time, c *call) {
	c.sent++
	n.window.sent(now)
	n.sendLater(c.sock, c.wire, c.to)
	timeout := c.timeout
	if timeout == 0 {
		timeout = attemptTimeout
	}
	n.alarms.set(&c.alarm, now.Add(timeout), func(now time.Time) { n.expire(now, c) })
}

// expire ends an attempt that was not answered.
func (n *Node) expire(now time.Time, c *call) {
	if c.sent == 1 && c.late != nil {
		if c.late(now); c.over {
			return
		}
	}
	if c.sent <= c.retries {
		n.attempt(now, c)
		return
	}
	n.timeouts++
	if c.member {
		if m := n.table.get(NodeID(c.to)); m != nil {
			n.drop(m)
		}
	}
	n.endCall(now, c, nil, ErrTimeout)
}

// cancel ends c without a word. c may be nil or over.
func (n *Node) cancel(now time.Time, c *call) {
	if c != nil {
		c.done = func(time.Time, *answer, error) {}
		n.endCall(now, c, nil, ErrClosed)
	}
}

func (n *Node) endCall(now time.Time, c *call, a *answer, err error) {
	if c.over {
		return
	}
	c.over = true
	n.alarms.stop(&c.alarm)
	delete(n.calls, c.key())
	n.window.ended(now)
	c.done(now, a, err)
	if len(n.queue) > 0 && !n.closed && !n.suspended {
		n.drainQueue(now)
	}
}

// handleResponse takes in a response of the node at from, whose id, if set, has been checked.
func (n *Node) handleResponse(now time.Time, s Socket, from netip.AddrPort, r *response) {
	c := n.calls[callKey{to: from, tid: r.tid}]
	if c == nil || c.sent == 0 {
		return
	}
	if s != c.sock && c.command != cmdPingNAT {
		return
	}
	n.responses++
	if n.health.offline { // one answer is proof enough; the next verdict may need more than we ask
		n.health.reset(n.responses, n.timeouts)
		n.log.Info("network health", "online", true, "degraded", false)
		n.notify()
		n.wakeAnnouncements(now)
	}
	r.value = bytes.Clone(r.value)
	n.heardResponse(now, s, from, r)
	n.endCall(now, c, &answer{response: *r, from: from, sock: s, rtt: now.Sub(c.started)}, nil)
}
