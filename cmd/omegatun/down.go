package main

import (
	"errors"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/tun/hostnet"
)

func newDown(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the running omegatun",
		Long: `Stops the running omegatun, and returns when its network interface, addresses and routes
are gone. If none is running, what one that was killed has left behind is removed; if
there is nothing, that is no error.

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
				if err := e.clearLeftovers(); err != nil {
					return err
				}
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

// clearLeftovers removes what an omegatun that was killed has left behind.
func (e *env) clearLeftovers() error {
	removed, err := hostnet.Cleanup()
	for _, what := range removed {
		e.say("removed %s, which was left behind", what)
	}
	code := exit.Other
	if errors.Is(err, hostnet.ErrPermission) {
		code = exit.Permission
	}
	if err != nil {
		return exit.New(code, "what was left behind could not be removed: %w", err).WithTry("sudo omegatun down")
	}
	return nil
}
