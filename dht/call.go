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

// callKey names a request in flight: the address asked, and the tid. An answer counts only from there.
type callKey uint64

func callKeyOf(to netip.AddrPort, tid uint16) callKey {
	return callKey(endpointOf(to))<<16 | callKey(tid)
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
	lookup  *lookup       // the query that asks; nil: none
}

// call is a request of ours in flight. Its done, or the query's, is called once, with the node's mutex held, unless the
// call is canceled.
type call struct {
	callSpec
	n       *Node
	tid     uint16
	sent    int
	queued  bool // it is in the node's queue, be it over or not
	started time.Time
	alarm   alarm
	over    bool
	done    func(now time.Time, a *answer, err error) // nil: the query's, or
	asking  *asking                                   // of the one who waits
}

// answer is the response to a call. It is the outbox's, and valid until done returns, but its value may be kept.
type answer struct {
	response
	from netip.AddrPort
	sock Socket // where it arrived
	rtt  time.Duration
}

// call sends a request. It returns nil, and done is called at once, if the node is closed or suspended.
func (n *Node) call(now time.Time, spec callSpec, done func(now time.Time, a *answer, err error)) *call {
	c := &call{callSpec: spec, done: done}
	if !n.start(now, c) {
		return nil
	}
	return c
}

// start sends the request of a new call. It returns false, and has told whoever asked, if the node is closed or suspended.
func (n *Node) start(now time.Time, c *call) bool {
	var err error
	if n.closed {
		err = ErrClosed
	} else if n.suspended {
		err = ErrSuspended
	}
	if err != nil {
		c.over = true
		c.end(now, nil, err)
		return false
	}
	c.n, c.started = n, now
	if c.sock == nil {
		c.sock = n.defaultSocket()
	}
	for { // a tid that nobody can guess, and that is free; the table of calls is far from full
		c.tid = uint16(rand.Uint32())
		if n.calls[c.key()] == nil {
			break
		}
	}
	n.calls[c.key()] = c
	n.attempt(now, c)
	return true
}

func (c *call) key() callKey { return callKeyOf(c.to, c.tid) }

// end tells whoever asked.
func (c *call) end(now time.Time, a *answer, err error) {
	switch {
	case c.done != nil:
		c.done(now, a, err)
	case c.lookup != nil:
		c.lookup.asked(now, c, a, err)
	case c.asking != nil:
		c.asking.end(a, err)
	}
}

// attempt sends c, or puts it into the queue if there are too many requests on the way.
func (n *Node) attempt(now time.Time, c *call) {
	if until, full := n.window.full(now); full {
		n.queue = append(n.queue, c)
		c.queued = true
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
		c.queued = false
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
	n.sendRequest(c.sock, &request{
		tid: c.tid, to: c.to, id: n.idFor(c.sock), token: c.token,
		command: c.command, target: c.target, value: c.value,
	}, c.to)
	if c.timeout == 0 {
		n.alarms.setLast(&c.alarm, now.Add(attemptTimeout), c)
	} else {
		n.alarms.setTo(&c.alarm, now.Add(c.timeout), c)
	}
}

// ring ends an attempt that was not answered.
func (c *call) ring(now time.Time) {
	n := c.n
	if c.sent == 1 && c.lookup != nil {
		c.lookup.late(c.to)
		n.missed(c.to)
		if c.lookup.run(now); c.over {
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
		c.done, c.lookup, c.asking = nil, nil, nil
		n.endCall(now, c, nil, ErrClosed)
	}
}

func (n *Node) endCall(now time.Time, c *call, a *answer, err error) {
	if c.over {
		return
	}
	c.over = true
	n.alarms.stop(&c.alarm)
	n.ended++
	delete(n.calls, c.key())
	n.window.ended(now)
	c.end(now, a, err)
	if len(n.queue) > 0 && !n.closed && !n.suspended {
		n.drainQueue(now)
	}
}

// handleResponse takes in a response of the node at from, whose id, if set, has been checked.
func (n *Node) handleResponse(now time.Time, s Socket, from netip.AddrPort, r *response) {
	c := n.calls[callKeyOf(from, r.tid)]
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
	a := &n.box().answer
	*a = answer{response: *r, from: from, sock: s, rtt: now.Sub(c.started)}
	n.endCall(now, c, a, nil)
}
