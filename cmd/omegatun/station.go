package main

import (
	"context"
	"errors"
	"io"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
	"omegatun/tun/hostnet"
)

// station is what commands begin with that are found under this machine's key: an identity that no other omegatun
// uses meanwhile, and a host in the network.
type station struct {
	key    key.Private
	config *config.Config
	host   *session.Host

	dir  *state.Dir
	lock io.Closer
}

// openStation opens a station. change, which may be nil, changes how its host works. The caller closes it.
func (e *env) openStation(ctx context.Context, change func(*session.Config)) (_ *station, err error) {
	s := new(station)
	if s.key, err = e.makeIdentity(); err != nil {
		return nil, err
	}
	if s.dir, err = e.makeState(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeState())
		}
	}()
	if s.lock, err = s.dir.Lock(); err != nil { // two would announce the same key
		return nil, err
	}
	keepSecrets()
	if s.config, err = e.loadConfig(); err != nil {
		return nil, err
	}
	cfg := session.Config{
		Identity: s.key, Port: s.config.Port, DHT: dht.Config{Mode: dht.Ephemeral}, RelayThrough: s.config.Peers.Relays(),
		Gateway: hostnet.Gateway, NoPortMapping: s.config.NoMapping, NoBeacons: s.config.NoLAN,
		Receivers: daemon.Queues(s.config.Queues),
	}
	if change != nil {
		change(&cfg)
	}
	s.host, err = e.enter(ctx, cfg, s.config, s.dir)
	return s, err
}

// openHost starts a host that is not found by others, and joins the network.
func (e *env) openHost(ctx context.Context, k key.Private, dir *state.Dir) (*session.Host, error) {
	c, err := e.loadConfig()
	if err != nil {
		return nil, err
	}
	return e.enter(ctx, session.Config{
		Identity: k, DHT: dht.Config{Mode: dht.Ephemeral}, RelayThrough: c.Peers.Relays(),
	}, c, dir)
}

// enter starts a host and joins the network. A command has one host.
func (e *env) enter(ctx context.Context, cfg session.Config, c *config.Config, dir *state.Dir) (*session.Host, error) {
	bootstrap, err := e.bootstrapNodes(c)
	if err != nil {
		return nil, err
	}
	cfg.Logger, cfg.DHT.Bootstrap = e.log(), bootstrap
	h, err := daemon.Open(cfg, dir)
	if err != nil {
		return nil, err
	}
	if err := daemon.Join(ctx, h.Node(), bootstrap, h.IPv6Only); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	watching, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // until closeHost
		defer close(done)
		daemon.WatchNetwork(watching, h, e.log())
	}()
	e.stopWatching = func() {
		cancel()
		<-done
	}
	return h, nil
}

// close withdraws what the station has announced and frees its state; see closeHost.
func (s *station) close(ctx context.Context, e *env) error {
	return errors.Join(e.closeHost(ctx, s.host, s.dir), s.closeState())
}

func (s *station) closeState() error {
	var err error
	if s.lock != nil {
		err = s.lock.Close()
	}
	return errors.Join(err, s.dir.Close())
}
