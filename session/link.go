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
	hurryEvery    = 1 * time.Second // once a probe has not been answered
	deadAfter     = 6500 * time.Millisecond
	deadBeside    = 1500 * time.Millisecond // the same where another link to the peer works
	keepAlive     = 25 * time.Second        // between probes of an idle path: NAT mappings live 30 s and more
	trafficWindow = 10 * time.Second        // a path has traffic if data went either way within it
	streamLinger  = 5 * time.Second         // how long the socket of a stream is kept after it ended
	giveUpAfter   = 90 * time.Second        // without anything authentic a link is forgotten
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
	result    noise.Result

	epoch *tunnel.Epoch // nil: the two did not agree on a tunnel
	index uint32        // names the tunnel in datagrams to us; 0 without one

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

	mu        sync.Mutex // guards the fields below; taken after Peer.mu; nothing is sent or called under it
	prober    prober
	early     *route // where the stream was heard before the remote id was known
	isUp      bool
	upAt      time.Time
	closed    bool
	err       error
	lastProbe time.Time // of the path in use
	unheard   time.Time // first probe of the path in use since which nothing was heard; zero: none
	suspect   bool
	retireAt  time.Time            // a better link replaced this one; zero: none did
	owned     []Socket             // closed with the link
	waiting   map[uint64]chan Pong // by probe id; each channel has room for the answer
	wake      chan struct{}        // capacity 1: the opening goroutine looks again
}

func (h *Host) newLink(local, remote key.Public, initiator bool, began time.Time) *link {
	return &link{
		host: h, local: local, remote: remote, initiator: initiator, began: began,
		log:  h.log.With("peer", remote.Short()),
		up:   make(chan struct{}),
		done: make(chan struct{}),
		wake: make(chan struct{}, 1),
	}
}

// startTunnel makes the tunnel that both sides offered.
func (l *link) startTunnel(ours, theirs tunnel.Offer) error {
	params, err := tunnel.Negotiate(ours, theirs)
	if err != nil {
		return err
	}
	if l.epoch, err = tunnel.NewEpoch(params, l.initiator, l.result.Tx, l.result.Rx, l.result.Hash); err != nil {
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
		case l.host.isMain(s) || slices.Contains(l.owned, s):
		case c.route.heard.Load() != 0 || cur != nil && cur.sock == s:
			keep = append(keep, s)
			l.owned = append(l.owned, s)
		}
	}
	if cur != nil && !l.host.isMain(cur.sock) && !slices.Contains(l.owned, cur.sock) { // a stream has no candidates
		keep = append(keep, cur.sock)
		l.owned = append(l.owned, cur.sock)
	}
	l.prober.cands = slices.DeleteFunc(l.prober.cands, func(c *candidate) bool {
		return !l.host.isMain(c.route.sock) && !slices.Contains(l.owned, c.route.sock)
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
	r := &route{sock: sock, remote: remote, kind: kind}
	l.mu.Lock()
	if l.closed || l.isUp {
		l.mu.Unlock()
		return
	}
	if !l.framed {
		l.early = r
		l.mu.Unlock()
		return
	}
	first := l.cur.Load() == nil
	l.cur.Store(r)
	l.mu.Unlock()
	var err error
	if first {
		err = l.stream.Connect(sock, remote, l.remoteID)
	} else {
		err = l.stream.ChangeRemote(sock, remote, l.remoteID)
	}
	if err != nil {
		l.log.Debug("stream refused a path", "remote", remote, "error", err)
		return
	}
	if first {
		l.secureStream()
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
		l.offerStream(early.sock, early.remote, early.kind)
	}
}

// acceptStream is the stream's hook for packets from a place it does not know.
func (l *link) acceptStream(s udx.Socket, from netip.AddrPort) bool {
	sock, ok := s.(Socket)
	if !ok || l.host.avoid(from.Addr()) || l.epoch != nil {
		return false
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
	l.control(p.route, tunnel.Control{Kind: kind, ID: p.id})
}

// control sends one control datagram along r.
func (l *link) control(r *route, c tunnel.Control) {
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
func (t *train) fill(e *tunnel.Epoch, next func(int, bool) ([]byte, bool), finish bool) (packets, size int, err error) {
	const offset = tunnel.UnfinishedHeader
	if t.arena == nil {
		t.arena = make([]byte, 0, trainSize+maxDatagram)
	}
	t.arena, t.datagrams = t.arena[:0], t.datagrams[:0]
	if err := t.sealer.Begin(e); err != nil {
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
	if known {
		l.poke()
		return
	}
	l.offer(sock, from, kindOf(from.Addr()))
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
		l.control(&route{sock: sock, remote: from}, tunnel.Control{Kind: tunnel.Pong, ID: c.ID, Observed: from})
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
	l.unheard = time.Time{}
	l.suspect = false
	cur := l.cur.Load()
	change := betterRoute(cur, r, sentAt, now)
	if change {
		l.cur.Store(r)
		l.lastProbe = now
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
		l.log.Info("connected", "path", r.kind.String(), "remote", r.remote, "rtt", rtt)
		l.host.linkUp(l)
	case change:
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
	heard := time.Unix(0, l.heard.Load())
	if !l.unheard.IsZero() && heard.After(l.unheard) {
		l.unheard, l.suspect = time.Time{}, false
	}
	every := keepAlive
	if now.Sub(time.Unix(0, max(l.sent.Load(), l.received.Load()))) < trafficWindow {
		every = probeEvery
	}
	if !l.unheard.IsZero() {
		every = hurryEvery
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
	if p := l.peer.Load(); p != nil && p.alternatives.Load() > 0 {
		dead = deadBeside
	}
	if !l.unheard.IsZero() && now.Sub(l.unheard) >= dead && !l.suspect {
		l.suspect, lost = true, true
		l.prober.wake(probesToOpen, now)
	}
	if l.suspect && now.Sub(heard) > giveUpAfter || !l.retireAt.IsZero() && now.After(l.retireAt) {
		close = true
	}
	more, _ := l.prober.advance(now)
	due = append(due, more...)
	l.mu.Unlock()

	for _, p := range due {
		l.ping(p)
	}
	if lost {
		l.log.Info("path silent, trying others", "remote", r.remote)
		l.host.linkLost(l)
	}
	if close {
		l.close(ErrNotConnected)
	}
}

// check makes maintain probe everything at once: the network has changed.
func (l *link) check(now time.Time) {
	l.mu.Lock()
	l.prober.wake(probesToCheck, now)
	if l.unheard.IsZero() {
		l.unheard = now
	}
	l.mu.Unlock()
	l.sendProbes(now)
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
	if r := l.cur.Load(); r != nil && l.epoch != nil {
		l.control(r, tunnel.Control{Kind: tunnel.Close, Code: code})
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
	owned := l.owned
	l.owned = nil
	close(l.done)
	l.mu.Unlock()

	if l.index != 0 {
		l.host.links.Delete(l.index)
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
