package relay

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"omegatun/dht/key"
	"omegatun/session/protomux"
	"omegatun/session/udx"
)

const (
	defaultWaitingPerKey = 16
	defaultLinksPerKey   = 64
	defaultLinks         = 4096
	defaultPairTimeout   = 20 * time.Second
	defaultIdleTimeout   = time.Minute

	sweepEvery = time.Second
	reserving  = 8 // attempts to find ids that are free
)

// Config is the configuration of a [Server]. The zero value works.
type Config struct {
	// Reserve takes a stream id that is in use nowhere on this host, and returns what gives it back. Default: ids
	// are drawn at random, and may, with luck of one in four thousand million for each pair of streams, be those of
	// other streams.
	Reserve func() (id udx.ID, release func(), err error)

	// WaitingPerKey is how many tokens of one client may wait for their other half. Default: 16.
	WaitingPerKey int
	// LinksPerKey is how many links one client may be an end of. Default: 64.
	LinksPerKey int
	// Links is how many links there may be in all. Default: 4096.
	Links int
	// Rate is how many bytes a second of each client are forwarded, over all of its links; what exceeds it is
	// dropped. A quarter of a second's worth, and at least 64 KiB, may come at once. Default: no limit.
	Rate int
	// PairTimeout is how long a token waits. Default: 20 s; clients wait for 15 s.
	PairTimeout time.Duration
	// IdleTimeout is how long a link lives without a packet. Default: 1 min.
	IdleTimeout time.Duration

	Logger *slog.Logger // nil: discard
}

// Server is a relay. Its methods are safe for concurrent use.
type Server struct {
	reserve func() (udx.ID, func(), error)
	idle    time.Duration
	log     *slog.Logger
	table   table
	batches sync.Pool       // for Receive
	now     context.Context // has ended
	ctx     context.Context // ends with the server
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // the sweeper, and calls of Serve

	mu        sync.Mutex // guards the fields below, and those of sessions that say so; never held with another lock
	registry  registry
	cancelled uint64 // tokens that nobody answered
	paired    uint64
	closed    bool
}

// Control is a connection over which a client pairs.
type Control struct {
	// Key is the client's public key.
	Key key.Public
	// Path returns the socket over which the connection runs and the address of the client, as they are now. It is
	// called when a link is made: the client's packets must come from there. With an invalid address they
	// may come from anywhere. It must not be nil.
	Path func() (udx.Socket, netip.Addr)
}

// session is a Control that is being served.
type session struct {
	key     key.Public
	path    func() (udx.Socket, netip.Addr)
	ch      *protomux.Channel
	cancel  context.CancelCauseFunc
	account *account

	waiting map[Token]*meeting // guarded by Server.mu
	links   map[Token]*link    // guarded by Server.mu
	left    bool               // guarded by Server.mu
}

// NewServer starts a relay.
func NewServer(cfg Config) *Server {
	s := &Server{
		reserve: cfg.Reserve, log: cfg.Logger, now: ended(),
		idle:     cmp.Or(cfg.IdleTimeout, defaultIdleTimeout),
		registry: newRegistry(),
	}
	if s.reserve == nil {
		s.reserve = randomID
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	r := &s.registry
	r.waitingPerKey = cmp.Or(cfg.WaitingPerKey, defaultWaitingPerKey)
	r.linksPerKey = cmp.Or(cfg.LinksPerKey, defaultLinksPerKey)
	r.links = cmp.Or(cfg.Links, defaultLinks)
	r.timeout = cmp.Or(cfg.PairTimeout, defaultPairTimeout)
	r.rate = cfg.Rate
	s.batches.New = func() any { return s.NewBatch() }
	s.table.sides = make(map[udx.ID]*side)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.wg.Go(s.sweep)
	return s
}

func randomID() (udx.ID, func(), error) {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return udx.ID(binary.LittleEndian.Uint32(b[:])), func() {}, nil
}

// Close ends all links and all calls of Serve, and waits for them. It returns nil. The control connections are left
// open.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(net.ErrClosed)
	s.wg.Wait()
	return nil
}

// Serve pairs what the client at the other end of mux asks for. It returns when the client closes the channel,
// which is no error, when mux is done, when ctx ends, or when the client breaks the protocol or is refused;
// whatever was paired for it ends then. It does not close mux, on which other protocols may run.
func (s *Server) Serve(ctx context.Context, mux *protomux.Mux, control Control) error {
	err := s.serve(ctx, mux, control)
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("relay: serve %s: %w", control.Key.Short(), err)
}

