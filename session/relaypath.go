package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session/noise"
	"omegatun/session/protomux"
	"omegatun/session/relay"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

const (
	pairTimeout  = 15 * time.Second // from the connection to the relay on, as the reference waits
	relayTimeout = 10 * time.Second // to connect to a relay
	relayLinger  = 30 * time.Second // how long a connection to a relay is kept that no link uses
	relayAvoid   = time.Minute      // how long a relay that failed is not chosen, if there are others
	// relayIdle is how long an idle link that has a direct path keeps its relayed one.
	relayIdle = time.Minute
	// dialledDelay and callerDelay are how long the two sides of a tunnel wait before they relay, where one of them is open to all as
	// far as the DHT can tell: it may not be for the other, but mostly a direct path answers before. The dialled side has
	// answered as much earlier as its answer is under way. A plain stream waits directDelay, and as long before it gives up for a relay
	// a direct path that it has begun on.
	callerDelay  = 50 * time.Millisecond
	dialledDelay = 85 * time.Millisecond
	directDelay  = time.Second
	// maxRelayConns bounds the relays that there is a connection to, or that are being called: callers name them.
	maxRelayConns = 64
	// upgradeTrial is how long a plain stream keeps its relay after it has moved to a direct path.
	upgradeTrial = 4 * time.Second
)

// errRelays reports that maxRelayConns relays are in use.
var errRelays = errors.New("session: too many relays at once")

// relayed is one agreement to meet at a relay.
type relayed struct {
	via       key.Public
	token     relay.Token
	initiator bool // at the relay: whoever named it
	delay     time.Duration
}

// relayConn is a connection to a relay, shared by the links that meet their peers there.
type relayConn struct {
	via   key.Public
	ready chan struct{} // closed once the fields below are set

	link   *link
	mux    *protomux.Mux
	client *relay.Client
	err    error

	paired atomic.Bool // it has served us

	users int       // guarded by Host.mu
	idle  time.Time // since when there are none; guarded by Host.mu
}

// nameRelay chooses a relay for a connection with a peer, to be named in the handshake, from through or, if that is empty, from those
// of the Host. It returns nil if there is none.
func (h *Host) nameRelay(peer key.Public, through []key.Public) *noise.RelayThrough {
	list := slices.Clone(through)
	if len(list) == 0 {
		h.mu.Lock()
		list = slices.Clone(h.through)
		h.mu.Unlock()
		for _, p := range h.Peers() {
			if p.relays() && !slices.Contains(list, p.key) {
				list = append(list, p.key)
			}
		}
	}
	list = slices.DeleteFunc(list, func(k key.Public) bool { return k == peer || h.isOurs(k) })
	if len(list) == 0 {
		return nil
	}
	h.mu.Lock()
	good := slices.DeleteFunc(slices.Clone(list), func(k key.Public) bool {
		return time.Since(h.badRelays[k]) < relayAvoid
	})
	h.mu.Unlock()
	if len(good) > 0 {
		list = good
	}
	r := &noise.RelayThrough{Version: 1, Relay: list[mrand.IntN(len(list))]}
	rand.Read(r.Token[:]) // never fails
	return r
}

// RelayThrough replaces [Config].RelayThrough. It counts from the next attempt to connect on; the slice is not kept.
func (h *Host) RelayThrough(relays []key.Public) {
	h.mu.Lock()
	h.through = slices.Clone(relays)
	h.mu.Unlock()
	h.announceChanges()
}

// relays reports whether the peer is connected and offers to relay for us.
func (p *Peer) relays() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.announced.Relaying && p.cur.Load() != nil
}

// isOurs reports whether k is a key of this Host.
func (h *Host) isOurs(k key.Public) bool {
	if k == h.cfg.Identity.Public() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.listeners, func(l *Listener) bool { return l.key.Public() == k })
}

