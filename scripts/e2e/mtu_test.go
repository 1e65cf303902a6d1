//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/netlab"
)

// noICMP drops what routers say about packets that they do not forward.
const noICMP = `table ip silent {
  chain output {
    type filter hook output priority filter
    ip protocol icmp drop
  }
  chain forward {
    type filter hook forward priority filter
    ip protocol icmp drop
  }
}
`

// narrow sets the MTU between the internet and a site's router.
func narrow(t *testing.T, l *netlab.Lab, s *netlab.Site, name string, mtu int) {
	t.Helper()
	if err := errors.Join(
		l.Internet.Run("ip", "link", "set", "to-"+name, "mtu", fmt.Sprint(mtu)),
		s.Router.Run("ip", "link", "set", "wan", "mtu", fmt.Sprint(mtu)),
	); err != nil {
		t.Fatal(err)
	}
}

// transfer sends size bytes over TCP to addr, spread over a while, and returns the longest time in which nothing arrived.
func transfer(t *testing.T, from, to *netlab.Net, addr netip.Addr, size int, during time.Duration) time.Duration {
	t.Helper()
	ln, err := to.Listen("tcp", netip.AddrPortFrom(addr, 9000))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := from.Dial(e2etest.Within(t, 10*time.Second), "tcp", netip.AddrPortFrom(addr, 9000))
		if err != nil {
			sent <- err
			return
		}
		defer c.Close()
		const chunks = 64
		for range chunks {
			if _, err := c.Write(make([]byte, size/chunks)); err != nil {
				sent <- err
				return
			}
			time.Sleep(during / chunks)
		}
		sent <- nil
	}()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	last, longest, got := time.Now(), time.Duration(0), 0
	for b := make([]byte, 64<<10); ; {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		got += n
		now := time.Now()
		longest, last = max(longest, now.Sub(last)), now
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", got, size, err)
		}
	}
	if err := <-sent; err != nil || got != size {
		t.Fatalf("%d of %d bytes arrived; %v", got, size, err)
	}
	return longest
}

// TestTransfersPassNarrowPaths sends over paths with small MTUs whose routers do not say so.
func TestTransfersPassNarrowPaths(t *testing.T) {
	const size, stall = 1 << 20, 3 * time.Second
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	a, b := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", nil)
	for _, n := range []*netlab.Net{l.Internet, a.Router, b.Router} {
		if err := n.Input(noICMP, "nft", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	hosts := [2]*netlab.Net{a.Host(), b.Host()}
	for _, mtu := range []int{1500, 1280, 1124, 600} {
		t.Run(fmt.Sprint("from the start ", mtu), func(t *testing.T) {
			narrow(t, l, a, "a", mtu)
			tun := e2etest.NewTunnel(t, bootstrap, hosts[0], hosts[1])
			for to := range 2 {
				for _, addr := range []netip.Addr{tun.Peers[to].IPv6, tun.Peers[to].IPv4} {
					gap := transfer(t, hosts[1-to], hosts[to], addr, size, 0)
					t.Logf("to %v: nothing for %v at most", addr, gap)
					if gap > stall {
						t.Errorf("to %v: nothing for %v", addr, gap)
					}
				}
			}
			tun.Stop(t)
		})
	}
	for _, mtu := range []int{1280, 1124, 600} {
		for to := range 2 {
			t.Run(fmt.Sprint("under way to ", to, " ", mtu), func(t *testing.T) {
				narrow(t, l, a, "a", 1500)
				tun := e2etest.NewTunnel(t, bootstrap, hosts[0], hosts[1])
				time.Sleep(time.Second)
				timer := time.AfterFunc(time.Second, func() { narrow(t, l, a, "a", mtu) })
				defer timer.Stop()
				gap := transfer(t, hosts[1-to], hosts[to], tun.Peers[to].IPv6, size, 4*time.Second)
				t.Logf("nothing for %v at most", gap)
				if gap > stall {
					t.Errorf("nothing for %v", gap)
				}
				tun.Stop(t)
			})
		}
	}
}
