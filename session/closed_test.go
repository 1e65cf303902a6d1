package session

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// A Host that is closed ends the calls of Dial that are under way, whatever stage they have reached, and has waited for them.
func TestCloseEndsDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		b := w.end(hb)
		b.listenWith(t, ListenConfig{Admit: func(Caller) error { return nil }})
		stages := make(map[Stage]int)
		for after := time.Duration(0); ; after += 10 * time.Millisecond {
			a := w.end(ha)
			dialled := make(chan error, 1)
			go func() {
				_, err := a.Dial(t.Context(), b.public(), DialConfig{})
				dialled <- err
			}()
			time.Sleep(after)
			synctest.Wait()
			began := time.Now()
			if err := a.Close(); err != nil {
				t.Fatalf("close after %v: %v", after, err)
			}
			if took := time.Since(began); took != 0 {
				t.Errorf("close after %v took %v", after, took)
			}
			synctest.Wait()
			var err error
			select {
			case err = <-dialled:
			default:
				t.Fatalf("closed after %v: Dial goes on", after)
			}
			if err == nil {
				break
			}
			d, ok := errors.AsType[*DialError](err)
			if !ok || !errors.Is(err, ErrClosed) {
				t.Fatalf("closed after %v: %v", after, err)
			}
			stages[d.Stage]++
			if after > time.Minute {
				t.Fatal("it never connects")
			}
		}
		if stages[StageFind] == 0 || stages[StageHandshake] == 0 || stages[StagePath] == 0 {
			t.Errorf("stages in which it was closed: %v, want all", stages)
		}
	})
}

// What was sent on a stream that nobody has accepted has not arrived, and must not seem to.
func TestStreamsThatNobodyAcceptsBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		b := w.end(hb)
		l := b.listenWith(t, ListenConfig{Admit: func(Caller) error { return nil }})
		a := w.end(ha)
		c, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("a transfer")); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); err == nil {
			t.Errorf("the client reads %q and the end, want an error", b)
		}
		c.Close()
	})
}

// Whatever is asked of a Host after Close fails with ErrClosed.
func TestClosedHostSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, _, _, _ := w.homes()
		a := w.end(ha)
		p, err := a.AddPeer(keyOf("somebody"))
		if err != nil {
			t.Fatal(err)
		}
		admit := ListenConfig{Admit: func(Caller) error { return nil }}
		l, err := a.Listen(key.Generate(), admit)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Close(), a.Close()); err != nil {
			t.Fatal(err)
		}
		for name, call := range map[string]func() error{
			"Dial": func() error {
				_, err := a.Dial(t.Context(), keyOf("somebody"), DialConfig{})
				return err
			},
			"Listen": func() error {
				_, err := a.Listen(key.Generate(), admit)
				return err
			},
			"AddPeer": func() error {
				_, err := a.AddPeer(keyOf("somebody else"))
				return err
			},
			"Listener.Announced": func() error { return l.Announced(t.Context()) },
			"Peer.Wait":          func() error { return p.Wait(t.Context()) },
			"Peer.Ping": func() error {
				_, err := p.Ping(t.Context())
				return err
			},
		} {
			if err := call(); !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := a.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// What cannot work is refused, and not found out later.
func TestWrongArgumentsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1})
		ha, _, _, _ := w.homes()
		a := w.end(ha)
		admit := func(Caller) error { return nil }
		for name, call := range map[string]func() (any, error){
			"New without an identity": func() (any, error) { return New(Config{Network: labNetwork{ha}}) },
			"New at an IPv6 address": func() (any, error) {
				return New(Config{Identity: key.Generate(), Network: labNetwork{ha}, Addr: netip.IPv6Loopback()})
			},
			"Listen without Admit": func() (any, error) { return a.Listen(key.Generate(), ListenConfig{}) },
			"Listen without a key": func() (any, error) { return a.Listen(key.Private{}, ListenConfig{Admit: admit}) },
			"AddPeer without a key": func() (any, error) {
				return a.AddPeer(key.Public{})
			},
			"Dial without a key": func() (any, error) { return a.Dial(t.Context(), key.Public{}, DialConfig{}) },
		} {
			if v, err := call(); err == nil {
				t.Errorf("%s is accepted: %v", name, v)
			}
		}
	})
}

// Who has been named by the DHT has been found: a refusal is not told as a search that failed, also where the network is so small
// that nodes are asked before they are looked for.
func TestRefusalIsNoSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha), w.end(hb)
		b.listenWith(t, ListenConfig{Admit: func(Caller) error { return errors.New("no") }})
		_, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if d, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, ErrNoAnswer) || d.Stage != StageHandshake {
			t.Errorf("refused: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = a.Dial(ctx, b.public(), DialConfig{})
		if d, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, context.DeadlineExceeded) || d.Stage != StageHandshake {
			t.Errorf("out of time: %v", err)
		}
		_, err = a.Dial(t.Context(), keyOf("nobody"), DialConfig{})
		if d, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, ErrNotFound) || d.Stage != StageFind {
			t.Errorf("nobody: %v", err)
		}
	})
}
