package session

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session/beacon"
	"omegatun/session/noise"
)

const (
	beaconPort = 49731

	beaconEvery     = 30 * time.Second // give or take a fifth, while a peer is missed
	beaconsAtOnce   = 4                // in one round, for up to 48 peers; those left out are in the next
	beaconHashes    = 20_000           // a second, to look for peers in beacons; one is needed for each peer and beacon
	beaconBurst     = 40_000
	beaconRetry     = 2 * time.Second // before the same peer is dialled again because of a beacon
	beaconMemory    = 5 * time.Minute // how long a beacon may be echoed, and its echo counts
	beaconsSent     = 64              // that are remembered to recognise their echoes
	beaconsSeen     = 512             // that are remembered so that they are not heard twice
	neighbourFor    = 2 * time.Minute // how long an address is tried first at which a peer was heard
	lanDialTimeout  = 5 * time.Second
	lanRepeat       = 150 * time.Millisecond // before the first message is sent again; doubles
	lanHandshakes   = 64                     // that are under way at most
	maxBeaconBuffer = 2048
)

// beaconGroups are the groups that machines meet in: of IPv4's local scope (RFC 2365), and of one link of IPv6's.
func beaconGroups() []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 111, 109}), beaconPort),
		netip.AddrPortFrom(netip.MustParseAddr("ff12::6f6d:7467"), beaconPort),
	}
}

// beaconRounds are the times of the first rounds after something has changed.
func beaconRounds() []time.Duration {
	return []time.Duration{0, 300 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 15 * time.Second}
}

// A Group hears a multicast group. *[udp.Group] is one.
type Group interface {
	// Refresh joins the group on the interfaces that there are now, and returns an address of ours on each.
	Refresh() []netip.Addr
	// SendFrom sends to the group from one of these addresses. It does not keep b.
	SendFrom(b []byte, from netip.Addr) error
	// Receive waits for a datagram from a neighbour. After Close the error is [net.ErrClosed]; any other is final as well.
	Receive(b []byte) (n int, from netip.AddrPort, err error)
	Close() error
}

// A GroupNetwork is a [Network] with local networks, where peers may be.
type GroupNetwork interface {
	Network
	ListenGroup(group netip.AddrPort) (Group, error)
}

// lan looks for listed peers on the local networks, with beacons: package beacon says how.
type lan struct {
	host   *Host
	groups []Group
	wake   chan struct{} // capacity 1: something has changed

	ending atomic.Bool // the Host is shutting down: nobody is to connect to it

	mu      sync.Mutex // guards the fields below; taken after Peer.mu and Host.mu
	peers   map[key.Public]*lanPeer
	turn    int // peers passed over so far, so that everyone has a turn
	sent    []sentBeacon
	seen    map[beacon.Nonce]struct{}
	order   []beacon.Nonce // of seen
	limit   *rate.Limiter  // of hashes
	waiting map[uint64]chan lanAnswer
}

// lanPeer is a listed peer as far as the local networks are concerned.
type lanPeer struct {
	pair  beacon.Pair
	heard time.Time // the last beacon that names it; zero: none
	echo  beacon.Echo
	tried time.Time // it was last dialled because of a beacon
}

type sentBeacon struct {
	echo beacon.Echo
	at   time.Time
}

// lanAnswer is the answer to a handshake message.
type lanAnswer struct {
	message []byte
	sock    Socket
	from    netip.AddrPort
}

// startLAN starts looking for peers on the local networks. A machine without multicast does without.
func (h *Host) startLAN() {
	l := &lan{
		host: h, wake: make(chan struct{}, 1),
		peers: make(map[key.Public]*lanPeer), seen: make(map[beacon.Nonce]struct{}),
		limit: rate.NewLimiter(beaconHashes, beaconBurst), waiting: make(map[uint64]chan lanAnswer),
	}
	h.lan = l
	n, ok := h.network.(GroupNetwork)
	if !ok || h.cfg.NoBeacons {
		return
	}
	for _, group := range beaconGroups() {
		if h.socketOn(group.Addr()) == nil {
			continue
		}
		g, err := n.ListenGroup(group)
		if err != nil {
			h.log.Info("peers on the local network are not looked for", "group", group, "error", err)
			continue
		}
		l.groups = append(l.groups, g)
	}
	for _, g := range l.groups {
		h.wg.Go(func() { l.receive(g) })
	}
	if len(l.groups) > 0 {
		h.wg.Go(l.send)
	}
}

