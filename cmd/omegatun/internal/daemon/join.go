package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht"
	"omegatun/session"
)

const (
	// joinTimeout is how long the first look around may take: a lookup in a large network over a slow line.
	joinTimeout = 20 * time.Second
	// nodesCache is the name of the cache with the nodes that were heard from last.
	nodesCache = "nodes"
	// maxNodes is how many of them are kept: more than enough for one to be left after a long time.
	maxNodes = 64
	// knownPeersCache is the name of the cache with the nodes that led to peers, see [session.KnownPeer].
	knownPeersCache = "known-peers"
	// networkCache is the name of the cache with the bootstrap nodes of the network that the others are about.
	networkCache = "network"
)

// Open opens the sockets and starts the DHT node, with the nodes and the ways to peers that dir remembers; dir may be nil.
// Errors are [exit.Error]s. It does not wait for the network: [Join] does.
func Open(cfg session.Config, dir *state.Dir) (*session.Host, error) {
	bootstrap := cfg.DHT.Bootstrap
	if bootstrap == nil {
		bootstrap = dht.PublicBootstrap()
	}
	if dir != nil && !ofAnotherNetwork(dir, bootstrap, cfg.Logger) {
		cfg.KnownPeers = load[session.KnownPeer](dir, knownPeersCache, cfg.Logger)
		nodes := load[netip.AddrPort](dir, nodesCache, cfg.Logger)
		for _, p := range cfg.KnownPeers { // most of these are nodes, too
			for _, a := range p.Nodes {
				if !slices.Contains(nodes, a) {
					nodes = append(nodes, a)
				}
			}
			if len(nodes) >= maxNodes {
				break
			}
		}
		cfg.DHT.Nodes = nodes[:min(len(nodes), maxNodes)]
	}
	h, err := session.New(cfg)
	if err != nil {
		return nil, openError(err, cfg.Port)
	}
	return h, nil
}

// OpenNode starts a DHT node alone. Errors are [exit.Error]s. It does not wait for the network: [Join] does.
func OpenNode(nodes *session.Nodes, cfg session.NodeConfig) (*session.Node, error) {
	n, err := nodes.Open(cfg)
	if err != nil {
		return nil, openError(err, cfg.Port)
	}
	return n, nil
}

// openError tells why sockets could not be opened, of which one was to have the given port.
func openError(err error, port uint16) *exit.Error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return exit.Wrap(exit.Other, err, "UDP port %d is in use already", port).
			WithTry("another port, or stop what has it: ss -ulpn sport = %d", port)
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Permission, "may not open UDP port %d: %w", port, err).
			WithTry("a port above 1023")
	}
	return exit.New(exit.Other, "cannot start: %w", err)
}

// Join waits until n has entered the network. bootstrap is what n was configured with; onlyIPv6, if not nil, tells whether the
// machine has no IPv4, as [session.Host.IPv6Only] does. If nobody answers, the error is an [exit.Error] with the status Timeout.
func Join(ctx context.Context, n *dht.Node, bootstrap []string, onlyIPv6 func() bool) error {
	waiting, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := n.Ready(waiting); err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if heard(n) {
		return nil
	}
	if onlyIPv6 != nil && onlyIPv6() {
		return exit.New(exit.Timeout, "no DHT node answers: this machine has IPv6 only, and the DHT is IPv4 only").
			WithTry("switch on CLAT (464XLAT) or IPv4 on this network\n" +
				"peers on the local network are found without: omegatun add <key>, here and there")
	}
	asked := bootstrap
	if asked == nil {
		asked = dht.PublicBootstrap()
	}
	reason := "no DHT node answers; asked for were " + strings.Join(asked, ", ")
	if names := n.Unresolved(); len(names) > 0 {
		reason += "; DNS knows no address of " + strings.Join(names, ", ")
	}
	return exit.New(exit.Timeout, "%s", reason).
		WithTry("is this machine on the Internet, and may it send UDP?\n" +
			"in a network of your own: --bootstrap <host:port of one of its nodes>")
}

