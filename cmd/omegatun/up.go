package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/systemd"
	"omegatun/dht/key"
)

func newUp(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "up [peer…]",
		Short: "Connect this machine, and keep it connected to peers",
		Long: `Makes a network interface with this machine's virtual addresses, joins the network, and
keeps this machine connected to the peers named and to those that are listed, until
Ctrl-C; then everything is undone. A peer that is named is admitted until then, whether
it is listed or not. If more than 64 peers are listed, those are connected that are
named, or that packets are sent to.

If omegatun is running already, it is told to connect to the peers named, and this waits
for the outcome.

It needs root, or the capability CAP_NET_ADMIN.

With --json, one object a line:
  {"schema":1,"event":"interface","name","mtu","ipv6","ipv4"}
  {"schema":1,"event":"listening","key"}      peers can find this machine
  {"schema":1,"event":"peer","key","state":"connected","path":"direct|lan|relay",
   "remote":"ip:port","ms"}
  {"schema":1,"event":"peer","key","state":"failed","code","reason"}   and tried again
  {"schema":1,"event":"peer","key","state":"disconnected","code","reason"}
  {"schema":1,"event":"note","reason"}        something a person should know
  {"schema":1,"event":"down"}

Exit status 0: it was up, and everything is undone. 1: no interface can be made, or the
UDP port is taken. 2: wrong arguments or configuration. 4: a permission is missing. 5: no
such peer. 9: no DHT node answers, and there is nobody on the local network. If peers are
listed (omegatun add), it waits for either instead.`,
		Example: `  sudo omegatun up hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko
  sudo omegatun up desk
  sudo omegatun up`,
		Args: takes(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			bootstrap, err := e.bootstrapNodes(c)
			if err != nil {
				return err
			}
			var peers []key.Public
			for _, arg := range args {
				p, err := e.lookUp(c, arg)
				if err != nil {
					return err
				}
				if !slices.Contains(peers, p.Key) {
					peers = append(peers, p.Key)
				}
			}
			return e.up(cmd.Context(), c, bootstrap, peers)
		},
	}
}

// up runs a daemon, or has the running one connect to peers.
func (e *env) up(ctx context.Context, c *config.Config, bootstrap []string, peers []key.Public) error {
	path, err := e.socketPath()
	if err != nil {
		return err
	}
	switch _, err := control.NewClient(path).Status(ctx); {
	case err == nil:
		return e.upByDaemon(ctx, control.NewClient(path), peers)
	case exit.From(err).Code != exit.NoDaemon:
		return err
	}
	k, err := e.makeIdentity()
	if err != nil {
		return err
	}
	if slices.Contains(peers, k.Public()) {
		return ownKeyError()
	}
	dir, err := e.makeState()
	if err != nil {
		return err
	}
	defer dir.Close()
	keepSecrets()
	e.outliveReader()
	e.say("this is %s", k.Public())
	if len(peers) == 0 && len(c.Peers) == 0 {
		e.note("no peers are listed, so nobody may connect; omegatun add <key> lists one")
	}
	return daemon.Run(ctx, daemon.Config{
		Identity:  k,
		Version:   versionText(),
		Name:      machineName(c),
		Settings:  c,
		Reload:    e.loadConfig,
		Peers:     peers,
		Bootstrap: bootstrap,
		State:     dir,
		Socket:    path,
		Events: func(ev control.Event) {
			e.show(ev) //nolint:errcheck // a stdout that takes nothing does not end the daemon
			e.notify(ev)
		},
		Logger: e.log(),
	})
}

// notify tells systemd about an event, if the daemon is a service of it.
func (e *env) notify(ev control.Event) {
	var state string
	switch ev.Event {
	case "interface":
		state = "READY=1\nSTATUS=up, looking for the network"
	case "listening":
		state = "STATUS=up, and can be found by peers"
	case "down":
		state = "STOPPING=1"
	default:
		return
	}
	if err := systemd.Notify(os.Getenv("NOTIFY_SOCKET"), state); err != nil {
		e.log().Warn("systemd is not told", "error", err)
	}
}

// upByDaemon has the running daemon connect to peers, and shows the outcome. The error is that of the first peer that
// could not be reached.
func (e *env) upByDaemon(ctx context.Context, client *control.Client, peers []key.Public) error {
	if len(peers) == 0 {
		e.say("omegatun is up already")
		return client.Reload(ctx)
	}
	var failed error
	outcomes := 0
	err := client.Up(ctx, peers, func(ev control.Event) error {
		outcomes++
		if ev.State == "failed" && failed == nil {
			failed = &exit.Error{Code: ev.Code, Reason: peerTitle(ev) + ": " + ev.Reason, Try: ev.Try}
		}
		return e.show(ev)
	})
	if err == nil && outcomes < len(peers) {
		err = errors.New("the running omegatun stopped meanwhile")
	}
	if err != nil {
		return err
	}
	return failed
}

// show prints an event: JSON on stdout, or a line for people on stderr.
func (e *env) show(ev control.Event) error {
	if e.json {
		return e.printJSON(e.stdout, ev)
	}
	switch ev.Event {
	case "interface":
		var with []string
		for _, a := range []netip.Addr{ev.IPv6, ev.IPv4} {
			if a.IsValid() {
				with = append(with, a.String())
			}
		}
		e.say("interface %s is up, with %s", ev.Name, cmp.Or(strings.Join(with, " and "), "no address"))
	case "listening":
		e.say("peers can find this machine")
	case "peer":
		e.say("%s", peerLine(ev))
	case "note":
		e.note("%s", ev.Reason)
	case "down":
		e.say("down: everything is undone")
	}
	return nil
}

// peerLine returns an event about a peer for people.
func peerLine(ev control.Event) string {
	switch ev.State {
	case "connected":
		line := fmt.Sprintf("%s: connected, %s, %v", peerTitle(ev), ev.Path, ev.Remote)
		if ev.MS > 0 {
			line += fmt.Sprintf(", after %v", time.Duration(ev.MS*float64(time.Millisecond)).Round(time.Millisecond))
		}
		return line
	case "disconnected":
		return fmt.Sprintf("%s: disconnected: %s", peerTitle(ev), ev.Reason)
	}
	return fmt.Sprintf("%s: %s; trying again", peerTitle(ev), ev.Reason)
}

// peerTitle returns what people call the peer of an event.
func peerTitle(ev control.Event) string {
	if ev.PeerName != "" {
		return ev.PeerName
	}
	return ev.Key.Short() + "…"
}
