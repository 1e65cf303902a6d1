//go:build linux

// Package e2e tests the omegatun command from end to end, in an Internet of network namespaces: what a user does,
// and what must not happen to one. scripts/e2e/run runs it.
package e2e

import (
	"net/netip"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/netlab"
)

func TestMain(m *testing.M) { e2etest.Main(m) }

const nodes = 8

// The main job: two hosts behind two home routers that know only each other's key.
func TestTwoHostsBehindTwoNATs(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*netlab.NAT) // of b's home
	}{
		{"different networks inside", nil},
		{"the same network and address inside", func(n *netlab.NAT) { n.LAN = netip.MustParsePrefix("192.168.1.0/24") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := e2etest.Lab(t)
			bootstrap := e2etest.GoNodes(t, l, nodes)
			a, b := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", row.change)
			tun := e2etest.NewTunnel(t, bootstrap, a.Host(), b.Host())
			t.Logf("first replies %v and %v after up", tun.Reply[0], tun.Reply[1])
			tun.Ping(t, 0)
			tun.Ping(t, 1)
			tun.Session(t, tun.Peers[1].IPv6)
			tun.Session(t, tun.Peers[1].IPv4)
			tun.Download(t, 0, tun.Peers[0].IPv6, 100<<20, time.Minute)
			tun.Download(t, 1, tun.Peers[1].IPv4, 100<<20, time.Minute)
			wantDirect(t, l, a, b, 2*100<<20)
			tun.WantPath(t, "direct")
			tun.Stop(t)
		})
	}
}

// wantDirect checks from the Internet's counters that at least so many bytes went directly between the two routers,
// and hardly any over the DHT nodes.
func wantDirect(t *testing.T, l *netlab.Lab, a, b *netlab.Site, bytes uint64) {
	t.Helper()
	flows, err := l.Flows()
	if err != nil {
		t.Fatal(err)
	}
	var direct uint64
	for _, f := range flows {
		if f.From.Addr() == a.WAN && f.To.Addr() == b.WAN || f.From.Addr() == b.WAN && f.To.Addr() == a.WAN {
			direct += f.Bytes
		}
	}
	atNodes, err := l.NodeBytes()
	if err != nil {
		t.Fatal(err)
	}
	if direct < bytes || atNodes > 10<<20 {
		t.Errorf("%d bytes went directly, want at least %d; %d over the DHT nodes, want next to none", direct, bytes, atNodes)
	}
}

// Two hosts in the same home meet there, and nothing of what they say to each other leaves it.
func TestTwoHostsOnOneLAN(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	home := e2etest.Site(t, l, "a", func(n *netlab.NAT) { n.Hosts = 2 })
	tun := e2etest.NewTunnel(t, bootstrap, home.Hosts[0], home.Hosts[1])
	tun.Ping(t, 0)
	tun.Ping(t, 1)
	tun.Download(t, 0, tun.Peers[0].IPv6, 10<<20, time.Minute)
	tun.WantPath(t, "lan")
	if atNodes, err := l.NodeBytes(); err != nil || atNodes > 1<<20 {
		t.Errorf("%d bytes left the home, %v, want next to none", atNodes, err)
	}
	tun.Stop(t)
}

// One host has a public address, so that nothing has to be punched; whichever end the other one is.
func TestOpenHost(t *testing.T) {
	for i, name := range []string{"first", "second"} {
		t.Run(name, func(t *testing.T) {
			l := e2etest.Lab(t)
			bootstrap := e2etest.GoNodes(t, l, nodes)
			open, err := l.Open("open", netip.MustParseAddr("192.88.99.110"))
			if err != nil {
				t.Fatal(err)
			}
			hosts := [2]*netlab.Net{open, e2etest.Site(t, l, "b", nil).Host()}
			tun := e2etest.NewTunnel(t, bootstrap, hosts[i], hosts[1-i])
			tun.Ping(t, 0)
			tun.Ping(t, 1)
			tun.Download(t, 0, tun.Peers[0].IPv6, 10<<20, time.Minute)
			tun.WantPath(t, "direct")
			tun.Stop(t)
		})
	}
}
