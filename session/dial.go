package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch"
	"omegatun/session/noise"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

const (
	// A dial first asks the peer where it was reached last, if that may still work; nearHead later the nodes that led to it
	// before, one more each relayHead, and queryHead later the DHT. Each step begins at once when the one before has failed.
	nearHead  = 150 * time.Millisecond
	relayHead = 100 * time.Millisecond
	queryHead = 250 * time.Millisecond
	// handshakeHead is how long an answer to a handshake is waited for before it is sent by way of the same relay again, handshakeCopies
	// times in all, each with the DHT's own retries: with half of all packets lost on both sides one in sixteen is answered. The
	// peer gives each copy the same answer.
	handshakeHead   = 600 * time.Millisecond
	handshakeCopies = 3
	// silentAfter is how long a peer that is announced may leave our handshake unanswered before that is told.
	silentAfter = 3 * time.Second
	// handshakesAtOnce bounds the relays through which one attempt sends its handshake at the same time.
	handshakesAtOnce = 2
	// openTimeout bounds the search for a path after the handshake where no punching goes on: the reference waits
	// as long for an open client to be reached.
	openTimeout = 10 * time.Second
	// lastChance is how long the paths that punching has found may take to answer after it ended.
	lastChance = 3 * time.Second
	// lookAgain is the time between two looks at what hole punching has come to while IPv6 works already.
	lookAgain = 50 * time.Millisecond
	// maxAddresses bounds the addresses that one side tells the other, so that the handshake fits a datagram.
	maxAddresses = 12
)

// dialing describes one attempt to connect.
type dialing struct {
	local  key.Private
	remote key.Public
	direct bool             // through no relay: to one
	at     netip.AddrPort   // shake hands there, on a local network; zero: over the DHT
	tunnel bool             // offer a tunnel, and settle for nothing less
	beside bool             // there is a relayed connection: only a direct path is wanted
	relays []netip.AddrPort // nodes to try before asking the DHT
	// through are the relays to meet the peer at; none: those of the Host
	through []key.Public
	// needless, if set, is asked before each handshake; once it returns true no more are sent, because the
	// peer has connected meanwhile. A handshake that has been sent is seen through: the peer may have chosen it.
	needless func() bool
	silence  func() // as DialConfig.OnSilence
}

// dial finds the peer, shakes hands and opens a path. It blocks until the link is up; the error is a
// *DialError. It ends with ctx, and with the Host. It is called in a goroutine of the Host: see Host.enter.
func (h *Host) dial(ctx context.Context, d dialing) (*link, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.ctx, func() { cancel(ErrClosed) })()
	began := time.Now()
	stage := StageFind
	l, err := h.tryDial(ctx, d, began, &stage)
	if err != nil {
		if h.ctx.Err() != nil {
			err = ErrClosed // and not what came of it
		}
		return nil, &DialError{Key: d.remote, Stage: stage, After: time.Since(began), Err: err}
	}
	return l, nil
}

