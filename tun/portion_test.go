package tun

import (
	"testing"
	"time"
)

func TestBatchesAreMadeSmallOnSlowLines(t *testing.T) {
	var p portion
	for _, row := range []struct {
		name  string
		took  time.Duration
		times int
		want  int // of 128
	}{
		{"nothing is known", 2 * time.Millisecond, 1, 128},
		{"fast", 100 * time.Microsecond, 3, 128},
		{"slow", 5 * time.Millisecond, 1, 64},
		{"still slow", 5 * time.Millisecond, 2, 16},
		{"just right", 3 * time.Millisecond, 5, 16},
		{"not moving", time.Second, 50, 2},
		{"fast again", 100 * time.Microsecond, 3, 16},
		{"fast for longer", 100 * time.Microsecond, 30, 128},
	} {
		for range row.times {
			p.adapt(row.took)
		}
		if got := p.of(128); got != row.want {
			t.Errorf("%s: a batch takes %d packets, want %d", row.name, got, row.want)
		}
	}
	p.halvings = portionLeast
	if got := p.of(5); got != 1 {
		t.Errorf("the least part of 5 is %d, want 1", got)
	}
}
