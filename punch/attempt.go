package punch

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

const (
	inboxSize = 128 // events that wait for the loop; more are dropped, as the network might have
	pathsSize = 32  // paths that wait for the session
)

// machine is what decides for an attempt: a client or a server.
type machine interface {
	advance(now time.Time) (wake time.Time)
	take() todo
	ended() error // nil while the attempt goes on
	release()     // gives back what is shared with other attempts
	local() *survey
	probing() *prober
	report() Report
}

// Report says how far an attempt is.
type Report struct {
	Stage         Stage
	Local, Remote dht.Firewall // as far as known
}

// attempt runs a machine: one goroutine owns it, supplies time and what arrives, and does what it asks for.
type attempt struct {
	node       Node
	openSocket func() (Socket, error)
	payloadKey [32]byte
	target     key.Target // client
	id         uint64     // client
	log        *slog.Logger

	// Owned by the loop goroutine.
	m       machine
	talking context.Context    // of the messages under way
	hush    context.CancelFunc // ends them

	main   Socket
	in     chan func(now time.Time) // for the loop to run
	paths  chan Path
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the loop, and a goroutine for each ping and message under way
	done   chan struct{}  // closed when the loop has ended

	mu    sync.Mutex // guards the fields below
	err   error      // why the loop ended
	socks []Socket   // opened and not closed yet
	last  Report
}

// newAttempt opens the punch socket. The caller sets m and calls start.
func newAttempt(node Node, open func() (Socket, error), payloadKey [32]byte, log *slog.Logger) (*attempt, error) {
	if node == nil || open == nil {
		return nil, errors.New("punch: Node and OpenSocket are required")
	}
	main, err := open()
	if err != nil {
		return nil, fmt.Errorf("punch: open a socket: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	talking, hush := context.WithCancel(ctx)
	return &attempt{
		talking: talking, hush: hush,
		node: node, openSocket: open, payloadKey: payloadKey, log: log,
		main: main, socks: []Socket{main},
		in: make(chan func(time.Time), inboxSize), paths: make(chan Path, pathsSize),
		ctx: ctx, cancel: cancel, done: make(chan struct{}),
	}, nil
}

func (a *attempt) start(m machine) {
	a.m = m
	a.wg.Go(a.run)
}

// run is the loop. It ends when the machine has, or on Close.
func (a *attempt) run() {
	defer close(a.done)
	defer close(a.paths)
	defer a.m.release()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wake := a.m.advance(time.Now())
		again := a.perform(a.m.take())
		if a.note(); a.m.ended() != nil {
			return
		}
		var ring <-chan time.Time
		switch {
		case again:
			wake = time.Now()
			fallthrough
		case !wake.IsZero():
			timer.Reset(time.Until(wake))
			ring = timer.C
		}
		select {
		case f := <-a.in:
			f(time.Now())
		case <-ring:
		case <-a.ctx.Done():
			a.mu.Lock()
			a.err = errClosed
			a.mu.Unlock()
			return
		}
	}
}

// note keeps what the methods of the attempt report.
func (a *attempt) note() {
	err, last := a.m.ended(), a.m.report()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != last {
		a.log.Debug("punching", "stage", last.Stage, "local", last.Local, "remote", last.Remote)
	}
	a.err, a.last = err, last
}

// perform does what the machine asked for. It reports whether the machine has to be advanced at once.
func (a *attempt) perform(do todo) (again bool) {
	if do.hush {
		a.hush()
		a.talking, a.hush = context.WithCancel(a.ctx)
	}
	for _, p := range do.probes {
		if err := p.sock.SendTTL([]byte{0}, p.to, p.ttl); err != nil {
			a.log.Debug("probe not sent", "to", p.to, "error", err)
		}
	}
	for _, r := range do.answers {
		a.answer(r)
	}
	for _, to := range do.pings {
		a.wg.Go(func() { a.ping(to) })
	}
	for _, s := range do.signals {
		ctx, cancel := a.talking, context.CancelFunc(func() {})
		if s.last {
			ctx, cancel = context.WithTimeout(context.WithoutCancel(a.ctx), lastWords)
		}
		a.wg.Go(func() {
			defer cancel()
			a.signal(ctx, s)
		})
	}
	for _, p := range do.paths {
		select {
		case a.paths <- p:
		default: // the peer goes on probing, and the path comes again
		}
	}
	if do.open == 0 {
		return false
	}
	a.m.probing().opened(a.openMore(do.open))
	return true
}

// openMore opens up to n sockets.
func (a *attempt) openMore(n int) []Socket {
	var socks []Socket
	for range n {
		s, err := a.openSocket()
		if err != nil {
			a.log.Info("cannot open more sockets to punch with", "error", err)
			break
		}
		socks = append(socks, s)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.socks = append(a.socks, socks...)
	return socks
}

// post has the loop run f, and waits until it takes it.
func (a *attempt) post(f func(now time.Time)) {
	select {
	case a.in <- f:
	case <-a.done:
	}
}

// offer has the loop run f unless it is too busy.
func (a *attempt) offer(f func(now time.Time)) {
	select {
	case a.in <- f:
	default:
	}
}

func (a *attempt) ping(to netip.AddrPort) {
	pong, err := a.node.Ping(a.ctx, a.main, to, 0)
	a.post(func(time.Time) {
		if err != nil {
			a.m.local().miss(to)
			return
		}
		a.m.local().pong(pong.To, to)
	})
}

func (a *attempt) signal(ctx context.Context, s signal) {
	reply, err := a.node.Holepunch(ctx, s.relay, a.main, a.target, a.id, a.seal(&s.payload), s.peer)
	var p payload
	if err == nil {
		p, err = openPayload(&a.payloadKey, reply.Payload)
	}
	a.post(func(now time.Time) {
		c := a.m.(*client) // a server sends no signals
		if err != nil {
			a.log.Debug("no answer to hole punch message", "relay", s.relay, "error", err)
			c.missed(s.id)
			return
		}
		c.answered(now, &s, &p, reply.Peer, reply.Self)
	})
}

func (a *attempt) answer(r answer) {
	var from dht.Socket // nil: where the request came in
	if !r.abort {
		from = a.main
	}
	if err := r.to.Reply(from, a.seal(&r.payload)); err != nil {
		a.log.Debug("answer to hole punch message not sent", "error", err)
	}
}

func (a *attempt) seal(p *payload) []byte {
	var nonce [nonceSize]byte
	crand.Read(nonce[:]) // never fails
	return sealPayload(&a.payloadKey, &nonce, p)
}

// close ends the loop and everything it started, but for a message that says goodbye, for which it waits, and closes the sockets but
// those to keep.
func (a *attempt) close(keep []Socket) error {
	a.cancel()
	a.wg.Wait()
	a.mu.Lock()
	socks := a.socks
	a.socks = nil
	a.mu.Unlock()
	var errs []error
	for _, s := range socks {
		if !slices.Contains(keep, s) {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

func (a *attempt) reported() (Report, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last, a.err
}

// newRand returns a random source, and a secret for tokens.
func newRand() (r *rand.Rand, secret [32]byte) {
	var seed [16]byte
	crand.Read(seed[:])
	crand.Read(secret[:])
	return rand.New(rand.NewPCG(binary.LittleEndian.Uint64(seed[:]), binary.LittleEndian.Uint64(seed[8:]))), secret
}
