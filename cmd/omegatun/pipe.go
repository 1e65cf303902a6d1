package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/quick"
	"omegatun/session/udx"
)

// halfCloser is a connection whose two directions end by themselves.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// stream is a *secretstream.Conn.
type stream interface {
	halfCloser
	Done() <-chan struct{}
	Err() error
	Reset(err error)
}

// pipe sends what input brings on c, and writes what c brings to out, until both directions have ended; if a person is at the
// input, the end of what c brings is enough. Then c is closed.
//
// Nobody takes a part for the whole: c is reset if reading the input fails, or writing to out, or if ctx ends before the input
// has or while the other side still sends. To leave is how a person ends what they type.
//
// input copies to a writer until its end, for which it returns nil, or until ctx ends. It may go on for one read after pipe has
// returned.
func pipe(ctx context.Context, c stream, input func(context.Context, io.Writer) error, out io.Writer, person bool) error {
	defer c.Close()
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	sent, received := make(chan error, 1), make(chan error, 1)
	go func() {
		err := input(sending, c)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	go func() { // ends with c
		_, err := io.Copy(untilDone{ctx, quick.NewWriter(out)}, c)
		received <- err
	}()
	var allSent, allReceived bool
	var sendErr error
	var done <-chan struct{} // looked at where nothing else shows how c ends
	for {
		select {
		case sendErr = <-sent:
			allSent = true
			if isStdio(sendErr) {
				cut(c)
			}
			if allReceived {
				return sendErr
			}
		case err := <-received:
			if err != nil {
				cut(c)
				if isStdio(sendErr) {
					err = sendErr
				}
				return err
			}
			if allReceived = true; allSent || person {
				return sendErr
			}
			done = c.Done()
		case <-done:
			done = nil // if both directions have ended, so has sending
			if err := c.Err(); err != nil {
				return err
			}
		case <-ctx.Done():
			select { // what was ready at the same time counts
			case sendErr = <-sent:
				allSent = true
			default:
			}
			if allReceived {
				received <- nil
			}
			if person || allSent && sendErr == nil {
				leave(c, received)
			} else {
				cut(c)
			}
			return context.Cause(ctx)
		}
	}
}

// leave ends c properly, unless the other side still sends something, which nobody takes, or does not end its direction
// soon. received gets the outcome of what is written to an untilDone.
func leave(c stream, received <-chan error) {
	c.SetWriteDeadline(time.Now()) //nolint:errcheck // for what waits, while the other side takes nothing
	if c.CloseWrite() == nil {
		select {
		case err := <-received:
			if err == nil {
				return // what was sent is still delivered
			}
		case <-time.After(goodbyeTime):
		}
	}
	cut(c)
}

// untilDone is a writer that takes nothing more once ctx has ended.
type untilDone struct {
	ctx context.Context //nolint:containedctx // it is what the writer is about
	w   io.Writer
}

func (u untilDone) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(b)
}

// isStdio reports whether err is of stdin or stdout, and not of a stream.
func isStdio(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
}

// streamError returns why a stream ended before its time.
func streamError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isStdio(err):
		return err
	case errors.Is(err, udx.ErrReset):
		return exit.Wrap(exit.Refused, err, "the other side broke the stream off")
	case errors.Is(err, udx.ErrTimeout):
		return exit.Wrap(exit.Refused, err, "the stream broke: the other side does not answer any more")
	}
	return exit.New(exit.Refused, "the stream broke: %w", err)
}