// heard reports whether the network answers n: nodes that are only remembered may be gone.
func heard(n *dht.Node) bool { return n.Stats().Answered > 0 && n.Info().Online }

// load returns the list that dir keeps under that name, nil if it has none or it is damaged.
func load[T any](dir *state.Dir, name string, log *slog.Logger) (list []T) {
	err := dir.LoadCache(name, &list)
	if err == nil {
		return list
	}
	if !errors.Is(err, fs.ErrNotExist) {
		log.Warn("what was remembered is not used", "error", err)
	}
	return nil
}

// Remember keeps the nodes that h has heard from last, and those that led to peers, for the next start. While h is offline,
// what was kept before is better.
func Remember(h *session.Host, dir *state.Dir, log *slog.Logger) {
	if !heard(h.Node()) {
		return
	}
	save := func(name string, list any, empty bool) {
		if empty {
			return
		}
		if err := dir.SaveCache(name, list); err != nil {
			log.Warn("what was learnt is not remembered", "error", err)
		}
	}
	network := h.Node().Bootstrap()
	anew := ofAnotherNetwork(dir, network, log)
	nodes, peers := h.Node().RecentNodes(maxNodes), h.KnownPeers()
	save(nodesCache, nodes, len(nodes) == 0 && !anew)
	save(knownPeersCache, peers, len(peers) == 0 && !anew)
	if kept := load[string](dir, networkCache, log); !slices.Equal(kept, network) {
		save(networkCache, network, len(network) == 0)
	}
}

// ofAnotherNetwork reports whether dir remembers a network that has no bootstrap node in common with the given ones. Its nodes
// would lead there: what is announced would be found in that network, and not in the one that was asked for.
func ofAnotherNetwork(dir *state.Dir, bootstrap []string, log *slog.Logger) bool {
	kept := load[string](dir, networkCache, log)
	return len(kept) > 0 && !slices.ContainsFunc(kept, func(b string) bool { return slices.Contains(bootstrap, b) })
}

// Explain returns why a peer could not be reached, with its exit status and what can be done.
func Explain(err error) *exit.Error {
	if err == nil {
		return nil
	}
	cause := err
	if d, ok := errors.AsType[*session.DialError](err); ok {
		cause = d.Err
	}
	const everyStep = "omegatun ping <peer> --explain, for every step"
	reason := func(code exit.Code) *exit.Error {
		return &exit.Error{Code: code, Reason: plain(cause.Error()), Err: err}
	}
	_, noPath := errors.AsType[*session.NoPathError](err)
	switch {
	case noPath:
		return reason(exit.NoPath).WithTry(everyStep)
	case errors.Is(err, session.ErrNotFound):
		return reason(exit.NotFound).WithTry("is omegatun up on the other machine, and is the key right?")
	case errors.Is(err, session.ErrNoAnswer):
		return reason(exit.Refused).WithTry("on the other machine: omegatun up <the key that omegatun id prints here>")
	case errors.Is(err, session.ErrNoTunnel):
		return reason(exit.Refused).WithTry("omegatun connect <key>, for a stream")
	case errors.Is(err, session.ErrIncompatible):
		return reason(exit.Refused).WithTry("the same version of omegatun on both machines")
	case errors.Is(err, session.ErrPeerClosed):
		return reason(exit.Refused)
	case errors.Is(err, dht.ErrNoNodes):
		return reason(exit.Timeout).WithTry("is this machine online, and does UDP get out? " + everyStep)
	case errors.Is(err, context.DeadlineExceeded):
		return exit.Wrap(exit.Timeout, err, "the peer was not reached in time").WithTry("a longer --timeout; or " + everyStep)
	}
	e := exit.From(err)
	return &exit.Error{Code: e.Code, Reason: plain(cause.Error()), Try: e.Try, Err: err}
}

// natWord says in a word what kind of NAT the machine is behind.
func natWord(info dht.Info) string {
	switch {
	case !info.Firewalled:
		return "open"
	case !info.Host.IsValid():
		return "unknown"
	case info.Port == 0:
		return "random"
	}
	return "consistent"
}