func (h *Host) tryDial(ctx context.Context, d dialing, began time.Time, stage *Stage) (_ *link, err error) {
	l := h.newLink(d.local.Public(), d.remote, true, began)
	defer func() {
		if err != nil {
			l.close(err)
		}
	}()
	if l.stream, err = h.newStream(l); err != nil {
		return nil, err
	}
	initiator, err := noise.NewInitiator(d.local, d.remote)
	if err != nil {
		return nil, err
	}
	var offer tunnel.Offer
	payload := h.payload(l)
	if !d.direct && !d.beside {
		payload.RelayThrough = h.nameRelay(d.remote, d.through)
	}
	if d.tunnel {
		if p := h.Peer(d.remote); p != nil {
			l.beside = d.beside
			l.peer.Store(p) // packets may come before the link is up here
			if !p.opens(l) {
				return nil, errSuperseded
			}
			if !d.beside {
				p.noteAttempt(l.account)
			}
		}
		l.setIndex(h.reserveIndex())
		offer = h.offer(l.index)
		if d.beside {
			offer.Features |= tunnel.FeatureBeside
		}
		payload.Trailer = offer.Append(nil)
	}
	msg, err := initiator.Write(payload.Append(nil))
	if err != nil {
		return nil, err
	}

	if a, ok := h.Mapped(); ok {
		l.account.step(StageFind, "our router forwards %v to us", a)
	}
	if d.at.IsValid() {
		l.account.step(StageFind, "the peer is on the local network, at %v", d.at)
	} else {
		l.account.step(StageFind, "looking for the peer in the DHT")
	}
	hs := handshaking{
		host: h, account: l.account, remote: d.remote, initiator: initiator, message: msg, stage: stage, needless: d.needless,
		silence: d.silence,
	}
	near, ok := h.sockets.near(d.remote)
	if ok = ok && !d.at.IsValid(); ok {
		defer h.sockets.release(near.sock, time.Now())
		hs.near = &near
	}
	if d.at.IsValid() {
		err = hs.runNeighbour(ctx, d.at)
	} else {
		err = hs.run(ctx, h.relaysFor(d))
	}
	if err != nil {
		if h.IPv6Only() {
			err = fmt.Errorf("%w: %w", ErrIPv6Only, err)
		}
		return nil, err
	}
	if ok && hs.reply.Relay != near.remote {
		h.sockets.forget(d.remote, near)
	}
	*stage = StagePath
	p := hs.payload
	l.account.nats(h.firewall(), dht.Firewall(p.Firewall))
	l.account.step(StageHandshake, "the peer answers by way of %v", hs.reply.Relay)
	if p.Version != noise.PayloadVersion || p.Error != noise.ErrorNone || p.UDX == nil {
		return nil, ErrIncompatible
	}
	l.result = hs.result
	if d.tunnel {
		theirs, ok, err := tunnel.ParseOffer(p.Trailer)
		if err != nil || !ok {
			return nil, ErrNoTunnel
		}
		if err := l.startTunnel(offer, theirs); err != nil {
			return nil, err
		}
	}
	l.setRemoteID(udx.ID(p.UDX.ID), strings.HasPrefix(string(p.Trailer), streamMark))
	if !d.at.IsValid() {
		h.rememberRelays(d.remote, p.RelayAddresses, hs.reply.Relay)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client, err := h.findPath(ctx, l, &hs, payload.Firewall == uint64(dht.FirewallOpen))
	if err != nil {
		return nil, err
	}
	trying := ways{last: func() { cancel(errNoneAnswered) }} // unless the link is up
	trying.add()
	var relayErr atomic.Pointer[error]
	if m := h.meeting(l, &payload, &p); m != nil && !d.direct && !d.beside && hs.reply.Relayed {
		trying.add()
		h.relay(l, m, func(err error) {
			relayErr.Store(&err)
			trying.done()
		})
	}
	if client == nil {
		defer time.AfterFunc(openTimeout, trying.done).Stop()
	} else {
		l.setPunching(true)
		h.wg.Go(func() {
			h.punch(l, client)
			l.setPunching(false)
			trying.done()
		})
	}
	if err = l.open(ctx); errors.Is(err, errNoneAnswered) {
		np := &NoPathError{Remote: dht.Firewall(p.Firewall)}
		l.mu.Lock()
		np.Tried = l.prober.tried()
		l.mu.Unlock()
		if client != nil {
			np.Err = client.Err()
			report := client.Report()
			np.Local, np.Remote = report.Local, report.Remote
		}
		if e := relayErr.Load(); e != nil {
			np.Err = errors.Join(np.Err, *e)
		}
		err = np
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// ways counts the ways in which a path is being sought. The zero value counts none.
type ways struct {
	n    atomic.Int32
	last func() // called when there is no way left
}

func (w *ways) add() { w.n.Add(1) }

func (w *ways) done() {
	if w.n.Add(-1) == 0 {
		w.last()
	}
}

var errNoneAnswered = errors.New("no address answered in time")

// firewall returns our own NAT class as far as the node knows it.
func (h *Host) firewall() dht.Firewall {
	if _, open := h.node.RemoteAddr(); open {
		return dht.FirewallOpen
	}
	return dht.FirewallUnknown
}

// payload returns what the first or second handshake message says about us, but for the fields that only a
// server fills.
func (h *Host) payload(l *link) noise.Payload {
	p := noise.Payload{
		Version:      noise.PayloadVersion,
		Firewall:     uint64(dht.FirewallUnknown),
		Addresses4:   h.localAddresses(),
		Addresses6:   h.localAddresses6(),
		UDX:          &noise.UDXInfo{Version: 1, ID: uint32(l.stream.ID())},
		SecretStream: &noise.SecretStreamInfo{Version: 1},
		Trailer:      []byte(streamMark),
	}
	if a, ok := h.node.RemoteAddr(); ok {
		p.Firewall = uint64(dht.FirewallOpen)
		p.Addresses4 = slices.Insert(p.Addresses4, 0, a)
	}
	if a, ok := h.Mapped(); ok && !slices.Contains(p.Addresses4, a) {
		p.Addresses4 = append(p.Addresses4, a)
	}
	return p
}

// findPath offers the link every address that might lead to the server, and starts punching where that may
// help. The caller runs the returned attempt, if there is one, with Host.punch. open says whether the server was told that
// anyone can reach us: we may have found out since, but then the server does not know.
//
// Source: hyperdht.md 7.4; npm hyperdht, lib/connect.js (holepunch).
func (h *Host) findPath(ctx context.Context, l *link, hs *handshaking, open bool) (*punch.Client, error) {
	reply, p := &hs.reply, &hs.payload
	if !reply.Relayed { // the node asked is the server itself
		l.adopt(hs.sock)
		l.offer(hs.sock, reply.Relay, h.kindOf(reply.Relay.Addr()))
		return nil, nil
	}
	relayed := reply.Server != reply.Relay
	l.offerForeign(p.Addresses4, p.Addresses6, reply.Server.Addr())
	punchable := p.Holepunch != nil && len(p.Holepunch.Relays) > 0
	sock := h.node.DefaultSocket().(Socket)
	if dht.Firewall(p.Firewall) == dht.FirewallOpen || relayed && !punchable {
		public := reply.Server
		for _, a := range p.Addresses4 {
			if !punch.IsBogon(a.Addr()) {
				public = a
				break
			}
		}
		l.offer(sock, public, h.kindOf(public.Addr()))
		if l.epoch == nil {
			return nil, nil
		}
	}
	if relayed && reply.Self.Addr() == reply.Server.Addr() {
		h.tryLAN(ctx, l, p.Addresses4)
	}
	if open || !punchable {
		if relayed && l.epoch != nil { // the server reaches an open client; to look where it comes from saves a round of probes
			l.offer(sock, reply.Server, h.kindOf(reply.Server.Addr()))
		}
		return nil, nil
	}
	sink := new(probeSink)
	client, err := punch.NewClient(punch.ClientConfig{
		Node:       h.node,
		OpenSocket: func() (punch.Socket, error) { return h.openSocket(sink) },
		Secret:     l.result.HolepunchSecret(),
		Target:     l.remote.Target(),
		Relay:      reply.Relay,
		Server:     reply.Server,
		Relays:     relayPairs(p.Holepunch.Relays),
		ID:         p.Holepunch.ID,
		Limit:      h.guessing,
		Logger:     l.log,
	})
	if err == nil {
		sink.set(client.HandleProbe)
	}
	return client, err
}

func relayPairs(list []noise.RelayPair) []dht.RelayPair {
	pairs := make([]dht.RelayPair, len(list))
	for i, p := range list {
		pairs[i] = dht.RelayPair{Relay: p.Relay, Peer: p.Peer}
	}
	return pairs
}

// punch offers the link the paths that an attempt finds, until the link is up or closed, or the attempt has
// ended. It closes the attempt.
func (h *Host) punch(l *link, client *punch.Client) {
	defer func() {
		if err := client.Close(l.keepSockets()...); err != nil {
			l.log.Debug("closing punch sockets", "error", err)
		}
	}()
	stop := make(chan struct{})
	defer close(stop)
	enough := l.punched(stop, client.Report)
	for {
		select {
		case p, ok := <-client.Paths():
			if !ok {
				report := client.Report()
				l.account.nats(report.Local, report.Remote)
				l.account.step(StagePath, "%v", client.Err())
				l.log.Debug("hole punching ended", "error", client.Err())
				l.settle() // paths found by now may still answer
				return
			}
			l.offer(p.Socket.(Socket), p.Remote, h.kindOf(p.Remote.Addr()))
		case <-enough:
			report := client.Report()
			l.account.nats(report.Local, report.Remote)
			return
		case <-l.done:
			return
		}
	}
}

// punched returns a channel that is closed when a link needs no more hole punching, unless stop is closed first: it has a direct
// path over IPv4, or one over IPv6 and the other would have to be guessed. Where there is IPv6 the path over it is the first,
// for it needs no punching; but that over IPv4 may be faster, and stands in when IPv6 fails.
func (l *link) punched(stop <-chan struct{}, report func() punch.Report) <-chan struct{} {
	enough := make(chan struct{})
	l.host.wg.Go(func() {
		select {
		case <-l.direct:
		case <-l.done:
			return
		case <-stop:
			return
		}
		ticker := time.NewTicker(lookAgain)
		defer ticker.Stop()
		for r := report(); r.Local < dht.FirewallRandom && r.Remote < dht.FirewallRandom && !l.answersOver4(); r = report() {
			select {
			case <-ticker.C:
			case <-l.done:
				return
			case <-stop:
				return
			}
		}
		close(enough)
	})
	return enough
}

// answersOver4 reports whether a direct path over IPv4 has answered, or is in use by a stream.
func (l *link) answersOver4() bool {
	if r := l.cur.Load(); r != nil && r.kind != PathRelay && r.remote.Addr().Is4() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.prober.cands, func(c *candidate) bool {
		return c.route.kind != PathRelay && c.route.samples > 0 && c.route.remote.Addr().Is4()
	})
}

// tryLAN offers the link the addresses of a peer that shares our public address.
func (h *Host) tryLAN(ctx context.Context, l *link, addrs []netip.AddrPort) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return punch.IsReserved(a.Addr()) })
	if len(addrs) == 0 {
		return
	}
	if l.epoch != nil { // probes are authenticated: try all
		for _, a := range addrs[:min(len(addrs), maxAddresses)] {
			if punch.IsPrivate(a.Addr()) {
				l.offer(h.server, a, PathLAN)
			}
		}
		return
	}
	addr := addrs[0]
	if match, ok := punch.MatchAddr(h.localAddrs(), addrs); ok {
		addr = match
	}
	h.wg.Go(func() {
		if _, err := h.node.Ping(ctx, nil, addr, 1); err == nil {
			l.offer(h.server, addr, PathLAN)
		}
	})
}

