package session

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht/key"
	"omegatun/session/tunnel"
)

const (
	maxQueuedPackets = 256         // packets that wait for a path, per peer
	maxQueuedBytes   = 256 << 10   // … and their bytes
	maxQueueTime     = time.Minute // … and how long: who sent them has tried again by then, or given up

	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second
)

// PeerState says how a Peer is doing.
type PeerState uint8

// The states of a Peer.
const (
	PeerIdle       PeerState = iota // not connected, and nobody has asked for it
	PeerConnecting                  // being looked for, or waiting to try again
	PeerConnected                   // a path answers
	PeerSilent                      // the path in use has stopped answering, others are being tried
)

// String returns the word that status uses.
func (s PeerState) String() string {
	return [...]string{"idle", "connecting", "connected", "silent"}[s]
}

// Peer is a machine that packets go to and come from: one per remote key, however many times it connects.
// Its methods are safe for concurrent use.
type Peer struct {
	host  *Host
	key   key.Public
	added time.Time

	cur                atomic.Pointer[link] // what Send uses; nil while not connected
	alternatives       atomic.Int32         // links that are up beside one
	rxBytes, txBytes   atomic.Uint64        // of IP packets
	rxPackets          atomic.Uint64
	txPackets, txLost  atomic.Uint64
	rejected, replayed atomic.Uint64
	mtu                atomic.Int32 // see Peer.MTU

	mu        sync.Mutex // guards the fields below; taken before link.mu
	links     []*link    // that are up
	opening   []*link    // that are not, yet
	wanted    bool       // keep connected
	dialing   bool
	cancel    context.CancelCauseFunc // of the dial in progress
	lastErr   error
	since     time.Time // when the state last changed
	queue     []waitingPacket
	queued    int           // bytes in queue
	changed   chan struct{} // closed and replaced at every change of state
	removed   bool
	retry     chan struct{} // capacity 1: do not wait any longer before trying again
	connected int           // how many times
	attempts  []*account    // latest last
	announced Announced     // by the peer; slices are replaced, not changed
	neighbour neighbour     // where it was heard last on a local network
}

// waitingPacket is a packet that waits for a path.
type waitingPacket struct {
	b     []byte
	since time.Time
}

// AddPeer lists a peer: it may open tunnels to us, and [Peer.Send] may open one to it. Adding it again
// returns the same Peer.
func (h *Host) AddPeer(k key.Public) (*Peer, error) {
	if k.IsZero() {
		return nil, errors.New("session: a peer needs a key")
	}
	if k == h.cfg.Identity.Public() {
		return nil, errors.New("session: this is our own key")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if p := h.peers[k]; p != nil {
		return p, nil
	}
	p := &Peer{
		host: h, key: k, added: time.Now(), since: time.Now(),
		changed: make(chan struct{}), retry: make(chan struct{}, 1),
	}
	h.peers[k] = p
	h.lan.changed()
	return p, nil
}

// Peer returns the listed peer with that key, or nil.
func (h *Host) Peer(k key.Public) *Peer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[k]
}

// Peers returns the listed peers, ordered by key.
func (h *Host) Peers() []*Peer {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Peer, 0, len(h.peers))
	for _, p := range h.peers {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Peer) int { return a.key.Compare(b.key) })
	return list
}

// RemovePeer takes the peer off the list and ends its connections, and what the Host relays for it. Other streams that it has
// opened go on.
func (h *Host) RemovePeer(k key.Public) {
	h.mu.Lock()
	p := h.peers[k]
	delete(h.peers, k)
	h.mu.Unlock()
	h.lan.forget(k)
	if p != nil {
		p.remove(true)
		h.stopRelaying(k)
	}
}

// remove ends everything with the peer. It says goodbye if tell is set.
func (p *Peer) remove(tell bool) {
	p.mu.Lock()
	p.removed, p.wanted = true, false
	links := slices.Clone(p.links)
	cancel := p.cancel
	p.queue, p.queued = nil, 0
	p.mu.Unlock()
	if cancel != nil {
		cancel(ErrRemoved)
	}
	for _, l := range links {
		if tell {
			l.goodbye(tunnel.CloseNotAllowed)
		}
		l.close(ErrRemoved)
	}
}

// Key returns the peer's public key.
func (p *Peer) Key() key.Public { return p.key }

// Connect keeps the peer connected from now on: it is looked for until it is found, and again whenever the
// connection is lost. Connect does not block.
func (p *Peer) Connect() {
	p.mu.Lock()
	p.wanted = true
	p.mu.Unlock()
	p.dial()
}

