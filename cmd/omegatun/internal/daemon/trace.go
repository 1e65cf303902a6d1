package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

const (
	// traceEvery is how often an attempt under way is looked at.
	traceEvery = 20 * time.Millisecond
	// upgradeTime is how long a connection that begins at a relay is watched: a direct path mostly comes meanwhile.
	upgradeTime = 5 * time.Second
	// tracePings is how many pings measure a path, and tracePing how long each may take.
	tracePings = 3
	tracePing  = 2 * time.Second
)

// Trace connects to a peer that h lists, and calls emit for each step as it is made, also for those of the connection that there
// may be already. own is the key of h. It returns the account of the attempt; that it failed is no error.
func Trace(
	ctx context.Context, h *session.Host, own key.Public, p *session.Peer, timeout time.Duration, emit func(control.Step) error,
) (*control.Attempt, error) {
	trying, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Wait starts an attempt, or hurries the one that is planned. Its own error says less than the account.
	ended := make(chan struct{})
	go func() { // ends with trying
		defer close(ended)
		_ = p.Wait(trying)
	}()
	defer func() {
		cancel()
		<-ended
	}()

	t := tracer{peer: p, began: time.Now(), emit: emit}
	a, err := t.follow(trying)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && trying.Err() == nil:
		return nil, err // of emit
	}
	account := describeAttempt(h, own, p.Key(), withNATs(a, p))
	if account.State == "connecting" { // out of time
		account.State, account.Code, account.TookMS = "failed", exit.Timeout, milliseconds(time.Since(t.began))
		account.Reason = "nothing came of it in " + timeout.String()
		account.Remedy = "allow more time: --timeout"
	}
	if account.State != "connected" {
		return account, nil
	}
	var best session.Pong
	for range tracePings {
		answering, cancel := context.WithTimeout(ctx, tracePing)
		pong, err := p.Ping(answering)
		cancel()
		if err == nil && (best.RTT == 0 || pong.RTT < best.RTT) {
			best = pong
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case best.RTT == 0:
		account.State, account.Code, account.Reason = "failed", exit.Timeout, "connected, but pings get no answer"
		account.Remedy = "check the other machine: has it gone to sleep, or lost its network?"
	default:
		account.Path = describePath(best.Path)
		account.Path.RTTMS = milliseconds(best.RTT)
	}
	return account, nil
}

// tracer follows the attempt to connect that matters most: a successful one, or else the latest that began after
// the tracer.
type tracer struct {
	peer  *session.Peer
	began time.Time
	emit  func(control.Step) error

	current time.Time // when the attempt that is being followed began
	told    int       // steps of it
}

// follow returns the attempt when it has ended; when ctx has, also the error.
func (t *tracer) follow(ctx context.Context) (session.Attempt, error) {
	tick := time.NewTicker(traceEvery)
	defer tick.Stop()
	var relayed time.Time // since when the connection is
	for {
		a := t.pick()
		if err := t.tell(a); err != nil {
			return a, err
		}
		switch {
		case a.Connected && a.Path.Kind != session.PathRelay:
			return a, nil
		case a.Connected:
			if relayed.IsZero() {
				relayed = time.Now()
			}
			if a.Began.Before(t.began) || time.Since(relayed) >= upgradeTime {
				return a, nil
			}
		case a.Err != nil:
			return a, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return a, context.Cause(ctx)
		}
	}
}

// pick returns the attempt to follow; the zero value if there is none yet.
func (t *tracer) pick() session.Attempt {
	connected := t.peer.Status().State >= session.PeerConnected
	var latest session.Attempt
	for _, a := range t.peer.Attempts() { // the newest first
		switch {
		case connected && a.Connected:
			return a
		case a.Began.Before(t.began) && a.Took > 0: // it was over before we asked
		case latest.Began.IsZero(), latest.Err != nil && a.Err == nil: // that goes on
			latest = a
		}
	}
	return latest
}

// tell emits the steps of a that have not been emitted yet.
func (t *tracer) tell(a session.Attempt) error {
	if !a.Began.Equal(t.current) {
		t.current, t.told = a.Began, 0
	}
	for _, s := range a.Steps[t.told:] {
		if err := t.emit(describeStep(s)); err != nil {
			return err
		}
		t.told++
	}
	return nil
}

