package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/quick"
	"omegatun/dht/key"
	"omegatun/session"
)

func newListen(e *env) *cobra.Command {
	var f listenFlags
	cmd := &cobra.Command{
		Use:   "listen --allow <peer…|any>",
		Short: "Accept streams from peers, on stdin and stdout or for a TCP server",
		Long: `Announces this machine's key and accepts ordered encrypted streams from those allowed, be
it "omegatun connect" or any HyperDHT program. Others get no answer.

The streams are joined with stdin and stdout, one after the other: what comes goes to
stdout, and what stdin has goes to the stream at hand. A stream ends when the other side
and stdin have ended; if stdin is a terminal, with the other side. With --once the first
is the last, and its outcome the command's. With --tcp each stream becomes a connection to a
TCP server instead, any number at a time.

A transfer that is interrupted, by Ctrl-C or because stdout takes no more, is broken off: the
other side gets an error, not the end. If stdin is a terminal, or has ended, Ctrl-C ends
what was sent as it should. Connections to a TCP server are reset.

It needs no root, but no omegatun may run with the same identity. When it can be found it
prints "listening <key>" on stderr, with --json {"schema":1,"event":"listening","key"}.

Exit status 1: stdout takes no more. 2: wrong arguments. 5: no such peer. 8: the other side
ended the stream with an error. 9: no DHT node answers.`,
		Example: `  omegatun listen --allow desk > file
  omegatun listen --allow any --tcp 127.0.0.1:8080
  tar c . | omegatun listen --allow hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --once`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.tcp != "" {
				e.outliveReader()
			} else {
				failWithoutReader()
			}
			return e.listen(cmd.Context(), f)
		},
	}
	cmd.Flags().StringSliceVar(&f.allow, "allow", nil, "who may connect: `peers`, by key or name, or any; may be repeated")
	cmd.Flags().StringVar(&f.tcp, "tcp", "", "connect each stream to a TCP server, `port` or host:port")
	cmd.Flags().BoolVar(&f.once, "once", false, "end with the first stream")
	return cmd
}

type listenFlags struct {
	allow []string
	tcp   string
	once  bool
}

// admits returns a function that tells who may connect.
func (e *env) admits(allow []string) (func(key.Public) bool, error) {
	if len(allow) == 0 {
		return nil, exit.New(exit.Usage, "nobody is allowed to connect").WithTry("--allow <key>, or --allow any")
	}
	if slices.Contains(allow, "any") {
		return func(key.Public) bool { return true }, nil
	}
	allowed := make(map[key.Public]bool)
	for _, arg := range allow {
		p, err := e.findPeer(arg)
		if err != nil {
			return nil, err
		}
		allowed[p.Key] = true
	}
	return func(k key.Public) bool { return allowed[k] }, nil
}

// admit is admits in the form that a listener wants.
func admit(admits func(key.Public) bool) func(session.Caller) error {
	return func(c session.Caller) error {
		if !admits(c.Key) {
			return fmt.Errorf("%s is not allowed", c.Key.Short())
		}
		return nil
	}
}

func (e *env) listen(ctx context.Context, f listenFlags) (err error) {
	admits, err := e.admits(f.allow)
	if err != nil {
		return err
	}
	var to target
	if f.tcp != "" {
		if to, err = parseTarget(f.tcp); err != nil {
			return fmt.Errorf("--tcp: %w", err)
		}
	}
	st, err := e.openStation(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, st.close(ctx, e)) }()
	l, err := st.host.Listen(st.key, session.ListenConfig{Admit: admit(admits)})
	if err != nil {
		return exit.New(exit.Other, "cannot listen: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	if err := l.Announced(ctx); err != nil {
		return err
	}
	e.listening(st.key.Public())
	if f.tcp != "" {
		err = e.serveTCP(ctx, l, to, f.once)
	} else {
		err = e.serveStdio(ctx, l, f.once)
	}
	if errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		return nil // it was told to end, and nothing was going on
	}
	return err
}

// listening says that this machine can be found. It is meant for scripts too, so -q does not silence it.
func (e *env) listening(k key.Public) {
	if e.json {
		e.printJSON(e.stderr, control.Event{Schema: control.Schema, Event: "listening", Key: k}) //nolint:errcheck // nowhere else to say it
		return
	}
	fmt.Fprintf(e.stderr, "listening %s\n", k)
}

// accept returns the next stream.
func accept(l net.Listener) (stream, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return c.(stream), nil // *secretstream.Conn, as session.Listener says
}

// serveTCP connects each stream to a TCP server.
func (e *env) serveTCP(ctx context.Context, l net.Listener, to target, once bool) error {
	s := newServer(e)
	defer s.wg.Wait()
	v := &service{target: to}
	if !once {
		return s.accept(ctx, l, v)
	}
	c, err := accept(l)
	if err == nil {
		s.carry(ctx, c, v)
	}
	return err
}

// serveStdio joins one stream after the other with stdin and stdout.
func (e *env) serveStdio(ctx context.Context, l net.Listener, once bool) error {
	in := shareReader(ctx, quick.NewReader(e.stdin))
	for {
		c, err := accept(l)
		if err != nil {
			return err
		}
		e.log().Info("stream", "remote", c.RemoteAddr().String())
		err = streamError(ctx, pipe(ctx, c, in.copyTo, e.stdout, isTerminal(e.stdin)))
		if once || ctx.Err() != nil || errors.Is(err, syscall.EPIPE) { // nobody will read stdout any more
			return err
		}
		if err != nil {
			e.note("%v", err)
		}
	}
}
