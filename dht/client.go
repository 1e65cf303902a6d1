package dht

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht/key"
)

// Ready waits until the node has looked around in the network, whatever it found: see [Info] for that.
func (n *Node) Ready(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	default:
	}
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-n.ctx.Done():
		return ErrClosed
	}
}

// reply is what is kept of an answer.
type reply struct {
	from, to netip.AddrPort
	rtt      time.Duration
	code     uint64
	value    []byte
}

// asking is a request that somebody waits for.
type asking struct {
	call  call
	ended chan struct{} // has room for one: the fields below are there
	reply reply
	err   error
	used  bool // the node's queue has call still
}

// end is called once, with the node's mutex held.
func (k *asking) end(a *answer, err error) {
	k.err, k.used = err, k.call.queued
	if a != nil {
		k.reply = reply{from: a.from, to: a.to, rtt: a.rtt, code: a.code, value: a.value}
	}
	k.ended <- struct{}{}
}

// result returns what came of k, which has ended and is given up.
func (n *Node) result(k *asking) (reply, error) {
	r, err := k.reply, k.err
	if !k.used {
		k.call, k.reply, k.err = call{}, reply{}, nil
		n.askings.Put(k)
	}
	return r, err
}

// ask sends a request and waits for the answer, of whatever code.
func (n *Node) ask(ctx context.Context, spec callSpec) (reply, error) {
	spec.to = unmap(spec.to)
	if !usable(spec.to) {
		return reply{}, fmt.Errorf("dht: %v is not the address of a node", spec.to)
	}
	k, ok := n.askings.Get().(*asking)
	if !ok {
		k = &asking{ended: make(chan struct{}, 1)}
	}
	k.call.callSpec, k.call.asking = spec, k
	n.request(&k.call)
	select {
	case <-k.ended:
		return n.result(k)
	case <-ctx.Done():
	}
	n.do(func(now time.Time) { n.cancel(now, &k.call) })
	select {
	case <-k.ended: // it came just in time
		return n.result(k)
	default:
		return reply{}, context.Cause(ctx)
	}
}

// Ping asks the node at to for a sign of life from socket s; nil means the default socket. It is asked again
// each second, retries times. The error is [ErrTimeout] if nothing came back.
func (n *Node) Ping(ctx context.Context, s Socket, to netip.AddrPort, retries int) (Pong, error) {
	a, err := n.ask(ctx, callSpec{sock: s, to: to, command: cmdPing, retries: retries})
	if err != nil {
		return Pong{}, fmt.Errorf("ping %v: %w", to, err)
	}
	return Pong{From: a.from, To: a.to, RTT: a.rtt}, nil
}

// Handshake sends a Noise message to the server of target by way of relay, which may be the server itself, from
// socket s; nil means the default socket. It is sent again three times. The error wraps [ErrTimeout], which is
// also what a server's refusal looks like, or [ErrBadReply].
func (n *Node) Handshake(
	ctx context.Context, relay netip.AddrPort, s Socket, target key.Target, noise []byte,
) (HandshakeReply, error) {
	a, err := n.ask(ctx, callSpec{
		sock: s, to: relay, command: cmdPeerHandshake, target: some(target), retries: defaultRetries,
		value: handshakeMessage{mode: fromClient, noise: noise}.encode(),
	})
	if err != nil {
		return HandshakeReply{}, fmt.Errorf("handshake by way of %v: %w", relay, err)
	}
	m, err := parseHandshake(a.value)
	if err != nil || a.code != 0 || m.mode != toClient || len(m.noise) == 0 {
		return HandshakeReply{}, fmt.Errorf("handshake by way of %v: %w", relay, ErrBadReply)
	}
	r := HandshakeReply{Noise: m.noise, Server: a.from, Self: a.to, Relay: a.from, Relayed: m.peer.IsValid()}
	if r.Relayed {
		r.Server = m.peer
	}
	return r, nil
}

