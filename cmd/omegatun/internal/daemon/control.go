package daemon

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/session"
)

// starting is the answer to what needs a daemon that is up.
func starting() error {
	return exit.New(exit.NoDaemon, "omegatun is still starting").WithTry("omegatun wait")
}

// Status describes the daemon now.
func (d *Daemon) Status(context.Context) (*control.Status, error) {
	s := &control.Status{
		Self: control.Self{
			Key: d.own, Name: d.cfg.Name, IPv6: d.addr6, State: "starting", NAT: "unknown",
			PID: os.Getpid(), UptimeMS: time.Since(d.started).Milliseconds(),
		},
		Peers: []control.PeerStatus{},
	}
	if !d.ready.Load() {
		return s, nil
	}
	info := d.host.Node().Info()
	s.Self.State = "up"
	select {
	case <-d.done:
		s.Self.State = "stopping"
	default:
		if !info.Online {
			s.Self.State = "offline"
		}
	}
	s.Self.NAT = natWord(info)
	s.Self.Mapped, _ = d.host.Mapped()
	if r, ok := d.host.RelayStats(); ok {
		s.Self.Relay = &control.Relay{
			Clients: r.Clients, Waiting: r.Waiting, Links: r.Links, Paired: r.Paired, Packets: r.Packets, Bytes: r.Bytes,
		}
	}
	s.Self.DHT = control.DHT{Nodes: info.Nodes, Persistent: info.Persistent}
	if info.Host.IsValid() {
		s.Self.DHT.Address = netip.AddrPortFrom(info.Host, info.Port)
	}
	s.Self.Interface = control.Interface{Name: d.device.Name(), MTU: d.mtu}

	d.mu.Lock()
	s.Self.IPv4 = d.addr4
	s.Self.Notes = slices.Clone(d.notes)
	if d.offline != "" {
		s.Self.Notes = append(s.Self.Notes, d.offline)
	}
	listed := d.listedLocked()
	members := make([]*member, 0, len(listed))
	for _, p := range listed {
		if m := d.peers[p.Key]; m != nil {
			members = append(members, m)
			s.Peers = append(s.Peers, control.PeerStatus{Name: m.name})
		}
	}
	d.mu.Unlock()
	for i, m := range members {
		d.describe(m, &s.Peers[i])
	}
	return s, nil
}

// describe fills in all of s but the name.
func (d *Daemon) describe(m *member, s *control.PeerStatus) {
	status, stats := m.session.Status(), m.route.Stats()
	s.Key = status.Key
	s.State = control.State(status.State.String())
	for _, p := range m.prefixes {
		if p.Addr().Is4() {
			s.IPv4 = p.Addr()
		} else {
			s.IPv6 = p.Addr()
		}
	}
	if status.Err != nil {
		s.Reason = Explain(status.Err).Reason
	}
	s.RxBytes, s.TxBytes = status.RxBytes, status.TxBytes
	s.Dropped = make(map[string]uint64, len(stats.Dropped))
	for reason, n := range stats.Dropped {
		s.Dropped[reason.String()] = n
	}
	for reason, n := range map[string]uint64{
		"not authentic": status.Rejected, "replayed": status.Replayed, routes.NoSession.String(): status.TxLost,
	} {
		if n > 0 {
			s.Dropped[reason] = max(n, s.Dropped[reason])
		}
	}
	if a := status.Announced; a.Version != "" || a.Name != "" || len(a.Addresses) > 0 {
		s.Announced = &control.Announced{
			Version: a.Version, Name: a.Name, Addresses: a.Addresses, MTU: a.MTU, Relaying: a.Relaying, Relays: a.Relays,
		}
	}
	if last, ok := lastAttempt(m.session); ok {
		s.Last = describeAttempt(d.host, d.own, status.Key, withNATs(last, m.session))
		s.Last.Steps = nil
	}
	if status.Path == (session.Path{}) {
		return
	}
	s.Suite, s.KeyAgeMS = status.Suite, status.KeyAge.Milliseconds()
	s.Path = describePath(status.Path)
	s.Path.Mapped = status.Mapped
	s.Path.MTU, s.Path.RTTMS = cmp.Or(status.MTU, m.route.MTU()), milliseconds(status.RTT)
	if !status.LastAuth.IsZero() {
		s.Path.LastAuthMS = max(0, time.Since(status.LastAuth).Milliseconds())
	}
}

// milliseconds returns d in milliseconds, to the microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Events calls emit for what holds and what happens.
func (d *Daemon) Events(ctx context.Context, emit func(control.Event) error) error {
	return d.events.each(ctx, emit)
}

