package session

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch"
	"omegatun/session/noise"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

const acceptBacklog = 1024 // streams that nobody has accepted yet

// ListenConfig says who may connect to a key.
type ListenConfig struct {
	// Admit decides about a caller, before anything is sent: an error is silence. Required. It may block
	// for a short while and is called from several goroutines.
	Admit func(Caller) error
	// Tunnels lets callers that are peers of the Host (see [Host.AddPeer]) open a tunnel.
	Tunnels bool
	// RelayThrough are the keys of relays to meet callers at that have named none, in place of those of the Host.
	RelayThrough []key.Public
	// Relay says for whom the Host is a relay: the streams of these callers are not accepted, but serve to arrange relaying. It is
	// only asked while the Host is one: see [Config].Relay. Default: nobody.
	Relay func(key.Public) bool
}

// Caller is who asks to connect.
type Caller struct {
	Key  key.Public
	Addr netip.AddrPort // as the relay sees it; not proven
}

// Listener answers handshakes for one key and accepts the streams that come of them. It is a
// [net.Listener]; its connections are *[secretstream.Conn].
type Listener struct {
	host *Host
	key  key.Private
	cfg  ListenConfig
	ann  *dht.Announcement

	accepted chan *secretstream.Conn
	serving  chan struct{} // closed once ann is set: handshakes may come before
	closed   chan struct{}
	gone     chan struct{} // closed once the announcement is withdrawn, or given up

	slots slots // handshakes

	mu     sync.Mutex // guards ending
	ending bool
}

// Listen announces the key in the DHT and answers whoever cfg admits. It returns at once;
// [Listener.Announced] waits until strangers could find the key. Close it, or the Host.
func (h *Host) Listen(k key.Private, cfg ListenConfig) (*Listener, error) {
	if cfg.Admit == nil {
		return nil, errors.New("session: ListenConfig.Admit is required")
	}
	l := &Listener{
		host: h, key: k, cfg: cfg,
		accepted: make(chan *secretstream.Conn, acceptBacklog),
		serving:  make(chan struct{}),
		closed:   make(chan struct{}),
		gone:     make(chan struct{}),
		slots:    newSlots(),
	}
	ann, err := h.node.Serve(k, l)
	if errors.Is(err, dht.ErrClosed) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, err
	}
	l.ann = ann
	close(l.serving)
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.listeners = append(h.listeners, l)
	}
	h.mu.Unlock()
	if closed { // Close has not seen it
		_ = l.shutdown(h.ctx) // only to free what it holds
		return nil, ErrClosed
	}
	return l, nil
}

// Announced waits until at least one DHT node holds the announcement.
func (l *Listener) Announced(ctx context.Context) error {
	err := l.ann.Announced(ctx)
	if errors.Is(err, dht.ErrClosed) {
		return ErrClosed
	}
	return err
}

// Addresses returns the addresses at which a handshake for the key is tried best: our own if anyone can reach it, then nodes that
// forward to us; at most three, and none before [Listener.Announced]. Who has them, as [DialConfig].Relays, need not look for the
// key: they are what [dht.Node.Announce] stores under a topic. The caller owns the slice.
func (l *Listener) Addresses() []netip.AddrPort { return l.ann.Addresses() }

// Refresh announces again at once, as after a change of network.
func (l *Listener) Refresh() { l.ann.Refresh() }

// Accept waits for the next stream, as *[secretstream.Conn]. After Close the error is [net.ErrClosed].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Addr returns the public key as an address.
func (l *Listener) Addr() net.Addr { return KeyAddr(l.key.Public()) }

// KeyAddr is a public key as a [net.Addr].
type KeyAddr key.Public

// Network returns "hyperdht".
func (KeyAddr) Network() string { return "hyperdht" }

// String returns the key in z-base-32.
func (a KeyAddr) String() string { return key.Public(a).String() }

// Close withdraws the announcement, which it waits for, but not longer than two seconds, and breaks off streams that have not
// been accepted. Accepted connections and tunnels live on.
func (l *Listener) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return l.shutdown(ctx)
}

func (l *Listener) shutdown(ctx context.Context) error {
	l.mu.Lock()
	if l.ending {
		l.mu.Unlock()
		select { // whoever began it reports what became of it
		case <-l.gone:
		case <-ctx.Done():
		}
		return nil
	}
	l.ending = true
	defer close(l.gone)
	close(l.closed)
	l.mu.Unlock()

	l.slots.close()
	err := l.ann.Close(ctx)
	l.endAccepted()
	h := l.host
	h.mu.Lock()
	h.listeners = slices.DeleteFunc(h.listeners, func(o *Listener) bool { return o == l })
	h.mu.Unlock()
	return err
}

// endAccepted breaks off the streams that nobody has accepted.
func (l *Listener) endAccepted() {
	for {
		select {
		case c := <-l.accepted:
			c.Reset(net.ErrClosed) // nobody reads what it has brought, so it must not seem to have arrived
		default:
			return
		}
	}
}