// meeting returns where the two sides of a handshake meet, by what each of them named, and how long after it. It returns nil for
// nowhere. Who is open to all may yet not be so for this peer, so the two meet then as well, but later. HyperDHT programs that
// are dialled by such a one do not.
//
// Source: relay.md 6; npm hyperdht, lib/connect.js and lib/server.js (relayConnection).
func (h *Host) meeting(l *link, ours, theirs *noise.Payload) *relayed {
	named, byUs := theirs.RelayThrough, false
	if named == nil || !l.initiator && ours.RelayThrough != nil { // what the server names counts
		named, byUs = ours.RelayThrough, true
	}
	if named == nil || named.Relay == l.remote || h.isOurs(named.Relay) {
		return nil
	}
	m := &relayed{via: named.Relay, token: named.Token, initiator: byUs}
	if open := uint64(dht.FirewallOpen); ours.Firewall == open || theirs.Firewall == open {
		switch {
		case l.peer.Load() == nil:
			m.delay = directDelay
		case l.initiator:
			m.delay = callerDelay
		default:
			m.delay = dialledDelay
		}
	}
	return m
}

// relay meets the peer at a relay and offers the link the path that comes of it. It calls failed if none does, and returns at once. The
// path ends with the link, or with the connection to the relay.
func (h *Host) relay(l *link, m *relayed, failed func(error)) {
	h.wg.Go(func() {
		ctx, cancel := context.WithCancelCause(h.ctx)
		defer cancel(nil)
		h.wg.Go(func() {
			select {
			case <-l.done:
				cancel(l.cause())
			case <-ctx.Done():
			}
		})
		if m.delay > 0 {
			select {
			case <-time.After(m.delay):
			case <-l.direct:
				return
			case <-ctx.Done():
				return
			}
		}
		l.account.step(StagePath, "going to meet the peer at relay %s as well", m.via.Short())
		if err := h.relayPath(ctx, l, m); err != nil && ctx.Err() == nil {
			l.account.step(StagePath, "relay %s failed: %v", m.via.Short(), err)
			l.log.Info("relay failed", "relay", m.via.Short(), "error", err)
			failed(fmt.Errorf("relay %s: %w", m.via.Short(), err))
		}
	})
}

func (h *Host) relayPath(ctx context.Context, l *link, m *relayed) (err error) {
	c, err := h.useRelay(ctx, m.via)
	if err != nil {
		return err
	}
	defer h.leaveRelay(c)
	defer func() {
		if errors.Is(err, context.DeadlineExceeded) && !c.paired.Load() {
			h.distrustRelay(c)
		}
	}()
	if l.epoch == nil {
		return h.relayStream(ctx, l, m, c)
	}
	s := &relaySocket{host: h, link: l, via: m.via}
	if s.stream, err = h.mux.NewStream(udx.StreamConfig{OnMessage: s.receive}); err != nil {
		return err
	}
	defer s.stream.Reset(nil)
	if err := s.pair(ctx, m, c); err != nil {
		return err
	}
	defer l.dropSocket(s)
	h.relayed.Store(s.stream.ID(), s)
	h.relaySockets.Add(1)
	defer func() {
		h.relayed.Delete(s.stream.ID())
		h.relaySockets.Add(-1)
	}()
	l.account.step(StagePath, "met the peer at relay %s", m.via.Short())
	l.offer(s, s.remote, PathRelay)
	err = l.waitRelayed(ctx, c)
	_ = c.client.Unpair(ended, m.token) // the relay also notices the end of the stream
	return err
}

// waitRelayed returns when the link needs its relay no more, with an error if the relay has gone.
func (l *link) waitRelayed(ctx context.Context, c *relayConn) error {
	ticker := time.NewTicker(relayIdle / 4)
	defer ticker.Stop()
	opening := time.NewTimer(openTimeout)
	defer opening.Stop()
	idle := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-opening.C:
			if !isClosed(l.up) {
				return errNoneAnswered
			}
		case <-c.client.Done():
			return c.client.Err()
		case now := <-ticker.C:
			r := l.cur.Load()
			if r == nil || r.kind == PathRelay || l.busy(now) || !l.healthy() {
				idle = now
			} else if now.Sub(idle) >= relayIdle {
				return nil
			}
		}
	}
}

