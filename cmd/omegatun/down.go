package main

import (
	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
)

func newDown(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the running omegatun",
		Long: `Stops the running omegatun, and returns when its network interface, addresses and routes
are gone. If none is running there is nothing to do, and that is no error.

With --json: {"schema":1,"event":"down"}.`,
		Example: `  sudo omegatun down`,
		Args:    takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := e.client()
			if err != nil {
				return err
			}
			switch err := client.Down(cmd.Context()); {
			case err != nil && exit.From(err).Code == exit.NoDaemon:
				e.say("nothing is running")
			case err != nil:
				return err
			default:
				e.say("down")
			}
			if !e.json {
				return nil
			}
			return e.print(object{"event": "down"}, "")
		},
	}
}
