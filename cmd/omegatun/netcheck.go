package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/netcheck"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/session"
)

func newNetcheck(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "netcheck",
		Short: "Find out what this machine's network lets it do",
		Long: `Finds out whether UDP gets out, where others see this machine, how the NAT in front of it maps
ports and whom it lets in, whether the router opens ports (PCP, NAT-PMP, UPnP), whether there
is IPv6, how large packets may be, whether the DHT answers, and whether other VPNs and routes
are in the way; and says what each of these means, and what can be done. It takes up to ten
seconds, needs no root and no running omegatun, and leaves nothing behind. A running one goes
on undisturbed.

With --json, one object:
  {"schema":1,"udp","dht":{"reachable","nodes","rtt_ms","enter_ms"},
   "nat":{"kind":"open|consistent|random|unknown","public","mapping","filtering",
          "preserves_port","sequential","hairpin"},
   "port_mapping":{"gateway","protocols","mapped","external","public"},
   "ipv4":{"route","interface","addresses"},"ipv6":{…},"path_mtu","link_mtu",
   "conflicts":[{"kind","interface","prefix","table"}],
   "findings":[{"check","status":"ok|note|bad","text","meaning","remedy"}],"took_ms"}
where null, and 0 for an MTU, is what could not be found out. mapping is none,
endpoint-independent, endpoint-dependent or unknown; filtering is none, endpoint-independent,
address-dependent, address-and-port-dependent or unknown; the kind of a conflict is shadow,
route, full-tunnel, tunnel or rp-filter.

Exit status 9: no DHT node answers.`,
		Example: `  omegatun netcheck
  omegatun netcheck --json | jq -r .nat.kind`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.netcheck(cmd.Context())
		},
	}
}

func (e *env) netcheck(ctx context.Context) error {
	c, err := e.loadConfig()
	if err != nil {
		return err
	}
	bootstrap, err := e.bootstrapNodes(c)
	if err != nil {
		return err
	}
	dir := e.rememberedState()
	if dir != nil {
		defer dir.Close()
	}
	h, err := daemon.Open(session.Config{ // with a key of its own, which nobody is told
		Identity: key.Generate(), Logger: e.log(), DHT: dht.Config{Bootstrap: bootstrap, Mode: dht.Ephemeral},
	}, dir)
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // nothing of it is needed any more
	p := e.progress()
	asked := bootstrap
	if asked == nil {
		asked = dht.PublicBootstrap()
	}
	r, err := netcheck.Run(ctx, netcheck.Config{
		Node:     h.Node(),
		Answered: func() bool { return h.Node().Stats().Answered > 0 },
		Asked:    asked,
		Blocks:   []netip.Prefix{routes.Block4, routes.Block6},
		Logger:   e.log(),
	}, func(f netcheck.Finding) {
		if !e.json {
			p.clear()
			io.WriteString(e.stdout, findingText(f)) //nolint:errcheck // a closed stdout ends nothing
			p.show()
		}
	})
	p.end()
	if err != nil {
		return err
	}
	if err := e.print(r, ""); err != nil {
		return err
	}
	if !r.UDP {
		i := slices.IndexFunc(r.Findings, func(f netcheck.Finding) bool { return f.Check == "udp" })
		return exit.New(exit.Timeout, "%s", r.Findings[i].Text).WithTry("%s", r.Findings[i].Remedy)
	}
	return nil
}

// rememberedState returns the state folder, for the nodes that are remembered there; nil if there is none to be read. The caller closes it.
func (e *env) rememberedState() *state.Dir {
	path, err := e.statePath()
	if err != nil || !exists(path) {
		return nil
	}
	dir, err := state.Make(path)
	if err != nil {
		return nil
	}
	return dir
}

// findingText returns f for people.
func findingText(f netcheck.Finding) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-13s %-5s %s\n", f.Check, f.Status, f.Text)
	if f.Meaning != "" {
		fmt.Fprintf(&b, "%19s %s\n", "", f.Meaning)
	}
	if f.Remedy != "" {
		fmt.Fprintf(&b, "%19s try: %s\n", "", f.Remedy)
	}
	return b.String()
}

// progress is a line on a terminal that says that something is going on. Its methods are for one goroutine.
type progress struct {
	w io.Writer // nil: there is no terminal, or nobody wants to know
}

// progress returns a progress line; the caller ends it.
func (e *env) progress() *progress {
	if e.json || e.quiet || !isTerminal(e.stderr) {
		return new(progress)
	}
	p := &progress{w: e.stderr}
	p.show()
	return p
}

func (p *progress) show() {
	if p.w != nil {
		io.WriteString(p.w, "checking … (up to 10 s)") //nolint:errcheck // it is only progress
	}
}

func (p *progress) clear() {
	if p.w != nil {
		io.WriteString(p.w, "\r\x1b[K") //nolint:errcheck // it is only progress
	}
}

func (p *progress) end() {
	p.clear()
	p.w = nil
}