// Expect is Connect without looking for the peer in the DHT: it is connected when it calls, or is heard on a local network.
func (p *Peer) Expect() {
	p.mu.Lock()
	p.wanted = true
	p.mu.Unlock()
}

// Disconnect ends the connection and stops looking for the peer. Packets for it, and its own calls, connect again.
func (p *Peer) Disconnect() {
	p.mu.Lock()
	p.wanted = false
	links := slices.Clone(p.links)
	cancel := p.cancel
	p.mu.Unlock()
	if cancel != nil {
		cancel(ErrNotConnected)
	}
	for _, l := range links {
		l.goodbye(tunnel.CloseIdle)
		l.close(ErrNotConnected)
	}
}

// Send seals IP packets and sends them to the peer. The packets are not kept. Without a connection, up to
// 256 packets wait for one that Send has started; the oldest give way. It does not block for long.
func (p *Peer) Send(packets [][]byte) error {
	var room [plaintextRoom + 1500]byte
	i := 0
	return p.SendFrom(func(offset int, _ bool) ([]byte, bool) {
		if i == len(packets) {
			return nil, false
		}
		i++
		return append(room[:offset], packets[i-1]...), false
	})
}

// SendFrom is Send for the packets that next returns: b[offset:] is a packet, valid until the next call; the bytes before
// it are SendFrom's to change. nil: there are no more. Unless finish is set, next may leave a packet's checksum of TCP
// or UDP unfinished, with only the sum of the pseudo-header in it, and says so. Nothing is kept, allocated or copied on
// the way, but for the packets that wait.
func (p *Peer) SendFrom(next func(offset int, finish bool) (b []byte, unfinished bool)) error {
	if l := p.cur.Load(); l != nil {
		return p.sendOver(l, next)
	}
	now := time.Now()
	p.mu.Lock()
	if l := p.cur.Load(); l != nil { // it came up while we waited for the lock, and has taken what was in the queue
		p.mu.Unlock()
		return p.sendOver(l, next)
	}
	for b, _ := next(0, true); b != nil; b, _ = next(0, true) {
		p.queue = append(p.queue, waitingPacket{bytes.Clone(b), now})
		p.queued += len(b)
	}
	p.trimQueueLocked(now)
	p.mu.Unlock()
	p.dial()
	return nil
}

// sendOver is SendFrom over a link that is up.
func (p *Peer) sendOver(l *link, next func(int, bool) ([]byte, bool)) error {
	packets, size, err := l.send(next)
	if err == nil {
		p.txPackets.Add(uint64(packets))
		p.txBytes.Add(uint64(size))
		return nil
	}
	for b, _ := next(0, false); b != nil; b, _ = next(0, false) {
		packets++
	}
	p.txLost.Add(uint64(packets))
	if !errors.Is(err, ErrNotConnected) {
		l.failed(err)
	}
	return err
}

// trimQueueLocked drops packets that wait too long, or are too many, the oldest first.
func (p *Peer) trimQueueLocked(now time.Time) {
	for len(p.queue) > maxQueuedPackets || p.queued > maxQueuedBytes ||
		len(p.queue) > 0 && now.Sub(p.queue[0].since) > maxQueueTime {
		p.queued -= len(p.queue[0].b)
		p.queue[0].b = nil
		p.queue = p.queue[1:]
		p.txLost.Add(1)
	}
}

// dial starts looking for the peer, unless that is going on or not needed.
func (p *Peer) dial() {
	p.mu.Lock()
	if p.dialing || p.removed || p.soundLocked() {
		p.mu.Unlock()
		p.hurry()
		return
	}
	ctx, cancel := context.WithCancelCause(p.host.ctx)
	p.dialing, p.cancel = true, cancel
	p.changeLocked()
	p.host.wg.Go(func() { // before Close can have removed the peer
		defer cancel(nil)
		p.dialUntilConnected(ctx)
	})
	p.mu.Unlock()
}

// hurry ends the pause between two attempts.
func (p *Peer) hurry() {
	select {
	case p.retry <- struct{}{}:
	default:
	}
}

// hurryPeers ends the pauses of all peers that are being looked for: something has changed by which they may be reached.
func (h *Host) hurryPeers() {
	for _, p := range h.Peers() {
		p.hurry()
	}
}

// dialOnce makes one attempt, when it is its turn. It returns nil once a link is up, which the peer has then.
func (p *Peer) dialOnce(ctx context.Context) error {
	h := p.host
	select {
	case h.dials <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-h.dials }()
	if ctx.Err() != nil { // both were possible
		return context.Cause(ctx)
	}
	if at, near := p.neighbourAddr(); near && p.dialNeighbour(ctx, at) == nil {
		return nil
	}
	_, err := h.dial(ctx, dialing{
		local: h.cfg.Identity, remote: p.key, tunnel: true, needless: p.sound,
	})
	return err
}