// changed begins the rounds of beacons anew: a peer or a network is new.
func (l *lan) changed() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close ends the goroutines that receive.
func (l *lan) close() (err error) {
	for _, g := range l.groups {
		err = errors.Join(err, g.Close())
	}
	return err
}

// socketOn returns the socket at which peers on a local network reach us.
func (h *Host) socketOn(a netip.Addr) Socket {
	if a.Is4() {
		return h.server
	}
	return h.six
}

// send sends beacons while peers are missed. It is a goroutine of its own.
func (l *lan) send() {
	rounds := beaconRounds()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for i := 0; ; i++ {
		select {
		case <-l.host.ctx.Done():
			return
		case <-l.wake:
			i = -1
			timer.Reset(max(0, rounds[1]-time.Since(last))) // not more often, whatever happens
			continue
		case <-timer.C:
		}
		if l.ending.Load() {
			return
		}
		last = time.Now()
		l.round(last)
		next := beaconEvery - beaconEvery/5 + rand.N(2*beaconEvery/5)
		if i+1 < len(rounds) {
			next = rounds[i+1] - rounds[i]
		}
		timer.Reset(next)
	}
}

// round sends beacons from every address, for the peers whose turn it is.
func (l *lan) round(now time.Time) {
	var lists [][]beacon.For
	for missing := l.missing(now); len(missing) > 0; {
		n := min(len(missing), beacon.Entries)
		lists, missing = append(lists, missing[:n]), missing[n:]
	}
	for _, g := range l.groups {
		for _, from := range g.Refresh() {
			if l.host.avoid(from) {
				continue
			}
			at := netip.AddrPortFrom(from, l.host.socketOn(from).LocalAddr().Port())
			for _, list := range lists {
				b, nonce := beacon.Append(make([]byte, 0, beacon.Size), at, list, now)
				l.remember(nonce, now)
				if err := g.SendFrom(b, from); err != nil {
					l.host.log.Debug("beacon not sent", "from", from, "error", err)
				}
			}
		}
	}
}

// remember keeps the nonce of a beacon of ours.
func (l *lan) remember(n beacon.Nonce, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent[max(0, len(l.sent)-beaconsSent+1):], sentBeacon{n.Echo(), now})
}

// missing returns the peers to which there is no connection over a local network, as many as fit into a round: those that are
// wanted first, then others in turn.
func (l *lan) missing(now time.Time) []beacon.For {
	peers := slices.DeleteFunc(l.host.Peers(), (*Peer).isNeighbour)
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = beaconsAtOnce * beacon.Entries
	if len(peers) > most {
		l.turn = (l.turn + most) % len(peers)
		peers = append(slices.Clone(peers[l.turn:]), peers[:l.turn]...)
		slices.SortStableFunc(peers, func(a, b *Peer) int {
			switch aw, bw := a.isWanted(), b.isWanted(); {
			case aw && !bw:
				return -1
			case bw && !aw:
				return 1
			}
			return 0
		})
		peers = peers[:most]
	}
	var list []beacon.For
	for _, p := range peers {
		n := l.lanPeerLocked(p)
		if n == nil {
			continue
		}
		f := beacon.For{Pair: &n.pair}
		if now.Sub(n.heard) < beaconMemory {
			f.Echo = n.echo
		}
		list = append(list, f)
	}
	return list
}

