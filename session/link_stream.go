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

// offerRoute is offerStream for a route. A direct path takes over from a relayed one; see Host.relayStream for the way back.
func (l *link) offerRoute(r *route) {
	l.mu.Lock()
	cur := l.cur.Load()
	upgrade := cur != nil && cur.kind == PathRelay && r.kind != PathRelay
	if l.closed || l.isUp && !upgrade || !l.isUp && cur != nil && r.kind == PathRelay {
		l.mu.Unlock()
		return
	}
	if !l.framed {
		l.early = r
		l.mu.Unlock()
		return
	}
	first := cur == nil
	l.cur.Store(r)
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

// setRemoteID tells the link the peer's stream id, after the handshake.
func (l *link) setRemoteID(id udx.ID) {
	l.mu.Lock()
	l.remoteID, l.framed = id, true
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
		if cur := l.cur.Load(); cur.kind != PathRelay && !cur.is(sock, from) {
			return false // see strayPacket
		}
	}
	l.offerStream(sock, from, l.host.kindOf(from.Addr()))
	return true
}

// streamUp makes a link without a tunnel up: its stream has heard the peer.
func (l *link) streamUp() {
	l.mu.Lock()
	first := !l.isUp && !l.closed
	if first {
		l.isUp, l.upAt = true, time.Now()
		l.noteDirectLocked(l.cur.Load())
		l.host.streams.Store(l, nil)
		close(l.up) // last: whoever waits for it may dial again at once
	}
	l.mu.Unlock()
}
