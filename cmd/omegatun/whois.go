package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

func newWhois(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "whois <ip[:port]>",
		Short: "Tell whose a virtual address is",
		Long: `Tells which listed peer, or which that the running omegatun was told to connect to, or whether
this machine, has a virtual address. A port is allowed and ignored, so that the remote
address of a connection can be given as it is.

With --json: {"schema":1,"key","name","ipv6","ipv4","self"}. Exit status 5: the address
belongs to nobody who is listed.`,
		Example: `  omegatun whois 10.99.3.7
  omegatun whois [fd6f:6d65:6761:d1d3::7]:51022`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			show := func(k key.Public, name string, ip6, ip4 netip.Addr, self bool) error {
				title, ip4Text := name, ""
				if self {
					title += " (this machine)"
				}
				if ip4.IsValid() {
					ip4Text = ip4.String()
				}
				return e.print(
					object{"key": k, "name": name, "ipv6": ip6, "ipv4": ip4, "self": self},
					fmt.Sprintf("key   %s\nname  %s\nipv6  %s\nipv4  %s\n", k, title, ip6, ip4Text))
			}
			for _, p := range c.Peers {
				if ip6, ip4 := addresses(p.Key, p.IPv4); addr == ip6 || addr == ip4 {
					return show(p.Key, p.Name, ip6, ip4, false)
				}
			}
			if k, err := e.identity(); err == nil {
				if ip6, ip4 := addresses(k.Public(), c.IPv4); addr == ip6 || addr == ip4 {
					return show(k.Public(), machineName(c), ip6, ip4, true)
				}
			}
			client, err := e.client()
			if err != nil {
				return err
			}
			if s, err := client.Status(cmd.Context()); err == nil { // it may have been told of others
				for _, p := range s.Peers {
					if addr == p.IPv6 || addr == p.IPv4 {
						return show(p.Key, p.Name, p.IPv6, p.IPv4, false)
					}
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
