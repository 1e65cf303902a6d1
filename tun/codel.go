package tun

import (
	"math"
	"time"
)

// codel decides which packets of a flow are dropped because they have waited for too long: none, unless all of them have
// for sojournFor; then one, and more and more often until the wait is short again. The zero value has seen nothing.
//
// Source: RFC 8289, section 5.
type codel struct {
	until    time.Time // when it will have been too long for all that time; zero: it is not
	next     time.Time // when to drop the next one
	count    int       // dropped since dropping began
	before   int       // dropped when it began the last time
	dropping bool
}

// drop is told how long the packet that has been taken out of the queue was in there, and whether others wait behind it. It reports
// whether to drop it.
func (c *codel) drop(now time.Time, waited time.Duration, others bool) bool {
	late := c.late(now, waited, others)
	switch {
	case c.dropping && !late:
		c.dropping = false
	case c.dropping && !now.Before(c.next):
		c.count++
		c.next = c.control(c.next)
		return true
	case !c.dropping && late:
		c.dropping = true
		// Shortly after it was dropping it goes on at the rate that was enough then.
		if more := c.count - c.before; more > 1 && now.Sub(c.next) < 16*sojournFor {
			c.count = more
		} else {
			c.count = 1
		}
		c.before = c.count
		c.next = c.control(now)
		return true
	}
	return false
}

// late reports whether packets have waited too long for sojournFor.
func (c *codel) late(now time.Time, waited time.Duration, others bool) bool {
	if waited < sojourn || !others {
		c.until = time.Time{}
		return false
	}
	if c.until.IsZero() {
		c.until = now.Add(sojournFor)
		return false
	}
	return !now.Before(c.until)
}

// control returns when to drop the packet after one that was dropped at t.
func (c *codel) control(t time.Time) time.Time {
	return t.Add(time.Duration(float64(sojournFor) / math.Sqrt(float64(c.count))))
}
