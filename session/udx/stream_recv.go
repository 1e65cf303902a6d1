package udx

import "net/netip"

// receive handles a packet for the stream. What it makes possible or due is left to settle. It reports whether the stream goes on.
func (s *Stream) receive(now instant, sock Socket, h Header, rest []byte, from netip.AddrPort) bool {
	s.mu.Lock()
	if !s.knowsLocked(sock, from) && !s.finished {
		s.mu.Unlock()
		if from.Port() == 0 {
			return true
		}
		if s.accept == nil || !s.accept(sock, from) {
			if s.onStray != nil {
				s.onStray(sock, from, strayMessage(h, rest))
			}
			return true
		}
		s.mu.Lock()
	}
	var message []byte
	var deliver bool
	if !s.finished {
		s.heard = now
		message, deliver = s.handleLocked(now, h, rest)
	}
	finished := s.finished
	s.mu.Unlock()
	if deliver && s.onMessage != nil {
		s.onMessage(sock, from, message)
	}
	return !finished
}

// settle wakes whoever waits for what packets have brought since the last time, and has sent what they made due.
func (s *Stream) settle(now instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readable {
		s.readable = false
		s.readers.wake.Signal()
	}
	if s.writable {
		s.writable = false
		s.writers.wake.Broadcast()
	}
	switch {
	case s.finished:
	case s.dueLocked(now):
		s.wakeLocked()
	default:
		s.setTimerLocked(now)
	}
}

// strayMessage returns the unordered message that a packet carries, nil if it is another kind of packet.
func strayMessage(h Header, rest []byte) []byte {
	if h.Flags&FlagMessage == 0 || h.Flags&FlagHeartbeat != 0 || int(h.Offset) > len(rest) {
		return nil
	}
	return rest[h.Offset:]
}

// handleLocked does what a packet asks for. The message it returns is to be delivered without the lock.
func (s *Stream) handleLocked(now instant, h Header, rest []byte) (message []byte, deliver bool) {
	if h.Flags&FlagHeartbeat != 0 {
		s.acks.demand(now)
		return nil, false
	}
	if int(h.Offset) > len(rest) {
		return nil, false
	}
	payload := rest[h.Offset:]
	q := seq(h.Seq)
	numbered := h.Flags&(FlagData|FlagEnd) != 0
	if numbered {
		s.takeLocked(now, q, h.Flags, payload)
	}
	if h.Flags&FlagDestroy != 0 && !q.before(s.assembly.expected) && q-s.assembly.expected <= maxDestroyAhead {
		s.finishLocked(ErrReset)
		return nil, false
	}
	if h.Flags&FlagMessage != 0 {
		message, deliver = payload, true
	}

	s.acknowledgeLocked(now, h, rest)
	if s.sender.ended && s.assembly.ended {
		s.finishLocked(nil)
	}
	return message, deliver
}

// acknowledgeLocked takes the acknowledgement that a packet carries.
func (s *Stream) acknowledgeLocked(now instant, h Header, rest []byte) {
	d := &s.sender
	var blocks []byte
	if h.Flags&FlagSACK != 0 {
		blocks = sackBlocks(h, rest)
	}
	wasEnded, held := d.ended, d.held
	d.acknowledged(now, h, blocks)
	s.acks.trip = d.rtt.min()
	if d.held < held {
		if s.closing {
			s.closeBy = now.add(closeProgress)
		}
		if d.room() >= writeAhead/4 {
			s.writable = true
		}
	}
	if d.ended && !wasEnded && !s.assembly.ended {
		s.acks.demand(now) // tells the peer that its half of the closing arrived
		if s.closing {
			s.closeEnd = min(s.closeEnd, now.add(closePeer))
		}
	}
}

// takeLocked takes a packet with a number of its own.
func (s *Stream) takeLocked(now instant, q seq, flags Flags, payload []byte) {
	ended := s.assembly.ended
	waiting := s.assembly.buf.len
	expected := s.assembly.expected
	what := s.assembly.add(q, flags, payload)
	s.growth.received(now, s.assembly.expected != expected, len(s.assembly.ranges) > 0)
	switch what {
	case inOrder, holeFilled, outOfOrder:
		s.received.packets++
		s.received.bytes += uint64(len(payload))
		if what == outOfOrder {
			s.received.outOfOrder++
		}
	case duplicate:
		s.received.duplicates++
		s.assembly.repeated(q)
	case refused:
		s.received.refused++
	}
	s.acks.received(now, what != inOrder || flags&FlagEnd != 0, len(s.assembly.ranges) > manyHoles && flags&FlagEnd == 0)
	s.countLocked()
	if s.assembly.buf.len > waiting || s.assembly.ended != ended {
		s.readable = true
	}
}

// dueLocked reports whether there is anything to send now.
func (s *Stream) dueLocked(now instant) bool {
	d := &s.sender
	return s.acks.ready(now) || d.sendTail || d.sendProbe || s.destroy ||
		d.paceAt <= now && (d.missing.len > 0 || d.queue.len > 0) &&
			(d.flight.len == 0 || d.flightCost < d.congestion.window)
}
