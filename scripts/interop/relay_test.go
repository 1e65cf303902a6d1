//go:build linux

package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"omegatun/punch/lab"
	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// Two hosts behind routers that give each flow a random port meet at a blind relay: in all combinations of
// implementations. The one where everything is JavaScript shows that the lab itself is sound.
func TestStreamPassesABlindRelay(t *testing.T) {
	const size = 1 << 20
	for _, relay := range []string{javascript, omegatun} {
		for _, ends := range [][2]string{
			{javascript, javascript},
			{javascript, omegatun},
			{omegatun, javascript},
			{omegatun, omegatun},
		} {
			server, client := ends[0], ends[1]
			t.Run(fmt.Sprintf("relay=%s server=%s client=%s", relay, server, client), func(t *testing.T) {
				l := e2etest.Lab(t)
				random := func(n *netlab.NAT) { n.Random = true }
				a, b := e2etest.Site(t, l, "a", random), e2etest.Site(t, l, "b", random)
				addrs := e2etest.PublicAddrs(t, l, nodes)
				startDHT(t, omegatun, l.Internet, addrs)
				s := scene{a.Host(), b.Host(), addrs[0].String(), ""}
				via := startRelay(t, relay, l, s.bootstrap)
				var key string
				if server == javascript {
					key = javaScript(t, s.server, "server", s.arguments("--relay="+via)...).want(t, 20*time.Second, "ready").Key
				} else {
					key = omegatunEcho(t, s, via)
				}
				if client == javascript {
					javaScriptClient(t, s, key, size, "--relay="+via)
				} else {
					omegatunClient(t, s, key, size, via)
				}
				wantNothingBetween(t, l, a, b, size)
			})
		}
	}
}

// A relay is offered, and the direct path is there at about the same time. npm's server then still sends its first packet to
// the relay, as often as it takes.
func TestStreamStartsWhileRelayAndPunchRace(t *testing.T) {
	l := e2etest.Lab(t)
	cone := func(n *netlab.NAT) { n.Box = &lab.NATConfig{RefreshInbound: true} }
	random := func(n *netlab.NAT) { n.Random = true }
	a, b := e2etest.Site(t, l, "a", cone), e2etest.Site(t, l, "b", random)
	addrs := e2etest.PublicAddrs(t, l, nodes)
	startDHT(t, omegatun, l.Internet, addrs)
	s := scene{a.Host(), b.Host(), addrs[0].String(), ""}
	via := startRelay(t, omegatun, l, s.bootstrap)
	for range 5 {
		key := javaScript(t, s.server, "server", s.arguments("--relay="+via)...).want(t, 20*time.Second, "ready").Key
		omegatunClient(t, s, key, 1<<10, via)
	}
}

// startRelay starts a relay on a host with a public address and returns its key in hex.
func startRelay(t *testing.T, implementation string, l *netlab.Lab, bootstrap string) (key string) {
	t.Helper()
	host, err := l.Open("relay", netip.MustParseAddr("192.88.99.120"))
	if err != nil {
		t.Fatal(err)
	}
	if implementation == javascript {
		js := javaScript(t, host, "relay", "--bootstrap="+bootstrap, "--host=192.88.99.120")
		return js.want(t, 20*time.Second, "ready").Key
	}
	p := e2etest.Peer(t, host, bootstrap)
	relaying := make(chan struct{}, 1)
	r, err := host.Start(netlab.Cmd{
		Args: p.Args("relay", "--allow", "any"),
		OnLine: func(line string) {
			if strings.HasPrefix(line, "relaying ") {
				relaying <- struct{}{}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	e2etest.LogOnFailure(t, r)
	select {
	case <-relaying:
	case <-time.After(20 * time.Second):
		t.Fatalf("omegatun relay is not relaying after 20 s:\n%s", r.Output())
	}
	return hexKey(t, p)
}

// wantNothingBetween checks that hardly a byte went directly between two homes.
func wantNothingBetween(t *testing.T, l *netlab.Lab, a, b *netlab.Site, size uint64) {
	t.Helper()
	flows, err := l.Flows()
	if err != nil {
		t.Fatal(err)
	}
	var direct, relayed uint64
	for _, f := range flows {
		if f.From.Addr() == a.WAN && f.To.Addr() == b.WAN || f.From.Addr() == b.WAN && f.To.Addr() == a.WAN {
			direct += f.Bytes
		} else {
			relayed += f.Bytes
		}
	}
	if direct > size/10 || relayed < 4*size {
		t.Errorf("%d bytes went directly and %d over the relay, want next to none and at least %d", direct, relayed, 4*size)
	}
}

// useRelay makes commands of p meet others at a relay.
func useRelay(t *testing.T, p *peer.Peer, key string) {
	t.Helper()
	if err := p.Net.Run(p.Args("add", key, "--relay")...); err != nil {
		t.Fatal(err)
	}
}

// omegatunClient sends size bytes with "omegatun connect" and checks that they come back. via are keys of relays.
func omegatunClient(t *testing.T, s scene, key string, size int64, via ...string) {
	t.Helper()
	p := e2etest.Peer(t, s.client, s.bootstrap)
	for _, k := range via {
		useRelay(t, p, k)
	}
	back := sha256.New()
	c, err := s.client.Start(netlab.Cmd{
		Args:   p.Args("connect", key),
		Stdin:  peer.Random(1, size),
		Stdout: back,
	})
	if err != nil {
		t.Fatal(err)
	}
	e2etest.LogOnFailure(t, c)
	wantExit(t, e2etest.Within(t, 2*time.Minute), c, 0)
	if got, want := hex.EncodeToString(back.Sum(nil)), peer.Sum(1, size); got != want {
		t.Errorf("what came back has the checksum %s, want %s", got, want)
	}
}
