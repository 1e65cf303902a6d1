package hostnet

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"

	"omegatun/tun/tuntest"
)

func TestSettle(t *testing.T) {
	for _, row := range []struct {
		name  string
		every time.Duration // between noises
		count int
		want  time.Duration // until settled
	}{
		{"one noise", 0, 1, quiet},
		{"several", quiet / 2, 4, 3*quiet/2 + quiet},
		{"no end of it", quiet / 2, 1000, longest},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				noise := make(chan struct{}, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					for range row.count {
						select {
						case noise <- struct{}{}:
						default:
						}
						select {
						case <-time.After(row.every):
						case <-ctx.Done():
						}
					}
				}()
				start := time.Now()
				if !settle(ctx, noise) {
					t.Fatal("settle gave up")
				}
				if took := time.Since(start); took != row.want {
					t.Errorf("settled after %v, want %v", took, row.want)
				}
			})
		})
	}
}

func TestSettleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noise := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { done <- settle(ctx, noise) }()
		synctest.Wait()
		cancel()
		if <-done {
			t.Error("settle = true although its context ended while it waited")
		}
		noise <- struct{}{}
		closed := make(chan struct{}, 1)
		closed <- struct{}{}
		close(closed)
		if settle(t.Context(), closed) {
			t.Error("settle = true although nothing more will come")
		}
	})
}

func TestWatch(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	wan := addVeth(t, "192.0.2.5/24")
	ctx, cancel := context.WithCancel(t.Context())
	states, err := Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// until waits for a state. Others may come before, as a busy machine does not make all changes at once.
	until := func(reason string, ok func(State) bool) {
		t.Helper()
		var last State
		for late := time.After(30 * time.Second); ; {
			select {
			case last = <-states:
				if ok(last) {
					return
				}
			case <-late:
				t.Fatalf("%s: State = %+v", reason, last)
			}
		}
	}

	gateway := netip.MustParseAddr("192.0.2.1")
	everything := netip.MustParsePrefix("0.0.0.0/0")
	route := &netlink.Route{LinkIndex: wan.Attrs().Index, Dst: ipNet(everything), Gw: gateway.AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	addAddress(t, wan, "2001:db8::5/64")
	first, second := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8::5")
	want := State{
		Addrs:  []netip.Addr{first, second},
		Route4: Route{Interface: wan.Attrs().Index, Gateway: gateway, Source: first},
	}
	until("a default route and an address", want.Equal)
	if got, err := LocalAddrs(); err != nil || !slices.Equal(got, want.Addrs) {
		t.Errorf("LocalAddrs = %v, %v, want %v", got, err, want.Addrs)
	}
	if via, local, ok := Gateway(); !ok || via != gateway || local != first {
		t.Errorf("Gateway = %v, %v, %v, want %v, %v", via, local, ok, gateway, first)
	}

	// What we do ourselves is no news.
	wantNothing := func(reason string) {
		t.Helper()
		select {
		case s := <-states:
			t.Errorf("%s: our own change was reported: %+v", reason, s)
		case <-time.After(3 * quiet):
		}
	}
	h := configure(t, testConfig(openDevice(t).Name()))
	wantNothing("our interface was set up")
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	wantNothing("our interface was taken down")

	if err := netlink.LinkSetDown(wan); err != nil {
		t.Fatal(err)
	}
	until("the interface is down", func(s State) bool { return s.Route4 == (Route{}) })
	if via, local, ok := Gateway(); ok || via.IsValid() || local.IsValid() {
		t.Errorf("Gateway = %v, %v, %v, want none", via, local, ok)
	}
	cancel()
	for range states { // is closed
	}
}
