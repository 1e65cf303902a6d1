package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"omegatun/dht/compact"
	"omegatun/session/protomux"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
)

// controlProtocol names the channel between the two ends of a tunnel. It runs on the encrypted stream of the same handshake.
const controlProtocol = "omegatun/1"

// The messages of the channel. Others are ignored.
const (
	messageHello    = 0 // what the sender announces; the first message, and sent once
	messageChange   = 1 // what has changed since
	messageGoodbye  = 2 // uint tunnel.CloseCode: the sender drops the link
	messageRekey    = 3 // initiator to responder: a request of tunnel.Session
	messageRekeyed  = 4 // responder to initiator: its answer
	maxControl      = 64 << 10
	controlChannels = 8
	// announceEvery is the least time between two looks at the endpoints that a peer announces.
	announceEvery = 5 * time.Second
)

// control is the channel of one link. It has a goroutine, which ends with the link or the stream.
type control struct {
	link *link
	mux  *protomux.Mux
	ch   *protomux.Channel

	mu   sync.Mutex // guards told
	told Announced  // what the peer knows of us

	tried time.Time // endpoints were last looked at; belongs to the goroutine
}

// startControl starts the channel over r, unless that was done before. Both sides do it: the initiator when the link is up, the
// responder then or when the initiator's first packet arrives.
func (l *link) startControl(r *route) {
	l.mu.Lock()
	if l.closed || l.controlled || !l.framed {
		l.mu.Unlock()
		return
	}
	l.controlled = true
	l.mu.Unlock()
	if err := l.stream.Connect(l.controlSocketFor(r), r.remote, l.remoteID); err != nil {
		l.log.Debug("control stream not connected", "error", err)
		return
	}
	l.host.wg.Go(l.runControl)
}

// acceptControl is the stream's hook for packets from a place it does not know, in a link with a tunnel: they are taken from
// where authentic datagrams have come.
func (l *link) acceptControl(sock Socket, from netip.AddrPort) bool {
	l.mu.Lock()
	r := l.prober.heardFrom(sock, from)
	l.mu.Unlock()
	if r == nil {
		return false
	}
	l.startControl(r)
	return true
}

// moveControl sends the stream along another path.
func (l *link) moveControl(r *route) {
	if l.control.Load() == nil {
		return
	}
	if err := l.stream.ChangeRemote(l.controlSocketFor(r), r.remote, l.remoteID); err != nil {
		l.log.Debug("control stream not moved", "error", err)
	}
}

// runControl is the goroutine of the channel. The tunnel does not end with it.
func (l *link) runControl() {
	conn := secretstream.New(l.stream, secretstream.Config{
		Initiator: l.initiator, Tx: l.result.Tx, Rx: l.result.Rx, Hash: l.result.Hash,
		Local: l.local, Remote: l.remote, KeepAlive: -1, MaxMessage: maxControl,
	})
	mux := newControlMux(conn)
	ch, err := mux.Open(controlProtocol, nil, nil)
	if err == nil {
		c := &control{link: l, mux: mux, ch: ch}
		l.control.Store(c)
		if cur := l.cur.Load(); cur != nil {
			l.moveControl(cur) // it may have changed before it could be moved
		}
		err = c.run()
		l.control.Store(nil)
		ch.Close()
	}
	_ = mux.Close() // what counts is err
	l.controlLost(err)
}

// newControlMux returns the Mux that the channel is opened on. The peer may have opened it before us.
func newControlMux(conn protomux.Conn) *protomux.Mux {
	return protomux.New(conn, protomux.Config{
		Protocols: []string{controlProtocol}, MaxChannels: controlChannels, MaxKept: 2 * maxControl,
	})
}

