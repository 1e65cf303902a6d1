package lab

import "omegatun/session/udx"

// Pair is two hosts with a link each way.
type Pair struct {
	World  *World
	There  *Link // from A to B
	Back   *Link
	A, B   *Port
	MA, MB *udx.Mux
}

// NewPair makes two hosts.
func (w *World) NewPair(there, back Link) *Pair {
	p := &Pair{
		World: w, There: w.NewLink(there), Back: w.NewLink(back),
		MA: udx.NewMux(udx.Config{Clock: w}), MB: udx.NewMux(udx.Config{Clock: w}),
	}
	p.A = w.Port("192.0.2.1:1", p.MA, p.There)
	p.B = w.Port("192.0.2.2:2", p.MB, p.Back)
	return p
}

// Flow opens a stream from A to B, with the configuration of each end, and keeps it busy.
func (p *Pair) Flow(a, b udx.StreamConfig) *Flow {
	from, to := must(p.MA.NewStream(a)), must(p.MB.NewStream(b))
	check(from.Connect(p.A, p.B.addr, to.ID()))
	check(to.Connect(p.B, p.A.addr, from.ID()))
	must(to.Write([]byte{1})) // as the reader of an encrypted stream does: it must know the round trip to open its window
	return p.World.NewFlow(from, to)
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

// check panics: a stream of a Mux that nobody has closed can be made and connected.
func check(err error) {
	if err != nil {
		panic("lab: " + err.Error())
	}
}
