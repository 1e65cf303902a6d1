//go:build linux

package e2e

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// check is what "netcheck --json" prints.
type check struct {
	UDP bool `json:"udp"`
	DHT struct {
		Nodes int `json:"nodes"`
	} `json:"dht"`
	NAT struct {
		Kind          string     `json:"kind"`
		Public        netip.Addr `json:"public"`
		Mapping       string     `json:"mapping"`
		Filtering     string     `json:"filtering"`
		PreservesPort *bool      `json:"preserves_port"`
		Hairpin       *bool      `json:"hairpin"`
	} `json:"nat"`
	PortMap struct {
		Protocols []string `json:"protocols"`
		Mapped    bool     `json:"mapped"`
		Public    bool     `json:"public"`
	} `json:"port_mapping"`
	PathMTU   int `json:"path_mtu"`
	Conflicts []struct {
		Kind      string `json:"kind"`
		Interface string `json:"interface"`
		Prefix    string `json:"prefix"`
	} `json:"conflicts"`
	Findings []struct {
		Check, Status, Text, Meaning, Remedy string
	} `json:"findings"`
	TookMS int `json:"took_ms"`
}

// netcheck runs "netcheck" on p, which must end with a status.
func netcheck(t *testing.T, p *peer.Peer, code int) (c check) {
	t.Helper()
	proc, err := p.Net.Start(netlab.Cmd{Args: p.Args("netcheck", "--json")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := proc.Wait(e2etest.Within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(proc.Output()) {
		if i := strings.Index(line, `{"schema":1,"udp"`); i >= 0 {
			if err := json.Unmarshal([]byte(line[i:]), &c); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
		}
	}
	if got != code || len(c.Findings) == 0 || c.TookMS > 10_500 {
		t.Errorf("netcheck: exit status %d, want %d:\n%s", got, code, proc.Output())
	}
	for _, f := range c.Findings {
		if f.Status == "bad" && (f.Meaning == "" || f.Remedy == "") {
			t.Errorf("%+v: does not say what it means and what helps", f)
		}
	}
	return c
}

func TestNetcheck(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	home := e2etest.Site(t, l, "a", nil)
	random := e2etest.Site(t, l, "b", func(n *netlab.NAT) { n.Random = true })
	open, err := l.Open("open", netip.MustParseAddr("192.88.99.110"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name                     string
		host                     *netlab.Net
		public                   string
		kind, mapping, filtering string
	}{
		{"home router", home.Host(), "192.88.99.101", "consistent", "endpoint-independent", "address-and-port-dependent"},
		{"random ports", random.Host(), "192.88.99.102", "random", "endpoint-dependent", "unknown"},
		{"open", open, "192.88.99.110", "open", "none", "none"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := e2etest.Peer(t, row.host, bootstrap)
			before := e2etest.Snapshot(t, row.host)
			c := netcheck(t, p, 0)
			if !c.UDP || c.DHT.Nodes == 0 || c.NAT.Public.String() != row.public || c.NAT.Kind != row.kind ||
				c.NAT.Mapping != row.mapping || c.NAT.Filtering != row.filtering || c.PathMTU != 1500 || len(c.Conflicts) > 0 {
				t.Errorf("%+v", c)
			}
			if text, err := p.Net.Output(p.Args("netcheck")...); err != nil {
				t.Error(err)
			} else {
				t.Logf("in %d ms\n%s", c.TookMS, text)
			}
			if after := e2etest.Snapshot(t, row.host); after != before {
				t.Errorf("the host is not as it was: %s", after)
			}
		})
	}
	t.Run("in the way", func(t *testing.T) {
		p := e2etest.Peer(t, home.Host(), bootstrap)
		for _, args := range [][]string{
			{"ip", "link", "set", "mtu", "1300", "dev", "eth0"},
			{"ip", "tuntap", "add", "dev", "tailscale0", "mode", "tun"},
			{"ip", "link", "set", "tailscale0", "up"},
			{"ip", "route", "add", "default", "dev", "tailscale0", "table", "52"},
			{"ip", "rule", "add", "pref", "5270", "lookup", "52", "to", "10.0.0.0/8"},
		} {
			if err := home.Host().Run(args...); err != nil {
				t.Fatal(err)
			}
		}
		c := netcheck(t, p, 0)
		if len(c.Conflicts) != 2 || c.Conflicts[0].Kind != "shadow" || c.Conflicts[0].Interface != "tailscale0" ||
			c.Conflicts[1].Kind != "tunnel" || c.PathMTU != 1280 {
			t.Errorf("%+v, want a route that comes before ours", c)
		}
	})
	t.Run("UDP is blocked", func(t *testing.T) {
		p := e2etest.Peer(t, random.Host(), bootstrap)
		if err := random.Host().Input(blockUDP, "nft", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		if c := netcheck(t, p, 9); c.UDP || c.NAT.Kind != "unknown" {
			t.Errorf("%+v", c)
		}
	})
}