// lanPeerLocked returns what is known about a peer, nil if its key is no good. l.mu is held.
func (l *lan) lanPeerLocked(p *Peer) *lanPeer {
	n := l.peers[p.key]
	if n == nil {
		own := l.host.cfg.Identity
		shared, err := noise.Shared(own, p.key)
		if err != nil {
			return nil
		}
		n = &lanPeer{pair: beacon.NewPair(shared, own.Public(), p.key)}
		l.peers[p.key] = n
	}
	return n
}

// forget drops what is known about a peer that is not listed any more.
func (l *lan) forget(k key.Public) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.peers, k)
}

// receive hears beacons. It is a goroutine of its own, one for each group.
func (l *lan) receive(g Group) {
	b := make([]byte, maxBeaconBuffer)
	for {
		n, from, err := g.Receive(b)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				l.host.log.Warn("peers on the local network are not heard any more", "error", err)
			}
			return
		}
		l.hear(b[:n], from, time.Now())
	}
}

// hear looks for listed peers in a beacon, and connects to the one that sent it.
func (l *lan) hear(b []byte, from netip.AddrPort, now time.Time) {
	heard, err := beacon.Parse(b, from.Addr())
	switch {
	case l.ending.Load():
		return
	case err != nil:
		l.host.dropped.Add(1)
		return
	}
	l.host.mu.Lock()
	listed := len(l.host.peers)
	l.host.mu.Unlock()
	l.mu.Lock()
	_, again := l.seen[heard.Nonce]
	if again || listed == 0 || !l.limit.AllowN(now, min(listed, beaconBurst)) {
		l.mu.Unlock()
		return
	}
	if len(l.order) >= beaconsSeen {
		delete(l.seen, l.order[0])
		l.order = l.order[1:]
	}
	l.seen[heard.Nonce] = struct{}{}
	l.order = append(l.order, heard.Nonce)
	l.mu.Unlock()
	for _, p := range l.host.Peers() {
		l.mu.Lock()
		n := l.lanPeerLocked(p)
		l.mu.Unlock()
		if n == nil {
			continue
		}
		if age, echo, ok := heard.Find(&n.pair, now); ok { // pair does not change
			l.recognised(p, n, heard, age, echo, now)
			return
		}
	}
}

// recognised acts on a beacon of a listed peer, if it cannot be an old one that is played again.
func (l *lan) recognised(p *Peer, n *lanPeer, b *beacon.Beacon, age time.Duration, echo beacon.Echo, now time.Time) {
	l.mu.Lock()
	n.heard, n.echo = now, b.Nonce.Echo()
	fresh := age.Abs() <= beacon.Fresh || slices.ContainsFunc(l.sent, func(s sentBeacon) bool {
		return s.echo == echo && now.Sub(s.at) < beaconMemory
	})
	act := fresh && now.Sub(n.tried) >= beaconRetry
	if act {
		n.tried = now
	}
	l.mu.Unlock()
	if act && !l.host.avoid(b.At.Addr()) {
		p.foundNeighbour(b.At, now)
	}
}

// neighbour is where a peer was heard on a local network.
type neighbour struct {
	at   netip.AddrPort
	when time.Time
}

// isNeighbour reports whether the peer has a sound connection over a local network.
func (p *Peer) isNeighbour() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.links, (*link).isNeighbour)
}

func (l *link) isNeighbour() bool {
	r := l.cur.Load()
	return r != nil && r.kind == PathLAN && l.sound()
}

func (p *Peer) isWanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted || p.dialing
}

// foundNeighbour connects to the peer at an address on a local network, if it is to be connected, or lets a connection that there is try
// the address.
func (p *Peer) foundNeighbour(at netip.AddrPort, now time.Time) {
	h := p.host
	p.mu.Lock()
	links := slices.Clone(p.links)
	p.neighbour = neighbour{at, now}
	wanted := (p.wanted || p.dialing) && !p.removed
	p.mu.Unlock()
	sound := false
	for _, l := range links {
		switch {
		case l.isNeighbour():
			return
		case l.sound():
			sound = true
			l.offer(h.socketOn(at.Addr()), at, PathLAN)
		}
	}
	if wanted && !sound {
		h.wg.Go(func() {
			if err := p.dialNeighbour(h.ctx, at); err != nil {
				h.log.Debug("peer on the local network not reached", "peer", p.key.Short(), "at", at, "error", err)
			}
		})
	}
}

