package tun

import "time"

// A queue in which all packets wait in the order in which they came makes a ping wait behind megabytes of somebody's
// upload. So what waits for us is divided by flow, and the flows take turns. Those that keep little waiting, as a ping
// or a call does, go first; of those that keep much for long, packets are dropped, which is how a sender learns to
// keep less in the queue.
//
// Source: RFC 8290 (FQ-CoDel) and RFC 8289 (CoDel). A packet can be a large one, whose loss is that of 45, so a flow may keep
// packets for four times as long as there (at 1 Gbit/s, CUBIC got 0.81 of the line with 5 ms, and 0.91 with 20); other flows do not
// feel it. A turn is longer than the largest packet of the network.
const (
	fairFlows  = 256     // flows that are told apart; more share a place
	fairTurn   = 4 << 10 // bytes of a turn (the RFC's quantum)
	sojourn    = 20 * time.Millisecond
	sojournFor = 100 * time.Millisecond
)

// fair is a queue of packets that are fair to each other. Packets are numbers: slots of the caller's, of which there are
// small and large ones. It has no clock and does no I/O; it belongs to one goroutine.
type fair struct {
	slots []fairSlot // the small ones first
	small int        // how many those are
	flows [fairFlows]fairFlow
	fresh list // flows that had nothing waiting, until their first turn ends
	old   list // the others that have something waiting, or have just had
	count int  // packets
}

type fairSlot struct {
	next int32 // packet of the same flow
	size int32 // bytes
	at   time.Time
}

type fairFlow struct {
	first, last int32 // packets; -1: none
	next        int32 // flow in the same list
	listed      bool
	count       [2]int // packets in small and in large slots
	credit      int    // bytes that may still be sent in this turn
	codel       codel
}

// list is a list of flows.
type list struct{ first, last int32 }

// Kinds of slots.
const (
	smallSlot = iota
	largeSlot
)

// newFair returns an empty queue for the slots 0 to small-1, which are small, and large ones from there on.
func newFair(small, large int) *fair {
	f := &fair{slots: make([]fairSlot, small+large), small: small, fresh: list{-1, -1}, old: list{-1, -1}}
	for i := range f.flows {
		f.flows[i].first, f.flows[i].last = -1, -1
	}
	return f
}

// kind returns what kind of slot it is.
func (f *fair) kind(slot int) int {
	if slot < f.small {
		return smallSlot
	}
	return largeSlot
}

// push adds a packet of size bytes. flow is any number that is the same for all packets of a flow.
func (f *fair) push(slot int, flow uint64, size int, now time.Time) {
	n := int32(flow % fairFlows)
	w := &f.flows[n]
	f.slots[slot] = fairSlot{next: -1, size: int32(size), at: now}
	if w.last < 0 {
		w.first = int32(slot)
	} else {
		f.slots[w.last].next = int32(slot)
	}
	w.last = int32(slot)
	w.count[f.kind(slot)]++
	f.count++
	if !w.listed {
		w.listed, w.credit = true, fairTurn
		f.append(&f.fresh, n)
	}
}

// pop takes the packet that is next. Those before it that have waited for too long are dropped: drop is called for each. It
// reports false if there is none.
func (f *fair) pop(now time.Time, drop func(slot int)) (slot int, ok bool) {
	for {
		from := &f.fresh
		if from.first < 0 {
			from = &f.old
		}
		n := from.first
		if n < 0 {
			return 0, false
		}
		w := &f.flows[n]
		if w.credit <= 0 {
			w.credit += fairTurn
			f.remove(from)
			f.append(&f.old, n)
			continue
		}
		for w.first >= 0 {
			s := f.take(w)
			if w.codel.drop(now, now.Sub(f.slots[s].at), w.first >= 0) {
				drop(s)
				continue
			}
			w.credit -= int(f.slots[s].size)
			return s, true
		}
		f.remove(from)
		if from == &f.fresh && f.old.first >= 0 {
			f.append(&f.old, n) // it has had its turn; not to be fresh again while others wait
			continue
		}
		w.listed = false
	}
}

// shed drops packets from the head of the flow that has most slots of a kind, until one of those is free. There must be
// one.
func (f *fair) shed(kind int, drop func(slot int)) {
	most := &f.flows[0]
	for i := range f.flows {
		if f.flows[i].count[kind] > most.count[kind] {
			most = &f.flows[i]
		}
	}
	for {
		slot := f.take(most)
		drop(slot)
		if f.kind(slot) == kind {
			return
		}
	}
}

// take takes the first packet of w, which has one.
func (f *fair) take(w *fairFlow) int {
	slot := w.first
	s := &f.slots[slot]
	if w.first = s.next; w.first < 0 {
		w.last = -1
	}
	w.count[f.kind(int(slot))]--
	f.count--
	return int(slot)
}

func (f *fair) append(l *list, n int32) {
	f.flows[n].next = -1
	if l.last < 0 {
		l.first = n
	} else {
		f.flows[l.last].next = n
	}
	l.last = n
}

// remove removes the first flow of l.
func (f *fair) remove(l *list) {
	if l.first = f.flows[l.first].next; l.first < 0 {
		l.last = -1
	}
}
