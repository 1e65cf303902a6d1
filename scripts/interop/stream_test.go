//go:build linux

package interop

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

const nodes = 8

// scene is where a test takes place: a DHT, a host for the server and one for the client.
type scene struct {
	server, client *netlab.Net
	bootstrap      string
	host           string // the address that JavaScript programs bind to, "" for any
}

// arguments are those that all JavaScript programs of the scene need.
func (s scene) arguments(more ...string) []string {
	args := []string{"--bootstrap=" + s.bootstrap}
	if s.host != "" {
		args = append(args, "--host="+s.host)
	}
	return append(args, more...)
}

// The two implementations.
const (
	javascript = "js"
	omegatun   = "go"
)

// startDHT starts nodes of one implementation or the other.
func startDHT(t *testing.T, implementation string, n *netlab.Net, addrs []netip.AddrPort) {
	t.Helper()
	if implementation == javascript {
		javaScriptNodes(t, n, addrs)
		return
	}
	if err := peer.Nodes(t.Context(), n, e2etest.Bin(), addrs...); err != nil {
		t.Fatal(err)
	}
}

// loopback puts everything on one machine's 127.0.0.1.
func loopback(t *testing.T, dht string) scene {
	t.Helper()
	l := e2etest.Lab(t)
	var addrs []netip.AddrPort
	for i := range nodes {
		addrs = append(addrs, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(49737+i)))
	}
	startDHT(t, dht, l.Internet, addrs)
	return scene{l.Internet, l.Internet, addrs[0].String(), "127.0.0.1"}
}

// acrossNATs puts server and client behind a router each.
func acrossNATs(t *testing.T, dht string) scene {
	t.Helper()
	l := e2etest.Lab(t)
	a, b := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", nil)
	addrs := e2etest.PublicAddrs(t, l, nodes)
	startDHT(t, dht, l.Internet, addrs)
	return scene{a.Host(), b.Host(), addrs[0].String(), ""}
}

// An echo server, and a client that sends a stream of bytes and expects the same stream back, ends its side and
// sees the other side end: in all combinations of implementations. Those where both ends are JavaScript and the
// nodes too show that the lab itself is sound.
func TestStreamIsEchoedByteForByte(t *testing.T) {
	for _, place := range []struct {
		name  string
		scene func(*testing.T, string) scene
	}{{"loopback", loopback}, {"NATs", acrossNATs}} {
		for _, row := range []struct {
			dht, server, client string
			size                int64
		}{
			{javascript, javascript, javascript, 1 << 20},
			{javascript, omegatun, omegatun, 1 << 20},
			{omegatun, javascript, javascript, 1 << 20},
			{omegatun, omegatun, omegatun, 1 << 20},
			{javascript, javascript, omegatun, 100 << 20},
			{javascript, omegatun, javascript, 100 << 20},
			{omegatun, javascript, omegatun, 100 << 20},
			{omegatun, omegatun, javascript, 100 << 20},
		} {
			name := fmt.Sprintf("%s/nodes=%s server=%s client=%s", place.name, row.dht, row.server, row.client)
			t.Run(name, func(t *testing.T) {
				s := place.scene(t, row.dht)
				var key string
				if row.server == javascript {
					key = javaScript(t, s.server, "server", s.arguments()...).want(t, 20*time.Second, "ready").Key
				} else {
					key = omegatunEcho(t, s)
				}
				start := time.Now()
				if row.client == javascript {
					javaScriptClient(t, s, key, row.size)
				} else {
					omegatunClient(t, s, key, row.size)
				}
				took := time.Since(start)
				t.Logf("%d bytes there and back in %v, joining and connecting included: %.0f Mbit/s each way",
					row.size, took.Round(time.Millisecond), float64(row.size)*8/1e6/took.Seconds())
			})
		}
	}
}

// javaScriptClient sends size bytes to the server with that key and checks that they come back. more are further arguments.
func javaScriptClient(t *testing.T, s scene, key string, size int64, more ...string) {
	t.Helper()
	js := javaScript(t, s.client, "client", s.arguments(append(more, "--to="+key, fmt.Sprintf("--bytes=%d", size))...)...)
	js.want(t, 20*time.Second, "key")
	if e := js.want(t, 20*time.Second, "open"); e.Key != key {
		t.Errorf("connected to %s, want %s", e.Key, key)
	}
	if e := js.want(t, 2*time.Minute, "done"); !e.Same || e.Received != size {
		t.Errorf("%d bytes sent, %d received, the same: %v", e.Sent, e.Received, e.Same)
	}
	wantExit(t, e2etest.Within(t, 10*time.Second), js.Process, 0)
}

// omegatunEcho starts "omegatun listen" in front of a TCP echo server and returns the key as hex. via are keys of relays.
func omegatunEcho(t *testing.T, s scene, via ...string) (key string) {
	t.Helper()
	addr := netip.MustParseAddrPort("127.0.0.1:7007")
	ln, err := s.server.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-served
	})
	p := e2etest.Peer(t, s.server, s.bootstrap)
	for _, k := range via {
		useRelay(t, p, k)
	}
	listening := make(chan string, 1)
	l, err := s.server.Start(netlab.Cmd{
		Args: p.Args("listen", "--allow", "any", "--tcp", addr.String()),
		OnErrLine: func(line string) {
			if k, ok := strings.CutPrefix(line, "listening "); ok {
				select {
				case listening <- k:
				default:
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	e2etest.LogOnFailure(t, l)
	select {
	case k := <-listening:
		if k != p.Key {
			t.Errorf("listening as %q, want %q", k, p.Key)
		}
	case <-l.Done():
		t.Fatalf("omegatun listen ended:\n%s", l.Output())
	case <-time.After(20 * time.Second):
		t.Fatalf("omegatun listen is not listening after 20 s:\n%s", l.Output())
	}
	return hexKey(t, p)
}

// hexKey returns the key of p in the form that JavaScript programs use.
func hexKey(t *testing.T, p *peer.Peer) string {
	t.Helper()
	id, err := p.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id.Hex
}
