package dht

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
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

// ask sends a request and waits for the answer, of whatever code.
func (n *Node) ask(ctx context.Context, spec callSpec) (*answer, error) {
	type result struct {
		a   *answer
		err error
	}
	ended := make(chan result, 1)
	var c *call
	spec.to = unmap(spec.to)
	if !usable(spec.to) {
		return nil, fmt.Errorf("dht: %v is not the address of a node", spec.to)
	}
	n.do(func(now time.Time) {
		c = n.call(now, spec, func(_ time.Time, a *answer, err error) { ended <- result{a, err} })
	})
	select {
	case r := <-ended:
		return r.a, r.err
	case <-ctx.Done():
	}
	n.do(func(now time.Time) { n.cancel(now, c) })
	select {
	case r := <-ended: // it came just in time
		return r.a, r.err
	default:
		return nil, context.Cause(ctx)
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
// pair has an error if the query did not run to its end: ctx ended, the node is closed, or nobody answered
// ([ErrNoNodes]). A record says no more than that the node forwards messages to the peer.
func (n *Node) FindPeer(ctx context.Context, target key.Target, start []netip.AddrPort) iter.Seq2[PeerReply, error] {
	spec := lookupSpec{target: target, command: cmdFindPeer, start: n.contactsAt(start), retries: defaultRetries}
	return func(yield func(PeerReply, error) bool) {
		own, known := n.knownPeer(target)
		if known && !yield(own, nil) {
			return
		}
		_, err := n.search(ctx, spec, func(f found) bool {
			r, err := ParseRecord(f.value)
			if err != nil || r.Key.Target() != target {
				return true // most nodes know nothing
			}
			return yield(PeerReply{From: f.addr, To: f.to, Peer: r}, nil)
		})
		if err != nil && (!known || !errors.Is(err, ErrNoNodes)) {
			yield(PeerReply{}, err)
		}
	}
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

// search runs a query, and hands the answers to each as they come, until it returns false or the query ends.
// It returns the nodes closest to the target, and an error if the query did not run to its end.
func (n *Node) search(ctx context.Context, spec lookupSpec, each func(found) bool) ([]found, error) {
	s := searching{more: make(chan struct{}, 1)}
	spec.found = func(_ time.Time, f found) {
		s.results, s.answered = append(s.results, f), true
		s.wake()
	}
	n.do(func(now time.Time) {
		s.lookup = n.lookup(now, spec, func(_ time.Time, closest []found, err error) {
			s.over, s.closest, s.err = true, closest, err
			s.wake()
		})
	})
	defer n.do(s.lookup.cancel)
	for {
		results, over := s.take(n)
		for _, f := range results {
			if !each(f) {
				return nil, nil
			}
		}
		switch {
		case !over:
		case s.err != nil:
			return nil, s.err
		case !s.answered:
			return nil, ErrNoNodes
		default:
			return s.closest, nil
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// searching is a query whose answers are read by another goroutine. Its fields are guarded by the node's mutex
// until it is over.
type searching struct {
	lookup   *lookup
	results  []found
	closest  []found
	answered bool // anyone has
	over     bool
	err      error
	more     chan struct{}
}

func (s *searching) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// take returns the answers that came since the last call, and whether they are the last.
func (s *searching) take(n *Node) (results []found, over bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	results, s.results = s.results, nil
	return results, s.over
}
