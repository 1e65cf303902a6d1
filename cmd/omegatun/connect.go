package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
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
stream ends the command, once stdin has ended too. It needs no root and no running
omegatun.

Exit status 2: wrong key. 5: no such peer. 6: the key was not found. 7: no path to it. 8: it
does not answer, or ended the stream with an error. 9: it took too long.`,
		Example: `  omegatun connect desk < file
  tar c . | omegatun connect hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.connect(cmd.Context(), args[0], timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to try")
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
	return streamError(ctx, pipe(ctx, c, e.stdin, e.stdout))
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

// streamError returns why a stream ended before its time.
func streamError(ctx context.Context, err error) error {
	_, local := errors.AsType[*fs.PathError](err) // of stdin or stdout
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case local:
		return err
	}
	return exit.New(exit.Refused, "the stream broke: %w", err)
}

// halfCloser is a connection whose two directions end by themselves.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// pipe copies in to c and c to out until both directions have ended, and closes c. If in is a terminal, the end of
// what c sends is enough. If out fails, c is reset, so that the other side does not take for delivered what was not. in may still be
// read from afterwards, in the background, if it does not end.
func pipe(ctx context.Context, c halfCloser, in io.Reader, out io.Writer) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	sent := make(chan error, 1)
	go func() { // ends with in, or with c at the next read from in
		_, err := io.Copy(c, in)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	_, err := io.Copy(out, c)
	switch {
	case err != nil:
		cut(c)
		return err
	case isTerminal(in):
		return nil
	}
	return <-sent
}

// join copies between two connections until both directions have ended, and closes both.
func join(ctx context.Context, a, b halfCloser) error {
	defer a.Close()
	defer b.Close()
	defer context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, pair := range [][2]halfCloser{{a, b}, {b, a}} {
		wg.Go(func() {
			to, from := pair[0], pair[1]
			_, err := io.Copy(to, from)
			if errs[i] = err; err != nil { // nothing more can come of the other direction
				a.Close()
				b.Close()
				return
			}
			if err := to.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%v ⇄ %v: %w", a.RemoteAddr(), b.RemoteAddr(), err)
	}
	return nil
}