// handshaking sends one first handshake message through relays until one brings back a good answer.
type handshaking struct {
	host    *Host
	remote  key.Public
	account *account
	message []byte
	stage   *Stage

	needless func() bool
	silence  func()  // as DialConfig.OnSilence
	near     *nearby // where the peer was reached last; nil: unknown

	mu        sync.Mutex // guards the fields below
	initiator *noise.Initiator
	tried     map[netip.AddrPort]bool
	reply     dht.HandshakeReply
	sock      Socket // that the answered request left from
	payload   noise.Payload
	result    noise.Result
	good      bool
}

// run asks the peer itself, the given relays and those that the DHT names, as the constants above say.
func (hs *handshaking) run(ctx context.Context, relays []netip.AddrPort) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hs.tried = make(map[netip.AddrPort]bool)
	slots := make(chan struct{}, handshakesAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	// attempt runs in the background and returns a channel that is closed when it has failed.
	attempt := func(s Socket, at netip.AddrPort) <-chan struct{} {
		failed := make(chan struct{})
		wg.Go(func() {
			if hs.try(ctx, s, at) {
				cancel()
			} else {
				close(failed)
			}
		})
		return failed
	}
	pause := func(failed <-chan struct{}, head time.Duration) {
		timer := time.NewTimer(head)
		defer timer.Stop()
		select {
		case <-failed:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if hs.near != nil && hs.claim(hs.near.remote) {
		pause(attempt(hs.near.sock, hs.near.remote), nearHead)
	}
	for i, r := range relays {
		if ctx.Err() != nil || !hs.claim(r) {
			continue
		}
		head := relayHead
		if i == len(relays)-1 {
			head = queryHead
		}
		pause(attempt(hs.host.node.DefaultSocket().(Socket), r), head)
	}
	// In a small network the nodes that would be found are known already: one round trip less.
	guessing, giveUp := context.WithCancel(ctx)
	defer giveUp()
	for _, r := range hs.host.node.Keepers(hs.remote.Target(), handshakesAtOnce) {
		if ctx.Err() == nil && (hs.needless == nil || !hs.needless()) && hs.claim(r) {
			wg.Go(func() {
				if hs.askAgain(guessing, hs.host.node.DefaultSocket().(Socket), r) == nil {
					cancel()
				}
			})
		}
	}
	named := false // by the DHT
	waiting, answered := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer answered()
	var queryErr error
	for r, err := range hs.host.node.FindPeer(ctx, hs.remote.Target(), relays) {
		if err != nil {
			queryErr = err
			break
		}
		if !named {
			named = true
			hs.reached()
			watch.Go(func() { hs.watch(waiting) })
		}
		if !hs.claim(r.From) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if hs.try(ctx, hs.host.node.DefaultSocket().(Socket), r.From) {
				cancel()
			}
		})
	}
	if !named {
		giveUp()
	}
	wg.Wait()
	hs.mu.Lock()
	defer hs.mu.Unlock()
	switch {
	case hs.good:
		return nil
	case hs.needless != nil && hs.needless():
		return errSuperseded
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case named:
		return ErrNoAnswer
	case queryErr != nil:
		return queryErr
	}
	return ErrNotFound
}