// dialUntilConnected dials until a link is up, the peer is no longer wanted, or ctx ends.
func (p *Peer) dialUntilConnected(ctx context.Context) {
	h := p.host
	wait := firstRetry
	for {
		if p.awaitIncoming(ctx) {
			p.dialEnded(nil)
			return
		}
		err := p.dialOnce(ctx)
		if err == nil {
			p.dialEnded(nil)
			return
		}
		p.mu.Lock()
		done := ctx.Err() != nil || p.soundLocked() || p.removed
		giveUp := !p.wanted && wait >= 8*time.Second
		if !done {
			p.lastErr = err
		}
		if giveUp {
			p.queue, p.queued = nil, 0
		}
		p.trimQueueLocked(time.Now())
		p.mu.Unlock()
		if done || giveUp {
			p.dialEnded(err)
			return
		}
		h.event(PeerEvent{Peer: p, Err: err})
		pause := wait/2 + rand.N(wait)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.retry:
		case <-ctx.Done():
		}
		timer.Stop()
		wait = min(2*wait, maxRetry)
	}
}

// dialEnded notes that nobody is dialling any more. Whoever asked meanwhile asks again.
func (p *Peer) dialEnded(err error) {
	p.mu.Lock()
	p.dialing, p.cancel = false, nil
	again := p.wanted && err != nil && !p.removed && !p.soundLocked() && p.host.ctx.Err() == nil
	p.changeLocked()
	p.mu.Unlock()
	if again {
		p.dial()
	}
}

// sound reports whether the peer has a connection that works and will go on working.
func (p *Peer) sound() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.soundLocked()
}

func (p *Peer) soundLocked() bool {
	return slices.ContainsFunc(p.links, (*link).sound)
}

// heardOf notes what the peer announces, all of it or changes, and returns all that is known now.
func (p *Peer) heardOf(b []byte, all bool) (Announced, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.announced
	if all {
		a = Announced{}
	}
	err := a.update(b)
	if err == nil {
		p.announced = a
	}
	return a, err
}

// endpoints returns the addresses that the peer has announced.
func (p *Peer) endpoints() []Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.announced.Endpoints
}

// changeLocked wakes those who wait for a change of state. p.mu is held.
func (p *Peer) changeLocked() {
	p.since = time.Now()
	close(p.changed)
	p.changed = make(chan struct{})
}

// linkUp takes over a link that has just come up, and sends what was waiting for it.
func (p *Peer) linkUp(l *link) {
	p.mu.Lock()
	if p.removed {
		p.mu.Unlock()
		l.close(ErrRemoved)
		return
	}
	others := slices.Clone(p.links)
	before := p.cur.Load()
	p.openedLocked(l)
	l.inheritLoss(before)
	p.links = append(p.links, l)
	p.alternatives.Store(int32(len(others)))
	p.chooseLocked(time.Now())
	news := p.cur.Load() == l && !(before != nil && p.crossed(l, before) && before.kind() == l.kind()) // else it has been told
	p.trimQueueLocked(time.Now())
	queue := make([][]byte, len(p.queue))
	for i, w := range p.queue {
		queue[i] = w.b
	}
	p.queue, p.queued = nil, 0
	p.lastErr = nil
	p.connected++
	p.changeLocked()
	p.mu.Unlock()
	p.noteMTU()

	p.tellParting()
	p.dropSuperseded()
	for _, o := range others { // does the peer know of them, or has it restarted?
		o.check(time.Now())
	}
	for len(queue) > 0 {
		n := min(len(queue), 64)
		_ = p.Send(queue[:n]) // lost like any packet
		queue = queue[n:]
	}
	if news {
		p.host.event(PeerEvent{Peer: p, Connected: true, Path: l.cur.Load().path(), After: time.Since(l.began)})
	}
}

var errSuperseded = errors.New("session: the peer has connected to us meanwhile")

// linkClosed forgets a link.
func (p *Peer) linkClosed(l *link) {
	p.mu.Lock()
	p.openedLocked(l)
	i := slices.Index(p.links, l)
	if i < 0 {
		p.mu.Unlock()
		return
	}
	p.links = slices.Delete(p.links, i, i+1)
	p.alternatives.Store(int32(len(p.links) - 1))
	p.chooseLocked(time.Now())
	wanted := p.wanted && !p.removed
	last := len(p.links) == 0
	p.changeLocked()
	p.mu.Unlock()
	p.noteMTU()
	if last && p.host.ctx.Err() == nil {
		p.host.event(PeerEvent{Peer: p, Err: l.cause()})
	}
	if wanted && p.host.ctx.Err() == nil {
		p.host.lan.changed()
		p.dial()
	}
}

