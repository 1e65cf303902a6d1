package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/quick"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/session"
)

func newConnect(e *env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "connect <peer>",
		Short: "Open a stream to a key: stdin goes in, what comes back goes to stdout",
		Long: `Opens an ordered encrypted stream to a key, to "omegatun listen" or to any HyperDHT
program, and joins it with stdin and stdout. The end of stdin is passed on; the end of the
stream ends the command, once stdin has ended too, or at once if stdin is a terminal. It
needs no root and no running omegatun.

A transfer that is interrupted, by Ctrl-C or because stdout takes no more, is broken off: the
other side gets an error, not the end. If stdin is a terminal, or has ended, Ctrl-C ends
what was sent as it should.

Exit status 2: wrong key. 5: no such peer. 6: the key was not found. 7: no path to it. 8: it
does not answer, or ended the stream with an error. 9: it took too long.`,
		Example: `  omegatun connect desk < file
  tar c . | omegatun connect hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			failWithoutReader()
			return e.connect(cmd.Context(), args[0], timeout)
		},
	}
	timeVar(cmd.Flags(), &timeout, "timeout", "", 30*time.Second, "how long to try")
	return cmd
}

func (e *env) connect(ctx context.Context, peer string, timeout time.Duration) (err error) {
	p, err := e.findPeer(peer)
	if err != nil {
		return err
	}
	k, err := e.makeIdentity()
	if err != nil {
		return err
	}
	if k.Public() == p.Key {
		e.note("this is our own key; looking for who else has it")
	}
	dir, err := e.makeState()
	if err != nil {
		return err
	}
	defer dir.Close()
	keepSecrets()
	h, err := e.openHost(ctx, k, dir)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, e.closeHost(ctx, h, dir)) }()

	dialing, cancel := context.WithTimeout(ctx, timeout)
	c, err := h.Dial(dialing, p.Key, session.DialConfig{OnSilence: func() {
		e.note("the key is announced, but nobody answers yet: it is not running any more, or does not allow this one, %s", k.Public())
	}})
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		why := daemon.Explain(err)
		if errors.Is(err, session.ErrNoAnswer) {
			why = why.WithTry("on the other machine: omegatun listen --allow %s", k.Public())
		}
		return why
	}
	e.log().Info("connected", "key", p.Key.String(), "remote", c.RemoteAddr().String())
	return streamError(ctx, pipe(ctx, c, func(_ context.Context, w io.Writer) error {
		_, err := io.Copy(w, quick.NewReader(e.stdin))
		return err
	}, e.stdout, isTerminal(e.stdin)))
}

// closeHost keeps what h learnt in dir, which may be nil, withdraws what h has announced, waits until what was written to
// streams is delivered, and closes h. It does not wait long once ctx has ended. The error tells that something was not
// delivered.
func (e *env) closeHost(ctx context.Context, h *session.Host, dir *state.Dir) error {
	if e.stopWatching != nil {
		e.stopWatching()
		e.stopWatching = nil
	}
	if dir != nil {
		daemon.Remember(h, dir, e.log())
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliverTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(goodbyeTime, cancel) })()
	err := h.Shutdown(patience)
	switch {
	case errors.Is(err, session.ErrCutOff) && ctx.Err() == nil:
		return exit.New(exit.Timeout, "the other side did not take all that was sent within %v", deliverTime)
	case err != nil:
		e.log().Debug("goodbye", "error", err) // announcements expire by themselves
	}
	return nil
}

const (
	deliverTime = time.Minute     // for what was sent to be delivered
	goodbyeTime = 2 * time.Second // the same after Ctrl-C
)