// Holepunch sends a sealed hole punch message for the server's handshake id by way of relay to the server's
// socket at peer, from socket s; nil means the default socket. If peer is invalid, it goes where the relay
// forwards handshakes to. It is sent again three times. The error wraps [ErrTimeout] or [ErrBadReply].
func (n *Node) Holepunch(
	ctx context.Context, relay netip.AddrPort, s Socket, target key.Target, id uint64, payload []byte,
	peer netip.AddrPort,
) (HolepunchReply, error) {
	if peer.IsValid() {
		peer = unmap(peer)
	}
	a, err := n.ask(ctx, callSpec{
		sock: s, to: relay, command: cmdPeerHolepunch, target: some(target), retries: defaultRetries,
		value: holepunchMessage{mode: fromClient, id: id, payload: payload, peer: peer}.encode(),
	})
	if err != nil {
		return HolepunchReply{}, fmt.Errorf("hole punch by way of %v: %w", relay, err)
	}
	m, err := parseHolepunch(a.value)
	if err != nil || a.code != 0 || m.mode != toClient {
		return HolepunchReply{}, fmt.Errorf("hole punch by way of %v: %w", relay, ErrBadReply)
	}
	r := HolepunchReply{Payload: m.payload, Peer: a.from, Self: a.to}
	if m.peer.IsValid() {
		r.Peer = m.peer
	}
	return r, nil
}

// FindPeer asks nodes ever closer to target for the peer whose key hashes to it, and yields those that know it,
// as their answers come. Nodes of start are asked first. If the peer announced itself to this node, the first
// pair is the peer's own address. Breaking out of the loop cancels the query. The last
// pair has an error if the query did not run to its end: see [Query.All]. A record says no more than that the
// node forwards messages to the peer.
func (n *Node) FindPeer(ctx context.Context, target key.Target, start []netip.AddrPort) iter.Seq2[PeerReply, error] {
	return func(yield func(PeerReply, error) bool) { n.StartFindPeer(ctx, target, start).All()(yield) }
}

// StartFindPeer does what [Node.FindPeer] does, as a running query.
func (n *Node) StartFindPeer(ctx context.Context, target key.Target, start []netip.AddrPort) *Query[PeerReply] {
	spec := lookupSpec{target: target, command: cmdFindPeer, start: n.contactsAt(start), retries: defaultRetries}
	parse := func(f found) (PeerReply, bool) {
		r, err := ParseRecord(f.value)
		if err != nil || r.Key.Target() != target {
			return PeerReply{}, false // most nodes know nothing
		}
		return PeerReply{From: f.addr, To: f.to, Peer: n.inScopeOnly(r)}, true
	}
	if own, known := n.knownPeer(target); known {
		return startQuery(ctx, n, spec, parse, nil, own)
	}
	return startQuery(ctx, n, spec, parse, nil)
}

// NodeReply is one node's answer to [Node.FindNode].
type NodeReply struct {
	From Contact        // its ID is that of its address, even if it is no member
	To   netip.AddrPort // our address as that node sees it
}

// FindNode asks nodes ever closer to target, and yields those that answer, as they do. Breaking out of the loop
// cancels the query. The last pair has an error if the query did not run to its end: see [Query.All].
func (n *Node) FindNode(ctx context.Context, target key.Target) iter.Seq2[NodeReply, error] {
	return func(yield func(NodeReply, error) bool) { n.StartFindNode(ctx, target).All()(yield) }
}

// StartFindNode does what [Node.FindNode] does, as a running query.
func (n *Node) StartFindNode(ctx context.Context, target key.Target) *Query[NodeReply] {
	return startQuery(ctx, n, lookupSpec{target: target, command: cmdFindNode}, func(f found) (NodeReply, bool) {
		return NodeReply{From: Contact{ID: f.id, Addr: f.addr}, To: f.to}, true
	}, nil)
}

// inScopeOnly returns r, which it changes, without addresses that we would not send to because others say so.
// n.mu is held.
func (n *Node) inScopeOnly(r Record) Record {
	r.Relays = slices.DeleteFunc(r.Relays, func(a netip.AddrPort) bool { return !n.inScope(a) })
	return r
}

// knownPeer returns what we know ourselves of a peer that announced itself to us. Then we need no relay: it
// keeps the way open from our socket to the one it announced itself from.
func (n *Node) knownPeer(target key.Target) (p PeerReply, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, ok := n.router.forwards.get(target, n.clock.Now())
	if !ok || !n.persistent {
		return PeerReply{}, false
	}
	r, err := ParseRecord(f.record)
	if err != nil {
		return PeerReply{}, false
	}
	return PeerReply{From: f.relay, To: n.publicAddr(), Peer: r}, true
}

func (n *Node) contactsAt(addrs []netip.AddrPort) (nodes []contact) {
	for _, a := range addrs {
		if a = unmap(a); n.acceptable(a) {
			nodes = append(nodes, contactAt(a))
		}
	}
	return nodes
}
