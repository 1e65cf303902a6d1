package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
	"omegatun/session/relay"
)

// relayReport is how often a relay tells what it does, if that has changed.
const relayReport = 10 * time.Second

func newRelay(e *env) *cobra.Command {
	var f relayFlags
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Pass on sealed packets for peers without a direct path",
		Long: `Runs a blind relay under this machine's key: peers whose routers let no direct path through
meet here, and what they send each other passes through. It is sealed: the relay holds none of
their keys. By default it serves the peers that are listed here, with --allow any everybody.
The machine must be reachable: with a public address, or a forwarded UDP port.

Peers that list this machine use the relay without further settings; those that do not, and
HyperDHT programs in JavaScript, name its key: omegatun add <key> --relay, or relayThrough.

It needs no root. No other omegatun may run with the same identity. To relay beside a running
"omegatun up", set relay = true in its configuration instead, with the default quotas.

When it can be found it prints "relaying <key>", and from time to time what it does. With
--json, an object a line:
  {"schema":1,"event":"relaying","key","host","port"}
  {"schema":1,"event":"stats","clients","waiting","links","paired","expired","packets",
   "bytes","dropped":{"reason":n}}       when it has changed, every 10 s at most; and at the end

It runs until Ctrl-C. Exit status 1: the UDP port is taken. 2: wrong arguments, or nobody is
listed. 9: no DHT node answers.`,
		Example: `  omegatun relay
  omegatun relay --allow any --rate 10
  omegatun relay --allow desk,phone --links-per-key 4`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e.outliveReader()
			return e.relay(cmd.Context(), f)
		},
	}
	cmd.Flags().StringSliceVar(&f.allow, "allow", nil, "for whom: `peers`, by key or name, or any; default: those listed")
	cmd.Flags().Float64Var(&f.rate, "rate", 0, "`Mbit/s` that may be passed on for each key; default: no limit")
	cmd.Flags().IntVar(&f.linksPerKey, "links-per-key", 64, "connections at once for each `key`")
	cmd.Flags().IntVar(&f.links, "links", 4096, "connections at once in `all`")
	return cmd
}

type relayFlags struct {
	allow              []string
	rate               float64 // Mbit/s
	linksPerKey, links int
}

// config returns the relay's configuration.
func (f *relayFlags) config() (*relay.Config, error) {
	const most = 100_000 // Mbit/s, links
	switch {
	case f.rate != 0 && !(f.rate >= 0.001 && f.rate <= most): // NaN is neither
		return nil, exit.New(exit.Usage, "--rate must be between 0.001 and %d Mbit/s", most).WithTry("leave it out, for no limit")
	case f.linksPerKey < 1 || f.linksPerKey > most || f.links < 1 || f.links > most:
		return nil, exit.New(exit.Usage, "--links and --links-per-key must be between 1 and %d", most)
	}
	return &relay.Config{LinksPerKey: f.linksPerKey, Links: f.links, Rate: int(f.rate * 1e6 / 8)}, nil
}

// clients returns a function that tells for whom to relay, and the peers among them that are known.
func (e *env) relayClients(allow []string) (admits func(key.Public) bool, peers []key.Public, err error) {
	c, err := e.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	if len(allow) > 0 {
		if admits, err = e.admits(allow); err != nil {
			return nil, nil, err
		}
		for _, arg := range allow {
			if p, err := e.lookUp(c, arg); err == nil {
				peers = append(peers, p.Key)
			}
		}
	}
	listed := make(map[key.Public]bool)
	for _, p := range c.Peers {
		listed[p.Key] = true
		if admits == nil || admits(p.Key) {
			peers = append(peers, p.Key)
		}
	}
	if admits == nil {
		admits = func(k key.Public) bool { return listed[k] }
		if len(listed) == 0 {
			return nil, nil, exit.New(exit.Usage, "no peers are listed, so there is nobody to relay for").
				WithTry("omegatun add <key>, for each peer\nor, for everybody: omegatun relay --allow any")
		}
	}
	return admits, peers, nil
}

// relay relays until ctx ends.
func (e *env) relay(ctx context.Context, f relayFlags) error {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	admits, peers, err := e.relayClients(f.allow)
	if err != nil {
		return err
	}
	st, err := e.openStation(ctx, func(c *session.Config) {
		c.Relay, c.DHT.Mode, c.RelayThrough = cfg, dht.Adaptive, nil
	})
	if err != nil {
		return err
	}
	defer st.close(ctx, e) //nolint:errcheck // nothing of its own is on the way
	err = e.relayAt(ctx, st, admits, peers)
	if ctx.Err() != nil {
		err = nil // it was told to end
	}
	return err
}

func (e *env) relayAt(ctx context.Context, st *station, admits func(key.Public) bool, peers []key.Public) error {
	// Tunnels to those that list this machine tell them that it relays; nothing else comes of them.
	st.host.Announce(session.Announced{Version: versionText(), Name: machineName(st.config)})
	for _, k := range peers {
		if _, err := st.host.AddPeer(k); err != nil {
			return exit.New(exit.Usage, "cannot relay for %s: %w", k, err)
		}
	}
	l, err := st.host.Listen(st.key, session.ListenConfig{Admit: admit(admits), Tunnels: true, Relay: admits})
	if err != nil {
		return exit.New(exit.Other, "cannot listen: %w", err)
	}
	defer l.Close()
	if err := l.Announced(ctx); err != nil {
		return err
	}
	addr := nodeAddr(st.host.Node(), st.host.Addr())
	k := st.key.Public()
	err = e.print(
		object{"event": "relaying", "key": k, "host": addr.Addr(), "port": addr.Port()}, fmt.Sprintf("relaying %s\n", k))
	if err != nil {
		return err
	}
	e.say("for others to use it: omegatun add %s --relay", k)
	return e.reportRelay(ctx, st)
}

// reportRelay tells what the relay does, until ctx ends.
func (e *env) reportRelay(ctx context.Context, st *station) error {
	tick := time.NewTicker(relayReport)
	defer tick.Stop()
	warned := false
	var told relay.Stats
	for {
		ended := false
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		s, _ := st.host.RelayStats()
		if info := st.host.Node().Info(); !ended && !warned && natIsRandom(info) {
			warned = true
			e.note("this machine is behind a NAT that uses another port for each destination: " +
				"many peers will not reach it; forward a UDP port to it, and set port in the configuration")
		}
		if s == told && !ended {
			continue
		}
		told = s
		text := fmt.Sprintf("%d keys connected, %d pairs are relayed, %d since the start; %s passed on",
			s.Clients, s.Links, s.Paired, byteCount(s.Bytes))
		if !e.json {
			e.say("%s", text)
		} else if err := e.print(object{
			"event": "stats", "clients": s.Clients, "waiting": s.Waiting, "links": s.Links,
			"paired": s.Paired, "expired": s.Expired, "packets": s.Packets, "bytes": s.Bytes,
			"dropped": map[string]uint64{"from elsewhere": s.Foreign, "rate": s.Limited, "too early": s.Undelivered},
		}, ""); err != nil {
			return err
		}
		if ended {
			return context.Cause(ctx)
		}
	}
}

func natIsRandom(info dht.Info) bool { return info.Firewalled && info.NAT == dht.FirewallRandom }