// HandleHandshake implements [dht.Server].
func (l *Listener) HandleHandshake(req *dht.HandshakeRequest) {
	if s := l.slots.take(req, time.Now()); s != nil {
		l.host.wg.Go(func() { l.answer(s, req) })
	}
}

func reply(req *dht.HandshakeRequest, sock Socket, noise []byte) {
	if noise == nil {
		return
	}
	if sock == nil {
		_ = req.Reply(nil, noise) // lost like any datagram: the client asks again
		return
	}
	_ = req.Reply(sock, noise)
}

// HandleHolepunch implements [dht.Server].
func (l *Listener) HandleHolepunch(req *dht.HolepunchRequest) {
	if p := l.slots.puncher(req.ID); p != nil {
		p.HandleHolepunch(req)
	}
}

// answer makes the answer to a first message, sends it and sees the link through until it is up.
//
// Source: hyperdht.md 10.2; npm hyperdht, lib/server.js (_addHandshake).
func (l *Listener) answer(s *slot, req *dht.HandshakeRequest) {
	select {
	case <-l.serving: // about at once
	case <-l.host.ctx.Done():
		return
	}
	lk, noise, sock := l.shake(s, req)
	l.slots.answered(s, noise, sock)
	if noise == nil { // the slot need not be kept, a retry costs the stranger as much as the first try
		l.slots.forget(s)
		return
	}
	if lk != nil {
		l.open(s, lk, req.Client.Addr())
	}
	l.slots.retire(s, time.Now())
}

// open waits until the client has opened a path, for as long as punching goes on or slotLife, and hands the
// stream to Accept if the link carries one.
func (l *Listener) open(s *slot, lk *link, client netip.Addr) {
	h := l.host
	ctx, cancel := context.WithCancelCause(h.ctx)
	defer cancel(nil)
	puncher := l.slots.punched(s)
	trying := ways{last: func() { cancel(errNoneAnswered) }} // unless the link is up
	trying.add()
	if s.meeting != nil {
		trying.add()
		h.relay(lk, s.meeting, func(error) { trying.done() })
	}
	var enough <-chan struct{} // of punching
	if puncher == nil {
		defer time.AfterFunc(slotLife, trying.done).Stop()
	} else {
		stop := make(chan struct{})
		defer close(stop)
		enough = lk.punched(stop, puncher.Report)
		h.wg.Go(func() {
			select {
			case <-puncher.Done():
				report := puncher.Report()
				lk.account.nats(report.Local, report.Remote)
				lk.account.step(StagePath, "%v", puncher.Err())
				lk.log.Debug("hole punching ended", "error", puncher.Err())
				lk.settle()
			case <-enough:
			case <-lk.done:
			case <-l.closed:
			}
			if err := puncher.Close(lk.keepSockets()...); err != nil {
				lk.log.Debug("closing punch sockets", "error", err)
			}
			trying.done()
		})
	}
	if err := lk.open(ctx); err != nil {
		lk.close(err)
		return
	}
	l.slots.befriend(client, time.Now())
	if lk.epoch == nil {
		l.deliver(lk)
	}
	if puncher != nil { // while relayed, the client may go on punching
		select {
		case <-puncher.Done():
		case <-enough:
		case <-lk.done:
		case <-l.closed:
		}
	}
}

