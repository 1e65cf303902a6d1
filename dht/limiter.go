package dht

import (
	"net/netip"
	"time"
)

// limiter bounds what each host may cost: a bucket of so many units a host, refilled at a rate. It remembers a
// bounded number of hosts; one that is forgotten starts with a full bucket. Loopback is not limited.
type limiter struct {
	rate, burst float64 // units a second, and at most at once
	buckets     generations[netip.Addr, *bucket]
}

type bucket struct {
	left float64
	at   time.Time
}

// limiterHosts is how many hosts a limiter remembers, twice.
const limiterHosts = 8192

func newLimiter(rate, burst float64) limiter {
	refill := time.Duration(burst / rate * float64(time.Second))
	return limiter{rate: rate, burst: burst, buckets: newGenerations[netip.Addr, *bucket](limiterHosts, 2*refill, true)}
}

// allow takes cost units from the bucket of host; false if there are not enough.
func (l *limiter) allow(host netip.Addr, cost float64, now time.Time) bool {
	if host.IsLoopback() {
		return true
	}
	b, ok := l.buckets.get(host, now)
	if !ok {
		b = &bucket{left: l.burst, at: now}
		l.buckets.set(host, b, now)
	}
	b.left = min(l.burst, b.left+now.Sub(b.at).Seconds()*l.rate)
	b.at = now
	if b.left < cost {
		return false
	}
	b.left -= cost
	return true
}
