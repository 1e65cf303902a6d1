package udx

import "time"

const (
	rtoInitial = time.Second
	rtoMax     = 30 * time.Second

	// rtoMin is below the reference's second: it acknowledges at once, and on lossy paths most of the time lost is
	// spent waiting here. Linux uses 200 ms.
	rtoMin = 300 * time.Millisecond

	// rttOutlier: a sample above this is believed only as far as the variance makes it likely; it is more often a
	// machine that slept than a path.
	rttOutlier = 5 * time.Second
	rttCeiling = 30 * time.Second

	minRTTWidth = 300 * time.Second // how long a shortest round trip is remembered
)

// rttEstimator keeps what is known of the round trip time. Source: RFC 6298.
type rttEstimator struct {
	smoothed time.Duration // zero: no sample yet
	variance time.Duration
	shortest windowedBest[time.Duration]
}

// sample takes the round trip of a packet that was sent once.
func (r *rttEstimator) sample(now instant, rtt time.Duration) {
	rtt = max(rtt, time.Microsecond)
	if limit := r.smoothed + 5*r.variance; r.smoothed > 0 && rtt > rttOutlier && rtt > limit {
		rtt = limit
	}
	rtt = min(rtt, rttCeiling)
	r.shortest.update(int64(minRTTWidth), int64(now), rtt, atMost)
	if r.smoothed == 0 {
		r.smoothed, r.variance = rtt, rtt/2
		return
	}
	r.variance = (3*r.variance + (r.smoothed - rtt).Abs()) / 4
	r.smoothed = (7*r.smoothed + rtt) / 8
}

// min returns the shortest round trip of the last minutes, zero if there is none.
func (r *rttEstimator) min() time.Duration { return r.shortest.get() }

// rto returns how long to wait for an acknowledgement before all in flight is taken for lost.
func (r *rttEstimator) rto() time.Duration {
	if r.smoothed == 0 {
		return rtoInitial
	}
	return min(max(r.smoothed+4*r.variance, rtoMin), rtoMax)
}

// newPath forgets the shortest round trip: it belonged to another path.
func (r *rttEstimator) newPath() { r.shortest = windowedBest[time.Duration]{} }
