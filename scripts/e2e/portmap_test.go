//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// upnpRules give miniupnpd its places in the home router's rules.
const upnpRules = `
add chain inet filter miniupnpd
add chain inet filter prerouting_miniupnpd
add chain inet filter postrouting_miniupnpd
add chain inet filter prerouting { type nat hook prerouting priority -100; }
add rule inet filter prerouting jump prerouting_miniupnpd
add chain inet filter gate { type filter hook input priority -10; }
add rule inet filter forward jump miniupnpd
`

// upnpConfig is a router's. Its mappings live for so short that they are renewed while the test looks on.
const upnpConfig = `ext_ifname=wan
listening_ip=lan
http_port=0
enable_natpmp=%s
enable_upnp=%s
secure_mode=yes
min_lifetime=10
max_lifetime=%d
system_uptime=no
uuid=00000000-0000-0000-0000-000000000001
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`

// mappingLifetime is what the router grants, in seconds.
const mappingLifetime = 12

// protocols are the ways in which a router can be asked for a port, and what the router must be like to know one only. PCP and
// NAT-PMP are told apart by the first byte of a datagram.
var protocols = []struct {
	name         string
	natpmp, upnp string
	gate         string // a rule
	renews       bool   // the router bounds the lifetime
}{
	{"PCP", "yes", "no", "add rule inet filter gate udp dport 5351 @th,64,8 0 drop", true},
	{"NAT-PMP", "yes", "no", "add rule inet filter gate udp dport 5351 @th,64,8 2 drop", false},
	{"UPnP", "no", "yes", "", false},
}

// mappings returns the rules that miniupnpd has made.
func mappings(t *testing.T, router *netlab.Net) string {
	t.Helper()
	rules, err := router.Output("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(rules) {
		if strings.Contains(line, "dnat") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return strings.Join(found, "\n")
}

// watchGateway counts what a host sends to its router's, or to multicast, ports of PCP, NAT-PMP and UPnP.
func watchGateway(t *testing.T, n *netlab.Net) (asked func() map[uint16]int) {
	t.Helper()
	var mu sync.Mutex
	seen := map[uint16]int{}
	stop, err := n.Capture("eth0", func(d netlab.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		if d.Out {
			seen[d.To.Port()]++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop() })
	return func() map[uint16]int {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) == 0 {
			t.Error("nothing was captured")
		}
		return map[uint16]int{5351: seen[5351], 1900: seen[1900]}
	}
}

// Two hosts whose routers pick a random port for each destination meet directly, because one of the routers forwards a port when
// it is asked, in any of three ways; and does not any more after "up" has ended. Its address is none of the lab's usual ones,
// which are reserved, so that miniupnpd refuses to work with them.
func TestRouterForwardsAPort(t *testing.T) {
	if _, err := exec.LookPath("miniupnpd"); err != nil {
		t.Skipf("%v: apt-get install miniupnpd-nftables", err)
	}
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			l := e2etest.Lab(t)
			bootstrap := e2etest.GoNodes(t, l, nodes)
			random := func(n *netlab.NAT) { n.Random = true }
			home := e2etest.Site(t, l, "a", func(n *netlab.NAT) { random(n); n.WAN = netip.MustParseAddr("11.0.0.101") })
			other := e2etest.Site(t, l, "b", random)
			if err := home.Router.Input(upnpRules+protocol.gate+"\n", "nft", "-f", "-"); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			config := filepath.Join(dir, "miniupnpd.conf")
			text := fmt.Sprintf(upnpConfig, protocol.natpmp, protocol.upnp, mappingLifetime)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			gateway, err := home.Router.Start(netlab.Cmd{Args: []string{"miniupnpd", "-d", "-f", config, "-P", filepath.Join(dir, "pid")}})
			if err != nil {
				t.Fatal(err)
			}
			e2etest.LogOnFailure(t, gateway)

			p := e2etest.Peer(t, home.Host(), bootstrap)
			c := netcheck(t, p, 0)
			if want := []string{protocol.name}; fmt.Sprint(c.PortMap.Protocols) != fmt.Sprint(want) || !c.PortMap.Mapped || !c.PortMap.Public {
				t.Errorf("netcheck: %+v, want a port by %s", c.PortMap, want)
			}
			if left := mappings(t, home.Router); left != "" {
				t.Errorf("netcheck leaves behind:\n%s", left)
			}

			asked := watchGateway(t, home.Host())
			began := time.Now()
			tun := &e2etest.Tunnel{Peers: [2]*peer.Peer{p, e2etest.Peer(t, other.Host(), bootstrap)}}
			for i, p := range tun.Peers {
				tun.Before[i] = e2etest.Snapshot(t, p.Net)
				tun.Ups[i] = e2etest.Up(t, p, tun.Peers[1-i].Key)
			}
			at, err := peer.FirstReply(e2etest.Within(t, 20*time.Second), home.Host(), tun.Peers[1].IPv6)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("first reply %v after up", at.Sub(began))
			tun.Ping(t, 0)
			tun.Ping(t, 1)
			tun.WantPath(t, "direct")
			s, err := tun.Peers[1].Status()
			if err != nil {
				t.Fatal(err)
			}
			rules := mappings(t, home.Router)
			t.Logf("%s", rules)
			r, _ := s.Peer(tun.Peers[0].Key)
			remote, err := netip.ParseAddrPort(r.Path.Remote)
			if err != nil || remote.Addr() != home.WAN || !strings.Contains(rules, fmt.Sprintf("dport %d ", remote.Port())) {
				t.Errorf("the path leads to %s, %v, want the port that is forwarded:\n%s", r.Path.Remote, err, rules)
			}
			if protocol.renews {
				before := asked()
				time.Sleep(time.Until(began.Add(2*mappingLifetime*time.Second + 2*time.Second)))
				if got, after := mappings(t, home.Router), asked(); got != rules || after[5351] <= before[5351] {
					t.Errorf("not renewed, %v and %v questions:\n%s\nwant\n%s", before, after, got, rules)
				}
			}
			tun.Stop(t)
			if left := mappings(t, home.Router); left != "" {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
	t.Run("switched off", func(t *testing.T) {
		l := e2etest.Lab(t)
		bootstrap := e2etest.GoNodes(t, l, nodes)
		home, other := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", nil)
		asked := [2]func() map[uint16]int{watchGateway(t, home.Host()), watchGateway(t, other.Host())}
		tun := e2etest.NewTunnel(t, bootstrap, home.Host(), other.Host(), "port_mapping = false")
		time.Sleep(3 * time.Second)
		tun.Stop(t)
		off, on := asked[0](), asked[1]()
		if off[5351] > 0 || off[1900] > 0 {
			t.Errorf("the router was asked: %v, want no question", off)
		}
		if on[5351] == 0 || on[1900] == 0 {
			t.Errorf("the other end asked its router: %v, want a question of each kind", on)
		}
	})
}
