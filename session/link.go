package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht/compact"
	"omegatun/dht/key"
	"omegatun/punch"
	"omegatun/session/noise"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

// Times of a link's life. See DESIGN in ARCHITECTURE.md, "Paths".
const (
	probesToOpen  = 60              // probes of one candidate while a link opens: about 14 s
	probesUnheard = 12              // probes by a responder that has not heard the initiator: about 2.5 s
	probesToCheck = 8               // probes of an address that the peer was heard from: about 1 s
	probeEvery    = 3 * time.Second // on a path with traffic
	probeSpare    = 2 * time.Second // … if there is a relayed path to fall back to
	deadRelay     = 3 * time.Second // as deadAfter, of a relayed path
	hurryEvery    = 1 * time.Second // once a probe has not been answered
	deadAfter     = 6500 * time.Millisecond
	deadSoon      = 1500 * time.Millisecond // the same where another link works, or a relay
	deadChecked   = 1 * time.Second         // the same where there is a reason to doubt, and several probes are sent
	doubtAfter    = 600 * time.Millisecond  // of silence in a conversation
	keepAlive     = 25 * time.Second        // between probes of an idle path: NAT mappings live 30 s and more
	trafficWindow = 10 * time.Second        // a path has traffic if data went either way within it
	streamLinger  = 5 * time.Second         // how long the socket of a stream is kept after it ended
	giveUpAfter   = 90 * time.Second        // without anything authentic a link is forgotten
	overdueAfter  = 140 * time.Second       // age of keys at which the initiator makes another link: rekeying has failed
	overdueMargin = 15 * time.Second        // how much later the responder does
)

// link is one completed handshake: its keys, its tunnel, its stream, and the paths they use. A link is
// made by Host.dial or by a Listener and lives until close.
//
//	opening ──a probe is answered──▶ up ──6.5 s of silence──▶ suspect ──heard again──▶ up
//	   └──────────────── close ───────┴───────────────────────────┴──────▶ closed
//
// A link that carries a plain stream has no tunnel: it is up when its stream has heard the peer.
type link struct {
	host      *Host
	log       *slog.Logger
	local     key.Public
	remote    key.Public
	initiator bool
	began     time.Time // message 1 was sent, or received
	account   *account
	result    noise.Result

	epoch   *tunnel.Session // nil: the two did not agree on a tunnel
	index   uint32          // names the tunnel in the first datagrams to us, and the link among all; 0 without one
	control atomic.Pointer[control]

	stream   *udx.Stream
	secure   atomic.Pointer[secretstream.Conn] // on top of stream, once it is connected
	remoteID udx.ID
	framed   bool // the remote stream id is known; guarded by mu

	peer atomic.Pointer[Peer]  // set when the link belongs to a Peer
	cur  atomic.Pointer[route] // where datagrams go; nil while opening

	heard    atomic.Int64 // Unix nanoseconds of the last authentic datagram
	received atomic.Int64 // … of the last IP packet from the peer
	sent     atomic.Int64 // … of the last IP packets to the peer

	up   chan struct{} // closed when the link is up
	done chan struct{} // closed by close

	direct chan struct{} // closed when a path is in use that is not relayed

	mu         sync.Mutex // guards the fields below; taken after Peer.mu; nothing is sent or called under it
	prober     prober
	controlled bool   // startControl was called
	checked    bool   // several probes have been sent since unheard, because there is a reason to doubt
	stale      bool   // the control stream has ended, or keys are overdue: another link should take the place of this one
	early      *route // where the stream was heard before the remote id was known
	isUp       bool
	upAt       time.Time
	closed     bool
	err        error
	lastProbe  time.Time // of the path in use
	unheard    time.Time // first probe of the path in use since which nothing was heard; zero: none
	suspect    bool
	retireAt   time.Time            // a better link replaced this one; zero: none did
	owned      []Socket             // closed with the link
	waiting    map[uint64]chan Pong // by probe id; each channel has room for the answer
	wake       chan struct{}        // capacity 1: the opening goroutine looks again
}

