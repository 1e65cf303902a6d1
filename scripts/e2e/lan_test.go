//go:build linux

package e2e

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"omegatun/dht/key"
	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// watchKeys looks for keys, and what the DHT calls them, in what a host sends and receives. To DHT nodes, which are asked for
// peers all the time, the latter may be said.
func watchKeys(t *testing.T, n *netlab.Net, keys ...string) (leaked func() int) {
	t.Helper()
	internet := netip.MustParsePrefix("192.88.99.0/24")
	var needles, targets [][]byte
	for _, text := range keys {
		k, err := key.ParsePublic(text)
		if err != nil {
			t.Fatal(err)
		}
		target := k.Target()
		needles = append(needles, k[:])
		targets = append(targets, target[:])
	}
	var mu sync.Mutex
	found, seen := 0, 0
	stop, err := n.Capture("eth0", func(d netlab.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		seen++
		contains := func(b []byte) bool { return bytes.Contains(d.Payload, b) }
		if slices.ContainsFunc(needles, contains) || !internet.Contains(d.To.Addr()) && slices.ContainsFunc(targets, contains) {
			found++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() int {
		if err := stop(); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if seen == 0 {
			t.Error("nothing was captured")
		}
		return found
	}
}

// Two hosts on a LAN without Internet find each other. When it comes they find a third one, and stay connected.
func TestLANWithoutInternet(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	home := e2etest.Site(t, l, "a", func(n *netlab.NAT) { n.Hosts = 2 })
	c := e2etest.Peer(t, e2etest.Site(t, l, "c", nil).Host(), bootstrap)
	uplink := func(state string) {
		t.Helper()
		if err := home.Router.Run("ip", "link", "set", "wan", state); err != nil {
			t.Fatal(err)
		}
		if state == "up" {
			if err := home.Router.Run("ip", "route", "replace", "169.254.0.1", "dev", "wan", "src", home.WAN.String()); err != nil {
				t.Fatal(err)
			}
			if err := home.Router.Run("ip", "route", "replace", "default", "via", "169.254.0.1", "dev", "wan", "src", home.WAN.String()); err != nil {
				t.Fatal(err)
			}
		}
	}
	uplink("down")
	a, b := e2etest.Peer(t, home.Hosts[0], bootstrap), e2etest.Peer(t, home.Hosts[1], bootstrap)
	leaked := watchKeys(t, home.Hosts[0], a.Key, b.Key)
	tun := &e2etest.Tunnel{
		Peers: [2]*peer.Peer{a, b}, Before: [2]string{e2etest.Snapshot(t, a.Net), e2etest.Snapshot(t, b.Net)},
	}
	tun.Ups[0] = e2etest.Up(t, a, b.Key, c.Key)
	tun.Ups[1] = e2etest.Up(t, b, a.Key, c.Key)
	tun.WaitForReplies(t)
	t.Logf("first replies %v and %v after up", tun.Reply[0], tun.Reply[1])
	tun.Ping(t, 0)
	tun.Ping(t, 1)
	tun.WantPath(t, "lan")
	if n := leaked(); n > 0 {
		t.Errorf("keys are in %d datagrams", n)
	}

	uplink("up")
	upC := e2etest.Up(t, c, a.Key, b.Key)
	began := time.Now()
	for _, p := range tun.Peers {
		ctx, cancel := upC.Context(e2etest.Within(t, 60*time.Second))
		defer cancel()
		if _, err := peer.FirstReply(ctx, c.Net, p.IPv6); err != nil {
			t.Errorf("%s is not reached over the Internet: %v", p.Net.Name, err)
		}
	}
	t.Logf("the third peer reaches both %v after it is up", time.Since(began))
	tun.WantPath(t, "lan")
	uplink("down")
	time.Sleep(10 * time.Second)
	tun.Ping(t, 0)
	tun.WantPath(t, "lan")
	tun.Stop(t)
}
