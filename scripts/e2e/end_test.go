//go:build linux

package e2e

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// However the daemon ends, the host is as it was, at the latest after the next one ended; and the next one works.
func TestUpAfterTheDaemonEnded(t *testing.T) {
	for _, row := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"Ctrl-C", syscall.SIGINT},
		{"terminated", syscall.SIGTERM},
		{"killed", syscall.SIGKILL},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := e2etest.Lab(t)
			bootstrap := e2etest.GoNodes(t, l, nodes)
			tun := e2etest.NewTunnel(t, bootstrap, e2etest.Site(t, l, "a", nil).Host(), e2etest.Site(t, l, "b", nil).Host())
			tun.Ping(t, 0)
			first := whileUp(t, tun.Peers[0].Net)

			tun.Ups[0].Signal(row.signal)
			code, err := tun.Ups[0].Wait(e2etest.Within(t, 5*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if killed := row.signal == syscall.SIGKILL; !killed {
				if code != 0 && code != 130 {
					t.Errorf("exit status %d, want 0 or 130", code)
				}
				tun.WantUnchanged(t, 0)
			}

			tun.Ups[0] = e2etest.Up(t, tun.Peers[0], tun.Peers[1].Key)
			start := time.Now()
			ctx, cancel := tun.Ups[0].Context(e2etest.Within(t, 20*time.Second))
			defer cancel()
			at, err := peer.FirstReply(ctx, tun.Peers[0].Net, tun.Peers[1].IPv6)
			if err != nil {
				t.Fatal(err)
			}
			took := at.Sub(start)
			t.Logf("first reply %v after the second up", took)
			if limit := 5 * time.Second; took > limit {
				t.Errorf("first reply %v after the second up, want at most %v", took, limit)
			}
			tun.Ping(t, 0)
			tun.Ping(t, 1)
			if second := whileUp(t, tun.Peers[0].Net); second != first {
				t.Errorf("the second up leads to another state than the first.\nFirst:\n%s\nSecond:\n%s", first, second)
			}
			tun.Stop(t)
		})
	}
}

// linkLocal is an address that the kernel chooses by chance for each new device, at a time of its own.
var linkLocal = regexp.MustCompile(`(?m) fe80::\S+|^.*\bfe80::.*\n|^multicast ff00::.*\n`)

// whileUp returns addresses and routes of a host whose daemon is up, in a form that the next one should lead to again.
func whileUp(t *testing.T, n *netlab.Net) string {
	t.Helper()
	var state strings.Builder
	for _, args := range [][]string{
		{"ip", "-br", "addr"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule"},
		{"ip", "-6", "rule"},
		{"nft", "list", "ruleset"},
	} {
		out, err := n.Output(args...)
		if err != nil {
			t.Fatal(err)
		}
		state.WriteString(linkLocal.ReplaceAllString(out, ""))
	}
	return state.String()
}