func (h *Host) newLink(local, remote key.Public, initiator bool, began time.Time) *link {
	return &link{
		host: h, local: local, remote: remote, initiator: initiator, began: began,
		log:     h.log.With("peer", remote.Short()),
		account: newAccount(began, !initiator),
		up:      make(chan struct{}),
		done:    make(chan struct{}),

		direct: make(chan struct{}),
		wake:   make(chan struct{}, 1),
	}
}

// startTunnel makes the tunnel that both sides offered.
func (l *link) startTunnel(ours, theirs tunnel.Offer) error {
	params, err := tunnel.Negotiate(ours, theirs)
	if err != nil {
		return err
	}
	res := &l.result
	if l.epoch, err = tunnel.NewSession(params, l.initiator, res.Tx, res.Rx, res.Hash, time.Now()); err != nil {
		return err
	}
	l.host.links.Store(l.index, l) // from here on datagrams come in
	return nil
}

// reserveIndex draws an unused receiver index. Datagrams that carry it come to nobody before startTunnel.
func (h *Host) reserveIndex() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:]) // never fails
		if i := binary.LittleEndian.Uint32(b[:]); i != 0 {
			if _, taken := h.links.LoadOrStore(i, (*link)(nil)); !taken {
				return i
			}
		}
	}
}

// settle waits a moment for the candidates of an attempt that has ended, as their sockets are about to close.
func (l *link) settle() {
	timer := time.NewTimer(lastChance)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.up:
	case <-l.done:
	}
}

// keepSockets takes over those sockets of a punching attempt on which the peer has been heard, or over which the
// stream runs. The candidates of all others are forgotten.
func (l *link) keepSockets() []punch.Socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	cur := l.cur.Load()
	var keep []punch.Socket
	for _, c := range slices.Clone(l.prober.cands) {
		s := c.route.sock
		switch {
		case l.host.isMain(s) || slices.Contains(l.owned, s) || c.route.kind == PathRelay:
		case c.route.heard.Load() != 0 || cur != nil && cur.sock == s:
			keep = append(keep, s)
			l.owned = append(l.owned, s)
		}
	}
	if cur != nil && cur.kind != PathRelay && !l.host.isMain(cur.sock) && !slices.Contains(l.owned, cur.sock) { // a stream has no candidates
		keep = append(keep, cur.sock)
		l.owned = append(l.owned, cur.sock)
	}
	l.prober.cands = slices.DeleteFunc(l.prober.cands, func(c *candidate) bool {
		s := c.route.sock
		return !l.host.isMain(s) && !slices.Contains(l.owned, s) && c.route.kind != PathRelay
	})
	for _, s := range l.owned {
		useBulk(s)
	}
	return keep
}

// offer makes the address a candidate for a path. It is what every way of finding one ends in: the
// handshake, the local network, hole punching, and datagrams from unexpected places.
func (l *link) offer(sock Socket, remote netip.AddrPort, kind PathKind) {
	if !remote.IsValid() || remote.Port() == 0 || l.host.avoid(remote.Addr()) {
		return
	}
	if l.epoch == nil {
		l.offerStream(sock, remote, kind)
		return
	}
	l.mu.Lock()
	n := probesToOpen
	switch {
	case l.isUp:
		n = probesToCheck
	case !l.epoch.Confirmed():
		n = probesUnheard
	}
	if !l.closed {
		l.prober.add(sock, remote, kind, n, time.Now())
	}
	l.mu.Unlock()
	l.poke()
}

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

// noteDirectLocked notes that r is in use. l.mu is held.
func (l *link) noteDirectLocked(r *route) {
	if r.kind != PathRelay && !isClosed(l.direct) {
		close(l.direct)
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

// dropSocket forgets the paths of a relayed socket, which is about to close.
func (l *link) dropSocket(s Socket) {
	now := time.Now()
	l.mu.Lock()
	l.prober.remove(s)
	r := l.cur.Load()
	lost := r != nil && r.sock == s && l.isUp && !l.closed
	if lost {
		l.suspect, l.unheard = true, now
		l.prober.wake(probesToOpen, now)
	}
	l.mu.Unlock()
	if lost {
		l.sendProbes(now)
		l.host.linkLost(l)
	}
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
		select {
		case <-l.stream.Done():
		case <-l.done:
			return
		}
		if l.stream.Err() == nil { // our last acknowledgement may be lost, and the peer's last packet come again
			select {
			case <-time.After(streamLinger):
			case <-l.done:
			case <-l.host.ctx.Done():
			}
		}
		l.close(cmp.Or(l.stream.Err(), net.ErrClosed))
	})
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
	l.offerStream(sock, from, kindOf(from.Addr()))
	return true
}

