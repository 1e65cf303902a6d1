package lab

import (
	"time"

	"omegatun/session/udx"
)

// Event is something that happens in the middle of a transfer over 20 Mbit/s and 40 ms, with a queue of a round trip.
type Event struct {
	Name string
	do   func(p *Pair, f *Flow)
	best float64 // bytes per second afterwards; zero: as before
}

// Survival is what an Event did to a transfer.
type Survival struct {
	Stall     time.Duration // the longest time nothing arrived
	Recovered time.Duration // until as much arrived as before, in half a second; zero: never
	Share     float64       // of what the link carries, in the 10 seconds that begin 20 s after the event
	MTU       int           // that the sender ended up with
}

const (
	eventRate = 20e6 / 8
	eventAt   = 5 * time.Second
)

// Events returns what [udx.Stream] must survive.
func Events() []Event {
	narrow := func(mtu int) func(*Pair, *Flow) {
		return func(p *Pair, _ *Flow) { p.There.MTU, p.Back.MTU = mtu, mtu }
	}
	move := func(mtu int) func(*Pair, *Flow) {
		return func(p *Pair, f *Flow) {
			p.There.Down, p.Back.Down = true, true
			w := p.World
			there, back := eventLink(), eventLink()
			there.Delay, back.Delay = 30*time.Millisecond, 30*time.Millisecond
			there.MTU, back.MTU = mtu, mtu
			a := w.Port("198.51.100.1:1", p.MA, w.NewLink(there))
			b := w.Port("192.0.2.2:2", p.MB, w.NewLink(back)) // the peer stays where it is
			// The layer above notices: here after 100 ms, by authentic packets; the peer when it has heard those.
			w.At(w.Now()+100*time.Millisecond, func() {
				check(f.From.ChangeRemote(a, b.addr, f.To.ID()))
			})
			w.At(w.Now()+130*time.Millisecond, func() {
				check(f.To.ChangeRemote(b, a.addr, f.From.ID()))
			})
		}
	}
	return []Event{
		{Name: "nothing", do: func(*Pair, *Flow) {}},
		{Name: "an outage of five seconds", do: func(p *Pair, _ *Flow) {
			p.There.Down, p.Back.Down = true, true
			p.World.At(p.World.Now()+5*time.Second, func() { p.There.Down, p.Back.Down = false, false })
		}},
		{Name: "a change of address, noticed after 100 ms", do: move(0)},
		{Name: "a change of address, to a path of 1,280", do: move(1280)},
		{Name: "the path carries 1,280 only, and says nothing", do: narrow(1280)},
		{Name: "the path carries 1,200 only, and says nothing", do: narrow(1200)},
		{Name: "half the rate", do: func(p *Pair, _ *Flow) { p.There.Rate /= 2 }, best: eventRate / 2},
		{Name: "five times the round trip", do: func(p *Pair, _ *Flow) { p.There.Delay *= 5; p.Back.Delay *= 5 }},
	}
}

func eventLink() Link {
	return Link{Rate: eventRate, Delay: 20 * time.Millisecond, Queue: int(eventRate * .04)}
}

// Run lets it happen.
func (e Event) Run(seed uint64) (Survival, error) {
	w := New(seed)
	p := w.NewPair(eventLink(), eventLink())
	f := p.Flow(udx.StreamConfig{ID: 1}, udx.StreamConfig{ID: 2})
	w.Run(eventAt)
	const step = 500 * time.Millisecond
	before := f.Received
	w.Run(eventAt + step)
	usual := f.Received - before
	f.ResetStall()
	e.do(p, f)
	best := e.best
	if best == 0 {
		best = eventRate
	}
	var s Survival
	for at := step; at <= 20*time.Second; at += step {
		before = f.Received
		w.Run(eventAt + step + at)
		if s.Recovered == 0 && float64(f.Received-before) > .9*float64(usual)*best/eventRate {
			s.Recovered = at
		}
	}
	s.Stall = max(f.Stall, w.Now()-f.Last)
	before = f.Received
	w.Run(w.Now() + 10*time.Second)
	s.MTU = f.From.Stats().MTU
	s.Share = float64(f.Received-before) / 10 / (best * float64(s.MTU-ipOverhead-udx.HeaderSize) / float64(s.MTU))
	return s, f.failed()
}
