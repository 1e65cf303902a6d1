package relay

import (
	"sync"
	"time"
)

const (
	burstTime = 250 * time.Millisecond // what may come at once, as a share of the rate
	burstMin  = 64 << 10               // bytes: a train of datagrams is not cut
)

// bucket limits a rate. The zero value has no limit. It is safe for concurrent use.
type bucket struct {
	rate float64 // bytes per second; 0: no limit

	mu     sync.Mutex // guards the fields below
	tokens float64    // bytes
	at     time.Time  // when tokens was right; zero: never used
}

// take reports whether n bytes may pass at now, and counts them if so.
func (k *bucket) take(n int, now time.Time) bool {
	if k.rate == 0 {
		return true
	}
	burst := max(k.rate*burstTime.Seconds(), burstMin)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.at.IsZero() {
		k.tokens = burst
	} else if d := now.Sub(k.at); d > 0 {
		k.tokens = min(burst, k.tokens+k.rate*d.Seconds())
	}
	k.at = now
	if k.tokens < float64(n) {
		return false
	}
	k.tokens -= float64(n)
	return true
}