// kindOf guesses the kind of a path from the peer's address.
func kindOf(a netip.Addr) PathKind {
	if punch.IsPrivate(a) {
		return PathLAN
	}
	return PathDirect
}

// kindOver is kindOf where the path may be a relayed one.
func kindOver(s Socket, a netip.Addr) PathKind {
	if _, ok := s.(*relaySocket); ok {
		return PathRelay
	}
	return kindOf(a)
}

// poke makes the opening goroutine look at the candidates again.
func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// open probes candidates until one answers, the link closes or ctx ends. It returns nil once the link is up.
func (l *link) open(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next := l.sendProbes(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-l.up:
			return nil
		case <-l.done:
			return l.cause()
		case <-ctx.Done():
			if isClosed(l.up) { // a result that is there counts
				return nil
			}
			return context.Cause(ctx)
		case <-l.wake:
		case <-timer.C:
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// sendProbes sends the probes that are due and returns when the next ones are.
func (l *link) sendProbes(now time.Time) time.Time {
	l.mu.Lock()
	due, next := l.prober.advance(now)
	l.mu.Unlock()
	for _, p := range due {
		l.ping(p)
	}
	return next
}

// ping sends one probe. On the path in use it also tells the peer where to send.
func (l *link) ping(p probe) {
	kind := tunnel.PathProbe
	if l.cur.Load() == p.route {
		kind = tunnel.Ping
	}
	l.sendControl(p.route, tunnel.Control{Kind: kind, ID: p.id})
}

// sendControl sends one control datagram along r.
func (l *link) sendControl(r *route, c tunnel.Control) {
	plain := c.Append(make([]byte, 0, 64))
	b, err := l.epoch.Seal(make([]byte, 0, len(plain)+tunnel.Overhead), plain)
	if err == nil {
		err = r.sock.Send(b, r.remote)
	}
	if err != nil {
		l.log.Debug("control datagram not sent", "remote", r.remote, "error", err)
	}
}

// send seals the IP packets that next returns, as [Peer.SendFrom] says, and sends them on the path in use.
func (l *link) send(next func(offset int, finish bool) (b []byte, unfinished bool)) (packets, size int, err error) {
	r := l.cur.Load()
	if r == nil {
		return 0, 0, ErrNotConnected
	}
	t := trains.Get().(*train)
	defer trains.Put(t)
	l.sent.Store(time.Now().UnixNano())
	finish := l.epoch.Params().RemoteFeatures&tunnel.FeatureUnfinished == 0
	for more := true; more; {
		n, bytes, err := t.fill(l.epoch, next, finish)
		more = n > 0 && err == nil
		if len(t.datagrams) > 0 {
			err = errors.Join(err, r.sock.SendBatch(t.datagrams, r.remote))
		}
		packets, size = packets+n, size+bytes
		if err != nil {
			return packets, size, err
		}
	}
	return packets, size, nil
}

// train is the room in which a batch of packets is sealed, one behind the other. It has a fixed size, so that it stays
// in the processor's cache, and is sent when it is full.
type train struct {
	arena     []byte
	datagrams [][]byte
	sealer    tunnel.Sealer
}

const (
	trainSize    = 128 << 10 // bytes of datagrams; two trains as the kernel takes them
	trainPackets = 128
)

var trains = sync.Pool{New: func() any { return new(train) }}

// fill seals packets until the train is full or there are no more. It returns how many, and their bytes.
func (t *train) fill(s *tunnel.Session, next func(int, bool) ([]byte, bool), finish bool) (packets, size int, err error) {
	const offset = tunnel.UnfinishedHeader
	if t.arena == nil {
		t.arena = make([]byte, 0, trainSize+maxDatagram)
	}
	t.arena, t.datagrams = t.arena[:0], t.datagrams[:0]
	if err := s.Begin(&t.sealer); err != nil {
		return 0, 0, err
	}
	defer t.sealer.End()
	for len(t.arena) < trainSize && len(t.datagrams) < trainPackets {
		b, unfinished := next(offset, finish)
		if b == nil {
			break
		}
		plain := b[offset:]
		packets++
		size += len(plain)
		if unfinished {
			tunnel.AppendUnfinished(b[:0])
			plain = b
		}
		start := len(t.arena)
		if t.arena, err = t.sealer.Seal(t.arena, plain); err != nil {
			return packets, size, err
		}
		t.datagrams = append(t.datagrams, t.arena[start:])
	}
	return packets, size, nil
}

// maxDatagram is more than the largest datagram that can be sealed.
const maxDatagram = 65535 + tunnel.Overhead + tunnel.UnfinishedHeader

// authentic notes that a datagram from (sock, from) passed authentication at now. It returns quickly for
// the path in use and makes any other source a candidate.
func (l *link) authentic(sock Socket, from netip.AddrPort, now time.Time) {
	l.heard.Store(now.UnixNano())
	if r := l.cur.Load(); r != nil && r.is(sock, from) {
		r.heard.Store(now.UnixNano())
		return
	}
	l.mu.Lock()
	known := l.prober.heard(sock, from, probesToCheck, now)
	l.mu.Unlock()
	if !known {
		l.offer(sock, from, kindOver(sock, from.Addr()))
	}
	if isClosed(l.up) {
		l.sendProbes(now) // the peer has moved: find out at once
	} else {
		l.poke()
	}
}

// handleControl acts on an authentic control datagram.
func (l *link) handleControl(sock Socket, from netip.AddrPort, b []byte, now time.Time) {
	c, err := tunnel.ParseControl(b)
	if err != nil {
		l.log.Debug("control datagram refused", "error", err)
		return
	}
	switch c.Kind {
	case tunnel.Ping, tunnel.PathProbe:
		pong := tunnel.Control{Kind: tunnel.Pong, ID: c.ID, Time: c.Time, Observed: from}
		if kindOver(sock, from.Addr()) == PathRelay {
			pong.Observed = netip.AddrPort{}
		}
		l.sendControl(&route{sock: sock, remote: from}, pong)
	case tunnel.Pong:
		l.handlePong(sock, from, c, now)
	case tunnel.Close:
		l.close(fmt.Errorf("%w: %v", ErrPeerClosed, c.Code))
	default: // a kind of a later version, or a keepalive: it has been noted as authentic
	}
}

func (l *link) handlePong(sock Socket, from netip.AddrPort, c tunnel.Control, now time.Time) {
	l.mu.Lock()
	cand, sentAt := l.prober.pong(c.ID)
	if cand == nil || l.closed {
		l.mu.Unlock()
		return
	}
	r := cand.route
	if !r.is(sock, from) { // answered along another path: proves nothing about this one
		l.mu.Unlock()
		return
	}
	rtt := now.Sub(sentAt)
	r.rtt.Store(int64(rtt))
	r.heard.Store(now.UnixNano())
	cur := l.cur.Load()
	change := betterRoute(cur, r, l.suspect, sentAt, now)
	if change && !l.suspect && now.Before(cand.bar) {
		change = false
	}
	if change {
		l.cur.Store(r)
		l.lastProbe = now
	}
	if change || r == cur {
		l.unheard, l.suspect, l.checked = time.Time{}, false, false
		l.noteDirectLocked(r)
	}
	first := !l.isUp
	if first {
		l.isUp, l.upAt = true, now
		close(l.up)
	}
	waiter := l.waiting[c.ID]
	delete(l.waiting, c.ID)
	l.mu.Unlock()

	if waiter != nil {
		waiter <- Pong{RTT: rtt, Path: r.path()}
	}
	switch {
	case first:
		l.account.connected(r.path(), rtt)
		l.log.Info("connected", "path", r.kind.String(), "remote", r.remote, "rtt", rtt)
		l.host.linkUp(l)
		l.startControl(r)
	case change:
		l.account.connected(r.path(), rtt)
		l.moveControl(r)
		l.log.Info("path changed", "path", r.kind.String(), "remote", r.remote, "rtt", rtt)
		l.host.pathChanged(l)
	}
}

// pingWait sends one probe on the path in use and waits for its answer.
func (l *link) pingWait(ctx context.Context) (Pong, error) {
	r := l.cur.Load()
	if r == nil {
		return Pong{}, ErrNotConnected
	}
	answer := make(chan Pong, 1)
	l.mu.Lock()
	c := l.prober.add(r.sock, r.remote, r.kind, 1, time.Now())
	if l.closed || c == nil {
		l.mu.Unlock()
		return Pong{}, ErrNotConnected
	}
	c.next = time.Time{} // this one ping is all
	p := l.prober.ping(c, time.Now())
	if l.waiting == nil {
		l.waiting = make(map[uint64]chan Pong)
	}
	l.waiting[p.id] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, p.id)
		l.mu.Unlock()
	}()
	l.ping(p)
	select {
	case pong := <-answer:
		return pong, nil
	case <-l.done:
		return Pong{}, l.cause()
	case <-ctx.Done():
		return Pong{}, context.Cause(ctx)
	}
}

