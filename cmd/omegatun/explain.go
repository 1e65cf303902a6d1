package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// explainTime is how long an attempt to connect may take that is explained: guessing ports takes up to 30 s.
const explainTime = 40 * time.Second

// explain tells how a connection to a peer comes about: by way of the running omegatun, or else on its own.
func (e *env) explain(ctx context.Context, client *control.Client, p config.Peer, timeout time.Duration) error {
	step := func(s control.Step) error {
		return e.print(s, fmt.Sprintf("%7.0f ms  %-9s  %s\n", s.AfterMS, s.Stage, s.Text))
	}
	a, err := client.Explain(ctx, p.Key, timeout, step)
	if exit.From(err) != nil && exit.From(err).Code == exit.NoDaemon {
		a, err = e.explainAlone(ctx, p, timeout, step)
	}
	if err != nil {
		return err
	}
	if err := e.print(a, attemptText(a, e.peerNames())); err != nil {
		return err
	}
	if a.State == "connected" {
		return nil
	}
	return &exit.Error{
		Code: cmp.Or(a.Code, exit.Other), Reason: "no connection to " + cmp.Or(p.Name, p.Key.Short()+"…") + ": " + a.Reason,
		Try: a.Remedy,
	}
}

// explainAlone is explain without a running omegatun.
func (e *env) explainAlone(
	ctx context.Context, p config.Peer, timeout time.Duration, step func(control.Step) error,
) (*control.Attempt, error) {
	k, err := e.makeIdentity()
	if err != nil {
		return nil, err
	}
	dir, err := e.makeState()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	keepSecrets()
	began := time.Now()
	tell := func(text string) error {
		after := float64(time.Since(began).Microseconds()) / 1000
		return step(control.Step{Schema: control.Schema, Event: "step", AfterMS: after, Stage: "dht", Text: text})
	}
	if err := tell("no omegatun is running here: entering the DHT"); err != nil {
		return nil, err
	}
	h, err := e.openHost(ctx, k, dir)
	if err != nil {
		why := exit.From(err)
		if why.Code != exit.Timeout {
			return nil, err
		}
		return &control.Attempt{
			Schema: control.Schema, Event: "attempt", Peer: p.Key, LocalNAT: "unknown", RemoteNAT: "unknown",
			State: "failed", TookMS: float64(time.Since(began).Microseconds()) / 1000,
			Code: why.Code, Reason: why.Reason, Remedy: "omegatun netcheck, which tells what is wrong with this machine's network",
		}, nil
	}
	defer e.closeHost(ctx, h, dir) //nolint:errcheck // nothing was sent that could be lost
	info := h.Node().Info()
	text := fmt.Sprintf("entered the DHT: %d nodes answer", info.Nodes)
	if info.Host.IsValid() {
		text += ", which see us at " + info.Host.String()
	}
	if err := tell(text); err != nil {
		return nil, err
	}
	peer, err := h.AddPeer(p.Key)
	if err != nil {
		return nil, exit.New(exit.Other, "cannot connect: %w", err)
	}
	return daemon.Trace(ctx, h, k.Public(), peer, timeout, step)
}

// peerNames returns what people call the listed peers that have names.
func (e *env) peerNames() map[key.Public]string {
	names := make(map[key.Public]string)
	if c, err := e.loadConfig(); err == nil {
		for _, p := range c.Peers {
			names[p.Key] = p.Name
		}
	}
	return names
}

// attemptText returns what came of an attempt, for people. names are what they call machines.
func attemptText(a *control.Attempt, names map[key.Public]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-9s ours: %s, the peer's: %s\n", "NATs", a.LocalNAT, a.RemoteNAT)
	if a.Strategy != "" {
		fmt.Fprintf(&b, "%-9s %s\n", "strategy", a.Strategy)
	}
	if a.Path != nil {
		fmt.Fprintf(&b, "%-9s %s\n", "path", pathText(a.Path, names))
		if a.Path.RTTMS > 0 {
			fmt.Fprintf(&b, "%-9s %.1f ms\n", "rtt", a.Path.RTTMS)
		}
	}
	took := time.Duration(a.TookMS * float64(time.Millisecond)).Round(time.Millisecond)
	switch {
	case a.State == "connected" && a.AgoMS > time.Minute.Milliseconds():
		fmt.Fprintf(&b, "%-9s connected %v ago, after %v\n", "outcome",
			(time.Duration(a.AgoMS) * time.Millisecond).Round(time.Second), took)
	case a.State == "connected":
		fmt.Fprintf(&b, "%-9s connected after %v\n", "outcome", took)
	default:
		fmt.Fprintf(&b, "%-9s failed after %v\n", "outcome", took)
		return b.String() // why is said at the end, with the remedy
	}
	if a.Remedy != "" {
		fmt.Fprintf(&b, "%-9s %s\n", "better", a.Remedy)
	}
	return b.String()
}

// pathText returns a path for people. names are what they call machines.
func pathText(p *control.Path, names map[key.Public]string) string {
	if p.Relay != nil {
		return fmt.Sprintf("%s %s (%v)", p.Kind, cmp.Or(names[*p.Relay], p.Relay.Short()+"…"), p.Remote)
	}
	if p.Mapped {
		return fmt.Sprintf("%s %v (mapped)", p.Kind, p.Remote)
	}
	return fmt.Sprintf("%s %v", p.Kind, p.Remote)
}
