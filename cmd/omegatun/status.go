package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/dht/key"
)

func newStatus(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how this machine and its peers are doing",
		Long: `Shows what the running omegatun is doing: this machine, its place in the network, and for
each peer the path its packets take, how long they take, how old the keys are, what came of
the last attempt to connect, and what was dropped and why. The path is lan, direct, or relay
with the relay's name.

With --json, one object:
  {"schema":1,
   "self":{"key","name","ipv6","ipv4","state","nat","dht":{"nodes","persistent"},
           "interface":{"name","mtu"}},
   "peers":[{"key","name","state","path":{"kind","remote","relay","mtu","rtt_ms",
             "last_auth_ms","mapped"},"rx_bytes","tx_bytes","dropped":{"reason":n},"suite",
             "key_age_ms","announced":{"version","name","addresses","mtu","relaying",
             "relays"},"last_attempt":{"ago_ms","incoming","local_nat","remote_nat",
             "strategy","state","took_ms","path","code","reason","remedy"}}]}
and in self "mapped", the address and port that the router forwards to this machine, if it
does, and "relay", what is relayed for others, if anything is:
  {"clients","waiting","links","paired","packets","bytes"}
A path is "mapped" if it leads through a port that one of the two routers forwards.

Exit status 3: no omegatun is running.`,
		Example: `  omegatun status
  omegatun status --json | jq '.peers[] | select(.state=="connected") | .name'`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := e.client()
			if err != nil {
				return err
			}
			s, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return e.print(s, statusText(s))
		},
	}
}

// statusText returns s for people.
func statusText(s *control.Status) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "key\t%s\n", s.Self.Key)
	fmt.Fprintf(w, "name\t%s\n", orDash(s.Self.Name))
	fmt.Fprintf(w, "addresses\t%s  %s\n", s.Self.IPv6, addrOrDash(s.Self.IPv4))
	fmt.Fprintf(w, "state\t%s for %v\n", s.Self.State, (time.Duration(s.Self.UptimeMS) * time.Millisecond).Round(time.Second))
	fmt.Fprintf(w, "interface\t%s, mtu %d\n", s.Self.Interface.Name, s.Self.Interface.MTU)
	place := fmt.Sprintf("%d nodes known", s.Self.DHT.Nodes)
	if s.Self.DHT.Persistent {
		place += ", persistent"
	}
	if s.Self.DHT.Address.IsValid() {
		place += ", seen as " + s.Self.DHT.Address.String()
	}
	fmt.Fprintf(w, "dht\t%s\n", place)
	fmt.Fprintf(w, "nat\t%s\n", s.Self.NAT)
	if s.Self.Mapped.IsValid() {
		fmt.Fprintf(w, "mapped\t%v, which the router forwards to this machine\n", s.Self.Mapped)
	}
	if r := s.Self.Relay; r != nil {
		fmt.Fprintf(w, "relaying\tfor %d peers, %d pairs at the moment, %s passed on\n", r.Clients, r.Links, byteCount(r.Bytes))
	}
	w.Flush() //nolint:errcheck // a strings.Builder takes everything
	for _, n := range s.Self.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if len(s.Peers) == 0 {
		b.WriteString("\nno peers; omegatun add <key> lists one\n")
		return b.String()
	}
	names := make(map[key.Public]string, len(s.Peers)) // what people call them
	for _, p := range s.Peers {
		if names[p.Key] = p.Name; p.Name == "" {
			names[p.Key] = p.Key.Short() + "…"
		}
	}
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEER\tADDRESSES\tSTATE\tPATH\tRTT\tKEYS\tRECEIVED\tSENT")
	for _, p := range s.Peers {
		path, rtt, keys := "-", "-", "-"
		if p.Path != nil {
			path = pathText(p.Path, names)
			keys = fmt.Sprintf("%v old", (time.Duration(p.KeyAgeMS) * time.Millisecond).Round(time.Second))
			if p.Path.RTTMS > 0 {
				rtt = fmt.Sprintf("%.1f ms", p.Path.RTTMS)
			}
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\t%s\t%s\t%s\n", names[p.Key], p.IPv6, addrOrDash(p.IPv4), p.State, path, rtt, keys,
			byteCount(p.RxBytes), byteCount(p.TxBytes))
	}
	w.Flush() //nolint:errcheck // a strings.Builder takes everything
	for _, p := range s.Peers {
		name := names[p.Key]
		if line := attemptLine(p.Last); line != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, line)
		} else if p.Reason != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, p.Reason)
		}
		if line := announcedLine(&p); line != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, line)
		}
		var dropped []string
		for reason, n := range p.Dropped {
			if n > 0 {
				dropped = append(dropped, fmt.Sprintf("%d %s", n, reason))
			}
		}
		if len(dropped) > 0 {
			slices.Sort(dropped)
			fmt.Fprintf(&b, "%s: dropped %s\n", name, strings.Join(dropped, ", "))
		}
	}
	return b.String()
}

// attemptLine says in a line what came of the last attempt to connect; nothing if there was none.
func attemptLine(a *control.Attempt) string {
	if a == nil {
		return ""
	}
	ago := (time.Duration(a.AgoMS) * time.Millisecond).Round(time.Second)
	took := time.Duration(a.TookMS * float64(time.Millisecond)).Round(time.Millisecond)
	who := "tried"
	if a.Incoming {
		who = "it tried"
	}
	line := fmt.Sprintf("%s %v ago", who, ago)
	switch a.State {
	case "connected":
		line = fmt.Sprintf("%s, connected after %v", line, took)
		if a.LocalNAT != "unknown" && a.RemoteNAT != "unknown" {
			line += fmt.Sprintf(" (our NAT %s, its NAT %s)", a.LocalNAT, a.RemoteNAT)
		}
	case "failed":
		line = fmt.Sprintf("%s, failed after %v: %s", line, took, a.Reason)
	default:
		return line + ", still trying"
	}
	if a.Remedy != "" {
		line += "; " + a.Remedy
	}
	return line
}

// announcedLine says in a line what is new in what the peer says about itself.
func announcedLine(p *control.PeerStatus) string {
	a := p.Announced
	if a == nil {
		return ""
	}
	var parts []string
	if a.Name != "" && a.Name != p.Name {
		parts = append(parts, fmt.Sprintf("calls itself %q", a.Name))
	}
	if a.Version != "" {
		parts = append(parts, "runs "+a.Version)
	}
	if a.Relaying {
		parts = append(parts, "relays for us")
	}
	return strings.Join(parts, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addrOrDash(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// byteCount returns n with a unit of powers of ten.
func byteCount(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1000, 0
	for f >= 999.95 && unit < 4 {
		f, unit = f/1000, unit+1
	}
	return fmt.Sprintf("%.1f %cB", f, "kMGTP"[unit])
}
