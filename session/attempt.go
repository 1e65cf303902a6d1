package session

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"omegatun/dht"
)

const (
	maxSteps         = 48 // of one attempt
	rememberAttempts = 4  // per peer
)

// Step is one thing that happened in an attempt to connect.
type Step struct {
	After time.Duration // since the attempt began
	Stage Stage         // in which it happened
	Text  string        // for people: lower case, no full stop
}

// Attempt is the account of one attempt to connect to a peer, and of what became of the connection's path since.
type Attempt struct {
	Began         time.Time
	Incoming      bool         // the peer began it
	Local, Remote dht.Firewall // NAT classes as far as they are known
	Strategy      string       // what is done about that pair of NATs
	Steps         []Step       // in order; at most 48, then later ones are left out
	Connected     bool
	Took          time.Duration // until it was connected, or had failed; 0: still going on
	Path          Path          // the latest, once connected
	Err           error         // why it failed
	Remedy        string        // what could be done about it, or about a path through a relay; empty: nothing
}

// Attempts returns the latest attempts to connect, in either direction, newest first.
func (p *Peer) Attempts() []Attempt {
	p.mu.Lock()
	list := slices.Clone(p.attempts)
	p.mu.Unlock()
	attempts := make([]Attempt, 0, len(list))
	for _, a := range slices.Backward(list) {
		attempts = append(attempts, a.snapshot())
	}
	return attempts
}

// noteAttempt remembers an attempt in place of the oldest.
func (p *Peer) noteAttempt(a *account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts = append(p.attempts, a)
	if n := len(p.attempts) - rememberAttempts; n > 0 {
		p.attempts = slices.Delete(p.attempts, 0, n)
	}
}

// account is an Attempt under way. Its methods are safe for concurrent use.
type account struct {
	mu      sync.Mutex // guards the fields below
	attempt Attempt
	stage   Stage
}

func newAccount(began time.Time, incoming bool) *account {
	return &account{attempt: Attempt{Began: began, Incoming: incoming}, stage: StageFind}
}

func (a *account) snapshot() Attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.attempt
	s.Steps = slices.Clone(s.Steps)
	s.Strategy = strategy(s.Local, s.Remote)
	s.Remedy = remedy(&s)
	return s
}

// step notes what happens.
func (a *account) step(stage Stage, format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stepLocked(stage, format, args...)
}

// stepLocked is step with a.mu held.
func (a *account) stepLocked(stage Stage, format string, args ...any) {
	a.stage = stage
	if len(a.attempt.Steps) < maxSteps {
		a.attempt.Steps = append(a.attempt.Steps, Step{time.Since(a.attempt.Began), stage, fmt.Sprintf(format, args...)})
	}
}

// nats notes NAT classes; unknown ones change nothing.
func (a *account) nats(local, remote dht.Firewall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if local != dht.FirewallUnknown {
		a.attempt.Local = local
	}
	if remote != dht.FirewallUnknown {
		a.attempt.Remote = remote
	}
}

// connected notes that a path answers.
func (a *account) connected(p Path, rtt time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	what := "connected"
	if a.attempt.Connected {
		what = "path changed"
	} else {
		a.attempt.Connected, a.attempt.Took = true, time.Since(a.attempt.Began)
	}
	a.attempt.Path = p
	a.stepLocked(StagePath, "%s: %v, %v answers after %v", what, p.Kind, p.Remote, rtt.Round(10*time.Microsecond))
}

// failed notes the end of an attempt that did not connect.
func (a *account) failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.attempt.Connected || a.attempt.Err != nil {
		return
	}
	a.attempt.Err, a.attempt.Took = err, time.Since(a.attempt.Began)
	a.stepLocked(a.stage, "failed: %v", err)
}

// strategy says what is done about a pair of NATs. Package punch has the table.
func strategy(local, remote dht.Firewall) string {
	random := func(f dht.Firewall) bool { return f >= dht.FirewallRandom }
	switch {
	case remote == dht.FirewallOpen:
		return "the peer is reachable as it is"
	case local == dht.FirewallOpen:
		return "we are reachable as we are: the peer comes to us"
	case local == dht.FirewallUnknown || remote == dht.FirewallUnknown:
		return ""
	case random(local) && random(remote):
		return "both NATs use another port for each destination: only a relay connects them, unless both count their ports up"
	case random(local):
		return "many sockets here, in the hope that the peer guesses the port of one"
	case random(remote):
		return "guessing the port that the peer's NAT has picked"
	}
	return "both send at once, each to the other's public address"
}

// remedy says what a person could do.
func remedy(a *Attempt) string {
	noPath, isNoPath := errors.AsType[*NoPathError](a.Err)
	switch {
	case a.Connected && a.Path.Kind == PathRelay, isNoPath && noPath.Err != nil && a.Local >= dht.FirewallRandom:
		return "forward a UDP port to one of the two machines, or switch on PCP, NAT-PMP or UPnP in one of the two routers" +
			relayHint(a)
	case a.Err == nil:
		return ""
	case errors.Is(a.Err, ErrIPv6Only):
		return "give this machine an IPv4 address, or a translator for one (464XLAT, CLAT)"
	case errors.Is(a.Err, ErrNotFound):
		return "start omegatun on the other machine, and check that both use the same DHT and that the key is right"
	case errors.Is(a.Err, ErrNoAnswer):
		return "check on the other machine that omegatun runs and that our key is on its list"
	case errors.Is(a.Err, ErrIncompatible):
		return "update omegatun on both machines"
	case errors.Is(a.Err, ErrNoTunnel):
		return "use connect instead of up: the other program carries streams only"
	case isNoPath:
		return "check that no firewall blocks UDP on either machine" + relayHint(a)
	}
	return ""
}

func relayHint(a *Attempt) string {
	if a.Connected {
		return ""
	}
	return ", or let a machine that both can reach relay (relay = true)"
}
