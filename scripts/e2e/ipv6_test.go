//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// A host with IPv6 only is told what it cannot do, and what helps; on its local network it finds its peers all the same.
func TestIPv6Only(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, 1)
	home := e2etest.Site(t, l, "a", func(n *netlab.NAT) { n.IPv6, n.Hosts = netip.MustParsePrefix("2001:db7:0:1::/64"), 2 })
	other := e2etest.Peer(t, e2etest.Site(t, l, "b", nil).Host(), bootstrap)
	var ends [2]*peer.Peer
	for i, h := range home.Hosts {
		if err := h.Run("ip", "-4", "addr", "flush", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
		ends[i] = e2etest.Peer(t, h, bootstrap)
	}
	c := netcheck(t, ends[0], 9)
	if f := c.Findings[0]; !strings.Contains(f.Text, "IPv6 only") || !strings.Contains(f.Remedy, "CLAT") {
		t.Errorf("netcheck: %+v", c.Findings)
	}
	if a := explain(t, ends[0], 9, other.Key); !strings.Contains(a.Reason+a.Remedy, "IPv6 only") {
		t.Errorf("ping --explain: %+v, want it to say that there is IPv6 only", a)
	}
	u := e2etest.Up(t, ends[0], other.Key)
	code, err := u.Wait(e2etest.Within(t, 20*time.Second))
	events := u.Events()
	if err != nil || code != 9 || !strings.Contains(u.Output(), "IPv6 only, and the DHT is IPv4 only") {
		t.Errorf("up: exit status %d, %v, %+v\n%s", code, err, events, u.Output())
	}

	for i, p := range ends {
		e2etest.Up(t, p, ends[1-i].Key)
	}
	if _, err := peer.FirstReply(e2etest.Within(t, 5*time.Second), ends[0].Net, ends[1].IPv6); err != nil {
		t.Errorf("not found on the local network: %v", err)
	}
}
