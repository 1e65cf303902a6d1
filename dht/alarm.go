package dht

import (
	"container/heap"
	"time"
)

// alarm is something to do at a time. It belongs to an alarms; the zero value is not set.
type alarm struct {
	at    time.Time
	does  ringer
	index int // in the heap, counted from 1; 0: not there

	queued      bool // in the line, between:
	prior, next *alarm
}

// ringer does what an alarm was set for.
type ringer interface{ ring(now time.Time) }

// ringFunc is a ringer that calls itself.
type ringFunc func(now time.Time)

func (f ringFunc) ring(now time.Time) { f(now) }

// alarms holds what a node has to do later, so that it needs a single timer. The zero value is empty.
//
// Most alarms are those of requests, all of them as far ahead, and stopped long before. They wait in a line, which costs the
// same however long it is; others in a heap.
type alarms struct {
	heap        alarmHeap
	first, last *alarm // of the line
}

// set makes a call f at the given time, instead of what it was set to before.
func (s *alarms) set(a *alarm, at time.Time, f func(now time.Time)) { s.setTo(a, at, ringFunc(f)) }

// setTo is set for what r does.
func (s *alarms) setTo(a *alarm, at time.Time, r ringer) {
	if a.queued {
		s.stop(a)
	}
	a.at, a.does = at, r
	if a.index > 0 {
		heap.Fix(&s.heap, a.index-1)
		return
	}
	heap.Push(&s.heap, a)
}

// setLast is setTo for an alarm that is to ring after all others that it was used for.
func (s *alarms) setLast(a *alarm, at time.Time, r ringer) {
	if s.last != nil && at.Before(s.last.at) {
		s.setTo(a, at, r)
		return
	}
	s.stop(a)
	a.at, a.does, a.queued, a.prior = at, r, true, s.last
	if s.last != nil {
		s.last.next = a
	} else {
		s.first = a
	}
	s.last = a
}

// stop unsets a.
func (s *alarms) stop(a *alarm) {
	switch {
	case a.index > 0:
		heap.Remove(&s.heap, a.index-1)
	case a.queued:
		if a.prior != nil {
			a.prior.next = a.next
		} else {
			s.first = a.next
		}
		if a.next != nil {
			a.next.prior = a.prior
		} else {
			s.last = a.prior
		}
		a.queued, a.prior, a.next = false, nil, nil
	}
}

// earliest returns the first alarm, nil if there is none.
func (s *alarms) earliest() *alarm {
	if len(s.heap) > 0 && (s.first == nil || s.heap[0].at.Before(s.first.at)) {
		return s.heap[0]
	}
	return s.first
}

// next returns the time of the first alarm, the zero time if there is none.
func (s *alarms) next() time.Time {
	if a := s.earliest(); a != nil {
		return a.at
	}
	return time.Time{}
}

// due unsets the first alarm and returns what it is to do, if its time has come.
func (s *alarms) due(now time.Time) (f func(now time.Time), ok bool) {
	a := s.earliest()
	if a == nil || a.at.After(now) {
		return nil, false
	}
	s.stop(a)
	return a.does.ring, true
}

type alarmHeap []*alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

func (h *alarmHeap) Push(x any) {
	a := x.(*alarm)
	*h = append(*h, a)
	a.index = len(*h)
}

func (h *alarmHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.index = 0
	return a
}