// rtt returns the round trip of the path in use; 0 while not measured.
func (l *link) rtt() time.Duration {
	if r := l.cur.Load(); r != nil {
		return time.Duration(r.rtt.Load())
	}
	return 0
}

// openedAt returns when the link came up.
func (l *link) openedAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upAt
}

// suite names the tunnel's cipher.
func (l *link) suite() string {
	if l.epoch == nil {
		return ""
	}
	return l.epoch.Suite().String()
}

// failed notes that the tunnel cannot seal or send any more.
func (l *link) failed(err error) {
	if errors.Is(err, tunnel.ErrExhausted) {
		l.close(err)
	}
}

// streamUp makes a link without a tunnel up: its stream has heard the peer.
func (l *link) streamUp() {
	l.mu.Lock()
	first := !l.isUp && !l.closed
	if first {
		l.isUp, l.upAt = true, time.Now()
		close(l.up)
		l.noteDirectLocked(l.cur.Load())
	}
	l.mu.Unlock()
}

// maintain keeps a link that is up alive: it probes the path in use, notices silence and tries the other
// addresses. The Host calls it about twice a second.
func (l *link) maintain(now time.Time) {
	r := l.cur.Load()
	if r == nil || l.epoch == nil {
		return
	}
	var due []probe
	var lost, close bool
	l.mu.Lock()
	heard := time.Unix(0, r.heard.Load())
	if !l.unheard.IsZero() && heard.After(l.unheard) {
		l.unheard, l.suspect, l.checked = time.Time{}, false, false
	}
	l.prober.refresh(r, now)
	spare := l.prober.spare(r, now)
	every := keepAlive
	switch {
	case l.busy(now) && spare:
		every = probeSpare
	case l.busy(now):
		every = probeEvery
	}
	if !l.unheard.IsZero() {
		every = hurryEvery
	}
	if !l.checked && l.doubtful(r, now) {
		l.prober.add(r.sock, r.remote, r.kind, 4, now)
		l.unheard, l.checked, l.lastProbe = now, true, now
	}
	quiet := now.Sub(heard) >= every || every != keepAlive
	if quiet && now.Sub(l.lastProbe) >= every {
		if c := l.prober.add(r.sock, r.remote, r.kind, 1, now); c != nil {
			c.next = time.Time{} // this one ping is all
			due = append(due, l.prober.ping(c, now))
		}
		l.lastProbe = now
		if l.unheard.IsZero() {
			l.unheard = now
		}
	}
	dead := deadAfter
	if r.kind == PathRelay {
		dead = deadRelay
	}
	if l.checked {
		dead = max(deadChecked, 4*time.Duration(r.rtt.Load()))
	} else if p := l.peer.Load(); spare || p != nil && p.alternatives.Load() > 0 {
		dead = deadSoon
	}
	if !l.unheard.IsZero() && now.Sub(l.unheard) >= dead && !l.suspect {
		l.suspect, lost = true, true
		l.prober.fail(r, now)
	}
	if l.suspect && now.Sub(time.Unix(0, l.heard.Load())) > giveUpAfter || !l.retireAt.IsZero() && now.After(l.retireAt) {
		close = true
	}
	more, _ := l.prober.advance(now)
	due = append(due, more...)
	l.mu.Unlock()

	alive := l.maintainKeys(now)

	for _, p := range due {
		l.ping(p)
	}
	if lost {
		l.account.step(StagePath, "%v does not answer any more", r.remote)
		l.log.Info("path silent, trying others", "remote", r.remote)
		l.host.linkLost(l)
	}
	switch {
	case !alive:
		l.close(ErrKeysExpired)
	case close:
		l.close(ErrNotConnected)
	}
}

