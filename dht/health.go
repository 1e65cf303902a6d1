package dht

const (
	healthWindow     = 4 // ticks looked at
	healthIdle       = 4 // fewer answers and losses in a tick say nothing
	healthOfflineFor = 2 // ticks without any answer before the node counts as offline
)

// health judges from the requests of the latest ticks whether the node is connected to the network. The zero
// value is online.
//
// A tick is offline when nothing was answered, degraded when more than half was lost, and has no verdict when
// little was asked. Offline ticks in a row make the node offline, the first answer makes it online again. It
// is degraded when all ticks of the window are, until all are healthy.
type health struct {
	offline, degraded bool

	seen                int // ticks seen, up to healthWindow
	responses, timeouts int // totals at the last tick
	offlineTicks        int // in a row, ignoring ticks without a verdict
	verdicts            [healthWindow]verdict
	next                int
}

type verdict uint8

const (
	verdictNone verdict = iota
	verdictHealthy
	verdictDegraded
	verdictOffline
)

// update ends a tick, given how many requests were ever answered and lost. It reports whether the judgement changed.
func (h *health) update(responses, timeouts int) (changed bool) {
	before := [2]bool{h.offline, h.degraded}
	answered, lost := responses-h.responses, timeouts-h.timeouts
	h.responses, h.timeouts = responses, timeouts
	v := verdictNone
	if h.seen++; h.seen >= healthWindow && answered+lost >= healthIdle {
		switch {
		case answered == 0:
			v = verdictOffline
		case lost > answered:
			v = verdictDegraded
		default:
			v = verdictHealthy
		}
	}
	h.verdicts[h.next] = v
	h.next = (h.next + 1) % healthWindow

	switch v {
	case verdictNone:
		return false
	case verdictOffline:
		if h.offlineTicks++; h.offlineTicks >= healthOfflineFor {
			h.offline = true
		}
	case verdictHealthy, verdictDegraded:
		h.offlineTicks = 0
		h.offline = false
	}
	switch {
	case h.offline || h.all(verdictHealthy):
		h.degraded = false
	case h.all(verdictDegraded):
		h.degraded = true
	}
	return before != [2]bool{h.offline, h.degraded}
}

func (h *health) all(v verdict) bool {
	for _, w := range h.verdicts {
		if w != v {
			return false
		}
	}
	return true
}

// reset forgets all ticks, given the totals so far: the node counts as online until shown otherwise.
func (h *health) reset(responses, timeouts int) {
	*h = health{responses: responses, timeouts: timeouts}
}
