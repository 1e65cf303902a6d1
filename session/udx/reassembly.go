package udx

const (
	// maxAhead bounds how far beyond the expected number a packet is kept, and a DESTROY believed.
	maxAhead        = 32768
	maxDestroyAhead = 65536

	maxHeld  = 8192 // packets kept beyond a hole
	heldCost = 64   // bytes a kept packet counts for at least
	// Peers may overshoot a window by a packet or two. What fills a hole is let in a little further than what
	// comes after one, or the room could be full of packets that wait for one which finds none.
	windowSlack = 32 << 10
	holeSlack   = 64 << 10
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
	limit     int  // bytes for buf, and as many for held
	discard   bool // nobody will read: deliver to nowhere
	ended     bool // everything up to the end was delivered
	cursor    int  // where the next list of blocks starts, if they do not all fit
	latest    seq  // the packet held last
}

// window returns the bytes the peer may have in flight. What is held beyond a hole has been reported and is not in
// flight any more, so it counts only when it is too much. The window is zero rather than less than a packet.
func (a *assembly) window() uint32 {
	free := a.limit - a.buf.len - max(a.heldBytes-a.limit, 0)
	if free < min(maxPayload, a.limit/2) {
		return 0
	}
	return uint32(free)
}

// add takes a packet with FlagData or FlagEnd. It does not keep data.
func (a *assembly) add(q seq, flags Flags, data []byte) arrival {
	if q.before(a.expected) || a.ended {
		return duplicate
	}
	if flags&FlagData == 0 {
		data = nil
	}
	room := 2*a.limit - a.buf.len - a.heldBytes - len(data)
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
		}
		return holeFilled
	}
	if _, ok := a.held[q]; ok {
		return duplicate
	}
	if room < -windowSlack || q-a.expected > maxAhead || len(a.held) >= maxHeld {
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
	a.latest = q
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

// appendBlocks appends the ranges to report to b, ascending. If there are more than fit in a packet, the first ones
// are always there, and the rest take turns around the latest.
func (a *assembly) appendBlocks(b []seqRange) []seqRange {
	if len(a.ranges) <= maxSACKs {
		return append(b, a.ranges...)
	}
	const always = 10
	b = append(b, a.ranges[:always]...)
	rest := a.ranges[always:]
	const turn = maxSACKs - always - 1
	if a.cursor >= len(rest) {
		a.cursor = 0
	}
	part := rest[a.cursor:min(a.cursor+turn, len(rest))]
	a.cursor += turn
	i := rest.search(a.latest + 1)
	if i == len(rest) {
		return append(b, part...)
	}
	switch r := rest[i]; {
	case r.start.before(part[0].start):
		b = append(append(b, r), part...)
	case part[len(part)-1].start.before(r.start):
		b = append(append(b, part...), r)
	default:
		b = append(b, part...)
	}
	return b
}
