package udx

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestStrays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		var mu sync.Mutex // guards got
		var got []string
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprintf(format, args...))
		}
		hear := StreamConfig{
			Accept: func(Socket, netip.AddrPort) bool { return false },
			OnStray: func(_ Socket, from netip.AddrPort, message []byte) {
				note("%v %t %q", from, message == nil, message)
			},
			OnMessage: func(_ Socket, from netip.AddrPort, b []byte) { note("message from %v %q", from, b) },
		}
		a, b := pairConfig(t, n, lan, lan, StreamConfig{}, hear)
		home, away := a.path, n.port("192.0.2.3:3", NewMux(Config{}), lan)
		time.Sleep(time.Second)

		for _, err := range []error{
			a.SendMessage([]byte("from home")),
			a.SendMessageTo(away, home.addr, home.id, []byte("from elsewhere")),
			a.SendMessageTo(away, home.addr, home.id, []byte{}),
			a.ChangeRemote(away, home.addr, home.id),
			a.Heartbeat(),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		want := []string{
			`message from 192.0.2.1:1 "from home"`, `192.0.2.3:3 false "from elsewhere"`, `192.0.2.3:3 false ""`, `192.0.2.3:3 true ""`,
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		wantErr(t, "a long message", a.SendMessageTo(away, home.addr, home.id, make([]byte, maxMessage+1)), ErrTooLong)
		if b.RemoteAddr().(Addr).AddrPort == away.addr {
			t.Error("the stream moved by itself")
		}
	})
}

func TestOnDone(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(a, b *Stream)
	}{
		{"closed by both", func(a, b *Stream) { a.Close(); b.Close() }},
		{"reset", func(a, _ *Stream) { a.Reset(nil) }},
		{"reset by the peer", func(_, b *Stream) { b.Reset(nil) }},
		{"reset twice", func(a, b *Stream) { b.Reset(nil); a.Reset(nil); a.Close() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var done atomic.Int32
				a, b := pairConfig(t, newNetwork(1), lan, lan, StreamConfig{OnDone: func() { done.Add(1) }}, StreamConfig{})
				time.Sleep(time.Second)
				if done.Load() != 0 {
					t.Error("done before the end")
				}
				row.end(a, b)
				time.Sleep(time.Minute)
				if n := done.Load(); n != 1 {
					t.Errorf("OnDone was called %d times, want once", n)
				}
				b.Reset(nil)
			})
		})
	}
}

// TestResetReachesAPeerThatStays has a stream move to where its peer does not follow, and end there.
func TestResetReachesAPeerThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pairConfig(t, n, lan, lan, StreamConfig{}, StreamConfig{Accept: func(Socket, netip.AddrPort) bool { return false }})
		home, away := a.path, n.port("192.0.2.3:3", NewMux(Config{}), lan)
		a.Heartbeat()
		time.Sleep(time.Second)
		if err := a.ChangeRemote(away, home.addr, home.id); err != nil {
			t.Fatal(err)
		}
		a.Reset(nil)
		time.Sleep(time.Second)
		if err := b.Err(); !errors.Is(err, ErrReset) {
			t.Errorf("the peer's stream has ended with %v, want %v", err, ErrReset)
		}
	})
}

// TestPeerMayBeAtAnyAddressThatWasTried has a stream try one address after the other before the peer is heard, at the first.
func TestPeerMayBeAtAnyAddressThatWasTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		var asked atomic.Int32
		a, b := pairConfig(t, n, lan, lan, StreamConfig{Accept: func(Socket, netip.AddrPort) bool { asked.Add(1); return true }}, StreamConfig{})
		home, away := a.path, n.port("192.0.2.3:3", NewMux(Config{}), lan)
		for _, row := range []struct {
			name string
			want int32
		}{{"never heard", 1}, {"heard", 0}} {
			if err := a.ChangeRemote(away, home.addr, home.id); err != nil {
				t.Fatal(err)
			}
			asked.Store(0)
			b.Heartbeat()
			time.Sleep(time.Second)
			if got := asked.Load(); got != row.want {
				t.Errorf("%s: Accept was asked %d times about where the peer was before, want %d", row.name, got, row.want)
			}
			if err := a.ChangeRemote(home.sock, home.addr, home.id); err != nil {
				t.Fatal(err)
			}
		}
	})
}
