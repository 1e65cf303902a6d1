//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

var received = regexp.MustCompile(`([0-9]+) received`)

// pings pings addr, 10 times a second, and returns how many replies there were.
func pings(t *testing.T, n *netlab.Net, addr netip.Addr, count int) int {
	t.Helper()
	p, err := n.Start(netlab.Cmd{Args: []string{
		"ping", "-n", "-q", "-i", "0.1", "-W", "2", "-c", strconv.Itoa(count), addr.String(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(e2etest.Within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v:\n%s", addr, p.Output())
	m := received.FindStringSubmatch(p.Output())
	if m == nil {
		t.Fatalf("ping says %q", p.Output())
	}
	replies, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return replies
}

// flood sends packets to addr until stop is called, which returns how many left and how many arrived.
func flood(t *testing.T, from, to *netlab.Net, addr netip.AddrPort, size, perMillisecond int) (stop func() (sent, arrived int64)) {
	t.Helper()
	sink, err := to.ListenUDP(addr)
	if err != nil {
		t.Fatal(err)
	}
	source, err := from.Dial(t.Context(), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var sent, arrived atomic.Int64
	done, ended := make(chan struct{}), make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for b := make([]byte, size); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for range perMillisecond {
				if _, err := source.Write(b); err == nil {
					sent.Add(1)
				}
			}
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for b := make([]byte, size); ; arrived.Add(1) {
			if _, _, err := sink.ReadFromUDPAddrPort(b); err != nil {
				return
			}
		}
	}()
	return func() (int64, int64) {
		close(done)
		time.Sleep(500 * time.Millisecond) // what is under way
		if err := source.Close(); err != nil {
			t.Error(err)
		}
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
		<-ended
		<-ended
		return sent.Load(), arrived.Load()
	}
}

// A host on a slow line sends to one peer several times what the line can carry. What it exchanges with another peer, and what else
// with the first one, is hardly touched.
func TestAFloodToOnePeerSparesOthers(t *testing.T) {
	const count, most = 40, 4 // pings, and how many of them may be lost
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, nodes)
	var peers [3]*peer.Peer
	for i, name := range []string{"a", "b", "c"} {
		n, err := l.Open(name, netip.AddrFrom4([4]byte{192, 88, 99, byte(111 + i)}))
		if err != nil {
			t.Fatal(err)
		}
		peers[i] = e2etest.Peer(t, n, bootstrap)
	}
	a, b, c := peers[0], peers[1], peers[2]
	e2etest.Up(t, b, a.Key)
	e2etest.Up(t, c, a.Key)
	e2etest.Up(t, a, b.Key, c.Key)
	for _, p := range []*peer.Peer{b, c} {
		if _, err := peer.FirstReply(e2etest.Within(t, 20*time.Second), a.Net, p.IPv4); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Net.Run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "32kb", "limit", "1mb"); err != nil {
		t.Skipf("the system cannot make a line slow: %v", err)
	}
	for _, row := range []struct{ size, perMillisecond int }{{1300, 10}, {64, 80}} {
		t.Run(fmt.Sprint(row.size, " bytes"), func(t *testing.T) {
			stop := flood(t, a.Net, b.Net, netip.AddrPortFrom(b.IPv4, 5000), row.size, row.perMillisecond)
			time.Sleep(time.Second)
			for _, to := range []netip.Addr{c.IPv4, b.IPv6} {
				if replies := pings(t, a.Net, to, count); replies < count-most {
					t.Errorf("%d of %d pings to %v were answered", replies, count, to)
				}
			}
			sent, arrived := stop()
			t.Logf("%d packets sent, %d arrived", sent, arrived)
			if arrived > sent*4/5 {
				t.Errorf("%d of %d packets arrived: it was no flood", arrived, sent)
			}
		})
	}
}
