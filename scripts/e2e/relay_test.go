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

// attempt is the last line of "ping --explain --json".
type attempt struct {
	Event     string  `json:"event"`
	LocalNAT  string  `json:"local_nat"`
	RemoteNAT string  `json:"remote_nat"`
	Strategy  string  `json:"strategy"`
	State     string  `json:"state"`
	TookMS    float64 `json:"took_ms"`
	Path      struct {
		Kind  string  `json:"kind"`
		Relay string  `json:"relay"`
		RTTMS float64 `json:"rtt_ms"`
	} `json:"path"`
	Code   int    `json:"code"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
	Steps  []struct {
		AfterMS float64 `json:"after_ms"`
		Stage   string  `json:"stage"`
		Text    string  `json:"text"`
	} `json:"steps"`
}

// explain runs "ping --explain" on p, which must end with a status, and returns the account.
func explain(t *testing.T, p *peer.Peer, code int, args ...string) attempt {
	t.Helper()
	proc, err := p.Net.Start(netlab.Cmd{Args: p.Args(append([]string{"ping", "--explain", "--json"}, args...)...)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := proc.Wait(e2etest.Within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	var a attempt
	for line := range strings.Lines(proc.Output()) {
		if _, object, ok := strings.Cut(line, `{"schema":1,"event":"attempt",`); ok {
			if err := json.Unmarshal([]byte(`{"event":"attempt",`+object), &a); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
		}
	}
	if got != code || a.Event != "attempt" || a.Code != code {
		t.Errorf("ping --explain: exit status %d, want %d:\n%s", got, code, proc.Output())
	}
	return a
}

// Two hosts whose routers pick a random port for each destination meet at a third machine that both list, because its
// owner has set relay = true there. They set nothing.
func TestListedPeerRelays(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	random := func(n *netlab.NAT) { n.Random = true }
	hosts := []*netlab.Net{e2etest.Site(t, l, "a", random).Host(), e2etest.Site(t, l, "b", random).Host()}
	open, err := l.Open("relay", netip.MustParseAddr("192.88.99.110"))
	if err != nil {
		t.Fatal(err)
	}
	relay := e2etest.Peer(t, open, bootstrap)
	e2etest.Configure(t, relay, "relay = true")
	var ends [2]*peer.Peer
	for i, h := range hosts {
		ends[i] = e2etest.Peer(t, h, bootstrap)
	}
	e2etest.Up(t, relay, ends[0].Key, ends[1].Key)
	var ups [2]*peer.Up
	for i, p := range ends {
		ups[i] = e2etest.Up(t, p, ends[1-i].Key, relay.Key)
	}
	for i, u := range ups {
		if _, err := u.WaitFor(e2etest.Within(t, 20*time.Second), func(e peer.Event) bool { return e.Connected(ends[1-i].Key) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := peer.FirstReply(e2etest.Within(t, 10*time.Second), ends[0].Net, ends[1].IPv6); err != nil {
		t.Fatal(err)
	}
	stats, err := peer.Session(e2etest.Within(t, 20*time.Second), ends[1].Net, netip.AddrPortFrom(ends[1].IPv6, 2222),
		ends[0].Net, 50, 10*time.Millisecond)
	if err != nil {
		t.Errorf("session: %v", err)
	}
	t.Logf("session: echo after %v, at most %v", stats.Median, stats.Most)

	for i, p := range ends {
		a := explain(t, p, 0, ends[1-i].Key)
		if a.State != "connected" || a.Path.Kind != "relay" || a.Path.Relay != relay.Key || a.Path.RTTMS <= 0 ||
			a.LocalNAT != "random" || a.RemoteNAT != "random" || a.Strategy == "" || a.Remedy == "" || len(a.Steps) < 3 {
			t.Errorf("%s: %+v, want a connection by way of the relay, and why that is so", p.Net.Name, a)
		}
	}
	s, err := relay.Net.Output(relay.Args("status")...)
	if err != nil || !strings.Contains(s, " 1 pairs at the moment") {
		t.Errorf("status of the relay, %v:\n%s", err, s)
	}
	for _, p := range append(ends[:], relay) {
		for _, args := range [][]string{{"status"}, {"ping", ends[1].Key, "--explain"}} {
			if p == ends[1] && len(args) > 1 {
				continue
			}
			text, err := p.Net.Output(p.Args(args...)...)
			t.Logf("%v on %s: %v\n%s", args, p.Net.Name, err, text)
		}
	}
}

const blockUDP = `table ip block {
  chain output {
    type filter hook output priority filter
    meta l4proto udp drop
  }
}
`

// Each way in which a connection can fail is told apart, without a running omegatun.
func TestExplainFailures(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	random := func(n *netlab.NAT) { n.Random = true }
	a := e2etest.Peer(t, e2etest.Site(t, l, "a", random).Host(), bootstrap)
	b := e2etest.Peer(t, e2etest.Site(t, l, "b", random).Host(), bootstrap)
	t.Run("nobody is announced", func(t *testing.T) {
		if got := explain(t, a, 6, b.Key); got.State != "failed" || !strings.Contains(got.Remedy, "start omegatun") {
			t.Errorf("%+v", got)
		}
	})
	u := e2etest.Up(t, b)
	if _, err := u.WaitFor(e2etest.Within(t, 20*time.Second), func(e peer.Event) bool { return e.Event == "listening" }); err != nil {
		t.Fatal(err)
	}
	t.Run("we are not listed", func(t *testing.T) {
		if got := explain(t, a, 8, b.Key); !strings.Contains(got.Remedy, "omegatun up "+a.Key) {
			t.Errorf("%+v", got)
		}
	})
	if err := b.Net.Run(b.Args("add", a.Key)...); err != nil {
		t.Fatal(err)
	}
	t.Run("both NATs pick random ports", func(t *testing.T) {
		got := explain(t, a, 7, b.Key)
		if got.LocalNAT != "random" || got.RemoteNAT != "random" || !strings.Contains(got.Strategy, "relay") || got.Remedy == "" {
			t.Errorf("%+v", got)
		}
		t.Logf("%+v", got)
	})
	t.Run("UDP is blocked", func(t *testing.T) {
		if err := a.Net.Input(blockUDP, "nft", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		if got := explain(t, a, 9, b.Key); !strings.Contains(got.Remedy, "netcheck") {
			t.Errorf("%+v", got)
		}
	})
}
