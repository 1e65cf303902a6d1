package dht

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht/key"
)

// maxAmplification is how many times larger than a request its answer may be, if the requester has not shown
// that it receives at the address it sends from. See the package comment for what cannot be kept to it.
const maxAmplification = 3

// incoming is a request of another node. It is the outbox's, and valid while the request is being handled; whoever
// needs it later keeps a copy.
type incoming struct {
	request
	sock     Socket
	from     netip.AddrPort
	size     int  // of the datagram
	verified bool // the sender does receive at its address
}

// Receive takes in a datagram that starts with byte 0x03 or 0x13, from whichever socket of the program it
// arrived on; anything else is ignored. It does not keep b, and does not wait. For datagrams that came together a
// [Burst] is cheaper.
func (n *Node) Receive(s Socket, b []byte, from netip.AddrPort) {
	if !isPacket(b, from) {
		return
	}
	n.mu.Lock()
	n.receive(n.clock.Now(), s, b, unmap(from))
	n.unlock()
}

// isPacket reports whether a datagram from the given address may be a packet of the protocol.
func isPacket(b []byte, from netip.AddrPort) bool {
	return len(b) >= 2 && (b[0] == requestByte || b[0] == responseByte) && usable(unmap(from))
}

// receive takes in a packet.
func (n *Node) receive(now time.Time, s Socket, b []byte, from netip.AddrPort) {
	if b[0] == responseByte {
		o := n.box()
		r, err := parseResponseTo(b, &o.closer)
		if err != nil {
			return
		}
		n.stats.received(len(b))
		if !n.closed && !n.suspended {
			r.id = n.checkID(r.id, from)
			n.handleResponse(now, s, from, &r)
		}
		return
	}
	r, err := parseRequest(b)
	if err != nil {
		return
	}
	n.stats.received(len(b))
	if !n.closed && !n.suspended {
		r.id = n.checkID(r.id, from)
		in := &n.box().in
		*in = incoming{request: r, sock: s, from: from, size: len(b)}
		n.handleRequest(now, in)
	}
}

// checkID returns id if it is that of a node at from, else none.
func (n *Node) checkID(id optional[key.Target], from netip.AddrPort) optional[key.Target] {
	if !id.set {
		return id
	}
	if m := n.table.get(id.v); m != nil && m.addr() == from {
		return id // it was checked when it entered the table
	}
	if id.v != NodeID(from) {
		return optional[key.Target]{}
	}
	return id
}

// kept returns a copy that may be kept, without the value, which belongs to the datagram.
func (in *incoming) kept() *incoming {
	c := *in
	c.value = nil
	return &c
}

const (
	// What requests of one host may cost, a second and at once. One costs 1, but those with a signature to be
	// checked, or something to be stored, storeCost.
	requestRate  = 2000
	requestBurst = 8000
	storeCost    = 10
)

// requestLimits bounds the requests of a host: of those that showed that they receive there, and of anyone who
// says to be it; so nobody can use up what is another's.
type requestLimits struct{ verified, claimed limiter }

func newRequestLimits() requestLimits {
	return requestLimits{
		verified: newLimiter(requestRate, requestBurst),
		claimed:  newLimiter(requestRate, requestBurst),
	}
}

func (l *requestLimits) allow(in *incoming, now time.Time) bool {
	cost := 1.0
	switch in.command { //nolint:exhaustive // the others are cheap
	case cmdAnnounce, cmdUnannounce, cmdMutablePut, cmdImmutablePut:
		cost = storeCost
	}
	if in.verified {
		return l.verified.allow(in.from.Addr(), cost, now)
	}
	return l.claimed.allow(in.from.Addr(), cost, now)
}

func (n *Node) handleRequest(now time.Time, in *incoming) {
	badToken := false
	if in.token.set {
		in.verified = n.tokens.valid(in.token.v, in.from.Addr(), now)
		badToken = !in.verified
	}
	if m := n.knownAs(in.id); m != nil && m.hearing == answers {
		in.verified = true
	}
	n.stats.Requests++
	if !n.requests.allow(in, now) {
		n.stats.Limited++
		return
	}
	if badToken {
		n.refuse(now, in, CodeInvalidToken, withToken|withCloser)
		return
	}
	if in.id.set {
		n.heardRequest(now, in)
	}
	switch in.command {
	case cmdPing:
		n.reply(now, in, nil, 0)
	case cmdPingNAT:
		n.handlePingNAT(now, in)
	case cmdFindNode:
		if in.target.set {
			n.reply(now, in, nil, withCloser)
		}
	case cmdDownHint:
		n.handleDownHint(now, in)
	case cmdDelayedPing:
		n.handleDelayedPing(now, in)
	case cmdPeerHandshake:
		n.handlePeerHandshake(now, in)
	case cmdPeerHolepunch:
		n.handlePeerHolepunch(now, in)
	default:
		if !n.persistent || in.command.Internal() || in.command > cmdImmutableGet {
			n.refuse(now, in, CodeUnknownCommand, withCloser)
			return
		}
		n.serve(now, in)
	}
}

// knownAs returns the node of the routing table with that id, nil if there is none.
func (n *Node) knownAs(id optional[key.Target]) *node {
	if !id.set {
		return nil
	}
	return n.table.get(id.v)
}

