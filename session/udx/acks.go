package udx

import "time"

const (
	// ackDelay is how long a packet in order may wait for its acknowledgement. The peer's timers allow for 2 ms.
	ackDelay    = time.Millisecond
	ackDelayMin = time.Millisecond / 8

	// ackEvery is how many such packets are acknowledged at once; while a stream starts, the peer's window opens by
	// what is acknowledged and two are enough.
	ackEvery      = 16
	ackEveryStart = 2
	ackStart      = 64 // packets
	ackEveryHoles = 4  // while many packets are missing
	manyHoles     = 16
)

// acks decides when to acknowledge.
type acks struct {
	pending int           // numbered packets since the last acknowledgement
	total   int           // numbered packets so far, up to ackStart
	urgent  bool          // acknowledge now
	due     instant       // acknowledge then; zero: nothing to acknowledge
	trip    time.Duration // of the path, as far as known; zero: not
}

// received counts a numbered packet. prompt says that it must not wait: it is out of order, a duplicate, fills a
// hole, or ends the stream. many says that there are many holes: then it is one of many, and a few are gathered.
func (a *acks) received(now instant, prompt, many bool) {
	a.pending++
	every := ackEvery
	if prompt && many {
		prompt, every = false, ackEveryHoles
	}
	if a.total < ackStart {
		a.total++
		every = ackEveryStart
	}
	if prompt || a.pending >= every {
		a.urgent = true
	}
	if a.due == 0 {
		delay := ackDelay
		if a.trip > 0 { // a fraction of what the peer measures
			delay = min(delay, max(a.trip/4, ackDelayMin))
		}
		a.due = now.add(delay)
	}
}

// demand makes an acknowledgement due now.
func (a *acks) demand(now instant) { a.urgent, a.due = true, now }

// ready reports whether to acknowledge at now.
func (a *acks) ready(now instant) bool { return a.urgent || a.due != 0 && a.due <= now }

// sent tells that a packet with the current acknowledgement went out.
func (a *acks) sent() { a.pending, a.urgent, a.due = 0, false, 0 }
