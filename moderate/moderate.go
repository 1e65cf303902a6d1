// Package moderate lets packets gather before they are read, as network cards do with their interrupts. To be woken for a packet
// costs more than to carry it: 20 us of processor time against one or two, on a virtual machine. So a reader that packets
// keep busy sleeps for a moment between its batches: from fewer of them on while much is transferred, be it only that they are
// the acknowledgements of it. It does not while little happens: then latency counts. Questions and answers, one at a time, are
// a few thousand packets a second.
package moderate

import "time"

const (
	from     = 30_000      // packets a second from which on it is done
	fromBulk = 3_000       // while this many bytes a second are transferred:
	bulk     = 125_000_000 // 1 Gbit/s
	span     = 500 * time.Microsecond

	// Sleep is how long a reader is to sleep. The system adds about 20 us. With 100 us a TCP flow is a twentieth faster still, but
	// a ping beside it takes 0.7 ms.
	Sleep = 70 * time.Microsecond
)

// Pace decides when a reader lets packets gather. It is a value without a clock; the zero value has seen nothing.
type Pace struct {
	since   time.Time // start of the span being counted
	packets int       // in it
	bytes   int
	fast    bool // the last whole span had that many
}

// Rest is told how many packets the last batch had, how many bytes have been transferred since it was called last, both ways
// together (zero: that is not to count), and whether there was room for more, before the reader looks for the next. It reports
// whether to sleep first.
func (p *Pace) Rest(now time.Time, packets, bytes int, room bool) bool {
	p.packets += packets
	p.bytes += bytes
	if passed := now.Sub(p.since); passed >= span {
		passed = min(passed, time.Second)
		p.fast = reached(p.packets, from, passed) || reached(p.packets, fromBulk, passed) && reached(p.bytes, bulk, passed)
		p.since, p.packets, p.bytes = now, 0, 0
	}
	return p.fast && room && packets > 0
}

// reached reports whether n in that time, which is at most a second, are so many a second.
func reached(n, perSecond int, passed time.Duration) bool {
	const most = 1 << 30 // no overflow, and more than any limit
	return time.Duration(min(n, most))*time.Second >= time.Duration(perSecond)*passed
}
