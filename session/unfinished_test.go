package session

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/session/tunnel"
)

// TestUnfinishedChecksums sends packets with unfinished checksums between ends that can finish them, and ends that
// cannot.
func TestUnfinishedChecksums(t *testing.T) {
	for _, row := range []struct {
		name       string
		a, b       tunnel.Features
		unfinished bool // may a send them to b?
	}{
		{"both can", tunnel.FeatureUnfinished, tunnel.FeatureUnfinished, true},
		{"only the sender", tunnel.FeatureUnfinished, 0, false},
		{"neither", 0, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{})
				atA, atB, _, _ := w.homes()
				arrived := make(chan string, 1000)
				open := func(at *lab.Host, features tunnel.Features) *end {
					e := &end{name: at.Name()}
					e.Host = w.host(at, Config{
						Identity: key.FromSeed(key.Hash([]byte(at.Name()))), Features: features,
						Inbound: func(_ *Peer, bufs [][]byte, offset int, unfinished []bool) {
							for i, b := range bufs {
								for j := range offset { // it is ours
									b[j] = 0xaa
								}
								arrived <- fmt.Sprintf("%s %v", b[offset+1:], unfinished != nil && unfinished[i])
							}
						},
					})
					return e
				}
				a, b := open(atA, row.a), open(atB, row.b)
				if _, err := a.AddPeer(b.public()); err != nil {
					t.Fatal(err)
				}
				if _, err := b.AddPeer(a.public()); err != nil {
					t.Fatal(err)
				}
				b.listen(t)
				a.connected(t, b.public())
				const packets = 300 // more than one train
				i := 0
				room := make([]byte, 100)
				err := a.Peer(b.public()).SendFrom(func(offset int, finish bool) ([]byte, bool) {
					if finish == row.unfinished {
						t.Errorf("packet %d is to be finished: %v, want %v", i, finish, !row.unfinished)
					}
					if i == packets {
						return nil, false
					}
					unfinished := !finish && i%2 == 1
					i++
					for j := range room {
						room[j] = 0xbb
					}
					return append(room[:offset], packet(fmt.Sprint(i-1))...), unfinished
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				var got, want []string
				for i := range packets {
					want = append(want, fmt.Sprintf("%d %v", i, row.unfinished && i%2 == 1))
				}
				for len(arrived) > 0 {
					got = append(got, <-arrived)
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%d packets arrive, %.5v…, want %d, %.5v…", len(got), got, len(want), want)
				}
				if s := a.Peer(b.public()).Status(); s.TxPackets != packets || s.TxLost != 0 {
					t.Errorf("%d packets are counted as sent and %d as lost, want %d", s.TxPackets, s.TxLost, packets)
				}
			})
		})
	}
}

// TestUnaskedUnfinishedPacketsAreDropped seals what the peer said it cannot take.
func TestUnaskedUnfinishedPacketsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{})
		atA, atB, _, _ := w.homes()
		a, b := w.end(atA, keyOf(atB.Name())), w.end(atB, keyOf(atA.Name()))
		b.listen(t)
		a.connected(t, b.public())
		exchange(t, a, b)
		l := a.Peer(b.public()).cur.Load()
		r := l.cur.Load()
		for _, plain := range [][]byte{
			append(tunnel.AppendUnfinished(nil), packet("unasked")...),
			tunnel.AppendUnfinished(nil),
			{2},
			append([]byte{2, 7}, packet("flags")...),
		} {
			d, err := l.epoch.Seal(nil, plain)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.sock.Send(d, r.remote); err != nil {
				t.Fatal(err)
			}
		}
		exchange(t, a, b) // and nothing before it
	})
}
