package session

import (
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// TestSmallNetworkNeedsNoLookup connects where the nodes that keep an announcement are known: what is left is the handshake by
// way of one of them, two round trips, and the echo.
func TestSmallNetworkNeedsNoLookup(t *testing.T) {
	for _, row := range []struct {
		name   string
		server func(w *world) *lab.Host
		client func(w *world) *lab.Host
		want   time.Duration
	}{
		{
			"to an open server",
			func(w *world) *lab.Host { return w.net.Host("b", pubB) },
			func(w *world) *lab.Host { return w.net.NAT("home-a", lab.Linux(pubA)).Host("a", inA) },
			90 * time.Millisecond,
		},
		{
			"of an open client",
			func(w *world) *lab.Host { return w.net.NAT("home-b", lab.Linux(pubB)).Host("b", inB) },
			func(w *world) *lab.Host { return w.net.Host("a", pubA) },
			90 * time.Millisecond,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				a, b := w.end(row.client(w), keyOf("b")), w.end(row.server(w), keyOf("a"))
				b.listen(t)
				a.Peer(b.public()).Connect()
				if took := a.connected(t, b.public()); took > row.want {
					t.Errorf("connected after %v, want %v at most", took, row.want)
				}
				exchange(t, a, b)
			})
		})
	}
}
