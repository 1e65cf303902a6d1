package udx

import "time"

// instant is a moment of a Mux's clock: nanoseconds since it was made, plus one. Zero is never. The parts that decide
// things are handed the present as an instant; only Mux.now and the timers of streams look at a clock.
type instant int64

func (t instant) add(d time.Duration) instant { return t + instant(d) }
func (t instant) sub(u instant) time.Duration { return time.Duration(t - u) }

// earliest returns the earlier of two instants that may be never.
func earliest(a, b instant) instant {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