// Up admits and dials peers, and calls emit for the outcome of each.
func (d *Daemon) Up(ctx context.Context, peers []key.Public, emit func(control.Event) error) error {
	if !d.ready.Load() {
		return starting()
	}
	if slices.Contains(peers, d.own) {
		return exit.New(exit.Usage, "that is this machine's own key")
	}
	d.mu.Lock()
	for _, k := range peers {
		_, listed := d.settings.Peers.ByKey(k)
		if !listed && !slices.Contains(d.extra, k) {
			d.extra = append(d.extra, k)
		}
	}
	d.mu.Unlock()
	d.apply(nil)
	waiting := make(map[key.Public]bool)
	for _, k := range peers {
		m, err := d.member(k)
		if err != nil {
			return err
		}
		if m.session.Status().State != session.PeerConnected {
			d.events.forget(k) // only what comes of this counts
		}
		m.session.Connect()
		waiting[k] = true
	}
	if len(waiting) == 0 {
		return nil
	}
	err := d.events.each(ctx, func(e control.Event) error {
		if e.Event != "peer" || !waiting[e.Key] || e.State == "disconnected" {
			return nil
		}
		delete(waiting, e.Key)
		if err := emit(e); err != nil {
			return err
		}
		if len(waiting) == 0 {
			return errAll
		}
		return nil
	})
	if errors.Is(err, errAll) {
		err = nil
	}
	return err
}

// errAll ends the wait for events: there will be no more of interest.
var errAll = errors.New("all have an outcome")

// Wait waits for a peer, or to be announced.
func (d *Daemon) Wait(ctx context.Context, peer key.Public) error {
	if !peer.IsZero() {
		if !d.ready.Load() {
			return starting()
		}
		m, err := d.member(peer)
		if err != nil {
			return err
		}
		return waitFor(ctx, m.session)
	}
	err := d.events.each(ctx, func(e control.Event) error {
		if e.Event == "listening" {
			return errAll
		}
		return nil
	})
	switch {
	case errors.Is(err, errAll):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return exit.New(exit.Timeout, "this machine is not announced yet").WithTry("omegatun status")
	case err == nil:
		return exit.New(exit.NoDaemon, "omegatun has stopped")
	}
	return err
}

// waitFor waits for a connection to p, and returns why there is none when ctx ends.
func waitFor(ctx context.Context, p *session.Peer) error {
	err := p.Wait(ctx)
	if err == nil {
		return nil
	}
	if last := p.Status().Err; last != nil && ctx.Err() != nil {
		return Explain(last)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exit.New(exit.Timeout, "not connected yet").WithTry("omegatun status")
	}
	return Explain(err)
}

// Ping measures the way to a peer.
func (d *Daemon) Ping(ctx context.Context, ping control.Ping, emit func(control.Pong) error) error {
	if !d.ready.Load() {
		return starting()
	}
	m, err := d.member(ping.Peer)
	if err != nil {
		return err
	}
	every, timeout, err := ping.Times()
	if err != nil {
		return err
	}
	connecting, cancel := context.WithTimeout(ctx, timeout)
	err = waitFor(connecting, m.session)
	cancel()
	if err != nil {
		return err
	}
	interval := time.NewTicker(every)
	defer interval.Stop()
	for seq := 1; ping.Count == 0 || seq <= ping.Count; seq++ {
		if seq > 1 {
			select {
			case <-interval.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		p := control.Pong{Event: "lost", Seq: seq}
		answering, cancel := context.WithTimeout(ctx, timeout)
		pong, err := m.session.Ping(answering)
		cancel()
		switch {
		case err == nil:
			p.Event, p.RTTMS = "pong", milliseconds(pong.RTT)
			p.Path, p.Remote = pong.Path.Kind.String(), pong.Path.Remote
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// Reload reads the configuration again.
func (d *Daemon) Reload(context.Context) error {
	if !d.ready.Load() {
		return starting()
	}
	settings, err := d.cfg.Reload()
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.extra = slices.DeleteFunc(d.extra, func(k key.Public) bool { // taking a peer off the list is meant
		_, was := d.settings.Peers.ByKey(k)
		_, is := settings.Peers.ByKey(k)
		return was && !is
	})
	d.mu.Unlock()
	d.apply(settings)
	d.connectListed((*session.Peer).Connect)
	return nil
}

// Down stops the daemon and waits until everything is undone.
func (d *Daemon) Down(ctx context.Context) error {
	d.stop(errStopped)
	select {
	case <-d.done:
	case <-ctx.Done():
		select {
		case <-d.done:
		default:
			return context.Cause(ctx)
		}
	}
	return d.err
}