// relayStream connects a plain stream through the relay, as the reference does.
func (h *Host) relayStream(ctx context.Context, l *link, m *relayed, c *relayConn) error {
	pairing, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	h.wg.Go(func() { // a direct path that is there first needs no relay
		select {
		case <-l.direct:
			cancel()
		case <-stop:
		}
	})
	id, err := c.client.Pair(pairing, m.initiator, m.token, l.stream.ID())
	if err != nil {
		if isClosed(l.direct) {
			return nil
		}
		return err
	}
	c.paired.Store(true)
	r := c.link.cur.Load()
	relayed := &route{sock: r.sock, remote: r.remote, kind: PathRelay, id: id}
	l.atRelay.Store(relayed)
	knocking, silence := context.WithCancel(ctx)
	defer silence()
	h.wg.Go(func() {
		defer silence()
		select {
		case <-l.up:
		case <-knocking.Done():
		}
	})
	h.wg.Go(func() { _ = relay.Knock(knocking, knocker{l, relayed}) }) // that fails only if the stream has ended, which others see too
	defer func() { _ = c.client.Unpair(ended, m.token) }()             // the relay also notices that nothing comes any more
	l.awaitDirect(ctx)
	l.offerRoute(relayed)
	h.wg.Go(func() { l.seekDirect(ctx) })
	return h.watchStream(ctx, l, c, relayed)
}

// awaitDirect gives the direct path that the stream has begun on directDelay to answer.
func (l *link) awaitDirect(ctx context.Context) {
	l.mu.Lock()
	wait := directDelay - time.Since(l.moved)
	l.mu.Unlock()
	if l.cur.Load() == nil || wait <= 0 {
		return
	}
	select {
	case <-time.After(wait):
	case <-l.up:
	case <-ctx.Done():
	}
}

// seekDirect tries the addresses that may lead to the peer of a relayed stream until one does, or ctx ends.
func (l *link) seekDirect(ctx context.Context) {
	select {
	case <-l.up:
	case <-ctx.Done():
		return
	}
	l.mu.Lock()
	if l.proves {
		l.prober.wake(probesToCheck, time.Now())
	}
	l.mu.Unlock()
	_ = l.probeUntil(ctx, l.direct) // the stream goes on over the relay
}

// knocker makes itself heard at the relay, whichever path the stream uses: what the peer has sent there before it knew of a direct path
// comes by no other way. npm hyperdht sends it there again and again.
type knocker struct {
	link  *link
	route *route
}

// Heartbeat sends one packet to the relay.
func (k knocker) Heartbeat() error {
	if k.link.cur.Load() == k.route {
		return k.link.stream.Heartbeat()
	}
	h := udx.Header{Flags: udx.FlagHeartbeat, ID: k.route.id, Window: knockWindow}
	return k.route.sock.Send(h.Append(nil), k.route.remote)
}

// knockWindow is the receive window in bytes that every stream begins with.
const knockWindow = 4 << 20

// watchStream returns when a stream needs its relay no more, because what it sends on a direct path arrives there, or with an
// error if the relay has gone. If a direct path does not work it puts the relayed one back.
func (h *Host) watchStream(ctx context.Context, l *link, c *relayConn, relayed *route) error {
	ticker := time.NewTicker(upgradeTrial)
	defer ticker.Stop()
	opening := time.NewTimer(openTimeout)
	defer opening.Stop()
	var before udx.Stats
	direct := false // since the last tick at least
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.client.Done():
			return c.client.Err()
		case <-opening.C:
			if !isClosed(l.up) {
				return errNoneAnswered
			}
			continue
		case <-ticker.C:
		}
		stats := l.stream.Stats()
		switch {
		case l.cur.Load() == relayed:
			direct = false
		case !direct:
			direct, before = true, stats
		case stats.BytesUnacknowledged == 0 || stats.Timeouts == before.Timeouts:
			return nil
		default:
			l.log.Info("direct path does not answer, back to the relay")
			l.backToRelay(relayed)
			direct = false
		}
	}
}

