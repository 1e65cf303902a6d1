package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/dht/key"
)

func newIP(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "ip [peer]",
		Short: "Print the virtual addresses of a peer, or of this machine",
		Long: `Prints the IPv6 address and then the IPv4 address, a line each. They follow from the key
alone: for a whole key this needs no network, no running omegatun and no state. A peer
can also be its name or the first characters of its key, at least 6. An IPv4 address
that the configuration sets is printed instead of the one that follows from the key.

With --json: {"schema":1,"key","ipv6","ipv4"}. Exit status 5: no such peer is listed.`,
		Example: `  omegatun ip hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko
  ssh user@$(omegatun ip desk | head -1)`,
		Args: takes(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := e.ipOf(args)
			if err != nil {
				return err
			}
			ip6, ip4 := addresses(p.Key, p.IPv4)
			return e.print(object{"key": p.Key, "ipv6": ip6, "ipv4": ip4}, fmt.Sprintf("%s\n%s\n", ip6, ip4))
		},
	}
}

// ipOf returns the peer that args name, or this machine as one.
func (e *env) ipOf(args []string) (config.Peer, error) {
	c, err := e.loadConfig()
	if len(args) == 0 {
		if err != nil {
			return config.Peer{}, err
		}
		k, err := e.makeIdentity()
		return config.Peer{Key: k.Public(), IPv4: c.IPv4}, err
	}
	if err != nil { // a whole key needs none
		k, keyErr := key.ParsePublic(args[0])
		if keyErr != nil {
			return config.Peer{}, err
		}
		e.note("the configuration is not looked at: %v", err)
		return config.Peer{Key: k}, nil
	}
	return e.lookUp(c, args[0])
}
