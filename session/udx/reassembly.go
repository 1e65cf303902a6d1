package udx

import "slices"

const (
	// maxAhead bounds how far beyond the expected number a packet is kept, and a DESTROY believed.
	maxAhead        = maxSpan
	maxDestroyAhead = 65536

	heldCost = 128 // bytes a packet kept beyond a hole counts for at least
	// Peers may overshoot a window: by a packet or two, and by what they send on a report that a later one has
	// overtaken. What fills a hole is let in further than what comes after all, and the packet expected next a little further still,
	// or the room could be full of packets that wait for some which find none.
	windowSlack  = 32 << 10
	windowSlacks = 4 // this part of the limit, besides
	holeSlacks   = 8 // this part of the limit
	holeSlack    = 32 << 10

	maxRecent = 16 // packets, which are reported each time; acknowledgements are not put off for so many

	// tellRepeats is how many packets must have come again before the peer is told of those that do: a few are of no
	// use to it. maxAgain are told of at once.
	tellRepeats = 16
	maxAgain    = 8
)

// arrival says what became of a numbered packet.
type arrival uint8

// The fates of numbered packets.
const (
	refused    arrival = iota // no room, or too far ahead: as if it had been lost
	duplicate                 // was here before, or behind the end
	inOrder                   // delivered, with nothing held before or after
	outOfOrder                // kept
	holeFilled                // delivered while others are held, which may have been delivered with it
)

type heldPacket struct {
	flags Flags
	data  []byte
}

// assembly puts the numbered packets of the receiving side in order. What it has kept it has promised to the peer,
// and never lets go of.
type assembly struct {
	expected  seq
	held      map[seq]heldPacket // beyond expected
	ranges    rangeset           // the numbers of held
	heldBytes int
	buf       readBuffer
	limit     int   // bytes for buf, and as many for held
	discard   bool  // nobody will read: deliver to nowhere
	ended     bool  // everything up to the end was delivered
	again     []seq // came again since the last report, maxAgain at most
	repeats   int   // packets that came again, so far
	cursor    int   // where the next list of blocks starts, if they do not all fit
	recent    []seq // packets held last, maxRecent at most, in turns
	latest    int   // how many there were
}

// window returns the bytes the peer may have in flight, if limit may wait to be read. What is held beyond a hole has been
// reported and is not in flight any more, so it counts only when it is too much. The window is zero rather than less than a
// packet.
func (a *assembly) window(limit int) uint32 {
	free := limit - a.buf.len - max(a.heldBytes-a.limit, 0)
	if free < min(maxPayload, limit/2) {
		return 0
	}
	return uint32(free)
}

// most is how many bytes are kept at most.
func (a *assembly) most() int {
	return 2*a.limit + a.limit/windowSlacks + windowSlack + a.limit/holeSlacks + holeSlack
}

// add takes a packet with FlagData or FlagEnd. It does not keep data.
func (a *assembly) add(q seq, flags Flags, data []byte) arrival {
	if q.before(a.expected) || a.ended {
		return duplicate
	}
	if flags&FlagData == 0 {
		data = nil
	}
	room := a.most() - holeSlack - a.buf.len - a.heldBytes - len(data)
	if q == a.expected {
		if room < -holeSlack {
			return refused
		}
		a.deliver(flags, data)
		if len(a.held) == 0 {
			return inOrder
		}
		for !a.ended {
			h, ok := a.held[a.expected]
			if !ok {
				break
			}
			a.release(a.expected)
			a.deliver(h.flags, h.data)
		}
		if a.ended { // whatever a peer numbered beyond its end
			a.held, a.ranges, a.heldBytes = nil, nil, 0
		}
		a.ranges.removeBefore(a.expected)
		if len(a.held) == 0 {
			a.held = nil // a map does not shrink
			a.recent, a.latest = nil, 0
		}
		return holeFilled
	}
	if _, ok := a.held[q]; ok {
		return duplicate
	}
	if n := len(a.ranges); n == 0 || !q.before(a.ranges[n-1].start) {
		room -= a.limit / holeSlacks
	}
	if room < 0 || q-a.expected > maxAhead {
		return refused
	}
	if a.held == nil {
		a.held = make(map[seq]heldPacket)
	}
	var kept []byte
	if !a.discard && len(data) > 0 {
		kept = append(make([]byte, 0, len(data)), data...)
	}
	a.held[q] = heldPacket{flags & (FlagData | FlagEnd), kept}
	a.heldBytes += max(len(kept), heldCost)
	a.ranges.add(q, q+1)
	if len(a.recent) < maxRecent {
		a.recent = append(a.recent, q)
	} else {
		a.recent[a.latest%maxRecent] = q
	}
	a.latest++
	return outOfOrder
}

func (a *assembly) release(q seq) {
	a.heldBytes -= max(len(a.held[q].data), heldCost)
	delete(a.held, q)
}

func (a *assembly) deliver(flags Flags, data []byte) {
	a.expected++
	if !a.discard {
		a.buf.add(data)
	}
	a.ended = flags&FlagEnd != 0
}

// abandon delivers to nowhere from now on, and drops what nobody read.
func (a *assembly) abandon() {
	a.discard = true
	a.buf.drop()
	for q, h := range a.held {
		a.heldBytes -= max(len(h.data), heldCost) - heldCost
		a.held[q] = heldPacket{flags: h.flags}
	}
}

// repeated notes that packet q came again, although it was there.
func (a *assembly) repeated(q seq) {
	if a.repeats++; a.repeats >= tellRepeats && len(a.again) < maxAgain {
		a.again = append(a.again, q)
	}
}

// appendBlocks appends the ranges to report to b. The first ones may be single packets that came again, which lie before
// the number expected next (RFC 2883): a sender that does not know about them passes over them. Then those that are
// held ascend. If there are more than fit in a packet, the first ones and those in which something has arrived
// lately are always there, and the rest take turns.
func (a *assembly) appendBlocks(b []seqRange) []seqRange {
	later := a.again[:0]
	for _, q := range a.again {
		if q.before(a.expected) {
			b = append(b, seqRange{q, q + 1})
		} else {
			later = append(later, q)
		}
	}
	a.again = later
	room := maxSACKs - len(b)
	if len(a.ranges) <= room {
		return append(b, a.ranges...)
	}
	const always = 8
	var chosen [maxSACKs]int
	n := 0
	for ; n < always; n++ {
		chosen[n] = n
	}
	for _, q := range a.recent {
		if i := a.ranges.search(q + 1); i < len(a.ranges) && !slices.Contains(chosen[:n], i) {
			chosen[n] = i
			n++
		}
	}
	for range len(a.ranges) {
		if n >= room {
			break
		}
		if a.cursor = max(a.cursor+1, always); a.cursor >= len(a.ranges) {
			a.cursor = always
		}
		if !slices.Contains(chosen[:n], a.cursor) {
			chosen[n] = a.cursor
			n++
		}
	}
	slices.Sort(chosen[:n])
	for _, i := range chosen[:n] {
		b = append(b, a.ranges[i])
	}
	return b
}