// shake processes the first message. A nil answer means silence; a nil link means that the answer is an error.
func (l *Listener) shake(s *slot, req *dht.HandshakeRequest) (lk *link, msg []byte, sock Socket) {
	h := l.host
	r, err := noise.Respond(l.key, req.Noise)
	if err != nil {
		h.refused.Add(1)
		return nil, nil, nil
	}
	caller := Caller{Key: r.Remote(), Addr: req.Client}
	if err := l.cfg.Admit(caller); err != nil {
		h.refused.Add(1)
		h.log.Debug("caller refused", "caller", caller.Key.Short(), "error", err)
		return nil, nil, nil
	}
	theirs, err := noise.ParsePayload(r.Payload())
	if err != nil {
		return nil, nil, nil
	}

	lk = h.newLink(l.key.Public(), caller.Key, false, time.Now())
	defer func() {
		if msg == nil {
			lk.close(ErrIncompatible)
			lk = nil
		}
	}()
	if lk.stream, err = h.newStream(lk); err != nil {
		return lk, nil, nil
	}
	ours := h.payload(lk)
	switch {
	case theirs.Version != noise.PayloadVersion:
		ours.Error = noise.ErrorVersionMismatch
	case theirs.UDX == nil:
		ours.Error = noise.ErrorAborted
	}
	if ours.Firewall != uint64(dht.FirewallOpen) {
		info := &noise.HolepunchInfo{ID: uint64(s.id)}
		for _, p := range l.ann.Relays() {
			info.Relays = append(info.Relays, noise.RelayPair{Relay: p.Relay, Peer: p.Peer})
		}
		ours.Holepunch = info
	}
	ours.RelayAddresses = l.ann.Addresses()
	offer, offered, err := tunnel.ParseOffer(theirs.Trailer)
	lk.beside = offered && err == nil && offer.Features&tunnel.FeatureBeside != 0
	peer := h.Peer(caller.Key)
	wantTunnel := l.cfg.Tunnels && peer != nil && offered && err == nil
	proves := strings.HasPrefix(string(theirs.Trailer), streamMark)
	switch {
	case req.Direct || lk.beside:
		theirs.RelayThrough = nil // it is reached without
	case wantTunnel, proves, h.firewall() != dht.FirewallOpen && dht.Firewall(theirs.Firewall) != dht.FirewallOpen:
		ours.RelayThrough = h.nameRelay(caller.Key, l.cfg.RelayThrough)
	}
	var answer tunnel.Offer
	if wantTunnel {
		lk.peer.Store(peer)
		if !peer.opens(lk) {
			return lk, nil, nil
		}
		lk.setIndex(h.reserveIndex())
		answer = h.offer(lk.index)
		ours.Trailer = answer.Append(nil)
	}
	s.meeting = h.meeting(lk, &ours, &theirs)
	msg, res, err := r.Write(ours.Append(nil))
	if err != nil {
		return lk, nil, nil
	}
	lk.result = res
	if ours.Error != noise.ErrorNone {
		lk.close(ErrIncompatible)
		return nil, msg, nil
	}
	if wantTunnel {
		if err := lk.startTunnel(answer, offer); err != nil {
			return lk, nil, nil
		}
		lk.account.nats(h.firewall(), dht.Firewall(theirs.Firewall))
		lk.account.step(StageHandshake, "the peer asks from %v", req.Client)
		if !lk.beside {
			peer.noteAttempt(lk.account)
		}
	}
	lk.setRemoteID(udx.ID(theirs.UDX.ID), proves)
	return lk, msg, l.findPath(s, lk, req, &theirs, ours.Firewall == uint64(dht.FirewallOpen))
}

// findPath offers the link the addresses that may lead to the client, and returns the socket that the answer
// must leave from, nil for the one asked. open says whether the answer tells the client that anyone can reach us.
func (l *Listener) findPath(s *slot, lk *link, req *dht.HandshakeRequest, theirs *noise.Payload, open bool) Socket {
	h := l.host
	if req.Direct {
		if !lk.adopt(req.Socket.(Socket)) {
			return nil // it is about to close: the client finds another way
		}
		lk.offer(req.Socket.(Socket), req.Client, h.kindOf(req.Client.Addr()))
		return nil
	}
	if dht.Firewall(theirs.Firewall) == dht.FirewallOpen {
		lk.offer(h.node.DefaultSocket().(Socket), req.Client, h.kindOf(req.Client.Addr()))
		return nil
	}
	lk.offerForeign(theirs.Addresses4, theirs.Addresses6, req.Client.Addr())
	lan := false
	if req.Client.Addr() == req.To.Addr() { // the same public address: probably the same network
		private := slices.DeleteFunc(slices.Clone(theirs.Addresses4), func(a netip.AddrPort) bool {
			return !punch.IsPrivate(a.Addr())
		})
		_, lan = punch.MatchAddr(h.localAddrs(), private)
		if lan && lk.epoch != nil {
			for _, a := range private[:min(len(private), maxAddresses)] {
				lk.offer(h.server, a, PathLAN)
			}
		}
	}
	if open {
		return nil // the client comes to us
	}
	sink := new(probeSink)
	puncher, err := punch.NewServer(punch.ServerConfig{
		Node:       h.node,
		OpenSocket: func() (punch.Socket, error) { return h.openSocket(sink) },
		Secret:     lk.result.HolepunchSecret(),
		IsRelay:    l.ann.IsRelay,
		Limit:      h.guessing,
		Logger:     lk.log,
	})
	if err != nil {
		h.log.Warn("no socket for hole punching", "error", err)
		return nil
	}
	sink.set(puncher.HandleProbe)
	l.slots.punching(s, puncher)
	if lan {
		return nil // the client pings the server socket; it must not be told the punch socket's address
	}
	return puncher.Socket().(Socket)
}

var errNobodyAccepts = errors.New("session: nobody accepts the stream")

// deliver hands a link's stream to Accept.
func (l *Listener) deliver(lk *link) {
	c := lk.secure.Load()
	h := l.host
	if s := h.relayServer.Load(); s != nil && l.cfg.Relay != nil && l.cfg.Relay(lk.remote) {
		lk.relaying.Store(true)
		h.wg.Go(func() { h.serveRelay(s, lk, c) })
		return
	}
	select {
	case l.accepted <- c:
		if isClosed(l.closed) { // nobody accepts any more, and Close may have looked already
			l.endAccepted()
		}
		return
	default:
	}
	lk.log.Warn("stream refused: nobody accepts")
	c.Reset(errNobodyAccepts) // not a proper end: nothing was served
}