func describeStep(s session.Step) control.Step {
	return control.Step{
		Schema: control.Schema, Event: "step", AfterMS: milliseconds(s.After), Stage: string(s.Stage), Text: plain(s.Text),
	}
}

// plain returns what a package says for people who do not know its name.
func plain(text string) string {
	return strings.ReplaceAll(strings.TrimPrefix(text, "session: "), "punch: ", "hole punching ")
}

// lastAttempt returns the attempt that led to the connection that there is, or else the latest.
func lastAttempt(p *session.Peer) (last session.Attempt, ok bool) {
	attempts := p.Attempts() // the newest first
	if len(attempts) == 0 {
		return last, false
	}
	if p.Status().State >= session.PeerConnected {
		for _, a := range attempts {
			if a.Connected {
				return a, true
			}
		}
	}
	return attempts[0], true
}

// withNATs returns a with what other attempts to connect to p know of the NATs, where it does not: a peer that comes to
// us does not always say.
func withNATs(a session.Attempt, p *session.Peer) session.Attempt {
	for _, o := range p.Attempts() {
		known := o.Local != dht.FirewallUnknown && o.Remote != dht.FirewallUnknown
		if known && (a.Local == dht.FirewallUnknown || a.Remote == dht.FirewallUnknown) {
			a.Local, a.Remote, a.Strategy = o.Local, o.Remote, o.Strategy
		}
	}
	return a
}

// describeAttempt returns a, which was an attempt of h to connect from key own to key k, as others are told.
func describeAttempt(h *session.Host, own, k key.Public, a session.Attempt) *control.Attempt {
	c := &control.Attempt{
		Schema: control.Schema, Event: "attempt", Peer: k, Incoming: a.Incoming,
		LocalNAT: a.Local.String(), RemoteNAT: a.Remote.String(), Strategy: a.Strategy,
		TookMS: milliseconds(a.Took), Remedy: a.Remedy, State: "connecting",
	}
	if !a.Began.IsZero() {
		c.AgoMS = time.Since(a.Began).Milliseconds()
	}
	if a.Local == dht.FirewallUnknown {
		c.LocalNAT = natWord(h.Node().Info())
	}
	switch {
	case a.Connected:
		c.State, c.Path = "connected", describePath(a.Path)
	case a.Err != nil:
		why := Explain(a.Err)
		c.State, c.Code, c.Reason = "failed", why.Code, why.Reason
		switch {
		case !h.Node().Info().Online:
			c.Code, c.Reason = exit.Timeout, "the DHT cannot be reached: none of its nodes answers any more"
			c.Remedy = "omegatun netcheck, which tells what is wrong with this machine's network"
		case errors.Is(a.Err, session.ErrNoAnswer):
			c.Remedy = "on the other machine: omegatun up " + own.String()
		case c.Remedy == "":
			c.Remedy = why.Try
		}
	}
	for _, s := range a.Steps {
		c.Steps = append(c.Steps, describeStep(s))
	}
	return c
}

// describePath returns p as others are told.
func describePath(p session.Path) *control.Path {
	c := &control.Path{Kind: p.Kind.String(), Remote: p.Remote}
	if !p.Relay.IsZero() {
		c.Relay = new(p.Relay)
	}
	return c
}

// Explain implements [control.Daemon]. A peer that is not admitted is listed meanwhile.
func (d *Daemon) Explain(
	ctx context.Context, peer key.Public, timeout time.Duration, emit func(control.Step) error,
) (*control.Attempt, error) {
	switch {
	case !d.ready.Load():
		return nil, starting()
	case peer == d.own:
		return nil, exit.New(exit.Usage, "that is this machine's own key")
	case timeout <= 0:
		return nil, exit.New(exit.Usage, "the timeout must be positive")
	}
	p := d.host.Peer(peer)
	if p == nil {
		var err error
		if p, err = d.host.AddPeer(peer); err != nil {
			return nil, exit.New(exit.Other, "cannot connect: %w", err)
		}
		defer d.unlist(peer)
	}
	return Trace(ctx, d.host, d.own, p, timeout, emit)
}
