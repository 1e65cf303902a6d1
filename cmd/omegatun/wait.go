package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

func newWait(e *env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait [peer]",
		Short: "Wait until a peer is connected, or until this machine can be found",
		Long: `Waits until there is a connection to the peer, which the running omegatun opens if need
be; without a peer, until this machine can be found by its peers. It prints nothing.

Exit status 3: no omegatun is running. 5: no such peer. 9: it took too long.`,
		Example: `  omegatun wait desk && ssh desk
  omegatun wait --timeout 1m`,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var peer key.Public
			if len(args) == 1 {
				p, err := e.findPeer(args[0])
				if err != nil {
					return err
				}
				peer = p.Key
			}
			client, err := e.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			err = client.Wait(ctx, peer)
			if errors.Is(err, context.DeadlineExceeded) {
				return exit.New(exit.Timeout, "not within %v", timeout).WithTry("omegatun status")
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}
