package dht

import "time"

const (
	windowSlots   = 4                      // a slot's requests are forgotten after that many slots
	windowSlot    = 750 * time.Millisecond // length of a slot
	windowPerSlot = 80                     // requests unanswered that were sent in a slot
	windowTotal   = 2 * windowPerSlot      // requests unanswered altogether
)

// congestionWindow keeps a node from having too many requests on the way. The zero value is ready.
// Source: npm dht-rpc 6.27.0, lib/io.js (CongestionWindow).
type congestionWindow struct {
	slots [windowSlots]int
	at    int // the current slot
	total int
	since time.Time // start of the current slot
}

// advance moves to the slot of time now.
func (w *congestionWindow) advance(now time.Time) {
	if w.since.IsZero() {
		w.since = now
	}
	rounds := int64(now.Sub(w.since) / windowSlot)
	if rounds <= 0 {
		return
	}
	for range min(rounds, windowSlots) {
		w.at = (w.at + 1) % windowSlots
		w.total -= w.slots[w.at]
		w.slots[w.at] = 0
	}
	w.since = w.since.Add(time.Duration(rounds) * windowSlot)
}

// full reports whether requests have to wait, and if so until when at the latest.
func (w *congestionWindow) full(now time.Time) (until time.Time, full bool) {
	w.advance(now)
	return w.since.Add(windowSlot), w.total >= windowTotal || w.slots[w.at] >= windowPerSlot
}

// sent counts a request sent.
func (w *congestionWindow) sent(now time.Time) {
	w.advance(now)
	w.total++
	w.slots[w.at]++
}

// ended counts a request answered or given up.
func (w *congestionWindow) ended(now time.Time) {
	w.advance(now)
	if w.slots[w.at] > 0 {
		w.total--
		w.slots[w.at]--
	}
}
