//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"omegatun/dht/key"
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

	wanted, err := key.ParsePublic(listed.Key)
	if err != nil {
		t.Fatal(err)
	}
	dialled := wanted.Target() // host a looks for the listed peer itself

	var asked, answered, toStranger atomic.Int32
	stop, err := a.Host().Capture("eth0", func(d netlab.Datagram) {
		handshake := isHandshake(d.Payload) && !bytes.Contains(d.Payload, dialled[:])
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

// A listed peer may send from the addresses that its key gives it, and from no others.

// Host b claims another IPv4 address in its own configuration, of which host a knows nothing.
func TestForeignInnerSourceIsDroppedAndCounted(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	claimed := netip.MustParseAddr("10.64.7.7")
	tun := e2etest.NewTunnel(t, bootstrap, e2etest.Site(t, l, "a", nil).Host(), e2etest.Site(t, l, "b", nil).Host(),
		"", `ipv4 = "`+claimed.String()+`"`)
	a, b := tun.Peers[0], tun.Peers[1]
	const reason = "source not allowed"
	before := dropped(t, a, b)[reason]
	if got := exchange(t, b, claimed, a, a.IPv4); got != 0 {
		t.Errorf("host a received %d datagrams from %v, want none", got, claimed)
	}
	if got := dropped(t, a, b)[reason] - before; got != datagrams {
		t.Errorf("host a counts %d more packets of b dropped as %q, want %d", got, reason, datagrams)
	}
	if got := exchange(t, b, b.IPv6, a, a.IPv6); got != datagrams {
		t.Errorf("host a received %d datagrams from b's own address, want %d", got, datagrams)
	}
}

// Other programs on host b have other addresses there, and send from them into the tunnel.
func TestForeignSourceDoesNotLeaveTheHost(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	tun := e2etest.NewTunnel(t, bootstrap, e2etest.Site(t, l, "a", nil).Host(), e2etest.Site(t, l, "b", nil).Host())
	a, b := tun.Peers[0], tun.Peers[1]
	before := dropped(t, a, b)
	for _, row := range []struct {
		name    string
		foreign netip.Addr
		own, to netip.Addr
	}{
		{"IPv4", netip.MustParseAddr("172.31.9.9"), b.IPv4, a.IPv4},
		{"IPv6", netip.MustParseAddr("fd99::9"), b.IPv6, a.IPv6},
	} {
		t.Run(row.name, func(t *testing.T) {
			prefix := netip.PrefixFrom(row.foreign, row.foreign.BitLen())
			add := []string{"ip", "addr", "add", prefix.String(), "dev", "lo"}
			if row.foreign.Is6() {
				add = append(add, "nodad") // usable at once
			}
			if err := b.Net.Run(add...); err != nil {
				t.Fatal(err)
			}
			if got := exchange(t, b, row.foreign, a, row.to); got != 0 {
				t.Errorf("host a received %d datagrams from %v, want none", got, row.foreign)
			}
			if got := exchange(t, b, row.own, a, row.to); got != datagrams {
				t.Errorf("host a received %d datagrams from b's own address, want %d", got, datagrams)
			}
		})
	}
	if after := dropped(t, a, b); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("host a counts %v as dropped, before %v: packets with a foreign source came through the tunnel", after, before)
	}
}

// datagrams is how many [exchange] sends.
const datagrams = 20

// exchange sends datagrams from an address of one host to an address of another, and returns how many arrived.
func exchange(t *testing.T, from *peer.Peer, source netip.Addr, to *peer.Peer, dest netip.Addr) (received int) {
	t.Helper()
	in, err := to.Net.ListenUDP(netip.AddrPortFrom(dest, 7000))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := from.Net.ListenUDP(netip.AddrPortFrom(source, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for range datagrams {
		if _, err := out.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(dest, 7000)); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	for {
		if err := in.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, sender, err := in.ReadFromUDPAddrPort(b)
		if err != nil {
			return received
		}
		if string(b[:n]) != "hello" || sender.Addr().Unmap() != source {
			t.Errorf("received %q from %v, want hello from %v", b[:n], sender, source)
		}
		received++
	}
}

// dropped returns how many packets of a peer were dropped at a host, by reason.
func dropped(t *testing.T, at, of *peer.Peer) map[string]uint64 {
	t.Helper()
	s, err := at.Status()
	if err != nil {
		t.Fatal(err)
	}
	p, ok := s.Peer(of.Key)
	if !ok {
		t.Fatalf("the status does not list the peer: %+v", s)
	}
	return p.Dropped
}
