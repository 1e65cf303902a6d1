package punch

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/punch/lab"
)

// delayed is the core that times are quoted for: 60 ms from peer to peer and back, and as much to a node.
func delayed(seed uint64) lab.Config { return lab.Config{Seed: seed, Latency: 30 * time.Millisecond} }

func TestMatrix(t *testing.T) {
	consistent := []string{"fw", "fullcone", "adcone", "linux", "eimrand", "linux/cgn", "linux/linux"}
	random := []string{"sym", "linux/sym", "symseq", "adm"}
	type row struct {
		server, client string
		limit          time.Duration // the most it may take; 0: it fails
		skip           string
	}
	var rows []row
	for _, s := range consistent {
		for _, c := range consistent {
			rows = append(rows, row{server: s, client: c, limit: 190 * time.Millisecond})
		}
		for _, c := range random {
			rows = append(rows, row{server: s, client: c, limit: 30 * time.Second})
			rows = append(rows, row{server: c, client: s, limit: 30 * time.Second})
		}
	}
	rows = append(rows,
		row{server: "linux", client: "symeif", limit: 30 * time.Second},
		row{server: "symeif", client: "linux", limit: 30 * time.Second},
	)
	for _, s := range random {
		for _, c := range random {
			r := row{server: s, client: c}
			if s == "symseq" && c == "symseq" {
				r.limit = time.Second
			}
			rows = append(rows, r)
		}
	}
	rows = append(rows,
		row{server: "linux-accept", client: "linux-accept", limit: 190 * time.Millisecond},
		row{server: "symeif", client: "sym", skip: "the open filter of one random NAT is not made use of"},
		row{server: "sym", client: "symeif", skip: "the open filter of one random NAT is not made use of"},
	)
	for _, r := range rows {
		t.Run(r.server+" : "+r.client, func(t *testing.T) {
			if r.skip != "" {
				t.Skip(r.skip)
			}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, delayed(1), r.server, r.client)
				o := w.meet(t)
				if r.limit == 0 {
					failed := &FailedError{}
					if !errors.As(o.err, &failed) || !errors.Is(o.err, ErrBothRandom) && !errors.Is(o.err, ErrRemoteAborted) {
						t.Errorf("meet: %+v, want a FailedError because of random NATs", o)
					} else if failed.Local != dht.FirewallRandom || failed.After > time.Second {
						t.Errorf("failed with %+v", failed)
					}
					return
				}
				if o.err != nil || o.took > r.limit || !o.serverIn {
					t.Errorf("meet: %+v, want success within %v", o, r.limit)
				}
			})
		})
	}
}

func TestNormalRound(t *testing.T) {
	pairs := [][2]string{{"linux", "linux"}, {"fw", "eimrand"}, {"fullcone", "fullcone"}, {"linux/cgn", "linux"}}
	for _, pair := range pairs {
		t.Run(fmt.Sprint(pair), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, delayed(1), pair[0], pair[1])
				w.noFastOpen = true
				if o := w.meet(t); o.err != nil || o.took > 500*time.Millisecond {
					t.Errorf("meet: %+v", o)
				}
			})
		})
	}
}
