//go:build linux

package interop

import (
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
)

// Two omegatuns behind two NATs find each other through a DHT that consists of JavaScript nodes only.
func TestTunnelThroughAJavaScriptDHT(t *testing.T) {
	l := e2etest.Lab(t)
	addrs := e2etest.PublicAddrs(t, l, nodes)
	startDHT(t, javascript, l.Internet, addrs)
	a, b := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", nil)
	tun := e2etest.NewTunnel(t, addrs[0].String(), a.Host(), b.Host())
	t.Logf("first replies %v and %v after up", tun.Reply[0], tun.Reply[1])
	tun.Ping(t, 0)
	tun.Ping(t, 1)
	tun.Session(t, tun.Peers[1].IPv6)
	tun.Download(t, 0, tun.Peers[0].IPv6, 100<<20, time.Minute)
	tun.Download(t, 1, tun.Peers[1].IPv4, 100<<20, time.Minute)
	tun.Stop(t)
}