// maintainKeys asks for new keys in time and destroys old ones. It reports whether there are any left.
func (l *link) maintainKeys(now time.Time) (alive bool) {
	gone, alive := l.epoch.Expire(now)
	for _, index := range gone {
		if index != l.index {
			l.host.links.Delete(index)
		}
	}
	l.rekey(now)
	_, age := l.epoch.Number(now)
	limit := overdueAfter
	if !l.initiator {
		limit += overdueMargin
	}
	if age > limit {
		l.mu.Lock()
		l.stale = true
		l.mu.Unlock()
		l.host.renew(l)
	}
	return alive
}

// doubtful reports whether packets went both ways over r until a moment ago, and now only ours do.
func (l *link) doubtful(r *route, now time.Time) bool {
	heard := r.heard.Load()
	limit := max(doubtAfter, 3*time.Duration(r.rtt.Load()))
	return now.Sub(time.Unix(0, l.received.Load())) < 3*time.Second &&
		now.Sub(time.Unix(0, heard)) >= limit && time.Duration(l.sent.Load()-heard) >= limit/2
}

// busy reports whether data went either way lately.
func (l *link) busy(now time.Time) bool {
	return now.Sub(time.Unix(0, max(l.sent.Load(), l.received.Load()))) < trafficWindow
}

