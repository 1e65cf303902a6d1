//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
)

// When "up" cannot work it says why and what to do, ends with the right status, and changes nothing on the host.
func TestUpThatCannotWork(t *testing.T) {
	l := e2etest.Lab(t)
	bootstrap := e2etest.GoNodes(t, l, 3)
	a := e2etest.Site(t, l, "a", nil)
	other := e2etest.Peer(t, a.Host(), bootstrap)
	for _, row := range []struct {
		name string
		// prefix runs the command in worse circumstances.
		prefix []string
		// prepare makes the circumstances worse; may be nil.
		prepare func(t *testing.T, p *peer.Peer)
		args    []string // default: the other's key
		code    int
		say     []string // all of these
	}{
		{
			name:   "no privilege",
			prefix: []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"},
			code:   4, say: []string{"CAP_NET_ADMIN", "sudo"},
		},
		{
			name:   "no tun device",
			prefix: []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"},
			code:   1, say: []string{"/dev/net/tun", "modprobe tun"},
		},
		{
			name: "port in use",
			prepare: func(t *testing.T, p *peer.Peer) {
				c, err := p.Net.ListenUDP(netip.MustParseAddrPort("0.0.0.0:50123"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				e2etest.Configure(t, p, "port = 50123")
			},
			code: 1, say: []string{"50123", "in use"},
		},
		{
			name:    "no bootstrap node reachable",
			prepare: func(_ *testing.T, p *peer.Peer) { p.Bootstrap = "192.88.99.250:49737" },
			code:    9, say: []string{"192.88.99.250:49737"},
		},
		{
			name:    "interface name taken",
			prepare: func(t *testing.T, p *peer.Peer) { e2etest.Configure(t, p, `interface = "eth0"`) },
			code:    1, say: []string{"eth0"},
		},
		{name: "not a key", args: []string{"up, down"}, code: 5, say: []string{"up, down"}},
		{name: "key with a wrong letter", args: []string{other.Key[:51] + "l"}, code: 2, say: []string{"key"}},
		{name: "unknown flag", args: []string{other.Key, "--upside-down"}, code: 2, say: []string{"--upside-down"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := e2etest.Peer(t, a.Host(), bootstrap)
			if row.prepare != nil {
				row.prepare(t, p)
			}
			args := row.args
			if args == nil {
				args = []string{other.Key}
			}
			before := e2etest.Snapshot(t, p.Net)
			u, err := p.UpWith(row.prefix, nil, args...)
			if err != nil {
				t.Fatal(err)
			}
			code, err := u.Wait(e2etest.Within(t, 30*time.Second))
			if err != nil {
				u.Kill()
				t.Fatalf("%v:\n%s", err, u.Output())
			}
			if code != row.code {
				t.Errorf("exit status %d, want %d", code, row.code)
			}
			for _, word := range row.say {
				if !strings.Contains(u.Output(), word) {
					t.Errorf("the message does not say %q", word)
				}
			}
			if after := e2etest.Snapshot(t, p.Net); after != before {
				t.Errorf("the host is not as it was.\nBefore:\n%s\nAfter:\n%s", before, after)
			}
			t.Logf("it says: %s", u.Output())
		})
	}
}
