//go:build linux

package e2etest

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// ReplyLimit is how long after "up" the first reply may come.
const ReplyLimit = 3 * time.Second

// Tunnel is two hosts, each with the other as its peer.
type Tunnel struct {
	Peers [2]*peer.Peer
	Ups   [2]*peer.Up
	// Before is the state of each host's network before "up".
	Before [2]string
	// Reply is how long after "up" each host had the first reply from the other.
	Reply [2]time.Duration
}

// NewTunnel makes an identity on each of two hosts, brings both up at once, and waits until each had a
// reply from the other. Each of config is text for the configuration file of one of them.
func NewTunnel(t testing.TB, bootstrap string, a, b *netlab.Net, config ...string) *Tunnel {
	t.Helper()
	tun := &Tunnel{}
	for i, n := range []*netlab.Net{a, b} {
		tun.Peers[i] = Peer(t, n, bootstrap)
		if i < len(config) {
			Configure(t, tun.Peers[i], config[i])
		}
		tun.Before[i] = Snapshot(t, n)
	}
	for i, p := range tun.Peers {
		tun.Ups[i] = Up(t, p, tun.Peers[1-i].Key)
	}
	tun.WaitForReplies(t)
	return tun
}

// WaitForReplies sets Reply, and fails the test if there is none, or not in time.
func (tun *Tunnel) WaitForReplies(t testing.TB) {
	t.Helper()
	type result struct {
		i   int
		at  time.Time
		err error
	}
	results := make(chan result, 2)
	for i, p := range tun.Peers {
		ctx, cancel := tun.Ups[i].Context(Within(t, 20*time.Second))
		defer cancel()
		go func() {
			at, err := peer.FirstReply(ctx, p.Net, tun.Peers[1-i].IPv6)
			results <- result{i, at, err}
		}()
	}
	for range tun.Peers {
		r := <-results
		if r.err != nil {
			t.Errorf("%s: %v", tun.Peers[r.i].Net.Name, r.err)
			continue
		}
		tun.Reply[r.i] = r.at.Sub(tun.Ups[r.i].Started)
		if tun.Reply[r.i] > ReplyLimit {
			t.Errorf("%s: first reply %v after up, want at most %v", tun.Peers[r.i].Net.Name, tun.Reply[r.i], ReplyLimit)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// Ping sends pings from one end to both addresses of the other; all must be answered.
func (tun *Tunnel) Ping(t testing.TB, from int) {
	t.Helper()
	p := tun.Peers[1-from]
	for _, addr := range []netip.Addr{p.IPv6, p.IPv4} {
		if err := tun.Peers[from].Net.Run("ping", "-n", "-q", "-c", "5", "-i", "0.05", "-W", "2", addr.String()); err != nil {
			t.Errorf("ping: %v", err)
		}
	}
}

// Download fetches size bytes over HTTP from one end to the other and checks them.
func (tun *Tunnel) Download(t testing.TB, from int, addr netip.Addr, size int64, within time.Duration) {
	t.Helper()
	at := netip.AddrPortFrom(addr, 8080)
	stop, err := peer.ServeHTTP(tun.Peers[from].Net, at)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	got, sum, took, err := peer.Download(Within(t, within), tun.Peers[1-from].Net, fmt.Sprintf("http://%v/%d", at, size))
	if err != nil {
		t.Errorf("download: after %d bytes: %v", got, err)
		return
	}
	if want := peer.Sum(7, size); got != size || sum != want {
		t.Errorf("download: %d bytes with checksum %s, want %d with %s", got, sum, size, want)
	}
	t.Logf("downloaded %d bytes from %v in %v: %.0f Mbit/s", got, addr, took.Round(time.Millisecond),
		float64(got)*8/1e6/took.Seconds())
}

// Session holds an interactive TCP session between the two ends.
func (tun *Tunnel) Session(t testing.TB, addr netip.Addr) {
	t.Helper()
	stats, err := peer.Session(Within(t, 20*time.Second), tun.Peers[1].Net, netip.AddrPortFrom(addr, 2222),
		tun.Peers[0].Net, 200, 5*time.Millisecond)
	if err != nil {
		t.Errorf("session: %v", err)
		return
	}
	t.Logf("session with %v: echo after %v, at most %v", addr, stats.Median, stats.Most)
}

// WantPath checks the kind of path that the daemons say they use.
func (tun *Tunnel) WantPath(t testing.TB, kind string) {
	t.Helper()
	for i, p := range tun.Peers {
		s, err := p.Status()
		if err != nil {
			t.Fatal(err)
		}
		if other, _ := s.Peer(tun.Peers[1-i].Key); other.State != "connected" || other.Path.Kind != kind {
			t.Errorf("%s: the peer is %s on a %s path to %s, want connected on a %s path", p.Net.Name,
				other.State, other.Path.Kind, other.Path.Remote, kind)
		}
	}
}

// Stop interrupts both ends, as Ctrl-C would, and checks that the hosts are as they were before.
func (tun *Tunnel) Stop(t testing.TB) {
	t.Helper()
	for _, u := range tun.Ups {
		code, err := u.Stop(5 * time.Second)
		if err != nil {
			t.Error(err)
		}
		if code != 0 && code != 130 {
			t.Errorf("%s: exit status %d, want 0 or 130", u.Name, code)
		}
	}
	for i := range tun.Peers {
		tun.WantUnchanged(t, i)
	}
}

// WantUnchanged checks that a host's network is as it was before "up".
func (tun *Tunnel) WantUnchanged(t testing.TB, i int) {
	t.Helper()
	if after := Snapshot(t, tun.Peers[i].Net); after != tun.Before[i] {
		t.Errorf("%s is not as it was.\nBefore:\n%s\nAfter:\n%s", tun.Peers[i].Net.Name, tun.Before[i], after)
	}
}

// Snapshot returns the state of a host's network.
func Snapshot(t testing.TB, n *netlab.Net) string {
	t.Helper()
	s, err := n.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Configure writes the configuration file of a peer.
func Configure(t testing.TB, p *peer.Peer, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.State(), "config.toml"), []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
