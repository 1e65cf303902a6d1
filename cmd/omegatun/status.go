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
)

func newStatus(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how this machine and its peers are doing",
		Long: `Shows what the running omegatun is doing: this machine, its place in the network, and for
each peer the path its packets take, how long they take, and what was dropped and why.

With --json, one object:
  {"schema":1,
   "self":{"key","name","ipv6","ipv4","state","nat","dht":{"nodes","persistent"},
           "interface":{"name","mtu"}},
   "peers":[{"key","name","state","path":{"kind","remote","relay","mtu","rtt_ms",
             "last_auth_ms"},"rx_bytes","tx_bytes","dropped":{"reason":n}}]}

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
	w.Flush() //nolint:errcheck // a strings.Builder takes everything
	for _, n := range s.Self.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if len(s.Peers) == 0 {
		b.WriteString("\nno peers; omegatun add <key> lists one\n")
		return b.String()
	}
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEER\tADDRESSES\tSTATE\tPATH\tRTT\tRECEIVED\tSENT")
	for _, p := range s.Peers {
		name, path, rtt := p.Name, "-", "-"
		if name == "" {
			name = p.Key.Short() + "…"
		}
		if p.Path != nil {
			path = fmt.Sprintf("%s %s", p.Path.Kind, p.Path.Remote)
			if p.Path.RTTMS > 0 {
				rtt = fmt.Sprintf("%.1f ms", p.Path.RTTMS)
			}
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\t%s\t%s\n", name, p.IPv6, addrOrDash(p.IPv4), p.State, path, rtt,
			byteCount(p.RxBytes), byteCount(p.TxBytes))
	}
	w.Flush() //nolint:errcheck // a strings.Builder takes everything
	for _, p := range s.Peers {
		name := p.Name
		if name == "" {
			name = p.Key.Short() + "…"
		}
		if p.Reason != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, p.Reason)
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