// watch tells when the peer, which is announced, has not answered for long. It ends with ctx.
func (hs *handshaking) watch(ctx context.Context) {
	timer := time.NewTimer(silentAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	hs.account.step(StageHandshake, "the peer is announced, but has not answered for %v: it is not running any more, or does not allow our key", silentAfter)
	if hs.silence != nil {
		hs.silence()
	}
}

// reached notes that the peer has been found, or that there is somebody to ask for it.
func (hs *handshaking) reached() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	*hs.stage = StageHandshake
}

// claim reports whether relay has not been tried yet, and marks it.
func (hs *handshaking) claim(relay netip.AddrPort) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.tried[relay] {
		return false
	}
	hs.tried[relay] = true
	return true
}

// try sends the handshake from sock to one relay, or the peer itself, and reports whether the answer is good.
func (hs *handshaking) try(ctx context.Context, sock Socket, relay netip.AddrPort) bool {
	if hs.needless != nil && hs.needless() {
		return false
	}
	hs.reached()
	hs.account.step(StageHandshake, "sending our handshake by way of node %v", relay)
	err := hs.askAgain(ctx, sock, relay)
	if err != nil && ctx.Err() == nil {
		hs.account.step(StageHandshake, "no answer by way of node %v", relay)
	}
	return err == nil
}

