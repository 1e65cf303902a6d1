package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
)

func newWhois(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "whois <ip[:port]>",
		Short: "Tell whose a virtual address is",
		Long: `Tells which listed peer, or whether this machine, has a virtual address. A port is
allowed and ignored, so that the remote address of a connection can be given as it is.

With --json: {"schema":1,"key","name","ipv6","ipv4","self"}. Exit status 5: the address
belongs to nobody who is listed.`,
		Example: `  omegatun whois 10.99.3.7
  omegatun whois [fd6f:6d65:6761:d1d3::7]:51022`,
		Args: takes(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			for _, p := range c.Peers {
				if ip6, ip4 := addresses(p.Key, p.IPv4); addr == ip6 || addr == ip4 {
					return e.print(
						object{"key": p.Key, "name": p.Name, "ipv6": ip6, "ipv4": ip4, "self": false},
						fmt.Sprintf("key   %s\nname  %s\nipv6  %s\nipv4  %s\n", p.Key, p.Name, ip6, ip4))
				}
			}
			if k, err := e.identity(); err == nil {
				if ip6, ip4 := addresses(k.Public(), c.IPv4); addr == ip6 || addr == ip4 {
					name := machineName(c)
					return e.print(
						object{"key": k.Public(), "name": name, "ipv6": ip6, "ipv4": ip4, "self": true},
						fmt.Sprintf("key   %s\nname  %s (this machine)\nipv6  %s\nipv4  %s\n", k.Public(), name, ip6, ip4))
				}
			}
			return exit.New(exit.UnknownPeer, "%v belongs to nobody who is listed", addr).
				WithTry("omegatun config show, for all listed peers")
		},
	}
}

// parseAddr reads an address, in brackets or not, with a port or not.
func parseAddr(s string) (netip.Addr, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), nil
	}
	text := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, exit.New(exit.Usage, "%q is not an IP address", s).WithTry("omegatun whois 10.99.3.7")
	}
	return a.Unmap().WithZone(""), nil
}
