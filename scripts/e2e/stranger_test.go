//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// A key that is not listed gets no answer: host c knows a's key and finds it in the DHT, but a lists only another key.
func TestStrangerGetsNoAnswer(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	a, c := e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "c", nil)
	host, stranger := e2etest.Peer(t, a.Host(), bootstrap), e2etest.Peer(t, c.Host(), bootstrap)
	listed := e2etest.Peer(t, a.Router, bootstrap) // is never up
	up := e2etest.Up(t, host, listed.Key)
	if _, err := up.WaitFor(e2etest.Within(t, 20*time.Second), listening); err != nil {
		t.Fatal(err)
	}

	var asked, answered, toStranger atomic.Int32
	stop, err := a.Host().Capture("eth0", func(d netlab.Datagram) {
		handshake := isHandshake(d.Payload)
		switch {
		case handshake && d.Out:
			answered.Add(1)
		case handshake:
			asked.Add(1)
		}
		if d.Out && d.To.Addr() == c.WAN {
			toStranger.Add(1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	visit := e2etest.Up(t, stranger, host.Key)
	failed, err := visit.WaitFor(e2etest.Within(t, 40*time.Second), func(e peer.Event) bool {
		return e.Event == "peer" && e.Key == host.Key
	})
	if err != nil {
		t.Fatal(err)
	}
	if failed.State != "failed" || failed.Reason == "" {
		t.Errorf("the stranger's up reports %+v, want a failure with a reason", failed)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if asked.Load() == 0 {
		t.Error("no handshake reached host a: the test shows nothing")
	}
	if answered.Load() > 0 || toStranger.Load() > 0 {
		t.Errorf("of %d handshakes %d were answered, and %d datagrams went to the stranger's router, want none",
			asked.Load(), answered.Load(), toStranger.Load())
	}
	if s, err := host.Status(); err != nil || len(s.Peers) != 1 || s.Peers[0].Key != listed.Key {
		t.Errorf("status of host a: %+v, %v, want the listed peer only", s, err)
	}
}

func listening(e peer.Event) bool { return e.Event == "listening" }

// isHandshake reports whether a datagram is a DHT request with the command PEER_HANDSHAKE; on the way to a server and
// back these are all requests, but for the last hop to the client.
func isHandshake(b []byte) bool {
	const request, hasID, hasToken, internal, peerHandshake = 0x03, 1, 2, 4, 0
	command := 1 + 1 + 2 + 6 // after type, flags, transaction and address
	if len(b) < command || b[0] != request || b[1]&internal != 0 {
		return false
	}
	if b[1]&hasID != 0 {
		command += 32
	}
	if b[1]&hasToken != 0 {
		command += 32
	}
	return len(b) > command && b[command] == peerHandshake
}

// A listed peer may send from its own addresses only. Host b sends from others, which its own network lets it.
func TestForeignInnerSourceIsDroppedAndCounted(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	tun := e2etest.NewTunnel(t, bootstrap, e2etest.Site(t, l, "a", nil), e2etest.Site(t, l, "b", nil))
	a, b := tun.Peers[0], tun.Peers[1]
	const datagrams = 20
	for _, row := range []struct {
		name    string
		to      netip.Addr
		own     netip.Addr
		foreign string
	}{
		{"IPv4", a.IPv4, b.IPv4, "172.31.9.9"},
		{"IPv6", a.IPv6, b.IPv6, "fd99::9"},
	} {
		t.Run(row.name, func(t *testing.T) {
			foreign := netip.MustParseAddr(row.foreign)
			if err := b.Net.Run("ip", "addr", "add", fmt.Sprintf("%v/%d", foreign, foreign.BitLen()), "dev", "lo"); err != nil {
				t.Fatal(err)
			}
			in, err := a.Net.ListenUDP(netip.AddrPortFrom(row.to, 7000))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			before := dropped(t, a, b)
			for _, from := range []struct {
				addr netip.Addr
				text string
			}{{foreign, "foreign"}, {row.own, "own"}} {
				out, err := b.Net.ListenUDP(netip.AddrPortFrom(from.addr, 0))
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				for range datagrams {
					if _, err := out.WriteToUDPAddrPort([]byte(from.text), netip.AddrPortFrom(row.to, 7000)); err != nil {
						t.Fatal(err)
					}
				}
			}
			received := map[string]int{}
			buf := make([]byte, 100)
			for {
				if err := in.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				n, from, err := in.ReadFromUDPAddrPort(buf)
				if err != nil {
					break
				}
				received[fmt.Sprintf("%s from %v", buf[:n], from.Addr().Unmap())]++
			}
			own := fmt.Sprintf("own from %v", row.own)
			if len(received) != 1 || received[own] != datagrams {
				t.Errorf("host a received %v, want only %q, %d times", received, own, datagrams)
			}
			if got := dropped(t, a, b) - before; got != datagrams {
				t.Errorf("host a counts %d more dropped packets of b, want %d", got, datagrams)
			}
		})
	}
	if s, err := a.Status(); err == nil {
		p, _ := s.Peer(b.Key)
		t.Logf("counted: %v", p.Dropped)
		if !strings.Contains(fmt.Sprint(p.Dropped), "source") {
			t.Errorf("the reasons are %v, want one that names the source", p.Dropped)
		}
	}
	tun.Ping(t, 0) // and the peer is still welcome
}

// dropped returns how many packets of a peer were dropped at a host.
func dropped(t *testing.T, at, of *peer.Peer) uint64 {
	t.Helper()
	s, err := at.Status()
	if err != nil {
		t.Fatal(err)
	}
	p, ok := s.Peer(of.Key)
	if !ok {
		t.Fatalf("the status does not list the peer: %+v", s)
	}
	return p.DroppedSum()
}
