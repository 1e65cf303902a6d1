package main

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

func newDHT(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dht",
		Short: "Look things up in the DHT, and store them there",
		Long: `Speaks with the DHT as any HyperDHT program does. It needs no root and no running omegatun,
and leaves nothing running.

A topic is 64 hex digits, or with --text any text, which is hashed with BLAKE2b-256.
Anyone may announce anything under a topic; values, though, are checked: immutable ones by
their hash, mutable ones by their owner's signature.`,
		Example: `  omegatun dht lookup --text "our chess club"
  omegatun dht get $(echo hello | omegatun dht put -)
  omegatun dht ping 203.0.113.9:49737`,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(
		newDHTLookup(e), newDHTAnnounce(e), newDHTUnannounce(e), newDHTPut(e), newDHTGet(e), newDHTPing(e), newDHTFind(e),
	)
	return cmd
}

// withNode enters the DHT under an identity that nobody knows, calls f with the node, and leaves again. What f
// returns is explained.
func (e *env) withNode(ctx context.Context, f func(*dht.Node) error) error {
	c, err := e.loadConfig()
	if err != nil {
		return err
	}
	bootstrap, err := e.bootstrapNodes(c)
	if err != nil {
		return err
	}
	dir, err := e.knownState()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	h, err := daemon.Open(session.Config{
		Identity: key.Generate(), Logger: e.log(),
		DHT: dht.Config{Bootstrap: bootstrap, Mode: dht.Ephemeral},
	}, dir)
	if err != nil {
		return err
	}
	defer e.closeHost(ctx, h, dir) //nolint:errcheck // nothing was sent that must arrive
	if err := daemon.Join(ctx, h.Node(), bootstrap, h.IPv6Only); err != nil {
		return err
	}
	return explainDHT(ctx, f(h.Node()))
}

// knownState opens the state folder if there is one; without one it returns nil.
func (e *env) knownState() (*state.Dir, error) {
	path, err := e.statePath()
	if err != nil {
		return nil, err
	}
	dir, err := state.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil // what it would tell is only whom to ask first
	}
	return dir, err
}

// explainDHT returns why something in the DHT failed, with its exit status and what can be done.
func explainDHT(ctx context.Context, err error) error {
	refused, isRefused := errors.AsType[*dht.ReplyError](err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isRefused && refused.Code == dht.CodeSeqReused:
		return exit.Wrap(exit.Refused, err, "another value is stored with this sequence number").
			WithTry("a higher --seq, or none: then it is one more than what is stored")
	case isRefused && refused.Code == dht.CodeSeqTooLow:
		return exit.Wrap(exit.Refused, err, "a value with a higher sequence number is stored").
			WithTry("a higher --seq, or none: then it is one more than what is stored")
	case isRefused:
		return exit.Wrap(exit.Refused, err, "all nodes refused it: %v", err)
	case errors.Is(err, dht.ErrNoNodes), errors.Is(err, dht.ErrTimeout):
		return exit.Wrap(exit.Timeout, err, "no DHT node answered")
	}
	return err
}

// parseTopic reads a topic: 64 hex digits, or any text to be hashed.
func parseTopic(arg string, text bool) (key.Target, error) {
	if text {
		return key.Hash([]byte(arg)), nil
	}
	t, err := key.ParseTarget(arg)
	if err != nil {
		return t, exit.New(exit.Usage, "%q is not a topic of 64 hex digits", arg).WithTry("--text, to use the text itself as the topic")
	}
	return t, nil
}

// someNodes returns list, never nil, so that JSON has an array.
func someNodes(list []netip.AddrPort) []netip.AddrPort {
	if list == nil {
		return []netip.AddrPort{}
	}
	return list
}
