package dht

import (
	"container/heap"
	"time"
)

// alarm is something to do at a time. It belongs to an alarms; the zero value is not set.
type alarm struct {
	at    time.Time
	f     func(now time.Time)
	index int // in the heap, counted from 1; 0: not set
}

// alarms holds what a node has to do later, so that it needs a single timer. The zero value is empty.
type alarms struct{ heap alarmHeap }

// set makes a call f at the given time, instead of what it was set to before.
func (s *alarms) set(a *alarm, at time.Time, f func(now time.Time)) {
	a.at, a.f = at, f
	if a.index > 0 {
		heap.Fix(&s.heap, a.index-1)
		return
	}
	heap.Push(&s.heap, a)
}

// stop unsets a.
func (s *alarms) stop(a *alarm) {
	if a.index > 0 {
		heap.Remove(&s.heap, a.index-1)
	}
}

// next returns the time of the first alarm, the zero time if there is none.
func (s *alarms) next() time.Time {
	if len(s.heap) == 0 {
		return time.Time{}
	}
	return s.heap[0].at
}

// due unsets the first alarm and returns what it is to do, if its time has come.
func (s *alarms) due(now time.Time) (f func(now time.Time), ok bool) {
	if len(s.heap) == 0 || s.heap[0].at.After(now) {
		return nil, false
	}
	a := heap.Pop(&s.heap).(*alarm)
	return a.f, true
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
