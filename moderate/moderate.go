// Package moderate lets packets gather before they are read, as network cards do with their interrupts. To be woken for a packet
// costs more than to carry it: 20 us of processor time against one or two, on a virtual machine. So a reader that many
// small packets keep busy sleeps for a moment between its batches. It does not while packets are few: then latency
// counts.
package moderate

import "time"

const (
	from = 30_000 // packets a second from which on it is done
	span = 500 * time.Microsecond

	// Sleep is how long a reader is to sleep. The system adds about 20 us.
	Sleep = 50 * time.Microsecond
)

// Pace decides when a reader lets packets gather. It is a value without a clock; the zero value has seen nothing.
type Pace struct {
	since   time.Time // start of the span being counted
	packets int       // in it
	fast    bool      // the last whole span had that many
}

// Rest is told how many packets the last batch had and whether there was room for more, before the reader looks for the next.
// It reports whether to sleep first.
func (p *Pace) Rest(now time.Time, packets int, room bool) bool {
	p.packets += packets
	if passed := now.Sub(p.since); passed >= span {
		p.fast = time.Duration(p.packets)*time.Second >= from*min(passed, time.Second)
		p.since, p.packets = now, 0
	}
	return p.fast && room && packets > 0
}
