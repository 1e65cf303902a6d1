package udx

// seq is a sequence number: it counts numbered packets, not bytes, starts at 0 in each direction, and wraps.
type seq uint32

// before reports whether a comes before b, which holds for the 2³¹ numbers after a.
func (a seq) before(b seq) bool { return int32(a-b) < 0 }

// max returns the later of a and b.
func (a seq) max(b seq) seq {
	if a.before(b) {
		return b
	}
	return a
}
