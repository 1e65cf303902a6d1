package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/dht/key"
	"omegatun/routes"
)

func newID(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "id",
		Short: "Show this machine's key and addresses",
		Long: `Shows the public key of this machine, which others give to "omegatun up" to reach it,
and the virtual addresses that follow from it. Without an identity yet, one is made.

The public key is not a secret. With --json, one object:
  {"schema":1,"key","hex","ipv6","ipv4","name"}`,
		Example: `  omegatun id
  omegatun id --json | jq -r .key`,
		Args: takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			c, err := e.loadConfig()
			if err != nil {
				return err
			}
			k, err := e.makeIdentity()
			if err != nil {
				return err
			}
			pub := k.Public()
			ip6, ip4 := addresses(pub, c.IPv4)
			name := machineName(c)
			return e.print(
				object{"key": pub, "hex": pub.Hex(), "ipv6": ip6, "ipv4": ip4, "name": name},
				fmt.Sprintf("key   %s\nhex   %s\nipv6  %s\nipv4  %s\nname  %s\n", pub, pub.Hex(), ip6, ip4, name))
		},
	}
}

// makeIdentity returns this machine's identity; without one it makes one and says so.
func (e *env) makeIdentity() (key.Private, error) {
	dir, err := e.makeState()
	if err != nil {
		return key.Private{}, err
	}
	defer dir.Close()
	k, made, err := dir.MakeIdentity()
	if made {
		e.say("made a new identity in %s", dir.Path("identity"))
	}
	return k, err
}

// addresses returns the virtual addresses of k; override, if it is not zero, is the configured IPv4 address.
func addresses(k key.Public, override netip.Addr) (ip6, ip4 netip.Addr) {
	if override.IsValid() {
		return routes.Addr6(k), override
	}
	return routes.Addr6(k), routes.Addr4(k)
}

// machineName returns this machine's name: the configured one, or what of the host's name can be one.
func machineName(c *config.Config) string {
	if c.Name != "" {
		return c.Name
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	if config.CheckName(host) != nil {
		return ""
	}
	return host
}
