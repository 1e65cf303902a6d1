package dht

import (
	"bytes"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"omegatun/dht/key"
)

const (
	// Messages forwarded for one host: a second, and at once. A busy server behind one address stays below.
	forwardRate  = 500
	forwardBurst = 2000
)

// router knows the way to peers: to our own servers, and to those that announced themselves to us.
type router struct {
	servers  map[key.Target]*Announcement
	forwards generations[key.Target, forward]
	limit    limiter
}

// forward is a peer that announced itself under the hash of its own key.
type forward struct {
	relay  netip.AddrPort // where the announcement came from, and messages are forwarded to
	record []byte         // what it announced
}

func newRouter(bytes int) router {
	r := router{
		servers:  make(map[key.Target]*Announcement),
		forwards: newGenerations[key.Target, forward](recordCount, recordAge, true),
		limit:    newLimiter(forwardRate, forwardBurst),
	}
	r.forwards.limitBytes(bytes/storeShare/2, func(f forward) int { return entryOverhead + len(f.record) })
	return r
}

// way returns the address to which messages for target are forwarded.
func (r *router) way(target optional[key.Target], now time.Time) (netip.AddrPort, bool) {
	if !target.set {
		return netip.AddrPort{}, false
	}
	f, ok := r.forwards.get(target.v, now)
	return f.relay, ok
}

// server returns our own server of target, nil if there is none.
func (r *router) server(target optional[key.Target]) *Announcement {
	if !target.set {
		return nil
	}
	return r.servers[target.v]
}

// passOn sends in on to another node, as a request with the same tid, command and target. Nobody answers for
// it: the answer comes back as a request, too.
func (n *Node) passOn(now time.Time, in *incoming, to netip.AddrPort, value []byte) {
	if !n.inScope(to) || !n.router.limit.allow(in.from.Addr(), 1, now) {
		return
	}
	n.stats.Forwarded++
	r := request{tid: in.tid, to: to, id: n.idFor(in.sock), command: in.command, target: in.target, value: value}
	n.sendRequest(in.sock, &r, to)
}

// handPeer answers the client at peer, whose request came back as in, with value.
func (n *Node) handPeer(now time.Time, in *incoming, peer netip.AddrPort, value []byte) {
	if !n.inScope(peer) || !n.router.limit.allow(in.from.Addr(), 1, now) {
		return
	}
	n.stats.Forwarded++
	r := response{tid: in.tid, to: peer, id: n.idFor(in.sock), value: value}
	n.sendResponse(in.sock, &r, peer)
}

// handlePeerHandshake passes a handshake to our server, or on to where the server or the client can be reached.
func (n *Node) handlePeerHandshake(now time.Time, in *incoming) {
	m, err := parseHandshake(in.value)
	if err != nil {
		return
	}
	if a := n.router.server(in.target); a != nil {
		n.handshakeForUs(a, in, &m)
		return
	}
	way, known := n.router.way(in.target, now)
	switch m.mode {
	case fromClient:
		to := m.relay
		if !to.IsValid() {
			to = way
		}
		if !to.IsValid() {
			n.reply(now, in, nil, withCloser) // nearer nodes may know
			return
		}
		n.passOn(now, in, to, n.scratch(handshakeMessage{mode: fromRelay, noise: m.noise, peer: in.from}.append))
	case fromRelay:
		if known && usable(m.peer) {
			next := handshakeMessage{mode: fromSecondRelay, noise: m.noise, peer: m.peer, relay: in.from}
			n.passOn(now, in, way, n.scratch(next.append))
		}
	case fromServer:
		last := handshakeMessage{mode: toClient, noise: m.noise, peer: in.from}
		n.handPeer(now, in, m.peer, n.scratch(last.append))
	case fromSecondRelay, toClient: // not for us
	}
}

// handlePeerHolepunch passes a hole punch message to our server, or on to where the server or the client can be
// reached.
func (n *Node) handlePeerHolepunch(now time.Time, in *incoming) {
	m, err := parseHolepunch(in.value)
	if err != nil {
		return
	}
	switch m.mode {
	case fromClient:
		to := m.peer
		if !to.IsValid() {
			to, _ = n.router.way(in.target, now)
		}
		next := holepunchMessage{mode: fromRelay, id: m.id, payload: m.payload, peer: in.from}
		n.passOn(now, in, to, n.scratch(next.append))
	case fromRelay:
		if a := n.router.server(in.target); a != nil && usable(m.peer) {
			n.holepunchForUs(a, in, &m)
		}
	case fromServer:
		last := holepunchMessage{mode: toClient, id: m.id, payload: m.payload, peer: in.from}
		n.handPeer(now, in, m.peer, n.scratch(last.append))
	case fromSecondRelay, toClient: // not for us
	}
}

