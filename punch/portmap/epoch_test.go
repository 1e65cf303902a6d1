package portmap

import (
	"testing"
	"time"
)

func TestLostSince(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		name     string
		before   uint32
		after    uint32
		elapsed  time.Duration
		pcp, pmp bool
	}{
		{"same second", 100, 100, 0, false, false},
		{"in step", 100, 1000, 900 * time.Second, false, false},
		{"reply overtaken by another", 100, 99, 0, false, false},
		{"a second back", 100, 98, 0, true, false},
		{"restarted at once", 100, 0, 10 * time.Second, true, true},
		{"restarted long ago", 100, 950, 3600 * time.Second, true, true},
		{"slow by a twentieth", 0, 950, 1000 * time.Second, false, false},
		{"slow by a tenth", 0, 900, 1000 * time.Second, true, false},
		{"slow by a fifth", 0, 800, 1000 * time.Second, true, true},
		{"fast by a twentieth", 0, 1050, 1000 * time.Second, false, false},
		{"fast by a half", 0, 1500, 1000 * time.Second, true, false}, // a clock that was set, not a restart
		{"wraps", 1<<32 - 10, 10, 20 * time.Second, true, true},
	} {
		before, after := readEpoch(tt.before, t0), readEpoch(tt.after, t0.Add(tt.elapsed))
		if got := PCP.lostSince(before, after); got != tt.pcp {
			t.Errorf("%s: PCP: lost %t, want %t", tt.name, got, tt.pcp)
		}
		if got := NATPMP.lostSince(before, after); got != tt.pmp {
			t.Errorf("%s: NAT-PMP: lost %t, want %t", tt.name, got, tt.pmp)
		}
		if PCP.lostSince(epoch{}, after) || PCP.lostSince(before, epoch{}) {
			t.Errorf("%s: lost without an epoch to compare", tt.name)
		}
	}
}
