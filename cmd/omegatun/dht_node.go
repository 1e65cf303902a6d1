package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

func newDHTFind(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "find <peer>",
		Short: "List the nodes that know the way to a peer",
		Long: `Asks the DHT for a peer, by key or name, and prints a line for each node that answers for it:
the node's address, the peer's key, and the addresses of nodes that lead to it. It tells
whether a key is announced, not whether its owner still runs or would answer.

With --json, an object a line: {"schema":1,"key","relays","from"}, from: the node.

Exit status 2: wrong key. 5: no such peer. 6: the key is not announced. 9: no DHT node
answers.`,
		Example: `  omegatun dht find desk
  omegatun dht find hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --json`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := e.anyKey(args[0])
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return e.withNode(ctx, func(n *dht.Node) error { return e.find(ctx, n, k) })
		},
	}
}

// anyKey returns the key that a person means by arg; it may be this machine's own.
func (e *env) anyKey(arg string) (key.Public, error) {
	c, err := e.loadConfig()
	if err != nil {
		return key.Public{}, err
	}
	p, err := e.lookUp(c, arg)
	return p.Key, err
}

// find prints which nodes know the way to k.
func (e *env) find(ctx context.Context, n *dht.Node, k key.Public) error {
	found := false
	for r, err := range n.FindPeer(ctx, k.Target(), nil) {
		if err != nil {
			return err
		}
		if r.Peer.Key != k { // nodes may say what they like
			continue
		}
		found = true
		o := object{"key": k, "relays": someNodes(r.Peer.Relays), "from": r.From}
		if err := e.print(o, fmt.Sprintf("%v %s\n", r.From, recordLine(r.Peer))); err != nil {
			return err
		}
	}
	if !found {
		return exit.New(exit.NotFound, "this key is not announced in the DHT").
			WithTry("is omegatun up on that machine, and is the key right?")
	}
	return nil
}

func newDHTPing(e *env) *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "ping <host:port>",
		Short: "Ask a DHT node for a sign of life",
		Long: `Asks a DHT node for a sign of life, once a second, and shows how long each answer took and
which address of ours the node saw. An answer that takes a second is too late.

With --json, an object a line:
  {"schema":1,"event":"pong","seq","rtt_ms","from","to"}
  {"schema":1,"event":"lost","seq"}
  {"schema":1,"event":"summary","sent","received","min_ms","median_ms","p99_ms"}

Exit status 2: there is no such host. 9: nothing came back.`,
		Example: `  omegatun dht ping 203.0.113.9:49737
  omegatun dht ping -c 10 node1.hyperdht.org:49737 --json`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return exit.New(exit.Usage, "-c is at least 1")
			}
			addr, err := resolveNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return e.pingNode(cmd.Context(), addr, count)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 3, "how many times")
	return cmd
}

// resolveNode returns the IPv4 address that a person means by host:port.
func resolveNode(ctx context.Context, arg string) (netip.AddrPort, error) {
	err := config.CheckBootstrap(arg)
	if err == nil && strings.Contains(arg, "@") {
		err = fmt.Errorf("%q is not host:port", arg)
	}
	if err != nil {
		return netip.AddrPort{}, exit.New(exit.Usage, "the address of a DHT node: %w", err).WithTry("203.0.113.9:49737")
	}
	host, portText, err := net.SplitHostPort(arg)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	switch {
	case ctx.Err() != nil:
		return netip.AddrPort{}, context.Cause(ctx)
	case err != nil || len(addrs) == 0:
		return netip.AddrPort{}, exit.New(exit.Usage, "%s has no IPv4 address: %w", host, err)
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(port)), nil
}

// pingNode asks the node at addr and prints its answers. It does not enter the network for that.
func (e *env) pingNode(ctx context.Context, addr netip.AddrPort, count int) error {
	h, err := daemon.Open(session.Config{
		Identity: key.Generate(), Logger: e.log(),
		DHT: dht.Config{Bootstrap: []string{}, Mode: dht.Ephemeral},
	}, nil)
	if err != nil {
		return err
	}
	defer e.closeHost(ctx, h, nil) //nolint:errcheck // nothing was sent that must arrive
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	sent := 0
	var rtts []float64
	for ctx.Err() == nil && sent < count {
		pong, err := h.Node().Ping(ctx, nil, addr, 0)
		if ctx.Err() != nil {
			break
		}
		sent++
		p := nodePong{Schema: control.Schema, Event: "lost", Seq: sent}
		text := fmt.Sprintf("seq %d: no answer\n", sent)
		if err == nil {
			p.Event, p.From, p.To, p.RTTMS = "pong", pong.From, pong.To, float64(pong.RTT)/1e6
			text = fmt.Sprintf("seq %d: %.3f ms, from %v, we are %v\n", sent, p.RTTMS, p.From, p.To)
			rtts = append(rtts, p.RTTMS)
		}
		if err := e.print(p, text); err != nil {
			return err
		}
		if sent < count {
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}
	if sent == 0 {
		return context.Cause(ctx)
	}
	return e.printSummary(sent, rtts, "another node; is it UDP that is let through?")
}

// nodePong is an answer, or with "lost" the lack of one.
type nodePong struct {
	Schema int            `json:"schema"`
	Event  string         `json:"event"` // "pong", "lost"
	Seq    int            `json:"seq"`   // from 1
	RTTMS  float64        `json:"rtt_ms,omitzero"`
	From   netip.AddrPort `json:"from,omitzero"`
	To     netip.AddrPort `json:"to,omitzero"` // we, as the node sees us
}