func (c *control) run() error {
	c.told = c.link.host.announcement()
	c.send(messageHello, c.told.append(nil, &Announced{}))
	c.link.rekey(time.Now())
	greeted := false
	for {
		typ, b, err := c.ch.Receive(c.link.host.ctx)
		if err != nil {
			return err
		}
		if !greeted && typ != messageHello {
			return errors.New("session: the control channel does not begin with a hello")
		}
		greeted = true
		if err := c.handle(typ, b, time.Now()); err != nil {
			return err
		}
	}
}

// send sends a message, or loses it if the stream has not taken earlier ones for long: then the stream is about to fail.
func (c *control) send(typ int, b []byte) {
	if err := c.ch.Send(ended, typ, b); err != nil {
		c.link.log.Debug("control message not sent", "type", typ, "error", err)
	}
}

// ended is a context that has ended: a call with it does what it can do without waiting.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// announce tells the peer what has changed.
func (c *control) announce(a Announced) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := a.append(nil, &c.told); len(b) > 0 {
		c.told = a
		c.send(messageChange, b)
	}
}

func (c *control) handle(typ int, b []byte, now time.Time) error {
	l := c.link
	switch typ {
	case messageHello, messageChange:
		p := l.peer.Load()
		if p == nil {
			return ErrRemoved
		}
		before, relayed := p.endpoints(), p.relays()
		a, err := p.heardOf(b, typ == messageHello)
		if err != nil {
			return err
		}
		if !relayed && p.relays() { // those who could not be reached may be by way of it
			l.host.hurryPeers()
		}
		if typ == messageChange && l.initiator && !slices.Equal(before, a.Endpoints) {
			l.hurryDirect(now)
		}
		if now.Sub(c.tried) >= announceEvery {
			c.tried = now
			l.tryEndpoints(a.Endpoints)
		}
	case messageGoodbye:
		r := compact.NewReader(b)
		if code := r.Uint(); r.Err() == nil {
			l.close(fmt.Errorf("%w: %v", ErrPeerClosed, tunnel.CloseCode(code)))
		}
	case messageRekey:
		return c.answer(b, now)
	case messageRekeyed:
		if err := l.epoch.Finish(b, now); err != nil {
			return err
		}
		l.log.Debug("keys changed")
		l.showKeys(now)
	}
	return nil
}

// answer answers a request for keys.
func (c *control) answer(request []byte, now time.Time) error {
	l := c.link
	index := l.addIndex()
	reply, err := l.epoch.Answer(request, index, now)
	if err != nil {
		l.host.links.Delete(index)
		return err
	}
	c.send(messageRekeyed, reply)
	return nil
}

// addIndex reserves one more receiver index for the link.
func (l *link) addIndex() uint32 {
	index := l.host.reserveIndex()
	l.host.links.Store(index, l)
	if isClosed(l.done) { // the link has forgotten its indexes already
		l.host.links.Delete(index)
	}
	return index
}

// rekey asks for new keys if it is time.
func (l *link) rekey(now time.Time) {
	c := l.control.Load()
	if c == nil || !l.epoch.Due(now) || !l.healthy() {
		return
	}
	index := l.addIndex()
	request, err := l.epoch.Ask(index)
	if err != nil { // another goroutine was faster
		l.host.links.Delete(index)
		return
	}
	c.send(messageRekey, request)
}

// showKeys sends pings until one is answered, so that the peer uses the new keys as well.
func (l *link) showKeys(now time.Time) {
	if r := l.cur.Load(); r != nil {
		l.mu.Lock()
		l.prober.add(r.sock, r.remote, r.kind, probesToCheck, now)
		l.mu.Unlock()
		l.sendProbes(now)
	}
}

// controlLost notes that the stream has ended. The link lives as long as its keys do; meanwhile another takes its place.
func (l *link) controlLost(err error) {
	if isClosed(l.done) || l.host.ctx.Err() != nil {
		return
	}
	l.log.Info("control stream lost", "error", err)
	l.mu.Lock()
	l.stale = true
	l.mu.Unlock()
	l.check(time.Now()) // maybe the peer is gone
	if l.initiator {
		l.host.renew(l)
	}
}