// errReplied reports a second answer to the same message.
var errReplied = errors.New("dht: answered already")

// HandshakeRequest is a handshake for a local [Server].
type HandshakeRequest struct {
	Noise  []byte         // the first Noise message; owned by the callee
	Client netip.AddrPort // the client's socket, as the node it asked sees it
	Direct bool           // the client asked us itself
	From   netip.AddrPort // who sent us the message
	To     netip.AddrPort // our socket as the sender sees it
	Socket Socket         // where it arrived

	n       *Node
	in      *incoming
	mode    relayMode
	relay   netip.AddrPort // where an answer by way of a second relay goes
	replied atomic.Bool
	answer  func(noise []byte) error // nil: the question came over the DHT
}

// NewHandshakeRequest returns a request that came to socket s from the client itself, and not over the DHT. answer sends the
// second message.
func NewHandshakeRequest(noise []byte, client netip.AddrPort, s Socket, answer func(noise []byte) error) *HandshakeRequest {
	return &HandshakeRequest{Noise: noise, Client: client, Direct: true, From: client, To: s.LocalAddr(), Socket: s, answer: answer}
}

// handshakeForUs hands m to the server of a.
func (n *Node) handshakeForUs(a *Announcement, in *incoming, m *handshakeMessage) {
	r := &HandshakeRequest{
		Noise: bytes.Clone(m.noise), Client: m.peer, From: in.from, To: in.to, Socket: in.sock,
		n: n, in: in.kept(), mode: m.mode, relay: in.from,
	}
	switch m.mode {
	case fromClient:
		r.Client, r.Direct = in.from, true
	case fromRelay:
	case fromSecondRelay:
		r.relay = m.relay
	case fromServer, toClient:
		return
	}
	if !usable(r.Client) || !usable(r.relay) {
		return
	}
	n.callLater(func() { a.server.HandleHandshake(r) })
}

// Reply sends the second Noise message back the way the first one came, from socket s; nil means r.Socket. The
// client is told the address of that socket. It may be called once, from any goroutine.
func (r *HandshakeRequest) Reply(s Socket, noise []byte) error {
	if r.replied.Swap(true) {
		return errReplied
	}
	if r.answer != nil {
		return r.answer(noise)
	}
	if r.Direct {
		return r.n.answerFrom(r.in, s, r.in.from, handshakeMessage{mode: toClient, noise: noise}.encode(), true)
	}
	m := handshakeMessage{mode: fromServer, noise: noise, peer: r.Client}
	return r.n.answerFrom(r.in, s, r.relay, m.encode(), false)
}

// HolepunchRequest is a hole punch message for a local [Server].
type HolepunchRequest struct {
	ID      uint64         // the number that the server gave the handshake
	Payload []byte         // sealed; owned by the callee
	Peer    netip.AddrPort // the client's socket, as the relay sees it
	From    netip.AddrPort // the relay
	To      netip.AddrPort // our socket as the relay sees it
	Socket  Socket         // where it arrived

	n       *Node
	in      *incoming
	replied atomic.Bool
}

// holepunchForUs hands m to the server of a.
func (n *Node) holepunchForUs(a *Announcement, in *incoming, m *holepunchMessage) {
	r := &HolepunchRequest{
		ID: m.id, Payload: bytes.Clone(m.payload), Peer: m.peer, From: in.from, To: in.to, Socket: in.sock,
		n: n, in: in.kept(),
	}
	n.callLater(func() { a.server.HandleHolepunch(r) })
}

// Reply sends the sealed answer back through the relay, from socket s; nil means r.Socket. The client is told
// the address of that socket. It may be called once, from any goroutine.
func (r *HolepunchRequest) Reply(s Socket, payload []byte) error {
	if r.replied.Swap(true) {
		return errReplied
	}
	m := holepunchMessage{mode: fromServer, payload: payload, peer: r.Peer}
	return r.n.answerFrom(r.in, s, r.From, m.encode(), false)
}

// answerFrom sends a server's answer to in from socket s: as the response, or as a request for the relay to
// pass on.
func (n *Node) answerFrom(in *incoming, s Socket, to netip.AddrPort, value []byte, direct bool) error {
	if s == nil {
		s = in.sock
	}
	n.mu.Lock()
	id, closed, suspended := n.idFor(s), n.closed, n.suspended
	n.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case suspended:
		return ErrSuspended
	}
	p := request{tid: in.tid, to: to, id: id, command: in.command, target: in.target, value: value}
	b := p.append(nil)
	if direct {
		r := response{tid: in.tid, to: to, id: id, value: value}
		b = r.append(nil)
	}
	return s.Send(b, to)
}
