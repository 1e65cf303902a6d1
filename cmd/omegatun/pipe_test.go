package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
)

// fakeStream is one end of a stream in memory. Nothing is buffered. Of net.Conn it has what pipe and carry need.
type fakeStream struct {
	net.Conn
	in   *io.PipeReader
	out  *io.PipeWriter
	peer *fakeStream
	once sync.Once
	done chan struct{}
	err  error
}

func fakeStreams() (a, b *fakeStream) {
	a, b = &fakeStream{done: make(chan struct{})}, &fakeStream{done: make(chan struct{})}
	a.in, b.out = io.Pipe()
	b.in, a.out = io.Pipe()
	a.peer, b.peer = b, a
	return a, b
}

func (s *fakeStream) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	if s.Err() != nil {
		err = s.err
	}
	return n, err
}

func (s *fakeStream) Write(b []byte) (int, error) {
	n, err := s.out.Write(b)
	if s.Err() != nil {
		err = s.err
	}
	return n, err
}

func (s *fakeStream) CloseWrite() error                { return s.out.Close() }
func (s *fakeStream) SetWriteDeadline(time.Time) error { return nil }
func (s *fakeStream) Done() <-chan struct{}            { return s.done }

func (s *fakeStream) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

func (s *fakeStream) Close() error {
	s.in.Close()
	return s.out.Close()
}

func (s *fakeStream) Reset(err error) {
	s.finish(err)
	s.peer.finish(errFakeReset)
}

var errFakeReset = errors.New("reset by the peer")

func (s *fakeStream) finish(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		s.in.Close()
		s.out.Close()
	})
}

// What the other side learns, and when, if this one is interrupted.
func TestInterruptedPipe(t *testing.T) {
	for _, row := range []struct {
		name   string
		ended  bool // the input
		person bool // at the input
		sends  bool // the other side, when it has been interrupted
		ends   bool // the other side, a second after what it gets has
		want   error
		after  time.Duration
	}{
		{name: "before the input ends", want: errFakeReset},
		{name: "after the input has ended", ended: true, ends: true, after: time.Second},
		{name: "after the input has ended, and the other side goes on for ever", ended: true, want: errFakeReset, after: goodbyeTime},
		{name: "after the input has ended, and the other side still sends", ended: true, sends: true, want: errFakeReset},
		{name: "by a person", person: true, ends: true, after: time.Second},
		{name: "by a person, and the other side still sends", person: true, sends: true, want: errFakeReset},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := fakeStreams()
				in, keyboard := io.Pipe()
				defer keyboard.Close()
				ctx, interrupt := context.WithCancelCause(t.Context())
				left := make(chan error, 1)
				go func() {
					left <- pipe(ctx, ours, func(_ context.Context, w io.Writer) error {
						_, err := io.Copy(w, in)
						return err
					}, io.Discard, row.person)
				}()
				go func() {
					io.WriteString(keyboard, "hello")
					if row.ended {
						keyboard.Close()
					}
				}()
				learnt := make(chan error, 1)
				go func() {
					_, err := io.Copy(io.Discard, theirs)
					if err == nil && row.ends {
						time.Sleep(time.Second)
						theirs.CloseWrite()
					} else if err == nil {
						<-theirs.Done()
						err = theirs.Err()
					}
					learnt <- err
				}()
				synctest.Wait()
				start := time.Now()
				interrupt(errors.New("interrupted"))
				synctest.Wait()
				if row.sends {
					theirs.Write([]byte("more"))
				}
				if err := <-learnt; !errors.Is(err, row.want) {
					t.Errorf("the other side got %v, want %v", err, row.want)
				}
				if err := <-left; err != context.Cause(ctx) {
					t.Errorf("pipe: %v, want %v", err, context.Cause(ctx))
				}
				if took := time.Since(start); took != row.after {
					t.Errorf("it took %v, want %v", took, row.after)
				}
			})
		})
	}
}

// With an input that never ends, nothing but the stream itself tells that the other side has gone after its end.
func TestPipeNoticesAResetAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := fakeStreams()
		never := func(ctx context.Context, _ io.Writer) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		ended := make(chan error, 1)
		go func() { ended <- pipe(t.Context(), ours, never, io.Discard, false) }()
		theirs.CloseWrite()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("the other side has ended its direction, and pipe too: %v", err)
		default:
		}
		theirs.Reset(errors.New("crashed"))
		if err := <-ended; !errors.Is(err, errFakeReset) {
			t.Errorf("pipe: %v, want %v", err, errFakeReset)
		}
	})
}

func TestCarryNoticesAResetAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := fakeStreams()
		tcp, client := fakeStreams()
		ended := make(chan error, 1)
		go func() { ended <- carry(t.Context(), ours, tcp) }()
		theirs.CloseWrite()
		if b, err := io.ReadAll(client); len(b) > 0 || err != nil {
			t.Errorf("the client got %q, %v, want the end", b, err)
		}
		theirs.Reset(errors.New("crashed"))
		if err := <-ended; !errors.Is(err, errFakeReset) {
			t.Errorf("carry: %v, want %v", err, errFakeReset)
		}
	})
}

// served runs "listen --tcp", and returns what its TCP server gets of the streams: each that ends, with its outcome.
func served(t *testing.T) (bootstrap, key string, got <-chan error, l *command) {
	t.Helper()
	bootstrap = "--bootstrap=" + network(t)
	outcome := make(chan error, 10)
	addr := tcpServer(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		outcome <- err
	})
	state, key := newIdentity(t)
	l = start(t, nil, "--state", state, bootstrap, "listen", "--allow", "any", "--tcp", addr)
	l.stderr.want(t, "listening "+key)
	return bootstrap, key, outcome, l
}

// wantBroken waits for what a command says of a stream that the other side has broken off. That is one datagram, which may be
// lost.
func wantBroken(t *testing.T, c *command) {
	t.Helper()
	switch line := c.stderr.want(t, "error: the "); line {
	case "error: the other side broke the stream off", "error: the stream broke: the other side does not answer any more":
	default:
		t.Errorf("got %q, want that the stream was broken off", line)
	}
}

// wantReset waits for what a TCP server gets.
func wantReset(t *testing.T, got <-chan error) {
	t.Helper()
	select {
	case err := <-got:
		if !isReset(err) {
			t.Errorf("the server got %v, want a reset", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server has got nothing after a minute, want a reset")
	}
}

func TestInterruptedConnectIsNoEnd(t *testing.T) {
	t.Parallel()
	bootstrap, key, got, l := served(t)
	state, _ := newIdentity(t)

	in, keyboard := io.Pipe()
	defer keyboard.Close()
	c := start(t, in, "--state", state, bootstrap, "connect", key)
	io.WriteString(keyboard, "half of it\n")
	c.stdout.want(t, "half of it")
	c.stop()
	if status := <-c.done; status != int(exit.Interrupted) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Interrupted)
	}
	wantReset(t, got)

	// What cannot be read is not the end either.
	fail := make(chan struct{})
	c = start(t, io.MultiReader(strings.NewReader("half of it\n"), readerFunc(func([]byte) (int, error) {
		<-fail
		return 0, &fs.PathError{Op: "read", Path: "/dev/stdin", Err: errors.New("input/output error")}
	})), "--state", state, bootstrap, "connect", key)
	c.stdout.want(t, "half of it")
	close(fail)
	if status := <-c.done; status != int(exit.Other) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Other)
	}
	c.stderr.want(t, "error: read /dev/stdin: input/output error")
	wantReset(t, got)

	// Nor is it when the one that serves is interrupted.
	in, keyboard = io.Pipe()
	defer keyboard.Close()
	c = start(t, in, "--state", state, bootstrap, "connect", key)
	io.WriteString(keyboard, "half of it\n")
	c.stdout.want(t, "half of it")
	l.stop()
	if status := <-c.done; status != int(exit.Refused) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Refused)
	}
	wantBroken(t, c)
	wantReset(t, got)
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestInterruptedListenIsNoEnd(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	state, key := newIdentity(t)
	client, _ := newIdentity(t)
	in, keyboard := io.Pipe()
	defer keyboard.Close()
	l := start(t, in, "--state", state, bootstrap, "listen", "--allow", "any")
	l.stderr.want(t, "listening "+key)
	c := start(t, strings.NewReader(""), "--state", client, bootstrap, "connect", key)
	io.WriteString(keyboard, "half of it\n")
	c.stdout.want(t, "half of it")
	l.stop()
	if status := <-l.done; status != int(exit.Interrupted) {
		t.Errorf("listen: exit status %d, want %d", status, exit.Interrupted)
	}
	if status := <-c.done; status != int(exit.Refused) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Refused)
	}
	wantBroken(t, c)
}

// The other side has sent its end, and cannot take any more of an input that never ends.
func TestConnectNoticesThatListenHasGone(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	state, key := newIdentity(t)
	client, _ := newIdentity(t)
	l := start(t, bytes.NewReader([]byte("all of it\n")), "--state", state, bootstrap, "listen", "--allow", "any")
	l.stderr.want(t, "listening "+key)
	in, keyboard := io.Pipe()
	defer keyboard.Close()
	c := start(t, in, "--state", client, bootstrap, "connect", key)
	c.stdout.want(t, "all of it")
	io.WriteString(keyboard, "half of it\n") // the other direction goes on
	l.stdout.want(t, "half of it")
	l.stop()
	if status := <-c.done; status != int(exit.Refused) {
		t.Errorf("connect: exit status %d, want %d", status, exit.Refused)
	}
	wantBroken(t, c)
}