func (s *Server) serve(ctx context.Context, mux *protomux.Mux, control Control) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()

	ch, err := mux.Open(Protocol, control.Key[:], nil)
	if err != nil {
		return err
	}
	defer ch.Close()
	c := &session{key: control.Key, path: control.Path, ch: ch, cancel: cancel}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.wg.Add(1)
	s.registry.enter(c)
	s.mu.Unlock()
	defer s.wg.Done()
	defer s.leave(c)

	for {
		typ, b, err := ch.Receive(ctx)
		if ctx.Err() != nil { // also while there is more to receive
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		switch typ {
		case messagePair:
			p, err := parsePair(b)
			if err == nil {
				err = s.pair(c, p)
			}
			if err != nil {
				return err
			}
		case messageUnpair:
			t, err := parseUnpair(b)
			if err != nil {
				return err
			}
			s.mu.Lock()
			l := s.registry.unpair(c, t)
			s.mu.Unlock()
			if l != nil {
				s.end(l, "unpaired")
			}
		}
	}
}

func (s *Server) leave(c *session) {
	s.mu.Lock()
	links := s.registry.leave(c)
	s.mu.Unlock()
	for _, l := range links {
		s.end(l, "control connection closed")
	}
}

// pair handles a pair. The error ends the session.
func (s *Server) pair(c *session, p pair) error {
	s.mu.Lock()
	m, err := s.registry.pair(c, p, time.Now())
	idle := len(c.waiting) == 0 && len(c.links) == 0
	s.mu.Unlock()
	switch {
	case err != nil && idle: // so that it does not wait in vain
		return err
	case err != nil:
		s.log.Info("relay limit reached", "peer", c.key.Short())
	case m != nil:
		s.connect(m)
	}
	return nil
}

// connect makes the link of a complete meeting and tells both clients.
func (s *Server) connect(m *meeting) {
	l, err := s.newLink(m)
	s.mu.Lock()
	ok := err == nil && s.registry.link(l)
	if !ok {
		s.registry.uncount(m.places[0].session, m.places[1].session)
	} else {
		s.paired++
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Error("no stream ids for a link", "error", err)
		return
	}
	if !ok { // one has left
		s.discard(l)
		return
	}
	s.log.Debug("link made", "token", m.token, "responder", m.places[0].session.key.Short(),
		"initiator", m.places[1].session.key.Short())
	for i := range l.sides {
		e := &l.sides[i]
		answer := pair{initiator: i == 1, token: l.token, stream: e.id}
		if err := e.owner.ch.Send(s.now, messagePair, answer.append(nil)); err != nil {
			e.owner.cancel(fmt.Errorf("answer not taken: %w", err)) // it is gone, or does not read what it asks for
		}
	}
}

// newLink makes a link and puts it into the table.
func (s *Server) newLink(m *meeting) (*link, error) {
	for range reserving {
		l := &link{token: m.token, seen: time.Now()}
		for i, p := range m.places {
			e := &l.sides[i]
			*e = side{link: l, other: &l.sides[1-i], owner: p.session, remote: p.stream}
			e.sock, e.host = p.session.path()
			e.host = e.host.Unmap()
			var err error
			if e.id, e.release, err = s.reserve(); err != nil {
				if i == 1 {
					l.sides[0].release()
				}
				return nil, err
			}
		}
		if s.table.add(l) {
			return l, nil
		}
		s.discard(l)
	}
	return nil, udx.ErrIDInUse
}

// discard takes a link out of the table and gives its ids back.
func (s *Server) discard(l *link) {
	s.table.remove(l)
	for i := range l.sides {
		l.sides[i].release()
	}
}

// end ends a link, unless that was done before.
func (s *Server) end(l *link, reason string) {
	s.mu.Lock()
	was := s.registry.unlink(l)
	s.mu.Unlock()
	if was {
		s.discard(l)
		s.log.Debug("link ended", "token", l.token, "reason", reason)
	}
}

// sweep is the goroutine that ends what has lasted too long.
func (s *Server) sweep() {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	var links []*link
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		links = links[:0]
		s.mu.Lock()
		s.cancelled += uint64(s.registry.expire(now))
		for l := range s.registry.open {
			links = append(links, l)
		}
		s.mu.Unlock()
		for _, l := range links {
			if l.idle(now.Add(-s.idle)) {
				s.end(l, "idle")
			}
		}
		clear(links)
	}
}

// Stats are the counters of a [Server].
type Stats struct {
	Clients int // keys that are connected
	Waiting int // tokens
	Links   int

	Paired  uint64 // links made
	Expired uint64 // tokens that nobody answered in time

	Packets, Bytes uint64 // forwarded, IP and UDP headers not counted
	// Packets dropped: from elsewhere than the client's address and socket; beyond the rate; before the other
	// client was heard, when enough were kept.
	Foreign, Limited, Undelivered uint64
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.table.counters
	return Stats{
		Clients: len(s.registry.accounts), Waiting: len(s.registry.meetings), Links: len(s.registry.open),
		Paired: s.paired, Expired: s.cancelled,
		Packets: c.packets.Load(), Bytes: c.bytes.Load(),
		Foreign: c.foreign.Load(), Limited: c.limited.Load(), Undelivered: c.undelivered.Load(),
	}
}