var errAnswered = errors.New("answered already")

// askAgain is ask with handshakeCopies. It returns the error of the first if none is answered.
func (hs *handshaking) askAgain(ctx context.Context, sock Socket, relay netip.AddrPort) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, handshakeCopies) // never blocks
	sent, failed := 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	var first error
	for {
		select {
		case <-next.C:
			if sent > 0 && hs.needless != nil && hs.needless() {
				break
			}
			sent++
			hs.host.wg.Go(func() { results <- hs.ask(ctx, sock, relay) })
			if sent < handshakeCopies {
				next.Reset(handshakeHead)
			}
		case err := <-results:
			if err == nil || errors.Is(err, errAnswered) {
				return err
			}
			if failed++; failed == 1 {
				first = err
				next.Stop()
			}
			if failed == sent {
				return first
			}
		}
	}
}

// ask sends the handshake from sock to one relay, or the peer itself. It returns nil if the answer is good, and the first that is.
func (hs *handshaking) ask(ctx context.Context, sock Socket, relay netip.AddrPort) error {
	reply, err := hs.host.node.Handshake(ctx, relay, sock, hs.remote.Target(), hs.message)
	if err != nil {
		return err
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.good {
		return errAnswered
	}
	b, res, err := hs.initiator.Read(reply.Noise)
	if err != nil {
		return err
	}
	p, err := noise.ParsePayload(b)
	if err != nil {
		return err
	}
	*hs.stage = StageHandshake
	hs.good, hs.reply, hs.sock, hs.payload, hs.result = true, reply, sock, p, res
	return nil
}