// checkOthers makes the links beside l prove that they work: what has silenced l may have silenced them, and none is to be
// fallen back to just to find that out.
func (p *Peer) checkOthers(l *link, now time.Time) {
	p.mu.Lock()
	links := slices.Clone(p.links)
	p.mu.Unlock()
	for _, o := range links {
		if o != l {
			o.check(now)
		}
	}
}

// Pong is the answer to an authenticated ping through the tunnel.
type Pong struct {
	RTT  time.Duration
	Path Path
}

// Ping sends one authenticated ping on the path in use and waits for the answer. Without a connection it
// starts one and waits for it. It ends with ctx.
func (p *Peer) Ping(ctx context.Context) (Pong, error) {
	if err := p.Wait(ctx); err != nil {
		return Pong{}, err
	}
	l := p.cur.Load()
	if l == nil {
		return Pong{}, ErrNotConnected
	}
	return l.pingWait(ctx)
}

// Wait connects if need be and returns once the peer is connected, or with ctx's cause, joined with the
// reason why the last attempt failed.
func (p *Peer) Wait(ctx context.Context) error {
	for first := true; ; first = false {
		p.mu.Lock()
		changed, err, removed := p.changed, p.lastErr, p.removed
		p.mu.Unlock()
		switch {
		case p.cur.Load() != nil:
			return nil
		case p.host.ctx.Err() != nil:
			return ErrClosed
		case removed:
			return ErrRemoved
		case first:
			p.dial()
			continue
		}
		select {
		case <-changed:
		case <-p.host.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// PeerStatus is a snapshot of a Peer.
type PeerStatus struct {
	Key       key.Public
	State     PeerState
	Since     time.Time
	Path      Path          // in use; the zero value while not connected
	RTT       time.Duration // of the path in use; 0 while not measured
	MTU       int           // see [Peer.MTU]
	LastAuth  time.Time     // last authentic datagram; zero: never
	Initiator bool          // we opened the connection in use
	Suite     string        // cipher suite of the connection in use
	RxBytes   uint64        // of IP packets
	TxBytes   uint64
	RxPackets uint64
	TxPackets uint64
	TxLost    uint64 // not sent: no path for a minute, or the queue was full
	Rejected  uint64 // datagrams that failed authentication
	Replayed  uint64 // datagrams that had been received before, or too long ago
	Err       error  // why the last attempt to connect failed; nil once connected

	Epoch     uint64         // number of the keys in use: 0 are those of the handshake
	KeyAge    time.Duration  // of the keys in use
	Observed  netip.AddrPort // our address as the peer sees it on the path in use; invalid: not known, or relayed
	Mapped    bool           // the path leads through a port that one of the two routers forwards
	Announced Announced      // what the peer says about itself, when it was last connected; not to be changed
}

// Status returns a snapshot.
func (p *Peer) Status() PeerStatus {
	s := PeerStatus{
		Key:     p.key,
		RxBytes: p.rxBytes.Load(), TxBytes: p.txBytes.Load(),
		RxPackets: p.rxPackets.Load(), TxPackets: p.txPackets.Load(), TxLost: p.txLost.Load(),
		Rejected: p.rejected.Load(), Replayed: p.replayed.Load(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Since, s.Err, s.Announced = p.since, p.lastErr, p.announced
	l := p.cur.Load()
	if l == nil {
		if p.dialing {
			s.State = PeerConnecting
		}
		return s
	}
	s.State = PeerConnected
	if !l.healthy() {
		s.State = PeerSilent
	}
	s.Initiator, s.Suite = l.initiator, l.suite()
	s.Epoch, s.KeyAge = l.epoch.Number(time.Now())
	if ns := l.heard.Load(); ns != 0 {
		s.LastAuth = time.Unix(0, ns)
	}
	if r := l.cur.Load(); r != nil {
		s.Path, s.RTT, s.MTU = r.path(), time.Duration(r.rtt.Load()), p.MTU()
		if o := r.observed.Load(); o != nil {
			s.Observed = *o
		}
		external, ok := p.host.Mapped()
		s.Mapped = ok && s.Observed == external ||
			slices.Contains(s.Announced.Endpoints, Endpoint{EndpointMapped, s.Path.Remote})
	}
	return s
}

// PeerEvent tells of a change of a Peer.
type PeerEvent struct {
	Peer      *Peer
	Connected bool
	Path      Path          // when connected
	After     time.Duration // since the handshake began, when connected
	Err       error         // when not: why
}
