package main

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"time"

	"omegatun/dht"
)

// world is an Internet in memory and its clock, which jumps from event to event. Everything runs in the goroutine
// that calls run, so it needs no locks.
type world struct {
	random  *rand.Rand
	now     time.Time
	events  eventHeap
	order   uint64
	sockets map[netip.AddrPort]*socket
	spare   [][]byte // buffers of delivered datagrams

	datagrams, bytes int // sent so far
}

// Datagrams take between these times, the same each way.
const (
	minDelay = 10 * time.Millisecond
	maxDelay = 90 * time.Millisecond
)

func newWorld(seed uint64) *world {
	return &world{
		random:  rand.New(rand.NewPCG(seed, seed)),
		now:     time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		sockets: make(map[netip.AddrPort]*socket),
	}
}

// event is a datagram that arrives, or a timer that expires.
type event struct {
	at    time.Duration // since the epoch of the heap
	order uint64        // events at the same time keep their order
	timer *timer
	to    *socket
	from  netip.AddrPort
	b     []byte
}

type eventHeap struct {
	epoch time.Time
	list  []event
}

func (h *eventHeap) Len() int { return len(h.list) }
func (h *eventHeap) Less(i, j int) bool {
	a, b := &h.list[i], &h.list[j]
	return a.at < b.at || a.at == b.at && a.order < b.order
}

func (h *eventHeap) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	for _, k := range [...]int{i, j} {
		if t := h.list[k].timer; t != nil {
			t.index = k
		}
	}
}

func (h *eventHeap) Push(x any) {
	e := x.(*event)
	if e.timer != nil {
		e.timer.index = len(h.list)
	}
	h.list = append(h.list, *e)
}

func (h *eventHeap) Pop() any {
	last := len(h.list) - 1
	e := h.list[last]
	h.list[last] = event{}
	h.list = h.list[:last]
	if e.timer != nil {
		e.timer.index = -1
	}
	return e
}

func (w *world) push(d time.Duration, e event) {
	if w.events.epoch.IsZero() {
		w.events.epoch = w.now
	}
	w.order++
	e.at, e.order = w.now.Sub(w.events.epoch)+d, w.order
	heap.Push(&w.events, &e)
}

// run lets d pass, or less if until, which may be nil, says so.
func (w *world) run(d time.Duration, until func() bool) {
	end := w.now.Add(d)
	for len(w.events.list) > 0 && (until == nil || !until()) {
		at := w.events.epoch.Add(w.events.list[0].at)
		if at.After(end) {
			break
		}
		e := heap.Pop(&w.events).(event)
		w.now = at
		if e.timer != nil {
			e.timer.f()
			continue
		}
		if e.to.node != nil && !e.to.node.gone {
			e.to.node.receive(e.to, e.b, e.from)
		}
		w.spare = append(w.spare, e.b)
	}
	if until == nil || !until() {
		w.now = end
	}
}

// Now implements dht.Clock.
func (w *world) Now() time.Time { return w.now }

// AfterFunc implements dht.Clock.
func (w *world) AfterFunc(d time.Duration, f func()) dht.Timer {
	t := &timer{w: w, f: f, index: -1}
	t.Reset(d)
	return t
}

type timer struct {
	w     *world
	f     func()
	index int // in the heap; -1: not set
}

func (t *timer) Stop() bool {
	set := t.index >= 0
	if set {
		heap.Remove(&t.w.events, t.index)
	}
	return set
}

func (t *timer) Reset(d time.Duration) bool {
	set := t.Stop()
	t.w.push(max(0, d), event{timer: t})
	return set
}

// socket is a UDP port of a node, which everybody can reach.
type socket struct {
	w     *world
	addr  netip.AddrPort
	delay time.Duration // to the middle of the Internet
	node  *node
}

func (w *world) socket(a netip.AddrPort) *socket {
	if w.sockets[a] != nil {
		panic("address taken: " + a.String())
	}
	s := &socket{w: w, addr: a, delay: (minDelay + time.Duration(w.random.Int64N(int64(maxDelay-minDelay)))) / 2}
	w.sockets[a] = s
	return s
}

// LocalAddr implements dht.Socket. The host is not told its own address.
func (s *socket) LocalAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), s.addr.Port())
}

// Send implements dht.Socket.
func (s *socket) Send(b []byte, to netip.AddrPort) error {
	if s.node.gone {
		return nil
	}
	s.w.datagrams++
	s.w.bytes += len(b)
	dst := s.w.sockets[to]
	if dst == nil {
		return nil
	}
	var buf []byte
	if n := len(s.w.spare); n > 0 {
		buf, s.w.spare = s.w.spare[n-1][:0], s.w.spare[:n-1]
	}
	buf = s.node.outgoing(append(buf, b...), to)
	if buf != nil {
		s.w.push(s.delay+dst.delay, event{to: dst, from: s.addr, b: buf})
	}
	return nil
}
