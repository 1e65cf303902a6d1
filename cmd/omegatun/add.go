package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht/key"
)

func newAdd(e *env) *cobra.Command {
	var name, ipv4 string
	var relay bool
	cmd := &cobra.Command{
		Use:   "add <key>",
		Short: "List a peer, so that it may connect",
		Long: `Lists a peer: from then on it may connect to this machine, and "omegatun up" connects to
it. Adding it again changes its name and its address. The list is kept in the state
folder; the configuration file is left alone. A running omegatun learns of it at once.

With --relay others may be met there while there is no direct path to them. An omegatun
that relays says so itself, and needs no --relay; npm's blind-relay does.

With --json: {"schema":1,"key","name","ipv6","ipv4","relay"}.`,
		Example: `  omegatun add hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --name desk
  omegatun add hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --relay`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := config.Peer{Name: name, Relay: relay}
			var err error
			if p.Key, err = key.ParsePublic(args[0]); err != nil {
				return config.NotKey(args[0], err)
			}
			if ipv4 != "" {
				if p.IPv4, err = config.ParseIPv4(ipv4); err != nil {
					return exit.New(exit.Usage, "--ipv4: %w", err).WithTry("--ipv4 10.64.0.8")
				}
			}
			flags := cmd.Flags()
			return e.changePeers(cmd.Context(), func(c *config.Config, own key.Public, listed config.Peers) (config.Peers, error) {
				if p.Key == own {
					return nil, ownKeyError()
				}
				i := slices.IndexFunc(listed, func(o config.Peer) bool { return o.Key == p.Key })
				if i < 0 {
					if o, ok := c.Peers.ByKey(p.Key); ok {
						return nil, exit.New(exit.Usage, "this peer is listed in %v already", o.From).WithTry("change it there")
					}
					listed, i = append(listed, p), len(listed)
				}
				if flags.Changed("name") {
					listed[i].Name = p.Name
				}
				if flags.Changed("ipv4") {
					listed[i].IPv4 = p.IPv4
				}
				if flags.Changed("relay") {
					listed[i].Relay = p.Relay
				}
				if name := listed[i].Name; name != "" {
					if err := config.CheckName(name); err != nil {
						return nil, exit.New(exit.Usage, "--name: %w", err).WithTry("--name desk-2")
					}
					if o, ok := c.Peers.ByName(name); ok && o.Key != p.Key {
						return nil, exit.New(exit.Usage, "the name %q belongs to %s already", name, o.Key).WithTry("another --name")
					}
				}
				p = listed[i]
				return listed, nil
			}, func() error {
				ip6, ip4 := addresses(p.Key, p.IPv4)
				e.say("%s may connect; its addresses are %v and %v", p.Key, ip6, ip4)
				if !e.json {
					return nil
				}
				return e.print(object{"key": p.Key, "name": p.Name, "ipv6": ip6, "ipv4": ip4, "relay": p.Relay}, "")
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "a `name` for it, used wherever a peer is asked for")
	cmd.Flags().StringVar(&ipv4, "ipv4", "", "its virtual IPv4 `address`, instead of the one that follows from its key")
	cmd.Flags().BoolVar(&relay, "relay", false, "others may be met there")
	return cmd
}

func newRm(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm <peer>",
		Short: "Take a peer off the list",
		Long: `Takes a peer off the list, so that it may no longer connect. A running omegatun ends the
connection at once. Peers of the configuration file are removed there, by you.

Exit status 5: no such peer is listed.`,
		Example: `  omegatun rm desk`,
		Args:    takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var gone config.Peer
			return e.changePeers(cmd.Context(), func(c *config.Config, _ key.Public, listed config.Peers) (config.Peers, error) {
				p, err := e.lookUp(c, args[0])
				if err != nil {
					return nil, err
				}
				i := slices.IndexFunc(listed, func(o config.Peer) bool { return o.Key == p.Key })
				if i >= 0 {
					gone = p
					return slices.Delete(listed, i, i+1), nil
				}
				if p.From.File == "" {
					return nil, exit.New(exit.UnknownPeer, "%s is not listed", p.Key).
						WithTry("omegatun config show, for those that are\nif it was only named to omegatun up: omegatun down")
				}
				return nil, exit.New(exit.Usage, "this peer is listed in %v", p.From).WithTry("remove it there")
			}, func() error {
				e.say("%s may no longer connect", gone.Key)
				if !e.json {
					return nil
				}
				return e.print(object{"key": gone.Key, "name": gone.Name}, "")
			})
		},
	}
}

// changePeers replaces the list that commands keep with what change makes of it, tells a running omegatun, and
// calls done. change gets the whole configuration, this machine's key (zero if it has none) and the list, which it
// may modify.
func (e *env) changePeers(
	ctx context.Context,
	change func(c *config.Config, own key.Public, listed config.Peers) (config.Peers, error),
	done func() error,
) error {
	c, err := e.loadConfig()
	if err != nil {
		return err
	}
	dir, err := e.makeState()
	if err != nil {
		return err
	}
	defer dir.Close()
	var own key.Public
	if k, err := dir.Identity(); err == nil {
		own = k.Public()
	}
	listed, err := change(c, own, c.Peers.In(dir.Path(state.PeersFile)))
	if err != nil {
		return err
	}
	text, err := listed.Encode()
	if err != nil {
		return err
	}
	if err := dir.WriteFile(state.PeersFile, text); err != nil {
		return err
	}
	client, err := e.client()
	if err != nil {
		return err
	}
	if err := client.Reload(ctx); err != nil && exit.From(err).Code != exit.NoDaemon {
		return exit.New(exit.From(err).Code, "the list is changed, but the running omegatun did not take it over: %w", err)
	}
	return done()
}

func ownKeyError() error {
	return exit.New(exit.Usage, "that is this machine's own key").
		WithTry("the other machine's key: run omegatun id there")
}
