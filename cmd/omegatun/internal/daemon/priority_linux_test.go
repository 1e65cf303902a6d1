package daemon

import (
	"strings"
	"testing"
	"time"
)

func TestRealTimeIsLeftWhileAProcessorIsNeeded(t *testing.T) {
	for _, row := range []struct {
		name   string
		shares []float64 // of a processor, each second
		want   string    // a letter for each: r, or o for the ordinary class
	}{
		{"idle", []float64{0, 0, 0}, "rrr"},
		{"a fast transfer", []float64{0.7, 0.8, 0.9}, "rrr"},
		{"too busy, and calm again", []float64{0.7, 0.93, 0.85, 0.81, 0.79, 0.85}, "rooorr"},
		{"several processors", []float64{2.5, 1.2, 0.1}, "oor"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var g governor
			now, cpu := time.Unix(1, 0), 100*time.Second // since long ago
			if !g.realtime(now, cpu) {
				t.Fatal("busy at once, before anything is known")
			}
			var got strings.Builder
			for _, share := range row.shares {
				now = now.Add(time.Second)
				cpu += time.Duration(share * float64(time.Second))
				if g.realtime(now, cpu) {
					got.WriteString("r")
				} else {
					got.WriteString("o")
				}
			}
			if got.String() != row.want {
				t.Errorf("classes %s, want %s", got.String(), row.want)
			}
		})
	}
}
