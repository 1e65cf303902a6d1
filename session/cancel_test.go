package session

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// Cancelling the context of a Dial ends all of it at once, whatever stage it has reached, and the error says which.
func TestCancelledDialLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha), w.end(hb)
		b.listenWith(t, ListenConfig{Admit: func(Caller) error { return nil }})
		sockets := func() int {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.sinks)
		}
		reason := errors.New("reason")
		stages := make(map[Stage]int)
		for after := time.Duration(0); ; after += 10 * time.Millisecond {
			ctx, cancel := context.WithCancelCause(t.Context())
			timer := time.AfterFunc(after, func() { cancel(reason) })
			began := time.Now()
			c, err := a.Dial(ctx, b.public(), DialConfig{})
			timer.Stop()
			if err == nil {
				c.Close()
				break
			}
			d, ok := errors.AsType[*DialError](err)
			if !ok || !errors.Is(err, reason) || d.Key != b.public() || d.After != after {
				t.Fatalf("cancelled after %v: %v", after, err)
			}
			if took := time.Since(began); took != after {
				t.Errorf("cancelled after %v, ended after %v", after, took)
			}
			stages[d.Stage]++
			time.Sleep(socketIdle + 5*time.Second) // sockets that had punched through are kept for a while
			synctest.Wait()
			if n := sockets(); n != 0 {
				t.Errorf("cancelled after %v in stage %q: %d sockets are left", after, d.Stage, n)
			}
			if after > time.Minute {
				t.Fatal("it never connects")
			}
		}
		if stages[StageFind] == 0 || stages[StageHandshake] == 0 || stages[StagePath] == 0 {
			t.Errorf("stages in which it was cancelled: %v, want all", stages)
		}
	})
}

// A Listener that closes leaves no stream open that nobody will ever accept, whenever in a handshake that is.
func TestClosedListenerEndsWhatIsNotAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha), w.end(hb)
		connected := 0
		for after := time.Duration(0); after < 600*time.Millisecond; after += 5 * time.Millisecond {
			l := b.listenWith(t, ListenConfig{Admit: func(Caller) error { return nil }})
			closed := make(chan error, 1)
			time.AfterFunc(after, func() { closed <- l.Close() })
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			c, err := a.Dial(ctx, b.public(), DialConfig{})
			cancel()
			if err == nil {
				connected++
				if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("listener closed after %v: the stream lives on (%v)", after, err)
				}
				c.Close()
			}
			if err := <-closed; err != nil {
				t.Errorf("close after %v: %v", after, err)
			}
			if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept after close: %v, %v", c, err)
			}
		}
		if connected == 0 {
			t.Error("no stream was opened")
		}
	})
}
