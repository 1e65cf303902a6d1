package portmap

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Config says what to map.
type Config struct {
	// Off switches everything off: nothing is ever sent.
	Off bool
	// Gateway returns the gateway of the default route and this host's address towards it, of the same family; ok is
	// false if there is none. It is called before each round of questions and after Refresh, from one goroutine, and
	// is to answer quickly. A public IPv4 address needs no mapping, and counts as no gateway. nil: there is never one.
	Gateway func() (gateway, local netip.Addr, ok bool)
	// Port is the local UDP port to map. 0: as if Off.
	Port uint16
	// Lifetime is how long a mapping may outlive us, and twice the time between renewals: 2 minutes to 24 hours.
	// Default: 30 minutes, which is less than the usual two hours, so that a restart that the gateway did not
	// announce is noticed in a quarter of an hour, and ports do not stay open long after a crash.
	Lifetime time.Duration
	// Secret, if there is one, makes the PCP nonces repeatable: only with it can a mapping that a crash left behind be
	// renewed and removed. It is the key of an HMAC, and does not leave the process.
	Secret []byte
	// Name is what a gateway's list shows of a UPnP mapping. Default: "omegatun".
	Name string
	// Logger receives what may interest an operator. Default: discard.
	Logger *slog.Logger
}

// Mapper keeps a port of the gateway mapped to one of ours, until it is closed. All methods are safe for concurrent
// use, and only Close blocks. It has a goroutine of its own, and a few for some seconds while the gateway is asked.
type Mapper struct {
	cfg     Config
	open    opener
	cancel  context.CancelFunc
	refresh chan struct{} // holds one
	loop    *loop         // is the loop's until stopped is closed, then Close's
	stopped chan struct{}
	closing sync.Once
	closed  error // of Close, under closing

	mu      sync.Mutex // guards the fields below
	report  Report
	changes chan struct{}
}

// New returns a Mapper that begins at once.
func New(cfg Config) *Mapper { return newMapper(cfg, standard.open) }

func newMapper(cfg Config, open opener) *Mapper {
	cfg.Lifetime = min(max(cmp.Or(cfg.Lifetime, 30*time.Minute), 2*time.Minute), maxLifetime)
	cfg.Name = cmp.Or(cfg.Name, "omegatun")
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	if cfg.Gateway == nil {
		cfg.Gateway = func() (gateway, local netip.Addr, ok bool) { return gateway, local, false }
	}
	cfg.Secret = slices.Clone(cfg.Secret)
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mapper{
		cfg:     cfg,
		open:    open,
		cancel:  cancel,
		refresh: make(chan struct{}, 1),
		stopped: make(chan struct{}),
		changes: make(chan struct{}),
	}
	m.loop = &loop{m: m, ctx: ctx, events: make(chan event), heard: make(chan announcement, 1)}
	if cfg.Off || cfg.Port == 0 {
		close(m.stopped)
	} else {
		go m.loop.run()
	}
	return m
}

// External returns the public address and port that lead to the local port. ok is false while there are none, and if
// the gateway's address is a private one.
func (m *Mapper) External() (external netip.AddrPort, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.report.Mapping.Public {
		return netip.AddrPort{}, false
	}
	return m.report.Mapping.External, true
}

// Report returns what is known. The caller owns it.
func (m *Mapper) Report() Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.report
	r.Answers = slices.Clone(r.Answers)
	return r
}

// Changes returns a channel that is closed at the next change of External or Report, or when the Mapper closes. Take
// the channel, look, then wait.
func (m *Mapper) Changes() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// Refresh says that the network may have changed, or that the host woke up: the gateway is looked up and asked anew,
// within a second. It may be called as often as one likes.
func (m *Mapper) Refresh() {
	select {
	case m.refresh <- struct{}{}:
	default:
	}
}

// Close removes the mapping and stops. It waits for the gateway's answer, at most 3 s and until ctx ends; the error says
// that the removal is not confirmed, and everything is stopped all the same. Further calls return what the first did.
func (m *Mapper) Close(ctx context.Context) error {
	m.closing.Do(func() {
		m.cancel()
		<-m.stopped
		if l := m.loop.plan.lease; l.valid() {
			if err := m.loop.gateway.release(ctx, l); err != nil {
				m.closed = fmt.Errorf("portmap: remove the mapping of %v: %w", l.external, err)
			}
		}
		m.loop.wg.Wait()
		m.publish(Report{})
	})
	return m.closed
}

// publish makes a report the one that callers see.
func (m *Mapper) publish(r Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report = r
	close(m.changes)
	m.changes = make(chan struct{})
}

// loop is the goroutine of a Mapper, and what it owns.
type loop struct {
	m       *Mapper
	ctx     context.Context // ends at Close
	wg      sync.WaitGroup  // of the goroutines it started
	events  chan event      // of the round under way
	heard   chan announcement
	gateway gateway // the zero route: none
	plan    plan
	report  Report // as published last

	// cancelRound ends the round under way; nil: there is none. cancelListen ends the listener, if there is one.
	cancelRound, cancelListen context.CancelFunc
	stale                     bool // the round under way is that of another gateway
}