// check makes maintain probe everything at once: the network has changed.
func (l *link) check(now time.Time) {
	l.mu.Lock()
	l.prober.wake(probesToCheck, now)
	if l.checked = true; l.unheard.IsZero() {
		l.unheard = now
	}
	l.mu.Unlock()
	l.sendProbes(now)
}

// sound reports whether the link is healthy and will stay so.
func (l *link) sound() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isUp && !l.closed && !l.suspect && !l.stale
}

// healthy reports whether the link is up and its path answers.
func (l *link) healthy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isUp && !l.closed && !l.suspect
}

func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// goodbye tells the peer that we close, so that it need not find out by silence.
func (l *link) goodbye(code tunnel.CloseCode) {
	if c := l.control.Load(); c != nil {
		c.send(messageGoodbye, compact.AppendUint(nil, uint64(code)))
	}
	if r := l.cur.Load(); r != nil && l.epoch != nil {
		l.sendControl(r, tunnel.Control{Kind: tunnel.Close, Code: code})
	}
}

// close ends the link and everything it owns. It may be called more than once; the first cause is kept.
func (l *link) close(cause error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed, l.err = true, cause
	l.account.failed(cause)
	owned := l.owned
	l.owned = nil
	close(l.done)
	l.mu.Unlock()

	if l.index != 0 {
		l.host.links.Delete(l.index)
	}
	if l.epoch != nil {
		for _, index := range l.epoch.Indexes() {
			l.host.links.Delete(index)
		}
	}
	if l.stream != nil && !isClosed(l.stream.Done()) { // what a finished stream has received can still be read
		l.stream.Reset(cause)
	}
	for _, s := range owned {
		if err := s.Close(); err != nil {
			l.log.Debug("socket not closed", "error", err)
		}
	}
	if l.epoch != nil {
		l.epoch.Close()
	}
	l.host.linkClosed(l)
}
