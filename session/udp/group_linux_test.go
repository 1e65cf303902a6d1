package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"omegatun/tun/tuntest"
)

// TestGroupsAreHeardByNeighbours joins two interfaces of one namespace with a cable.
func TestGroupsAreHeardByNeighbours(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v, %s", args, err, out)
		}
	}
	for _, row := range []struct {
		group string
		addr  string // of left0
	}{{"239.255.1.2:4000", "192.168.7.1"}, {"[ff12::77]:4000", ""}} {
		g, err := ListenGroup(netip.MustParseAddrPort(row.group))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Close() })
		if got := g.Refresh(); len(got) != 0 {
			t.Errorf("%s: addresses %v before there is an interface", row.group, got)
		}
		ip("link", "add", "left0", "type", "veth", "peer", "name", "right0")
		ip("addr", "add", "192.168.7.1/24", "dev", "left0")
		ip("addr", "add", "192.168.8.1/24", "dev", "left0")
		ip("link", "set", "left0", "up")
		ip("link", "set", "right0", "up")
		var addrs []netip.Addr
		for range 100 { // until the link-local addresses may be used
			if addrs = g.Refresh(); len(addrs) > 0 && g.SendFrom([]byte("?"), addrs[0]) == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if len(addrs) == 0 || row.addr != "" && (len(addrs) != 1 || addrs[0] != netip.MustParseAddr(row.addr)) {
			t.Fatalf("%s: addresses %v, want %s", row.group, addrs, row.addr)
		}
		other, err := ListenGroup(netip.MustParseAddrPort(row.group)) // as another program would
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = other.Close() })
		other.Refresh()
		for i := range 3 {
			text := fmt.Sprint("hello ", i)
			if err := g.SendFrom([]byte(text), addrs[0]); err != nil {
				t.Fatal(err)
			}
			for {
				b := make([]byte, 100)
				n, from, err := other.Receive(b)
				if err != nil {
					t.Fatal(err)
				}
				if string(b[:n]) < text { // an earlier one, which came over the other end of the cable, too
					continue
				}
				if string(b[:n]) != text || from.Addr().WithZone("") != addrs[0].WithZone("") || from.Addr().Is6() && from.Addr().Zone() == "" {
					t.Errorf("%s: %q from %v, want %q from %v", row.group, b[:n], from, text, addrs[0])
				}
				break
			}
		}
		if err := g.SendFrom([]byte("x"), netip.MustParseAddr("192.0.2.1")); !errors.Is(err, ErrDestination) {
			t.Errorf("sending from an address that is not there: %v", err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				if _, _, err := other.Receive(make([]byte, 100)); err != nil {
					ended <- err
					return
				}
			}
		}()
		_ = other.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive ends with %v", err)
		}
		ip("link", "del", "left0")
		if got := g.Refresh(); len(got) != 0 {
			t.Errorf("%s: addresses %v after the interface is gone", row.group, got)
		}
	}
	if _, err := ListenGroup(netip.MustParseAddrPort("192.0.2.1:5")); err == nil {
		t.Error("an address that is no group is listened to")
	}
}
