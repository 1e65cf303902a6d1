package moderate

import (
	"testing"
	"time"
)

func TestReaderRestsOnlyWhilePacketsComeFast(t *testing.T) {
	for _, row := range []struct {
		name    string
		batch   int           // packets in each
		bytes   int           // in all of them, and the other way
		every   time.Duration // a batch
		full    bool
		want    bool
		restful int // batches, of a hundred, before which it may rest at least
	}{
		{"pings", 1, 84, 10 * time.Millisecond, false, false, 0},
		{"a game", 1, 200, 5 * time.Millisecond, false, false, 0},
		{"a bulk transfer's large packets", 1, 60_000, 100 * time.Microsecond, false, true, 80},
		{"its acknowledgements", 1, 60_000, 100 * time.Microsecond, false, true, 80},
		{"a slower transfer", 1, 15_000, 200 * time.Microsecond, false, false, 0},
		{"a fast one of few packets", 1, 60_000, 400 * time.Microsecond, false, false, 0},
		{"questions and answers", 1, 300, 100 * time.Microsecond, false, false, 0},
		{"just below", 1, 100, 34 * time.Microsecond, false, false, 0},
		{"just above", 1, 100, 33 * time.Microsecond, false, true, 80},
		{"a flood", 20, 2000, 70 * time.Microsecond, false, true, 80},
		{"a flood that fills every batch", 64, 6400, 70 * time.Microsecond, true, false, 0},
		{"bursts, far apart", 64, 64_000, 10 * time.Millisecond, false, false, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			var m Pace
			now := time.Unix(1, 0)
			rests := 0
			for range 100 {
				now = now.Add(row.every)
				if m.Rest(now, row.batch, row.bytes, !row.full) {
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
	var m Pace
	now := time.Unix(1, 0)
	for range 100 {
		now = now.Add(50 * time.Microsecond)
		m.Rest(now, 10, 1000, true)
	}
	if !m.Rest(now, 10, 1000, true) {
		t.Fatal("no rest in a flood")
	}
	if m.Rest(now.Add(70*time.Microsecond), 0, 0, true) {
		t.Error("a rest after one that brought nothing: the reader should wait")
	}
	if m.Rest(now.Add(time.Second), 1, 100, true) {
		t.Error("a rest for the first packet in a second")
	}
}
