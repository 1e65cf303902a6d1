package udx

const (
	// standingMost is what may stand in the read buffers of all streams of a Mux that nobody reads: see Stream.shareLocked.
	standingMost = 64 << 20
	// leastShare is how much a stream's peer may always send.
	leastShare = 16 << 10
	// standingStep is in what steps it is counted, so that streams which are read as data comes touch nothing that they share.
	standingStep = 16 << 10
)

// shareLocked returns how many bytes may stand in the stream's read buffer for the peer to go on sending: as many as all streams
// of the Mux together have left, at most the buffer's limit. So a few slow readers have what they need, and of n of them each
// comes to have standingMost/(n+1), as queues do that share the memory of a switch (Choudhury and Hahne, 1998). What a peer
// has been allowed before is taken in any case. A buffer that has grown has a budget of its own, growthBudget.
func (s *Stream) shareLocked() int {
	if s.growth.taken > 0 {
		return s.assembly.limit
	}
	left := s.mux.standingMost - int(s.mux.standing.Load())
	return min(max(left, leastShare), s.assembly.limit)
}

// windowLocked returns the window to announce.
func (s *Stream) windowLocked() uint32 { return s.assembly.window(s.shareLocked()) }

// countLocked counts what stands in the stream's read buffer.
func (s *Stream) countLocked() {
	n := 0
	if s.growth.taken == 0 && !s.finished {
		n = s.assembly.buf.len / standingStep * standingStep
	}
	if n != s.standing {
		s.mux.standing.Add(int64(n - s.standing))
		s.standing = n
	}
}