func (l *loop) run() {
	defer close(l.m.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			// The round and the listener end by themselves, as their contexts are children of this one. A lease
			// that the round has in its hands is ours to remove.
			for l.cancelRound != nil {
				l.take(<-l.events)
			}
			return
		case <-l.m.refresh:
			l.plan.hurry(time.Now())
			l.look()
		case a := <-l.heard:
			l.plan.announced(a, time.Now(), rand.N(restartSpread))
		case e := <-l.events:
			l.take(e)
		case <-timer.C:
		}
		if wake := l.advance(time.Now()); wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(wake))
		}
	}
}

// advance does what is due, and returns when it is to be called again at the latest; zero: when something happens.
func (l *loop) advance(now time.Time) (wake time.Time) {
	if l.plan.lease.valid() && l.plan.expire(now) {
		l.m.cfg.Logger.Info("port mapping expired", "external", l.report.Mapping.External)
		l.publish()
	}
	if l.cancelRound != nil {
		return time.Time{}
	}
	if at := l.plan.next(); now.Before(at) {
		return at
	}
	l.look()
	l.plan.begin(now)
	if l.gateway.route == (route{}) {
		l.plan.fail()
		l.report.Rounds++
		l.publish()
		return l.plan.next()
	}
	var ctx context.Context
	ctx, l.cancelRound = context.WithCancel(l.ctx)
	g, held, want := l.gateway, l.plan.lease, netip.AddrPortFrom(netip.Addr{}, l.m.cfg.Port)
	l.wg.Go(func() { g.round(ctx, held, want, func(e event) { l.events <- e }) })
	return time.Time{}
}

// look finds out what the gateway is. If it is another than before, the mapping there is given up.
func (l *loop) look() {
	var r route
	if gateway, local, ok := l.m.cfg.Gateway(); ok {
		gateway, local = gateway.Unmap(), local.Unmap()
		if gateway.IsValid() && local.IsValid() && gateway.Is4() == local.Is4() && (!local.Is4() || !isPublic(local)) {
			r = route{gateway, local}
		}
	}
	if r == l.gateway.route {
		return
	}
	if l.cancelRound != nil {
		l.cancelRound()
		l.stale = true
	}
	if l.cancelListen != nil {
		l.cancelListen()
		l.cancelListen = nil
	}
	l.abandon(l.gateway, l.plan.lease)
	l.plan.restart(time.Now())
	l.gateway = gateway{}
	if r != (route{}) {
		l.gateway = l.m.open(&l.m.cfg, r)
	}
	if listen := l.gateway.listen; listen != nil {
		var ctx context.Context
		ctx, l.cancelListen = context.WithCancel(l.ctx)
		l.wg.Go(func() {
			if err := listen(ctx, l.heard); err != nil && ctx.Err() == nil {
				l.m.cfg.Logger.Debug("no port mapping announcements", "err", err)
			}
		})
	}
	l.report = Report{Gateway: r.gateway, Local: r.local, Rounds: l.report.Rounds, Restarts: l.report.Restarts}
	l.publish()
}

// abandon tries to remove a mapping at a gateway that is not the default one any more.
func (l *loop) abandon(g gateway, old lease) {
	if !old.valid() {
		return
	}
	l.wg.Go(func() {
		if err := g.release(l.ctx, old); err != nil {
			l.m.cfg.Logger.Debug("port mapping left behind", "external", old.external, "err", err)
		}
	})
}

// take takes what the round under way tells.
func (l *loop) take(e event) {
	if e.done {
		l.cancelRound()
		l.cancelRound = nil
	}
	if l.stale {
		if e.lease.valid() {
			// Of no use, and ends by itself: the network it was in is gone.
			l.m.cfg.Logger.Debug("port mapping left behind", "external", e.lease.external)
		}
		l.stale = !e.done
		return
	}
	old := l.plan.lease
	switch {
	case e.lease.valid():
		if l.plan.grant(e.lease) {
			l.report.Restarts++
			l.m.cfg.Logger.Info("gateway had lost its port mappings", "gateway", l.gateway.gateway)
		}
		if e.lease.external != old.external {
			l.m.cfg.Logger.Info("port mapped", "protocol", e.lease.protocol.String(), "external", e.lease.external)
		}
	case e.done && l.plan.lease.at.Before(l.plan.asked):
		l.plan.fail()
	}
	if e.answers != nil {
		l.report.Answers = e.answers
	}
	if e.done {
		l.report.Rounds++
	}
	l.publish()
}

// publish shows the state to callers.
func (l *loop) publish() {
	held := l.plan.lease
	l.report.Mapping = Mapping{}
	if held.valid() {
		l.report.Mapping = Mapping{
			Protocol:  held.protocol,
			External:  held.external,
			Public:    isPublic(held.external.Addr()),
			Expires:   held.expires(),
			Permanent: held.permanent,
		}
	}
	l.m.publish(l.report)
}