// useRelay returns a connection to the relay, which is to be given back to leaveRelay.
func (h *Host) useRelay(ctx context.Context, via key.Public) (*relayConn, error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, ErrClosed
	}
	c := h.relayConns[via]
	switch {
	case c != nil && !c.broken():
	case c == nil && len(h.relayConns) >= maxRelayConns:
		h.mu.Unlock()
		return nil, errRelays
	default:
		c = &relayConn{via: via, ready: make(chan struct{})}
		h.relayConns[via] = c
		h.wg.Go(func() { h.connectRelay(c) })
	}
	c.users++
	h.mu.Unlock()
	select {
	case <-c.ready:
	case <-ctx.Done():
		h.leaveRelay(c)
		return nil, context.Cause(ctx)
	}
	if c.err != nil {
		h.leaveRelay(c)
		return nil, c.err
	}
	return c, nil
}

// broken reports whether the connection is of no use any more.
func (c *relayConn) broken() bool {
	return isClosed(c.ready) && (c.err != nil || isClosed(c.client.Done()))
}

// connectRelay connects to the relay, and sees to it that the connection is closed when nobody needs it any more.
func (h *Host) connectRelay(c *relayConn) {
	ctx, cancel := context.WithTimeout(h.ctx, relayTimeout)
	l, err := h.dial(ctx, dialing{local: h.cfg.Identity, remote: c.via, direct: true})
	cancel()
	if err == nil {
		c.link = l
		c.mux = protomux.New(l.secure.Load(), protomux.Config{Protocols: []string{relay.Protocol}})
		if c.client, err = relay.NewClient(c.mux, h.cfg.Identity.Public()); err != nil {
			err = errors.Join(err, c.mux.Close())
		}
	}
	c.err = err
	if err == nil {
		h.mu.Lock()
		delete(h.badRelays, c.via)
		h.mu.Unlock()
	}
	close(c.ready)
	if err == nil {
		h.holdRelay(c)
	}
	h.mu.Lock()
	if h.relayConns[c.via] == c {
		delete(h.relayConns, c.via)
	}
	if h.ctx.Err() == nil && (err != nil || c.users > 0) {
		h.avoidRelayLocked(c.via)
	}
	h.mu.Unlock()
	if err == nil {
		_ = errors.Join(c.client.Close(), c.mux.Close()) // the client's own error is what counted
	}
}

// avoidRelayLocked notes that a relay has failed. h.mu is held.
func (h *Host) avoidRelayLocked(via key.Public) {
	now := time.Now()
	maps.DeleteFunc(h.badRelays, func(_ key.Public, at time.Time) bool { return now.Sub(at) >= relayAvoid })
	h.badRelays[via] = now
}

// holdRelay waits until the connection has ended or has not been used for a while.
func (h *Host) holdRelay(c *relayConn) {
	ticker := time.NewTicker(relayLinger / 4)
	defer ticker.Stop()
	for {
		select {
		case <-c.client.Done():
			return
		case <-h.ctx.Done():
			return
		case now := <-ticker.C:
			h.mu.Lock()
			unused := c.users == 0 && now.Sub(c.idle) >= relayLinger
			if unused && h.relayConns[c.via] == c {
				delete(h.relayConns, c.via) // from here on nobody finds it
			}
			h.mu.Unlock()
			if unused {
				return
			}
		}
	}
}

// distrustRelay sees to it that the next pairing goes over another connection to the relay. Over this one it has not answered: it may
// have been none when we connected.
func (h *Host) distrustRelay(c *relayConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.relayConns[c.via] == c {
		delete(h.relayConns, c.via)
	}
}

func (h *Host) leaveRelay(c *relayConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.users--; c.users == 0 {
		c.idle = time.Now()
	}
}

// relaySocket is a relayed path in the shape of a [Socket]: datagrams of a tunnel, and packets of its control stream, travel in
// unordered messages of a UDX stream that the relay passes on. There is one address to send to, the relay's.
type relaySocket struct {
	host   *Host
	link   *link
	via    key.Public
	stream *udx.Stream // receives, and tells the relay where we are
	path   *relay.Path // sends
	under  Socket      // that it goes through
	local  netip.AddrPort
	remote netip.AddrPort
}

