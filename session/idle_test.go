package session

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// traffic counts packets and their bytes, headers of IPv4 and UDP included.
type traffic struct{ packets, bytes int }

func (c *traffic) add(payload []byte) {
	c.packets++
	c.bytes += len(payload) + 28
}

func (c traffic) perMinute(d time.Duration) string {
	return fmt.Sprintf("%6.1f packets %8.0f bytes", float64(c.packets)/d.Minutes(), float64(c.bytes)/d.Minutes())
}

// TestIdleCost counts what a machine sends and receives that has some peers connected and nothing to do. With -v it prints a
// table: what goes to and comes from the peers, and what the DHT costs besides.
func TestIdleCost(t *testing.T) {
	for _, n := range []int{1, 10, 100} {
		if n == 100 && (testing.Short() || raceEnabled) {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
			names := make([]string, n)
			keys := make([]key.Public, n)
			for i := range n {
				names[i] = fmt.Sprint("peer", i)
				keys[i] = keyOf(names[i])
			}
			hub := w.end(w.net.NAT("home", lab.Linux(pubA)).Host("hub", inA), keys...)
			hub.listen(t)
			for i, name := range names {
				outside := netip.AddrFrom4([4]byte{192, 88, 98, byte(i + 1)})
				p := w.end(w.net.NAT("home of "+name, lab.Linux(outside)).Host(name, inB), hub.public())
				p.Peer(hub.public()).Connect()
				p.connected(t, hub.public())
			}
			time.Sleep(3 * time.Minute)

			var mu sync.Mutex
			var toPeers, rest traffic
			w.net.Drop(func(p lab.Packet) bool {
				if p.From.Addr() == pubA || p.To.Addr() == pubA {
					mu.Lock()
					defer mu.Unlock()
					if tunnelled := len(p.Payload) > 0 && (p.Payload[0] == 0xbe || p.Payload[0] == 0xff); tunnelled {
						toPeers.add(p.Payload)
					} else {
						rest.add(p.Payload)
					}
				}
				return false
			})
			const during = 20 * time.Minute
			time.Sleep(during)
			w.net.Drop(nil)
			t.Logf("%3d idle peers, a minute: %s; the DHT %s", n, toPeers.perMinute(during), rest.perMinute(during))
			if most := float64(14 * n); float64(toPeers.packets)/during.Minutes() > most {
				t.Errorf("%d peers: %.1f packets a minute, want at most %v", n, float64(toPeers.packets)/during.Minutes(), most)
			}
			for _, k := range keys {
				if s := hub.Peer(k).Status(); s.State != PeerConnected || hub.Peer(k).linkCount() != 1 {
					t.Fatalf("%s is %v over %d links after %v", k.Short(), s.State, hub.Peer(k).linkCount(), during)
				}
			}
		})
	}
}
