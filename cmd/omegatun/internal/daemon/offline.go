package daemon

import (
	"context"
	"errors"
	"time"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/session"
)

const (
	// lanPatience is how long after the start a peer on a local network may take to be found, if there is no DHT.
	lanPatience = 6 * time.Second
	// offlineEvery is how often it is looked whether the DHT answers meanwhile.
	offlineEvery = time.Second
)

// join enters the network. If no node answers, it goes on without: for peers that are listed, which may be on a local network, call
// by themselves, or be found once there is an Internet; and if one is connected already. Otherwise the error says that nobody
// answers. It ends with ctx.
func (d *Daemon) join(ctx context.Context) error {
	err := Join(ctx, d.host.Node(), d.cfg.Bootstrap, d.host.IPv6Only)
	e, ok := errors.AsType[*exit.Error](err)
	if !ok || e.Code != exit.Timeout {
		if err == nil {
			d.log.Info("joined", "nodes", d.host.Node().Info().Nodes)
		}
		return err
	}
	again := time.NewTicker(offlineEvery / 10)
	defer again.Stop()
	for !d.worthStaying() {
		if time.Since(d.started) > lanPatience || d.noLAN() {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	d.goOffline(e.Reason)
	d.connectListed((*session.Peer).Connect)
	again.Reset(offlineEvery)
	for {
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if heard(d.host.Node()) {
			break
		}
	}
	d.log.Info("the DHT answers", "nodes", d.host.Node().Info().Nodes)
	d.goOffline("")
	d.host.NetworkChanged() // announces, and dials at once
	return nil
}

func (d *Daemon) noLAN() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings.NoLAN
}

// worthStaying reports whether there is something to do without the DHT.
func (d *Daemon) worthStaying() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.settings.Peers) > 0 {
		return true
	}
	for _, m := range d.peers {
		if m.session.Status().State == session.PeerConnected {
			return true
		}
	}
	return false
}

// goOffline tells that the DHT does not answer, and why; that it does again, if reason is empty.
func (d *Daemon) goOffline(reason string) {
	text := ""
	if reason != "" {
		text = reason + "; until one does, peers are found on the local network only"
		if d.noLAN() {
			text = reason + "; until one does, no peer is found"
		}
	}
	d.mu.Lock()
	d.offline = text
	d.mu.Unlock()
	if text == "" {
		text = "the DHT answers again"
	}
	d.events.emit(control.Event{Event: "note", Reason: text}, true)
}