// pair meets the peer and connects the stream.
func (s *relaySocket) pair(ctx context.Context, m *relayed, c *relayConn) error {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	id, err := c.client.Pair(ctx, m.initiator, m.token, s.stream.ID())
	if err != nil {
		return err
	}
	c.paired.Store(true)
	r := c.link.cur.Load()
	s.under, s.local, s.remote = r.sock, r.sock.LocalAddr(), r.remote
	s.path = relay.NewPath(r.sock, r.remote, id)
	if err := s.stream.Connect(r.sock, r.remote, id); err != nil {
		return err
	}
	return s.stream.Heartbeat() // the relay delivers nothing to us before it has heard us
}

// receive takes a message of the stream. Nothing about it is authentic yet.
func (s *relaySocket) receive(_ udx.Socket, _ netip.AddrPort, b []byte) {
	if h, _, err := udx.ParseHeader(b); err == nil && h.ID == s.link.stream.ID() {
		s.host.mux.Receive(s, b, s.remote)
		return
	}
	if !tunnel.IsDatagram(b) {
		s.host.dropped.Add(1)
		return
	}
	in := relayInbound.Get().(*inbound)
	defer relayInbound.Put(in)
	in.host = s.host
	s.host.dispatch(s, b, s.remote, in, time.Now())
	in.end()
	in.host, in.peer = nil, nil
}

var relayInbound = sync.Pool{New: func() any { return new(inbound) }}

func (s *relaySocket) Send(b []byte, to netip.AddrPort) error { return s.path.Send(b, to) }

func (s *relaySocket) SendTTL(b []byte, to netip.AddrPort, _ int) error { return s.Send(b, to) }

func (s *relaySocket) SendBatch(b [][]byte, to netip.AddrPort) error { return s.path.SendBatch(b, to) }

func (s *relaySocket) LocalAddr() netip.AddrPort { return s.local }

// Receive is never called: messages come to receive.
func (s *relaySocket) Receive() (Batch, error) { return nil, net.ErrClosed }

func (s *relaySocket) Close() error {
	s.stream.Reset(nil)
	return nil
}

// stopRelaying ends what is relayed for a key.
func (h *Host) stopRelaying(k key.Public) {
	h.streams.Range(func(v, _ any) bool {
		if l := v.(*link); l.remote == k && l.relaying.Load() {
			l.close(ErrRemoved)
		}
		return true
	})
}

// serveRelay is the goroutine that relays for one client, over a stream that it has opened to us.
func (h *Host) serveRelay(s *relay.Server, l *link, conn *secretstream.Conn) {
	mux := protomux.New(conn, protomux.Config{Protocols: []string{relay.Protocol}})
	err := s.Serve(h.ctx, mux, relay.Control{
		Key: l.remote,
		Path: func() (udx.Socket, netip.Addr) {
			r := l.cur.Load()
			return r.sock, r.remote.Addr()
		},
	})
	l.log.Debug("relay client left", "error", err)
	_ = mux.Close() // what counts is err
}

// newRelayServer makes the Host a relay.
func (h *Host) newRelayServer(cfg relay.Config) *relay.Server {
	if cfg.Logger == nil {
		cfg.Logger = h.log
	}
	cfg.Reserve = func() (udx.ID, func(), error) {
		s, err := h.mux.NewStream(udx.StreamConfig{})
		if err != nil {
			return 0, nil, err
		}
		return s.ID(), func() { s.Reset(nil) }, nil
	}
	return relay.NewServer(cfg)
}

// SetRelay makes the Host a relay, as [Config].Relay does, or with nil ends what it relays. Peers are told. A relay that there is
// goes on as it is. It waits for the goroutines of one that ends.
func (h *Host) SetRelay(cfg *relay.Config) {
	h.mu.Lock()
	old := h.relayServer.Load()
	var next *relay.Server
	if cfg != nil && old == nil && !h.closed {
		next = h.newRelayServer(*cfg)
	}
	if h.closed || (cfg != nil) == (old != nil) {
		h.mu.Unlock()
		return
	}
	h.relayServer.Store(next)
	h.mu.Unlock()
	if old != nil {
		_ = old.Close() // always nil
	}
	h.announceChanges()
}

// RelayStats returns the counters of the relay. It reports false if the Host is none.
func (h *Host) RelayStats() (relay.Stats, bool) {
	s := h.relayServer.Load()
	if s == nil {
		return relay.Stats{}, false
	}
	return s.Stats(), true
}
