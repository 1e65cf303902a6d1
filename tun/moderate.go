package tun

import "time"

// Waking a reader for every small packet costs more than carrying it: 20 us of processor time against one, on a virtual
// machine. So a reader that small packets keep busy lets some gather before it looks again, as network cards do with
// their interrupts. It waits no longer than that many packets are worth, and never while packets are few: then
// latency counts.
const (
	moderateFrom  = 30_000                // packets a second from which on it is done
	moderateSleep = 50 * time.Microsecond // and its length; the system adds about 20 us
	moderateSpan  = 500 * time.Microsecond
)

// moderator decides when a reader lets packets gather. It is a value without a clock; the zero value has seen nothing.
type moderator struct {
	since   time.Time // start of the span being counted
	packets int       // in it
	fast    bool      // the last whole span had that many
}

// rest is told how many packets the last batch had and whether there was room for more, before the reader looks for the next.
// It reports whether to sleep first.
func (m *moderator) rest(now time.Time, packets int, room bool) bool {
	m.packets += packets
	if span := now.Sub(m.since); span >= moderateSpan {
		m.fast = time.Duration(m.packets)*time.Second >= moderateFrom*min(span, time.Second)
		m.since, m.packets = now, 0
	}
	return m.fast && room && packets > 0
}

// A batch is under way until all of it has been sent, and nothing else is read meanwhile: not the packet that should go
// first. So on a slow line, whose socket makes senders wait, batches are made small.
const (
	portionLong  = 4 * time.Millisecond
	portionShort = time.Millisecond
	portionLeast = 6 // halvings: a packet or two
)

// portion is how much a batch takes of what it has room for. The zero value is all of it.
type portion struct {
	halvings int
}

// adapt is told how long the last batch was under way.
func (p *portion) adapt(took time.Duration) {
	switch {
	case took > portionLong:
		p.halvings = min(p.halvings+1, portionLeast)
	case took < portionShort:
		p.halvings = max(p.halvings-1, 0)
	}
}

// of returns the part of n, which is at least one.
func (p *portion) of(n int) int { return max(n>>p.halvings, 1) }
