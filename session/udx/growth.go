package udx

import "time"

// growthRounds is for how many round trips of what is read now a read buffer must have room: two in flight of a peer that
// starts, and a doubling of the rate until the peer knows of a larger window.
const growthRounds = 4

// growth finds out when the read buffer is too small for the path: it must have room for what a peer that doubles its rate
// each round trip has in flight before it can know of a larger window, and for what waits until a lost packet is there.
type growth struct {
	most  int // bytes, the buffer may grow to; zero: it does not
	taken int // bytes of the Mux's budget

	since instant
	read  int // bytes since then

	holeAt instant       // since when a packet is missing; zero: none is
	hole   time.Duration // how long one was lately
}

// received tells where the assembly stands after a packet: whether it has moved on, and whether packets are held.
func (g *growth) received(now instant, advanced, holding bool) {
	if g.holeAt != 0 && advanced {
		g.hole = max(now.sub(g.holeAt), g.hole*7/8)
		g.holeAt = 0
	}
	if g.holeAt == 0 && holding {
		g.holeAt = now
	}
}

// consumed tells that n bytes were read, and reports whether a buffer of limit bytes is to be doubled. rtt is zero if
// it is not known, because all that was sent was sent again: then it is taken for what a lost packet was missing, which is as
// much at least.
func (g *growth) consumed(now instant, n, limit int, rtt time.Duration) bool {
	if rtt == 0 {
		rtt = g.hole
	}
	if rtt == 0 || 2*limit > g.most {
		return false
	}
	g.read += n
	took := now.sub(g.since)
	if took < max(rtt, time.Millisecond) {
		return false
	}
	grow := float64(g.read)*(growthRounds*rtt+g.hole).Seconds() >= float64(limit)*took.Seconds()
	g.since, g.read = now, 0
	return grow
}

// growLocked doubles the read buffer, unless the streams of the Mux have taken too much already.
func (s *Stream) growLocked() {
	by := s.assembly.limit
	if s.mux.grown.Add(int64(by)) > growthBudget {
		s.mux.grown.Add(int64(-by))
		return
	}
	s.growth.taken += by
	s.assembly.limit += by
}

// shrinkLocked gives back what growLocked took. Nothing is received any more.
func (s *Stream) shrinkLocked() {
	s.mux.grown.Add(int64(-s.growth.taken))
	s.growth = growth{}
}