// neighbourAddr returns where the peer was heard lately on a local network.
func (p *Peer) neighbourAddr() (at netip.AddrPort, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.neighbour.at, p.neighbour.at.IsValid() && time.Since(p.neighbour.when) < neighbourFor
}

// dialNeighbour shakes hands with the peer at an address on a local network.
func (p *Peer) dialNeighbour(ctx context.Context, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, lanDialTimeout)
	defer cancel()
	_, err := p.host.dial(ctx, dialing{
		local: p.host.cfg.Identity, remote: p.key, tunnel: true, direct: true, at: at, needless: p.isNeighbour,
	})
	return err
}

// runNeighbour sends the handshake straight to an address until it is answered.
func (hs *handshaking) runNeighbour(ctx context.Context, at netip.AddrPort) error {
	h := hs.host
	*hs.stage = StageHandshake
	sock := h.socketOn(at.Addr())
	if sock == nil {
		return ErrNoAnswer
	}
	id, answer := h.lan.expect()
	if answer == nil {
		return ErrNoAnswer
	}
	defer h.lan.done(id)
	b := beacon.AppendHandshake(nil, beacon.KindFirst, id, hs.message)
	for wait := lanRepeat; ; wait = 2 * wait {
		if hs.needless != nil && hs.needless() {
			return errSuperseded
		}
		if err := sock.Send(b, at); err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case a := <-answer:
			timer.Stop()
			if a.from != at || a.sock != sock {
				continue
			}
			payload, res, err := hs.initiator.Read(a.message)
			if err != nil {
				continue // anyone may have sent it
			}
			if hs.payload, err = noise.ParsePayload(payload); err != nil {
				return err
			}
			hs.good, hs.result, hs.sock = true, res, sock
			hs.reply = dht.HandshakeReply{Noise: a.message, Relay: at, Server: at}
			return nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ErrNoAnswer
		}
	}
}

// expect registers a handshake whose answer is awaited; nil: there are too many.
func (l *lan) expect() (uint64, chan lanAnswer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= lanHandshakes {
		return 0, nil
	}
	id, answer := rand.Uint64(), make(chan lanAnswer, 1)
	l.waiting[id] = answer
	return id, answer
}

func (l *lan) done(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, id)
}

// handshake takes a handshake message that came straight to us. Nothing about it is authentic yet.
func (l *lan) handshake(sock Socket, b []byte, from netip.AddrPort) {
	kind, id, message, err := beacon.ParseHandshake(b)
	switch {
	case err != nil || isRelayed(sock):
		l.host.dropped.Add(1)
	case kind == beacon.KindSecond:
		l.mu.Lock()
		answer := l.waiting[id]
		l.mu.Unlock()
		select {
		case answer <- lanAnswer{slices.Clone(message), sock, from}:
		default: // nobody waits, or one has come already
		}
	case kind == beacon.KindFirst && len(l.groups) > 0 && !l.ending.Load():
		l.asked(sock, id, message, from)
	}
}

// asked has a first message answered by the listener for our own key. An answer is at most three times as long as the question.
func (l *lan) asked(sock Socket, id uint64, message []byte, from netip.AddrPort) {
	h := l.host
	h.mu.Lock()
	i := slices.IndexFunc(h.listeners, func(o *Listener) bool { return o.cfg.Tunnels && o.key.Public() == h.cfg.Identity.Public() })
	var to *Listener
	if i >= 0 {
		to = h.listeners[i]
	}
	h.mu.Unlock()
	if to == nil {
		return
	}
	most := 3 * len(message)
	to.HandleHandshake(dht.NewHandshakeRequest(slices.Clone(message), from, sock, func(noise []byte) error {
		if len(noise) > most {
			return errors.New("session: the answer is too long")
		}
		return sock.Send(beacon.AppendHandshake(nil, beacon.KindSecond, id, noise), from)
	}))
}
