package session

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// Peers that are taken off the list while they are being looked for leave room for others to be looked for.
func TestRemovedPeersGiveTheirTurnBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		b.listen(t)
		for i := range 4 * dialsAtOnce {
			k := keyOf(fmt.Sprint("nobody ", i))
			p, err := a.AddPeer(k)
			if err != nil {
				t.Fatal(err)
			}
			p.Connect()
			time.Sleep(time.Duration(i) * 40 * time.Millisecond) // it is being looked for, or about to be again
			a.RemovePeer(k)
		}
		synctest.Wait()
		if n := len(a.dials); n != 0 {
			t.Errorf("%d of %d turns are taken, though nobody is being looked for", n, dialsAtOnce)
		}
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
	})
}

// Who asks for a peer again while the search for it is being called off gets another search.
func TestPeerIsWantedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		p := a.Peer(b.public())
		p.Connect()
		time.Sleep(time.Minute) // it waits to try again
		synctest.Wait()
		p.Disconnect()
		p.Connect()
		b.listen(t)
		time.Sleep(2 * maxRetry)
		if s := p.Status(); s.State != PeerConnected {
			t.Errorf("state %q a minute after the peer has come, want connected", s.State)
		}
	})
}
