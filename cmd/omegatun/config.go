package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht/key"
	"omegatun/routes"
)

func newConfig(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show and check the configuration",
		Long: `omegatun needs no configuration. Where there is a file, it may have these settings, all
of them optional. A setting that is not known is an error.

  name = "laptop"                      # this machine's name; default: the host's
  port = 49737                         # UDP port; default: any free one
  interface = "omega0"                 # network interface; default: omega0, omega1, …
  ipv4 = "10.64.0.7"                   # instead of the address that follows from the key
  bootstrap = ["203.0.113.9:49737"]    # DHT nodes to start from; default: the public network
  port_mapping = false                 # do not ask the router to forward a port
  relay = true                         # relay between listed peers that have no direct path
  lan = false                          # do not look for listed peers on local networks
  priority = "normal"                  # not before other programs; also "high"; default: "realtime",
                                       # which keeps packets from waiting on a busy machine
  queues = 2                           # goroutines that carry packets, each way; default: half as
                                       # many as there are processors, at most 4; more are slower

  [[peer]]                             # a machine that may connect; any number of these
  key = "hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko"
  name = "desk"                        # used wherever a peer is asked for
  ipv4 = "10.64.0.8"                   # its address, if not the one that follows from its key
  relay = true                         # a relay to meet others at. Peers that relay by the setting
                                       # above are used without this

Peers can also be listed with "omegatun add"; the file itself is never written to. A running
omegatun reads peers, their settings, and relay again after "omegatun up" (of a service also
"systemctl reload omegatun"); everything else counts from its next start.`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newConfigPath(e), newConfigShow(e), newConfigCheck(e))
	return cmd
}

func newConfigPath(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "path",
		Short: "Print where the configuration file is looked for",
		Long: `Prints the path of the configuration file, whether there is one or not. With --json also
the other places: {"schema":1,"config","exists","state","peers","socket"}.`,
		Example: `  sudo $EDITOR $(omegatun config path)`,
		Args:    takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			path, err := e.configPath()
			if err != nil {
				return err
			}
			dir, err := e.statePath()
			if err != nil {
				return err
			}
			socket, err := e.socketPath()
			if err != nil {
				return err
			}
			if !exists(path) {
				e.say("there is no such file, and none is needed")
			}
			return e.print(
				object{
					"config": path, "exists": exists(path), "state": dir, "socket": socket,
					"peers": filepath.Join(dir, state.PeersFile),
				}, path+"\n")
		},
	}
}

func newConfigShow(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Print the configuration as it is used",
		Long: `Prints the configuration as it is used: the file, the peers listed by "omegatun add", and
the defaults, in the form of the file. With --json:
  {"schema":1,"name","port","interface","ipv4","bootstrap","port_mapping","relay","lan","priority",
   "queues","peers":[{"key","name","ipv6","ipv4","relay","file","line"}]}
where a bootstrap of null is the public network, and queues of 0 go by the processors.`,
		Example: `  omegatun config show
  omegatun config show --json | jq -r '.peers[].name'`,
		Args: takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			if c.Bootstrap, err = e.bootstrapNodes(c); err != nil {
				return err
			}
			peers := []object{}
			for _, p := range c.Peers {
				ip6, ip4 := addresses(p.Key, p.IPv4)
				peers = append(peers, object{
					"key": p.Key, "name": p.Name, "ipv6": ip6, "ipv4": ip4, "relay": p.Relay,
					"file": p.From.File, "line": p.From.Line,
				})
			}
			return e.print(
				object{
					"name": machineName(c), "port": c.Port, "interface": c.Interface, "ipv4": c.IPv4,
					"bootstrap": c.Bootstrap, "port_mapping": !c.NoMapping, "relay": c.Relay, "lan": !c.NoLAN,
					"priority": cmp.Or(c.Priority, config.PriorityRealtime), "queues": c.Queues, "peers": peers,
				}, configText(c))
		},
	}
}

// configText returns c in the form of the file.
func configText(c *config.Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\n", machineName(c))
	fmt.Fprintf(&b, "port = %d\n", c.Port)
	if c.Interface == "" {
		b.WriteString("# interface: the first free one of omega0, omega1, …\n")
	} else {
		fmt.Fprintf(&b, "interface = %q\n", c.Interface)
	}
	if c.IPv4.IsValid() {
		fmt.Fprintf(&b, "ipv4 = %q\n", c.IPv4)
	}
	if c.Bootstrap == nil {
		b.WriteString("# bootstrap: the public network\n")
	} else {
		quoted := make([]string, len(c.Bootstrap))
		for i, node := range c.Bootstrap {
			quoted[i] = strconv.Quote(node)
		}
		fmt.Fprintf(&b, "bootstrap = [%s]\n", strings.Join(quoted, ", "))
	}
	if c.NoMapping {
		b.WriteString("port_mapping = false\n")
	}
	if c.Relay {
		b.WriteString("relay = true\n")
	}
	if c.NoLAN {
		b.WriteString("lan = false\n")
	}
	if c.Priority != "" {
		fmt.Fprintf(&b, "priority = %q\n", c.Priority)
	}
	if c.Queues != 0 {
		fmt.Fprintf(&b, "queues = %d\n", c.Queues)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "\n[[peer]]  # from %v\nkey = %q\n", p.From, p.Key)
		if p.Name != "" {
			fmt.Fprintf(&b, "name = %q\n", p.Name)
		}
		if p.IPv4.IsValid() {
			fmt.Fprintf(&b, "ipv4 = %q\n", p.IPv4)
		}
		if p.Relay {
			b.WriteString("relay = true\n")
		}
	}
	return b.String()
}

func newConfigCheck(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the identity",
		Long: `Reads the configuration, the list of peers and the identity as "omegatun up" would, and
says what is wrong with them, and which virtual IPv4 addresses collide. It changes
nothing. With --json: {"schema":1,"ok":true,"peers":n,"notes":[…]}.

Exit status 2: something is wrong. 4: something may not be read.`,
		Example: `  omegatun config check`,
		Args:    takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			var own key.Public
			switch k, err := e.identity(); {
			case err == nil:
				own = k.Public()
			case !errors.Is(err, fs.ErrNotExist): // the first use makes one
				return err
			}
			if p, ok := c.Peers.ByKey(own); ok {
				e.note("%v lists this machine's own key", p.From)
			}
			listed := make([]routes.Listed, len(c.Peers))
			for i, p := range c.Peers {
				listed[i] = routes.Listed{Key: p.Key, IPv4: p.IPv4}
			}
			notes := []string{}
			for _, conflict := range routes.Plan4(routes.Listed{Key: own, IPv4: c.IPv4}, listed, nil).Conflicts {
				notes = append(notes, conflict.Error())
				e.note("%v", conflict)
			}
			e.say("the configuration is good; %d peers are listed", len(c.Peers))
			if !e.json {
				return nil
			}
			return e.print(object{"ok": true, "peers": len(c.Peers), "notes": notes}, "")
		},
	}
}
