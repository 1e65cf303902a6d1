package portmap

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	gatewayA = route{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.10")}
	gatewayB = route{netip.MustParseAddr("192.168.2.1"), netip.MustParseAddr("192.168.2.10")}
	publicA  = netip.MustParseAddrPort("192.88.99.1:4000")
)

// scripted is a client whose gateway does as it is told.
type scripted struct {
	kind Protocol

	mu       sync.Mutex // guards the fields below
	probing  error
	mapping  error
	hangs    bool // until the context ends
	external netip.AddrPort
	lifetime time.Duration
	started  time.Time // the gateway; zero: no epoch
	asked    []time.Time
	wanted   []netip.AddrPort
	released []netip.AddrPort
}

func (s *scripted) protocol() Protocol { return s.kind }

func (s *scripted) probe(ctx context.Context) (netip.Addr, error) {
	s.mu.Lock()
	err, hangs := s.probing, s.hangs
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return netip.Addr{}, context.Cause(ctx)
	}
	time.Sleep(10 * time.Millisecond)
	return netip.Addr{}, err
}

func (s *scripted) request(ctx context.Context, want netip.AddrPort) (lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.asked = append(s.asked, now)
	s.wanted = append(s.wanted, want)
	if s.mapping != nil {
		return lease{}, s.mapping
	}
	l := lease{protocol: s.kind, external: s.external, at: now, lifetime: s.lifetime}
	if !s.started.IsZero() {
		l.epoch = readEpoch(uint32(now.Sub(s.started)/time.Second), now)
	}
	return l, nil
}

func (s *scripted) release(ctx context.Context, l lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hangs {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return context.Cause(ctx)
	}
	s.released = append(s.released, l.external)
	return nil
}

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// times returns when mappings were requested, since start.
func (s *scripted) times(start time.Time) (d []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.asked {
		d = append(d, at.Sub(start).Round(time.Second))
	}
	return d
}

// world is what a Mapper under test sees.
type world struct {
	mu    sync.Mutex // guards the fields below
	route route
	looks int

	gateways map[route][]client
	announce chan announcement
}

func (w *world) gateway() (gateway, local netip.Addr, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	return w.route.gateway, w.route.local, w.route != route{}
}

func (w *world) move(to route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.route = to
}

func (w *world) open(_ *Config, r route) gateway {
	return gateway{route: r, clients: w.gateways[r], listen: func(ctx context.Context, out chan<- announcement) error {
		for {
			select {
			case a := <-w.announce:
				out <- a
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}}
}

// newWorld returns a host at gateway A, which speaks PCP with an epoch, NAT-PMP and UPnP, and grants all for 30 minutes.
func newWorld() (w *world, pcp, pmp, upnp *scripted) {
	granting := func(p Protocol) *scripted {
		return &scripted{kind: p, external: publicA, lifetime: 30 * time.Minute}
	}
	pcp, pmp, upnp = granting(PCP), granting(NATPMP), granting(UPnP)
	pcp.started = time.Now().Add(-time.Hour)
	w = &world{
		route:    gatewayA,
		gateways: map[route][]client{gatewayA: {pcp, pmp, upnp}},
		announce: make(chan announcement),
	}
	return w, pcp, pmp, upnp
}

func (w *world) start(t *testing.T, cfg Config) *Mapper {
	t.Helper()
	cfg.Gateway = w.gateway
	if cfg.Port == 0 {
		cfg.Port = 4000
	}
	m := newMapper(cfg, w.open)
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

// settle lets a round end.
func settle() { time.Sleep(100 * time.Millisecond); synctest.Wait() }

func wantExternal(t *testing.T, m *Mapper, want netip.AddrPort, reason string) {
	t.Helper()
	if got, ok := m.External(); got != want || ok != want.IsValid() {
		t.Errorf("%s: External() = %v, %t, want %v", reason, got, ok, want)
	}
}

func TestMapperMapsRenewsAndRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, pmp, upnp := newWorld()
		start := time.Now()
		m := w.start(t, Config{})
		changed := m.Changes()
		wantExternal(t, m, netip.AddrPort{}, "before an answer")
		settle()
		wantExternal(t, m, publicA, "mapped")
		select {
		case <-changed:
		default:
			t.Error("the mapping is no change")
		}
		r := m.Report()
		if r.Gateway != gatewayA.gateway || r.Local != gatewayA.local || r.Rounds != 1 || len(r.Answers) != 3 ||
			!r.Answers[0].Speaks || !r.Answers[1].Speaks || !r.Answers[2].Speaks ||
			r.Mapping.Protocol != PCP || !r.Mapping.Public {
			t.Errorf("report %+v", r)
		}
		time.Sleep(time.Hour)
		want := []time.Duration{0, 15 * time.Minute, 30 * time.Minute, 45 * time.Minute, 60 * time.Minute}
		if got := pcp.times(start); !slices.Equal(got, want) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		if pcp.wanted[0].Port() != 4000 || pcp.wanted[1] != publicA {
			t.Errorf("asked for %v, want port 4000 first, then what was granted", pcp.wanted)
		}
		if len(pmp.asked)+len(upnp.asked) > 0 {
			t.Errorf("mappings by other protocols too: %v, %v", pmp.asked, upnp.asked)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if !slices.Equal(pcp.released, []netip.AddrPort{publicA}) {
			t.Errorf("released %v", pcp.released)
		}
		wantExternal(t, m, netip.AddrPort{}, "closed")
		time.Sleep(time.Hour)
		if got := len(pcp.times(start)); got != len(want) {
			t.Errorf("asked %d times more after Close", got-len(want))
		}
	})
}

func TestMapperTakesTheNextProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, pmp, upnp := newWorld()
		refused := errors.New("refused")
		pcp.mapping, pmp.probing = refused, errSilent
		m := w.start(t, Config{})
		settle()
		r := m.Report()
		if r.Mapping.Protocol != UPnP || len(upnp.asked) != 1 || len(pmp.asked) != 0 {
			t.Errorf("mapped by %v, want UPnP", r.Mapping.Protocol)
		}
		for i, want := range []Answer{{PCP, true, netip.Addr{}, refused}, {NATPMP, false, netip.Addr{}, errSilent}, {UPnP, true, publicA.Addr(), nil}} {
			if r.Answers[i] != want {
				t.Errorf("answer %+v, want %+v", r.Answers[i], want)
			}
		}
		// What the mapping was made by stops working: the others are asked at the next renewal.
		upnp.set(func() { upnp.mapping = refused })
		pcp.set(func() { pcp.mapping = nil })
		time.Sleep(15*time.Minute + time.Second)
		if got := m.Report().Mapping.Protocol; got != PCP {
			t.Errorf("mapped by %v, want PCP", got)
		}
	})
}

func TestMapperPublishesBeforeTheSearchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _, upnp := newWorld()
		upnp.hangs = true
		m := w.start(t, Config{})
		settle()
		wantExternal(t, m, publicA, "while UPnP is searched for")
		if r := m.Report(); r.Rounds != 0 {
			t.Errorf("%d rounds ended", r.Rounds)
		}
		time.Sleep(roundTimeout)
		if r := m.Report(); r.Rounds != 1 || r.Answers[2].Err == nil {
			t.Errorf("after the timeout: %+v", r)
		}
	})
}

func TestMapperLosesAMappingThatIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, pmp, upnp := newWorld()
		m := w.start(t, Config{})
		settle()
		for _, c := range []*scripted{pcp, pmp, upnp} {
			c.set(func() { c.probing, c.mapping = errSilent, errSilent })
		}
		time.Sleep(30*time.Minute - time.Second)
		wantExternal(t, m, publicA, "a second before it ends")
		time.Sleep(time.Second)
		wantExternal(t, m, netip.AddrPort{}, "expired")
		for _, c := range []*scripted{pcp, pmp, upnp} {
			c.set(func() { c.probing, c.mapping = nil, nil })
		}
		time.Sleep(maxSearch)
		wantExternal(t, m, publicA, "the gateway is back")
	})
}

func TestMapperNoticesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, _, _ := newWorld()
		m := w.start(t, Config{})
		settle()
		time.Sleep(time.Minute)
		// Announced.
		pcp.set(func() { pcp.started, pcp.external = time.Now(), netip.MustParseAddrPort("192.88.99.7:4001") })
		w.announce <- announcement{PCP, 0, netip.Addr{}}
		time.Sleep(restartSpread + time.Second)
		wantExternal(t, m, pcp.external, "announced")
		if got := m.Report().Restarts; got != 1 {
			t.Errorf("%d restarts, want 1", got)
		}
		// Seen at a renewal.
		time.Sleep(time.Hour)
		pcp.set(func() { pcp.started = time.Now() })
		time.Sleep(16 * time.Minute)
		if got := m.Report().Restarts; got != 2 {
			t.Errorf("%d restarts, want 2", got)
		}
		// Forged a thousand times.
		before := len(pcp.times(time.Time{}))
		for range 1000 {
			w.announce <- announcement{PCP, 7, netip.Addr{}}
			time.Sleep(100 * time.Millisecond)
		}
		if got := len(pcp.times(time.Time{})) - before; got > 4 {
			t.Errorf("asked %d times in 100 s because of forged announcements", got)
		}
	})
}

func TestMapperMovesToAnotherGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, _, _ := newWorld()
		publicB := netip.MustParseAddrPort("192.88.99.2:4000")
		other := &scripted{kind: UPnP, external: publicB, lifetime: 30 * time.Minute}
		w.gateways[gatewayB] = []client{other}
		m := w.start(t, Config{})
		time.Sleep(time.Minute)
		w.move(gatewayB)
		m.Refresh()
		synctest.Wait()
		wantExternal(t, m, netip.AddrPort{}, "moved, nothing asked yet")
		settle()
		wantExternal(t, m, publicB, "moved")
		if len(pcp.released) != 1 {
			t.Errorf("mappings removed at the old gateway: %v", pcp.released)
		}
		// Without a word, seen at the next renewal; then there is no gateway.
		w.move(gatewayA)
		time.Sleep(20 * time.Minute)
		wantExternal(t, m, publicA, "moved back")
		w.move(route{})
		m.Refresh()
		settle()
		wantExternal(t, m, netip.AddrPort{}, "no gateway")
		if r := m.Report(); r.Gateway.IsValid() || len(r.Answers) != 0 {
			t.Errorf("report without a gateway: %+v", r)
		}
		w.move(gatewayA)
		m.Refresh()
		time.Sleep(2 * time.Second)
		wantExternal(t, m, publicA, "a gateway again")
	})
}

func TestMapperMovesDuringARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, pmp, upnp := newWorld()
		pcp.hangs, pmp.hangs, upnp.hangs = true, true, true
		w.gateways[gatewayB] = []client{&scripted{kind: PCP, external: publicA, lifetime: time.Hour}}
		m := w.start(t, Config{})
		settle()
		w.move(gatewayB)
		m.Refresh()
		time.Sleep(2 * time.Second)
		wantExternal(t, m, publicA, "moved while the old gateway was asked")
	})
}

func TestMapperWithoutNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, _, _ := newWorld()
		none := netip.Addr{}
		for _, r := range []route{
			{netip.MustParseAddr("192.88.99.254"), netip.MustParseAddr("192.88.99.4")}, // a public address
			{netip.MustParseAddr("fe80::1"), gatewayA.local},
			{gatewayA.gateway, none},
			{none, gatewayA.local},
		} {
			w.route = r
			w.gateways[r] = w.gateways[gatewayA]
			m := w.start(t, Config{})
			settle()
			wantExternal(t, m, netip.AddrPort{}, "no need")
			if got := m.Report(); got.Gateway.IsValid() || got.Rounds != 1 || len(pcp.asked) > 0 {
				t.Errorf("%v: %+v, asked at %v", r, got, pcp.asked)
			}
		}
	})
}

func TestMapperRefreshesAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, _, _ := newWorld()
		w.gateways[gatewayB] = w.gateways[gatewayA]
		m := w.start(t, Config{})
		settle()
		for i := range 1000 { // ten seconds in which the network flaps, too
			if i%2 == 0 {
				w.move(gatewayB)
			} else if i > 500 {
				w.move(gatewayA)
			}
			m.Refresh()
			time.Sleep(10 * time.Millisecond)
		}
		if got := len(pcp.times(time.Time{})); got < 5 || got > 12 {
			t.Errorf("asked %d times in 10 s, want about 10", got)
		}
	})
}

func TestMapperBehindTwoNATs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, _, _ := newWorld()
		pcp.external = netip.MustParseAddrPort("100.64.3.4:4000")
		m := w.start(t, Config{})
		settle()
		wantExternal(t, m, netip.AddrPort{}, "private address")
		if got := m.Report().Mapping; got.External != pcp.external || got.Public {
			t.Errorf("mapping %+v", got)
		}
	})
}

func TestMapperClosesWhileAGatewayHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pcp, pmp, upnp := newWorld()
		pmp.hangs, upnp.hangs = true, true
		m := w.start(t, Config{})
		settle() // mapped by PCP; UPnP is being searched for
		pcp.set(func() { pcp.hangs = true })
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := m.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), publicA.String()) {
			t.Errorf("Close: %v", err)
		}
		if got := time.Since(start); got != time.Second {
			t.Errorf("Close took %v", got)
		}
		if again := m.Close(t.Context()); again != err {
			t.Errorf("second Close: %v", again)
		}
	})
}

func TestMapperOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cfg := range []Config{{Off: true, Port: 4000}, {}} {
			w, pcp, _, _ := newWorld()
			cfg.Gateway = w.gateway
			m := newMapper(cfg, w.open)
			m.Refresh()
			time.Sleep(time.Hour)
			wantExternal(t, m, netip.AddrPort{}, "off")
			if w.looks > 0 || len(pcp.asked) > 0 {
				t.Errorf("%+v: looked for a gateway %d times, asked %v", cfg, w.looks, pcp.asked)
			}
			changed := m.Changes()
			if err := m.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
			<-changed
		}
	})
}
