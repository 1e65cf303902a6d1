package tun

import (
	"testing"
	"time"
)

func TestReaderRestsOnlyWhilePacketsComeFast(t *testing.T) {
	for _, row := range []struct {
		name    string
		batch   int           // packets in each
		every   time.Duration // a batch
		full    bool
		want    bool
		restful int // batches, of a hundred, before which it may rest at least
	}{
		{"pings", 1, 10 * time.Millisecond, false, false, 0},
		{"a game", 1, 5 * time.Millisecond, false, false, 0},
		{"a bulk transfer's large packets", 1, 100 * time.Microsecond, false, false, 0},
		{"just below", 1, 34 * time.Microsecond, false, false, 0},
		{"just above", 1, 33 * time.Microsecond, false, true, 80},
		{"a flood", 20, 70 * time.Microsecond, false, true, 80},
		{"a flood that fills every batch", 64, 70 * time.Microsecond, true, false, 0},
		{"bursts, far apart", 64, 10 * time.Millisecond, false, false, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			var m moderator
			now := time.Unix(1, 0)
			rests := 0
			for range 100 {
				now = now.Add(row.every)
				if m.rest(now, row.batch, !row.full) {
					rests++
				}
			}
			if rests > 0 != row.want || rests < row.restful {
				t.Errorf("%d rests in 100 batches, want any: %v, and at least %d", rests, row.want, row.restful)
			}
		})
	}
}

func TestReaderRestsOnceWhenAFloodEnds(t *testing.T) {
	var m moderator
	now := time.Unix(1, 0)
	for range 100 {
		now = now.Add(50 * time.Microsecond)
		m.rest(now, 10, true)
	}
	if !m.rest(now, 10, true) {
		t.Fatal("no rest in a flood")
	}
	if m.rest(now.Add(70*time.Microsecond), 0, true) {
		t.Error("a rest after one that brought nothing: the reader should wait")
	}
	if m.rest(now.Add(time.Second), 1, true) {
		t.Error("a rest for the first packet in a second")
	}
}

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
