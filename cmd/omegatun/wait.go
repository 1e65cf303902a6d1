package main

import (
	"time"

	"github.com/spf13/cobra"

	"omegatun/dht/key"
)

func newWait(e *env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait [peer]",
		Short: "Wait until a peer is connected, or until this machine can be found",
		Long: `Waits until there is a connection to the peer, which the running omegatun opens if need
be; without a peer, until this machine can be found by its peers. It prints nothing.

Exit status 3: no omegatun is running. 5: no such peer. 6: it was not found. 7: no path
to it. 8: it does not answer. 9: it took too long.`,
		Example: `  omegatun wait desk && ssh desk
  omegatun wait --timeout 1m`,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var peer key.Public
			if len(args) == 1 {
				p, err := e.findOther(args[0])
				if err != nil {
					return err
				}
				peer = p.Key
			}
			client, err := e.client()
			if err != nil {
				return err
			}
			return client.Wait(cmd.Context(), peer, timeout)
		},
	}
	timeVar(cmd.Flags(), &timeout, "timeout", "", 30*time.Second, "how long to wait")
	return cmd
}
