package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"omegatun/session/secretstream"
)

// errCut is the error of a connection that this side ended before its time.
var errCut = errors.New("cut off")

// carry copies between a stream and a TCP connection until both directions have ended, and closes both. The end of
// one direction is passed on while the other goes on. A connection that breaks, or is reset, is reset on the other
// side too; so are both when ctx ends: nobody takes a part for the whole. It returns why the connection broke, nil if
// it did not.
//
// Neither side is read further than the other one takes it: a slow receiver makes the sender wait.
func carry(ctx context.Context, stream stream, tcp halfCloser) error {
	var wg sync.WaitGroup
	var tcpEnded atomic.Bool    // everything for the TCP side has been handed over, and its end
	sent := make(chan struct{}) // closed when nothing more is carried to the stream
	var first sync.Once
	var cause error
	breakOff := func(err error) {
		first.Do(func() {
			cause = err
			cut(stream)
			if tcpEnded.Load() { // what the system still has to deliver is complete
				tcp.Close()
			} else {
				cut(tcp)
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { breakOff(context.Cause(ctx)) })
	wg.Go(func() {
		defer close(sent)
		if err := carryOne(stream, tcp); err != nil {
			breakOff(fmt.Errorf("from the TCP side: %w", err))
		}
	})
	wg.Go(func() {
		if err := carryOne(tcp, stream); err != nil {
			breakOff(fmt.Errorf("from the stream: %w", err))
			return
		}
		tcpEnded.Store(true)
		select { // a TCP side that has nothing to say would never find out
		case <-stream.Done():
			if err := stream.Err(); err != nil {
				breakOff(fmt.Errorf("from the stream: %w", err))
			}
		case <-sent:
		}
	})
	wg.Wait()
	if !stop() { // it is breaking off, or has
		breakOff(nil) // waits for it
	}
	stream.Close()
	tcp.Close()
	return cause
}

// carryOne copies from one to the other until it ends, and passes the end on. Streams bring the buffers.
func carryOne(to, from halfCloser) (err error) {
	if s, ok := to.(*secretstream.Conn); ok { // io.Copy would ask a TCP connection first, whose name would be in every error
		_, err = s.ReadFrom(from)
	} else {
		_, err = io.Copy(to, from)
	}
	if err != nil {
		return err
	}
	return to.CloseWrite()
}

// cut ends a connection at once, so that the other side sees an error and not the end of the data.
func cut(c net.Conn) {
	switch c := c.(type) {
	case interface{ Reset(err error) }:
		c.Reset(errCut)
	case *net.TCPConn:
		c.SetLinger(0) //nolint:errcheck // it is closed in any case
	}
	c.Close()
}
