package udx

import "cmp"

// windowedBest keeps the best of the values seen within the last width units of a running count, which may be time or
// round trips. It remembers three values, the best, the best after it, and the best after that, so that the oldest can
// go without a gap. Source: Kathleen Nichols' algorithm as in Linux lib/win_minmax.c.
type windowedBest[T cmp.Ordered] struct {
	best [3]struct {
		at int64
		v  T
	}
	set bool
}

// get returns the best value, zero if there is none.
func (f *windowedBest[T]) get() T { return f.best[0].v }

// reset forgets all values but v.
func (f *windowedBest[T]) reset(at int64, v T) {
	for i := range f.best {
		f.best[i].at, f.best[i].v = at, v
	}
	f.set = true
}

// update adds v, seen at at. better(a, b) reports whether a is at least as good as b.
func (f *windowedBest[T]) update(width, at int64, v T, better func(a, b T) bool) {
	b := &f.best
	if !f.set || better(v, b[0].v) || at-b[2].at > width {
		f.reset(at, v)
		return
	}
	switch {
	case better(v, b[1].v):
		b[1].at, b[1].v = at, v
		b[2] = b[1]
	case better(v, b[2].v):
		b[2].at, b[2].v = at, v
	}
	switch since := at - b[0].at; {
	case since > width: // the best is too old; is the next one?
		b[0], b[1] = b[1], b[2]
		b[2].at, b[2].v = at, v
		if at-b[0].at > width {
			b[0], b[1] = b[1], b[2]
		}
	case b[1].at == b[0].at && since > width/4: // a quarter of the window without a second: take this one
		b[1].at, b[1].v = at, v
		b[2] = b[1]
	case b[2].at == b[1].at && since > width/2:
		b[2].at, b[2].v = at, v
	}
}

func atLeast[T cmp.Ordered](a, b T) bool { return a >= b }
func atMost[T cmp.Ordered](a, b T) bool  { return a <= b }
