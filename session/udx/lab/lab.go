// Package lab is a network in memory for UDX streams, with a clock of its own: it runs in one goroutine, much faster
// than time passes, and the same seed gives the same result to the last packet.
//
// A [World] is the clock. [Port]s are sockets in it, and [Link]s lead from one to another: each has a rate and a queue
// before it, a delay, and loses and reorders packets by chance. A [Flow] keeps a stream busy.
package lab

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"time"

	"omegatun/session/udx"
)

// ipOverhead is what an IPv4 packet adds to a datagram.
const ipOverhead = 20 + 8

// World is the time, and everything that is to happen. It is a udx.Clock. It belongs to one goroutine.
type World struct {
	now    time.Duration
	count  int
	due    events
	ready  []func()
	timers []*timer
	flows  []*Flow
	pumped time.Duration // when flows last moved
	ports  map[netip.AddrPort]*Port
	spare  [][]byte
	seed   uint64
	rng    *rand.Rand // of the order in which flows move
	links  uint64
}

// event is a datagram that arrives, or something else that happens.
type event struct {
	at   time.Duration
	n    int
	from netip.AddrPort
	to   *Port
	b    []byte
	f    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

// New returns a World whose chance comes from a seed.
func New(seed uint64) *World {
	return &World{ports: make(map[netip.AddrPort]*Port), seed: seed, rng: rand.New(rand.NewPCG(seed, 0))}
}

// Now returns the time since the World began.
func (w *World) Now() time.Duration { return w.now }

// Go calls f before time passes.
func (w *World) Go(f func()) { w.ready = append(w.ready, f) }

// timer is a udx.Timer.
type timer struct {
	w  *World
	at time.Duration // negative: stopped
	f  func()
}

// AfterFunc calls f after d.
func (w *World) AfterFunc(d time.Duration, f func()) udx.Timer {
	t := &timer{w: w, at: w.now + max(d, 0), f: f}
	w.timers = append(w.timers, t)
	return t
}

func (t *timer) Reset(d time.Duration) bool {
	was := t.at >= 0
	t.at = t.w.now + max(d, 0)
	return was
}

func (t *timer) Stop() bool {
	was := t.at >= 0
	t.at = -1
	return was
}

// At calls f when the World is that old.
func (w *World) At(at time.Duration, f func()) {
	w.push(event{at: max(at, w.now), f: f})
}

func (w *World) push(e event) {
	w.count++
	e.n = w.count
	heap.Push(&w.due, e)
}

// pumpEvery is how often applications read and write.
const pumpEvery = 200 * time.Microsecond

// Run lets the World get that old.
func (w *World) Run(until time.Duration) {
	for {
		for len(w.ready) > 0 {
			f := w.ready[0]
			w.ready = w.ready[1:]
			f()
		}
		if w.now-w.pumped >= pumpEvery || w.pumped == 0 {
			w.pumped = max(w.now, 1)
			// None is always the first: where a queue is short, the one whose packets come first has the room.
			if len(w.flows) > 1 {
				w.rng.Shuffle(len(w.flows), func(i, j int) { w.flows[i], w.flows[j] = w.flows[j], w.flows[i] })
			}
			for _, f := range w.flows {
				f.move()
			}
			if len(w.ready) > 0 {
				continue
			}
		}
		var first *timer
		for _, t := range w.timers {
			if t.at >= 0 && (first == nil || t.at < first.at) {
				first = t
			}
		}
		switch {
		case first != nil && first.at <= until && (len(w.due) == 0 || first.at < w.due[0].at):
			w.now = max(w.now, first.at)
			first.at = -1
			first.f()
		case len(w.due) > 0 && w.due[0].at <= until:
			e := heap.Pop(&w.due).(event)
			w.now = e.at
			if e.f != nil {
				e.f()
				continue
			}
			e.to.received(e.b, e.from)
			w.spare = append(w.spare, e.b)
		default:
			w.now = until
			return
		}
	}
}

// Link is one direction of a path. Its exported fields may be changed at any time. Several Ports may send over it.
type Link struct {
	Rate    float64       // bytes of IP packets per second; 0: no limit
	Queue   int           // bytes that may wait
	Delay   time.Duration // of every packet but the reordered
	Loss    float64       // share of packets lost by chance
	Reorder float64       // share of packets that are not delayed, and overtake those before them
	MTU     int           // larger packets vanish; 0: none do
	Down    bool          // everything vanishes

	Sent, Lost, Overflowed uint64 // packets; lost by chance, and where the queue was full

	rng  *rand.Rand
	free time.Duration // when all that waits has gone
	w    *World
}

// NewLink adds a link, a copy of one that shows its conditions.
func (w *World) NewLink(like Link) *Link {
	w.links++
	like.w, like.rng = w, rand.New(rand.NewPCG(w.seed, w.links))
	return &like
}

// send takes a datagram. Every one draws as much chance, so that what happens to it does not depend on others.
func (l *Link) send(b []byte, from netip.AddrPort, to *Port) {
	size := len(b) + ipOverhead
	lost, early, off := l.rng.Float64() < l.Loss, l.rng.Float64() < l.Reorder, time.Duration(l.rng.Int64N(256))
	l.Sent++
	now := l.w.now
	if l.Down || l.MTU > 0 && size > l.MTU {
		return
	}
	at := now
	if l.Rate > 0 {
		at = max(l.free, now)
		if (at-now).Seconds()*l.Rate+float64(size) > float64(max(l.Queue, size)) {
			l.Overflowed++
			return
		}
		at += time.Duration(float64(size) / l.Rate * float64(time.Second))
		l.free = at
	}
	if lost {
		l.Lost++
		return
	}
	if !early {
		at += l.Delay
	}
	var c []byte
	if n := len(l.w.spare); n > 0 {
		c = append(l.w.spare[n-1][:0], b...)
		l.w.spare = l.w.spare[:n-1]
	} else {
		c = append(make([]byte, 0, 2048), b...)
	}
	l.w.push(event{at: at + off, from: from, to: to, b: c})
}

// Port is a udx.BatchSocket with one address.
type Port struct {
	addr netip.AddrPort
	mux  *udx.Mux
	out  *Link
	w    *World
}

// Port opens a port whose datagrams go out over a link, and come in to mux.
func (w *World) Port(addr string, mux *udx.Mux, out *Link) *Port {
	p := &Port{addr: netip.MustParseAddrPort(addr), mux: mux, out: out, w: w}
	w.ports[p.addr] = p
	return p
}

// LocalAddr returns the port's address.
func (p *Port) LocalAddr() netip.AddrPort { return p.addr }

// Send sends a datagram. It never fails.
func (p *Port) Send(b []byte, to netip.AddrPort) error {
	if q := p.w.ports[to]; q != nil {
		p.out.send(b, p.addr, q)
	}
	return nil
}

// SendBatch sends datagrams. It never fails.
func (p *Port) SendBatch(b [][]byte, to netip.AddrPort) error {
	for _, d := range b {
		_ = p.Send(d, to)
	}
	return nil
}

// SendFragments sends a datagram in as many fragments as the link asks for.
func (p *Port) SendFragments(b []byte, to netip.AddrPort) error {
	if q := p.w.ports[to]; q != nil {
		mtu := p.out.MTU
		p.out.MTU = 0
		p.out.send(b, p.addr, q)
		p.out.MTU = mtu
	}
	return nil
}

func (p *Port) received(b []byte, from netip.AddrPort) { p.mux.Receive(p, b, from) }

// Flow sends as much over a stream as the stream takes, and reads it at the other end. Its bytes are those of
// [Pattern].
type Flow struct {
	From, To *udx.Stream

	Received int64         // bytes
	Wrong    int64         // offset + 1 of the first byte that was not the pattern's; 0: none
	Last     time.Duration // when some were received last
	Stall    time.Duration // the longest time without any since ResetStall

	sent int64
	w    *World
}

// Pattern fills b with the bytes that belong at an offset.
func Pattern(b []byte, offset int64) {
	for len(b) > 0 {
		n := copy(b, pattern[offset%period:])
		b, offset = b[n:], offset+int64(n)
	}
}

// period is prime, so that packets out of place show.
const period = 65521

var pattern = func() (p [period]byte) { //nolint:gochecknoglobals // a constant table
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}()

// NewFlow adds a flow over two streams that are connected with each other.
func (w *World) NewFlow(from, to *udx.Stream) *Flow {
	f := &Flow{From: from, To: to, w: w, Last: w.now}
	w.flows = append(w.flows, f)
	return f
}

// ResetStall begins to look for the longest stall.
func (f *Flow) ResetStall() { f.Stall, f.Last = 0, f.w.now }

func (f *Flow) move() {
	var buf [64 << 10]byte
	for room := f.From.Stats().Room; room > 0; room = f.From.Stats().Room {
		b := buf[:min(room, len(buf))]
		Pattern(b, f.sent)
		n, err := f.From.Write(b)
		f.sent += int64(n)
		if err != nil {
			break
		}
	}
	for waiting := f.To.Stats().BytesWaiting; waiting > 0; waiting = f.To.Stats().BytesWaiting {
		n, err := f.To.Read(buf[:min(waiting, len(buf))])
		if err != nil {
			return
		}
		f.check(buf[:n])
		f.Received += int64(n)
		f.Stall, f.Last = max(f.Stall, f.w.now-f.Last), f.w.now
	}
}

func (f *Flow) check(b []byte) {
	for at, i := f.Received, 0; i < len(b) && f.Wrong == 0; {
		want := pattern[(at+int64(i))%period:]
		n := min(len(want), len(b)-i)
		if string(b[i:i+n]) != string(want[:n]) {
			f.Wrong = at + int64(i) + 1
		}
		i += n
	}
}
