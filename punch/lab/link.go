package lab

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// Link describes one cable; each direction behaves like this on its own. The zero value is a perfect cable.
type Link struct {
	Latency   time.Duration // one way
	Jitter    time.Duration // up to this much more; it does not reorder
	Loss      float64       // probability, 0 to 1
	Burst     float64       // packets that are lost in a row, on average, if more than 1; as many are lost in all
	Corrupt   float64       // probability that one bit of the payload is flipped, and the checksum does not tell
	Duplicate float64       // probability that a packet arrives twice
	Reorder   float64       // probability that a packet is held back, so that later ones overtake it
	MTU       int           // largest IP packet in bytes; 0: no limit. Larger ones vanish
	Rate      int           // bytes of IP packets a second; 0: no limit
	Queue     int           // bytes that wait when Rate is exceeded, then packets are dropped. Default 64 KiB
}

const (
	defaultLinkQueue = 64 << 10 // bytes

	// leastHold is how long a reordered packet is held back at least.
	leastHold = time.Millisecond
)

// cable connects a host, or the outside of a NAT, with a segment.
type cable struct {
	seg      *segment
	host     *Host // exactly one of host and nat is set
	nat      *NAT
	addrs    []netip.Addr
	up, down direction
	cut      bool
}

// direction is one way through a cable.
type direction struct {
	link Link
	rand *rand.Rand
	last time.Time // arrival of the packet before: none overtakes it unless held
	busy time.Time // until then the line is sending earlier packets
	bad  bool      // in a burst of losses
	held bool      // the packet just passed was held back, so its arrival does not count for order
}

func newCable(seg *segment, name string) *cable {
	return &cable{
		seg:  seg,
		up:   direction{rand: seg.net.source(name + "/up")},
		down: direction{rand: seg.net.source(name + "/down")},
	}
}

// setLink changes the cable; packets under way are not affected.
func (c *cable) setLink(up, down Link) {
	c.up.link, c.down.link = up, down
	c.up.last, c.down.last = time.Time{}, time.Time{}
	c.up.busy, c.down.busy = time.Time{}, time.Time{}
}

// attach plugs the cable in with the given addresses. An address in use in the segment panics: two hosts with
// one address are a mistake in the test.
func (c *cable) attach(addrs []netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		if c.seg.addrs[a] != nil {
			panic("lab: address " + a.String() + " is used twice in one segment")
		}
		c.seg.addrs[a] = c
		c.addrs = append(c.addrs, a)
		for seg := c.seg; seg.router != nil && !seg.router.table.translates(a); seg = seg.router.cable.seg {
			seg.router.cable.seg.addrs[a] = seg.router.cable // the router is the way to a
		}
	}
}

// detach unplugs the cable.
func (c *cable) detach() {
	for _, a := range c.addrs {
		delete(c.seg.addrs, a)
		for seg := c.seg; seg.router != nil && !seg.router.table.translates(a); seg = seg.router.cable.seg {
			delete(seg.router.cable.seg.addrs, a)
		}
	}
	c.addrs = nil
}

func (d *direction) chance(p float64) bool { return p > 0 && d.rand.Float64() < p }

// lose decides whether a packet is lost. Bursts come as in Gilbert's model: their lengths, and the pauses between
// them, are geometrically distributed.
func (d *direction) lose(l *Link) bool {
	if l.Burst <= 1 || l.Loss <= 0 || l.Loss >= 1 {
		return d.chance(l.Loss)
	}
	if d.bad {
		d.bad = !d.chance(1 / l.Burst)
	} else {
		d.bad = d.chance(l.Loss / (1 - l.Loss) / l.Burst)
	}
	return d.bad
}

// pass decides when a packet that enters the link now leaves it, or for what reason it is lost. Draws and
// the state of the line are d's.
func (l *Link) pass(now time.Time, p *packet, d *direction) (at time.Time, lost string) {
	d.held = false
	if l.MTU > 0 && p.size() > l.MTU {
		return at, "too big"
	}
	if d.lose(l) {
		return at, "loss"
	}
	if len(p.data) > 0 && d.chance(l.Corrupt) {
		p.data[d.rand.IntN(len(p.data))] ^= 1 << d.rand.IntN(8)
	}
	at = now
	if l.Rate > 0 {
		queue := l.Queue
		if queue <= 0 {
			queue = defaultLinkQueue
		}
		if d.busy.Before(now) {
			d.busy = now
		}
		waiting := d.busy.Sub(now).Seconds() * float64(l.Rate)
		if int(waiting)+p.size() > queue {
			return at, "queue full"
		}
		d.busy = d.busy.Add(time.Duration(float64(p.size()) / float64(l.Rate) * float64(time.Second)))
		at = d.busy
	}
	at = at.Add(l.Latency)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(d.rand.Int64N(int64(l.Jitter))))
	}
	if d.chance(l.Reorder) {
		d.held = true
		at = at.Add(max(leastHold, l.Latency/2+l.Jitter))
	}
	return at, ""
}
