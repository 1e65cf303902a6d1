package dht

import (
	"slices"
	"testing"

	"omegatun/dht/key"
)

func TestKeepersAreKnownInSmallNetworksOnly(t *testing.T) {
	target := key.Hash([]byte("target"))
	for _, row := range []struct {
		name    string
		members int
		want    int
	}{
		{"small", 10, 2},
		{"large", 60, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *testNet) {
				nodes := w.members(row.members)
				got := nodes[0].Keepers(target, 2)
				if len(got) != row.want {
					t.Fatalf("%d keepers, want %d", len(got), row.want)
				}
				for _, m := range nodes[1:] {
					if len(got) > 0 && !slices.Contains(got, m.addr()) && closerTo(target, NodeID(m.addr()), NodeID(got[len(got)-1])) {
						t.Errorf("%v is nearer than %v", m.addr(), got)
					}
				}
			})
		})
	}
}
