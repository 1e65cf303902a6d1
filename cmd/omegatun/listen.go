package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
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
is the last. With --tcp each stream becomes a connection to a TCP server
instead, any number at a time.

It needs no root, but no omegatun may run with the same identity. When it can be found it
prints "listening <key>" on stderr, with --json {"schema":1,"event":"listening","key"}.`,
		Example: `  omegatun listen --allow desk > file
  omegatun listen --allow any --tcp 127.0.0.1:8080
  tar c . | omegatun listen --allow hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --once`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.tcp != "" {
				e.outliveReader()
			}
			return e.listen(cmd.Context(), f)
		},
	}
	cmd.Flags().StringSliceVar(&f.allow, "allow", nil, "who may connect: `peers`, by key or name, or any; may be repeated")
	cmd.Flags().StringVar(&f.tcp, "tcp", "", "connect each stream to a TCP server, `host:port`")
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
	if f.tcp != "" {
		_, port, err := net.SplitHostPort(f.tcp)
		if err != nil {
			return exit.New(exit.Usage, "--tcp: %q is not host:port", f.tcp)
		}
		if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
			return exit.New(exit.Usage, "--tcp: %q: the port is not a number between 1 and 65535", f.tcp)
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
		err = e.serveTCP(ctx, l, f)
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
func accept(l net.Listener) (halfCloser, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return c.(halfCloser), nil // *secretstream.Conn, as session.Listener says
}

// serveTCP connects each stream to a TCP server.
func (e *env) serveTCP(ctx context.Context, l net.Listener, f listenFlags) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxCarried)
	for {
		c, err := accept(l)
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			e.log().Warn("too many connections at once, one more is refused", "limit", maxCarried)
			cut(c)
			continue
		}
		serve := func() {
			defer func() { <-slots }()
			log := e.log().With("remote", c.RemoteAddr().String())
			log.Info("stream")
			d := net.Dialer{Timeout: 10 * time.Second}
			server, err := d.DialContext(ctx, "tcp", f.tcp)
			if err != nil {
				c.Close()
				e.note("the TCP server does not answer: %v", err)
				return
			}
			err = join(ctx, c, server.(*net.TCPConn))
			log.Info("stream ended", "error", err)
		}
		if f.once {
			serve()
			return nil
		}
		wg.Go(serve)
	}
}

// serveStdio joins one stream after the other with stdin and stdout.
func (e *env) serveStdio(ctx context.Context, l net.Listener, once bool) error {
	in := shareReader(ctx, e.stdin)
	for {
		c, err := accept(l)
		if err != nil {
			return err
		}
		e.log().Info("stream", "remote", c.RemoteAddr().String())
		err = streamError(ctx, e.serveStream(ctx, c, in))
		if once || ctx.Err() != nil {
			return err
		}
		if err != nil {
			e.note("%v", err)
		}
	}
}

// serveStream joins c with stdin and stdout. It returns when c has ended.
func (e *env) serveStream(ctx context.Context, c halfCloser, in *sharedReader) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	receiving, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() { // ends with stdin, or when nothing more comes from c
		err := in.copyTo(receiving, c)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	_, err := io.Copy(e.stdout, c)
	if err != nil {
		cut(c) // the other side is not to take for delivered what was not
	}
	if err != nil || isTerminal(e.stdin) { // nobody ends a terminal for every stream
		cancel()
		return errors.Join(err, <-sent)
	}
	return <-sent
}