// replyParts says what an answer carries besides its value.
type replyParts uint8

const (
	withToken replyParts = 1 << iota
	withCloser
)

// reply answers in; a nil value means none.
func (n *Node) reply(now time.Time, in *incoming, value []byte, parts replyParts) {
	n.respond(now, in, response{value: value}, parts)
}

// refuse answers in with an error.
func (n *Node) refuse(now time.Time, in *incoming, code uint64, parts replyParts) {
	n.respond(now, in, response{code: code}, parts)
}

// respond completes r and sends it to whoever asked.
func (n *Node) respond(now time.Time, in *incoming, r response, parts replyParts) {
	r.tid, r.to, r.id = in.tid, in.from, n.idFor(in.sock)
	if parts&withToken != 0 {
		r.token = some(n.tokens.issue(in.from.Addr(), now))
	}
	size := r.size()
	if size > maxAmplification*in.size && !in.verified && in.command != cmdPing && r.code == CodeUnknownCommand {
		r.id = optional[key.Target]{} // nobody misses it in a refusal
		size = r.size()
	}
	if parts&withCloser != 0 && in.target.set {
		limit := bucketSize
		if !in.verified { // a count and six bytes a node
			limit = min(limit, (maxAmplification*in.size-size-1)/6)
		}
		o := n.box()
		o.nodes = n.table.appendClosest(o.nodes[:0], in.target.v, bucketSize)
		o.nodes = someOf(o.nodes, max(0, limit))
		r.nodes = o.nodes
	}
	if excess := size - maxAmplification*in.size; excess > 0 && !in.verified && r.value != nil {
		if !n.store.excess.allow(in.from.Addr(), float64(excess), now) {
			return
		}
	}
	n.sendResponse(in.sock, &r, in.from)
}

// someOf returns limit of nodes, in their order, which is nearest first: a third are the nearest, the others any. If all
// that are asked named the same few, a query that does not pad its requests, as npm's, would never hear of others:
// with three named of nine it ended at five. It reorders nodes.
func someOf(nodes []*node, limit int) []*node {
	if limit >= len(nodes) {
		return nodes
	}
	chosen := (limit + 2) / 3
	for i := chosen; chosen < limit; i++ {
		if rand.IntN(len(nodes)-i) < limit-chosen {
			nodes[chosen] = nodes[i]
			chosen++
		}
	}
	return nodes[:limit]
}

// handlePingNAT answers to another port of the requester's host: can it be reached there?
func (n *Node) handlePingNAT(now time.Time, in *incoming) {
	if len(in.value) < 2 {
		return
	}
	port := uint16(in.value[0]) | uint16(in.value[1])<<8
	if port == 0 {
		return
	}
	in.from = netip.AddrPortFrom(in.from.Addr(), port)
	n.reply(now, in, nil, 0)
}

// handleDownHint checks a node that we told the requester of, and that did not answer it.
func (n *Node) handleDownHint(now time.Time, in *incoming) {
	if len(in.value) < 6 {
		return
	}
	if n.checks < maxChecks {
		m := n.table.get(key.Hash(in.value[:6]))
		if m != nil && (int(m.pinged) < n.tick || m.hints == 0) {
			m.hints += min(1, 255-m.hints)
			n.check(now, m)
		}
	}
	n.reply(now, in, nil, 0)
}

const (
	maxPingDelay = 10 * time.Second
	maxDelayed   = 256 // delayed pings waiting to be answered
)

// handleDelayedPing answers after a delay: does the requester's mapping last that long?
func (n *Node) handleDelayedPing(now time.Time, in *incoming) {
	if len(in.value) < 4 {
		return
	}
	v := in.value
	ms := uint32(v[0]) | uint32(v[1])<<8 | uint32(v[2])<<16 | uint32(v[3])<<24
	delay := time.Duration(ms) * time.Millisecond
	if delay > maxPingDelay || n.delayed >= maxDelayed {
		return
	}
	in = in.kept()
	n.delayed++
	n.alarms.set(&alarm{}, now.Add(delay), func(now time.Time) {
		n.delayed--
		if !n.suspended {
			n.reply(now, in, nil, 0)
		}
	})
}

// skipped lists nodes that got into the public network by accident. Source: npm hyperdht, index.js (filterNode).
var skipped = []netip.AddrPort{
	netip.MustParseAddrPort("134.209.28.98:49738"),
	netip.MustParseAddrPort("167.99.142.185:49738"),
	netip.MustParseAddrPort("35.233.47.252:9400"),
}

// skippedHost is left out whatever the port.
var skippedHost = netip.MustParseAddr("150.136.142.116")

// acceptable reports whether the node at a may enter the routing table and be asked.
func (n *Node) acceptable(a netip.AddrPort) bool {
	return n.inScope(a) && a.Addr() != skippedHost && !slices.Contains(skipped, a)
}

// inScope reports whether we send to a because others say so: in the public network to public addresses only,
// so that nobody can use us to reach into a local network.
func (n *Node) inScope(a netip.AddrPort) bool {
	return usable(a) && (n.private || isPublic(a.Addr()))
}
