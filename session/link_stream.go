package session

import (
	"cmp"
	"net"
	"net/netip"
	"time"

	"omegatun/session/secretstream"
	"omegatun/session/udx"
)

// offerStream points the stream at the address, unless the stream works already.
func (l *link) offerStream(sock Socket, remote netip.AddrPort, kind PathKind) {
	l.offerRoute(&route{sock: sock, remote: remote, kind: kind})
}

// offerRoute is offerStream for a route. Until the link is up the latest counts, but the side that dialled stays where it hears
// the peer: the other comes after it. A direct path takes over from a relayed one, of a peer that answers challenges only when it
// has answered one there; see Host.relayStream for the way back.
func (l *link) offerRoute(r *route) {
	now := time.Now()
	l.mu.Lock()
	cur := l.cur.Load()
	upgrade := cur != nil && cur.kind == PathRelay && r.kind != PathRelay
	switch {
	case l.closed, l.isUp && !upgrade, !l.isUp && l.leads(cur):
		l.mu.Unlock()
		return
	case !l.framed:
		l.early = r
		l.mu.Unlock()
		return
	case l.isUp && l.proves:
		l.prober.add(r.sock, r.remote, r.kind, probesToOpen, now)
		l.mu.Unlock()
		l.poke()
		return
	}
	first := cur == nil
	if !first && r.kind == PathRelay && l.proves { // the direct one may still work, later
		l.prober.add(cur.sock, cur.remote, cur.kind, probesToOpen, now)
	}
	l.cur.Store(r)
	l.moved = now
	if l.isUp {
		l.noteDirectLocked(r)
	}
	l.mu.Unlock()
	id := cmp.Or(r.id, l.remoteID)
	var err error
	if first {
		err = l.stream.Connect(r.sock, r.remote, id)
	} else {
		err = l.stream.ChangeRemote(r.sock, r.remote, id)
	}
	if err != nil {
		l.log.Debug("stream refused a path", "remote", r.remote, "error", err)
		return
	}
	if first {
		l.secureStream()
	} else if upgrade {
		l.log.Info("path changed", "path", r.kind.String(), "remote", r.remote)
		_ = l.stream.SendMessage(nil) // shows the peer the new path; lost like any datagram
	}
}

// backToRelay moves a plain stream back to its relayed path, because the direct one does not work.
func (l *link) backToRelay(r *route) {
	l.mu.Lock()
	if !l.closed {
		l.cur.Store(r)
		l.moved = time.Now()
	}
	l.mu.Unlock()
	if err := l.stream.ChangeRemote(r.sock, r.remote, r.id); err != nil {
		l.log.Debug("stream refused a path", "remote", r.remote, "error", err)
	}
}

// newStream makes the stream of a link.
func (h *Host) newStream(l *link) (*udx.Stream, error) {
	return h.mux.NewStream(udx.StreamConfig{
		Accept: l.acceptStream, OnMessage: l.pathMessage, OnStray: l.strayPacket, OnDone: l.streamDone,
	})
}

// secureStream starts the encrypted stream. The link is up once the peer has been heard on it, and ends with it.
func (l *link) secureStream() {
	c := secretstream.New(l.stream, secretstream.Config{
		Initiator: l.initiator, Tx: l.result.Tx, Rx: l.result.Rx, Hash: l.result.Hash,
		Local: l.local, Remote: l.remote, KeepAlive: l.host.cfg.KeepAlive,
	})
	l.secure.Store(c)
	l.host.wg.Go(func() {
		if err := c.Begin(); err != nil {
			l.close(err)
		} else {
			l.streamUp()
		}
	})
}

// streamDone is the stream's hook for its end, which is the end of a link without a tunnel. While the link is being set up, whoever
// does that notices by himself.
func (l *link) streamDone() {
	if l.secure.Load() == nil || l.epoch != nil {
		return
	}
	l.close(cmp.Or(l.stream.Err(), net.ErrClosed))
}

// setRemoteID tells the link, after the handshake, the peer's stream id, and whether the peer answers challenges.
func (l *link) setRemoteID(id udx.ID, proves bool) {
	l.mu.Lock()
	l.remoteID, l.proves, l.framed = id, proves, true
	early := l.early
	l.early = nil
	l.mu.Unlock()
	if early != nil && l.epoch == nil {
		l.offerRoute(early)
	}
}

// acceptStream is the stream's hook for packets from a place it does not know.
func (l *link) acceptStream(s udx.Socket, from netip.AddrPort) bool {
	sock, ok := s.(Socket)
	if !ok || l.host.avoid(from.Addr()) {
		return false
	}
	if l.epoch != nil {
		return l.acceptControl(sock, from)
	}
	if r := l.atRelay.Load(); r != nil && r.is(sock, from) && !isClosed(l.up) {
		return true // it is no direct path
	}
	if isClosed(l.up) {
		if also := l.also.Load(); also != nil && also.is(sock, from) {
			return true
		}
		if cur := l.cur.Load(); (cur.kind != PathRelay || l.proves) && !cur.is(sock, from) {
			return false // see strayPacket
		}
	}
	r := &route{sock: sock, remote: from, kind: l.host.kindOf(from.Addr())}
	r.heard.Store(time.Now().UnixNano())
	l.offerRoute(r)
	return true
}

// leads reports whether this side has dialled and hears the peer on cur, a direct path: then it stays there. cur may be nil.
func (l *link) leads(cur *route) bool {
	return l.initiator && cur != nil && cur.kind != PathRelay && cur.heard.Load() != 0
}

// knock makes a plain stream heard at an address that may lead to the peer. Before the link is up that is a packet which says
// nothing: the peer points its own stream at where it came from. Later it is a challenge. A side that leads sends neither, as the
// peer would come after it, and one that is up on a direct path no challenge: a peer that is not up yet would move away from it.
// Other programs than ours would take either for a path that works.
func (l *link) knock(r *route) {
	l.mu.Lock()
	cur := l.cur.Load()
	switch {
	case !l.proves || cur != nil && cur.is(r.sock, r.remote), l.isUp && cur.kind != PathRelay, l.leads(cur):
		l.mu.Unlock()
	case l.isUp:
		l.mu.Unlock()
		l.challenge(r.sock, r.remote, time.Now())
	default:
		h := udx.Header{Flags: udx.FlagHeartbeat, ID: l.remoteID, Window: knockWindow}
		l.mu.Unlock()
		_ = r.sock.Send(h.Append(nil), r.remote) // lost like any datagram
	}
}

// streamUp makes a link without a tunnel up: its stream has heard the peer.
func (l *link) streamUp() {
	l.mu.Lock()
	first := !l.isUp && !l.closed
	if first {
		l.isUp, l.upAt = true, time.Now()
		l.moved = l.upAt
		l.noteDirectLocked(l.cur.Load())
		l.host.streams.Store(l, nil)
		close(l.up) // last: whoever waits for it may dial again at once
	}
	l.mu.Unlock()
}
