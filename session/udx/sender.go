package udx

import "time"

const (
	initialPeerWindow = 4 << 20 // bytes a peer is taken to accept before its first packet

	// maxSpan bounds the numbers between the oldest unacknowledged packet and the newest, so that a peer that never
	// acknowledges one of them cannot make the ring grow on.
	maxSpan = 1 << 18

	// leftOutMany is in how many places a list must leave out blocks to show that the peer chooses what it reports; if it
	// cannot be an old list, because it acknowledges more than any before, how many blocks. The reference reports the first
	// ones, and only an old list of it lacks one that is known.
	leftOutMany = 8

	// passedMany is how many packets in flight of which nothing is known make it too costly to pass over them for each
	// acknowledgement.
	passedMany = 256

	ringKept = 64 // slots of the ring that an idle stream keeps

	writeAhead = 256 << 10 // bytes taken from writers beyond what may be in flight

	// giveUpCount and giveUpAfter: data is unacknowledged for so many timeouts and so long: the peer is gone.
	giveUpCount = 7
	giveUpAfter = 12 * time.Second
	// askTimes is how often it is asked in the place of one timeout whether only large packets vanish: until that is known
	// nothing else gets through.
	askTimes = 3

	// rtoBackoffMax bounds the doubling of the timeout, so that a path that comes back is noticed soon.
	rtoBackoffMax = time.Second

	// tailProbes is how many go out, each after twice the time, before everything is taken for lost: a timeout takes many
	// round trips of a short path.
	tailProbes = 3

	probeLimit = 10 // zero window probes without any answer for giveUpAfter before the peer is taken for gone
)

type recoveryState uint8

// The states of loss recovery.
//
//	        a packet is lost              timeout
//	open ────────────────────▶ recovery ──────────▶ timed out
//	  ▲───all sent until then acknowledged──┴───────────┘
const (
	open recoveryState = iota
	recovery
	timedOut
)

type timerKind uint8

// What the sender's one timer is for.
const (
	timerNone    timerKind = iota
	timerReorder           // a packet may be late enough to be lost
	timerTail              // send something to provoke an acknowledgement
	timerTimeout           // take everything for lost
	timerProbe             // ask a peer with a closed window
)

// sender decides what goes out on a stream, and when. It has no lock, no clock and no socket.
type sender struct {
	una, next seq // oldest unacknowledged; next new one
	ring      packetRing
	flight    packetList // in the order of their latest sending
	missing   packetList // lost, to be sent again
	queue     packetList // never sent; all but the last are full
	sacked    rangeset   // arrived beyond una
	gaps      []seqRange // scratch
	full      bool       // the peer's last list of blocks was full: it may have more
	cutShort  bool       // and says nothing about packets from unknown on
	unknown   seq
	lookAt    instant // not before is flight searched again for what is lost; zero: at any time
	undone    int     // bytes that were found to be late, not lost, since the last sample
	timedLost int     // bytes that a timer found to be lost since then
	thorough  bool    // the peer reports what arrives at once, whether there are too many blocks or not

	flightCost int  // bytes in flight, as the network counts them
	flightData int  // bytes of payload in flight, as the peer's window counts them
	asked      bool // heartbeats are to show whether only large packets vanish, and nothing has been sent since
	questions  int  // how many of them were sent
	fragment   bool // they do: the network must cut those that cannot be cut anew
	disordered bool // the path is known to reorder, and how much
	missData   int  // bytes of payload in missing, for which the peer must have room as well
	held       int  // bytes of payload written and not acknowledged

	peerWindow           int // bytes
	windowSeq, windowAck seq // of the packet that last set it

	rtt        rttEstimator
	rack       rack
	rate       sampler
	congestion congestion
	pacer      pacer
	mtu        mtuSearch
	overhead   int // bytes of IP and UDP headers

	state      recoveryState
	highSeq    seq // next when the state was entered
	timer      timerKind
	timerAt    instant
	paceAt     instant // when the pacer lets more out; zero: it does not hold anything back
	timeouts   int     // in a row
	stuckSince instant // oldest of the packets in flight was sent, or something was acknowledged, or a probe answered
	tailOut    bool    // a tail probe was sent and nothing sampled since
	tails      int     // how many
	sendTail   bool    // the next packet is a tail probe
	probes     int     // zero window probes in a row without an answer
	sendProbe  bool    // a zero window probe is due

	endQueued bool
	endSeq    seq
	endSent   bool
	ended     bool // everything up to the end is acknowledged

	stats senderStats
}

type senderStats struct {
	packets, again, timeouts, tails, spurious, sentBytes, blackHoles uint64
}

func newSender() sender {
	s := sender{peerWindow: initialPeerWindow, overhead: overhead4, congestion: newCongestion()}
	s.mtu.reset()
	s.pacer.rate = s.congestion.rate
	return s
}

// payloadSize is how many bytes a full packet takes.
func (s *sender) payloadSize() int { return s.mtu.size - s.overhead - HeaderSize }

// room is how many bytes writers may add.
func (s *sender) room() int {
	return max(writeAhead+min(s.congestion.window, s.peerWindow)-s.held, 0)
}

// topUp adds the start of b to a packet that waits and has room, and returns how much.
func (s *sender) topUp(b []byte) int {
	p := s.queue.last
	if p == nil || p.flags&FlagEnd != 0 {
		return 0
	}
	n := p.fill(b, s.payloadSize())
	s.held += n
	return n
}

// append queues a packet of new data.
func (s *sender) append(p *packet) {
	size := s.payloadSize()
	for p.n > size { // cut for a larger path than the present one
		rest := newPacket()
		rest.fill(p.payload()[size:], maxPayload)
		p.n = size
		s.held += p.n
		s.queue.push(p)
		p = rest
	}
	s.held += p.n
	s.queue.push(p)
}

// end queues the end of the stream, with the data that waits if there is some.
func (s *sender) end() {
	if s.endQueued {
		return
	}
	s.endQueued = true
	if s.queue.last == nil {
		s.queue.push(newPacket())
	}
	s.queue.last.flags |= FlagEnd
}

// newPath tells that packets take another path from now on.
func (s *sender) newPath(now instant, ipv6 bool) {
	s.overhead = overhead4
	if ipv6 {
		s.overhead = overhead6
	}
	s.mtu.reset()
	s.asked, s.fragment = false, false
	s.rtt.newPath()
	s.congestion.newPath()
	for p := s.flight.first; p != nil; p = p.next {
		p.probe = 0 // it says nothing about the new path
	}
	queue := s.queue
	s.queue = packetList{}
	for p := queue.first; p != nil; {
		next := p.next
		end := p.flags & FlagEnd
		p.flags &^= FlagEnd
		s.held -= p.n
		s.append(p)
		s.queue.last.flags |= end
		p = next
	}
	if s.timeouts > 0 && s.timer == timerTimeout { // the old path was dead: try the new one now
		s.timeouts = 0
		s.timerAt = now
	}
}

// acknowledged takes the acknowledgement, window and blocks of a packet. It reports whether it was news.
func (s *sender) acknowledged(now instant, h Header, blocks []byte) {
	ack := seq(h.Ack)
	if s.next.before(ack) {
		return
	}
	// A packet with the peer's own data, or one by which it takes more of ours, may have left before the question came.
	pure := h.Flags&^FlagSACK == 0
	answer := pure && windowOf(h) == s.peerWindow
	if s.probes > 0 {
		s.probes, s.stuckSince = 1, now // the peer lives
	}
	if !ack.before(s.una) {
		s.updateWindow(windowOf(h), seq(h.Seq), ack)
	}
	if s.una == s.next && s.queue.len == 0 && len(blocks) == 0 && s.timer == timerNone && s.state == open {
		s.full, s.cutShort = false, false
		return // nothing is in flight, or about to be
	}
	before := s.flightCost
	delivered := s.rate.delivered
	s.rack.heard(now)
	var latest struct { // the packet that was sent last
		at    instant
		seq   seq
		again bool
	}
	arrived := func(p *packet) {
		if latest.at == 0 || !p.sentBefore(latest.at, latest.seq) {
			latest.at, latest.seq, latest.again = p.sentAt, p.seq, p.sends > 1
		}
		if s.sampleAll() && p.sends == 1 { // the last one alone would show the path too short
			s.rtt.sample(now, now.sub(p.sentAt))
		}
		s.arrived(now, p)
	}
	advanced := s.una.before(ack)
	for ; s.una.before(ack); s.una++ {
		slot := s.ring.at(s.una)
		if p := *slot; p != nil {
			*slot = nil
			arrived(p)
		}
	}
	s.sacked.removeBefore(s.una)
	if s.una == s.next && len(s.ring.slots) > ringKept {
		s.ring = packetRing{}
		s.rack.doubts = nil
	}
	s.takeBlocks(s.takeAgain(now, ack, blocks), advanced, arrived)

	acked := int(s.rate.delivered - delivered)
	switch {
	case acked > 0 || advanced:
		s.asked = false
	case s.asked && answer && ack == s.una:
		s.pathShrank(now)
	case s.asked && pure && ack == s.una:
		s.sendProbe = true // now that its window is known, it may answer once more
	}
	if acked > 0 {
		s.timeouts = 0
		s.stuckSince = now
		s.mtu.works()
	}
	var rtt time.Duration
	if latest.at != 0 && !latest.again {
		rtt = max(now.sub(latest.at), 1)
		if !s.sampleAll() {
			s.rtt.sample(now, rtt)
		}
		s.tailOut, s.tails = false, 0
	}
	if s.state != open && !s.una.before(s.highSeq) {
		s.state = open
		s.rack.recovered()
		s.congestion.recovered()
	}
	if s.endSent && s.endSeq.before(s.una) {
		s.ended = true
	}
	lost := s.detect(now, acked)
	if d := s.rack.settled && s.rack.disordered(); d != s.disordered {
		if s.disordered = d; d {
			s.congestion.restart()
		}
	}
	if before > 0 {
		least := s.rack.least(&s.rtt)
		shortest := least
		if s.rack.disordered() {
			shortest = s.rack.ownTrip(&s.rtt)
		}
		sample := s.rate.sample(now, shortest)
		sample.least, sample.disordered = least, s.rack.disorder > someDisorder
		sample.rtt, sample.acked, sample.lost, sample.inFlight = rtt, acked, lost+s.timedLost, s.flightCost
		sample.undone, s.undone, s.timedLost = s.undone, 0, 0
		if s.disordered {
			sample.period, sample.trip = s.rack.period, s.rack.trip
		}
		s.congestion.acked(now, sample, s.rate.delivered)
		if s.congestion.heldBack(sample.disordered) {
			s.rate.limited(s.flightCost)
		}
		if s.congestion.sure {
			s.congestion.sure = false
			s.rack.base.reset(int64(now), s.rack.trip)
		}
		s.pacer.setRate(now, s.congestion.rate, s.congestion.burst())
	}
	if s.timer != timerReorder && (acked > 0 || advanced) || s.timer == timerNone || s.flight.len == 0 {
		s.setTimer(now)
	}
}

// sampleAll reports whether the round trip of every packet counts, and not only of the one sent last: where packets
// overtake each other, that is often one that overtook. After a list of blocks cut short, what others took says
// nothing.
func (s *sender) sampleAll() bool { return s.rack.reordering && !s.cutShort }

// windowOf returns the window of a packet, in bytes.
func windowOf(h Header) int { return int(min(h.Window, 1<<30)) }

// updateWindow takes the window of a packet unless a later one has set it.
func (s *sender) updateWindow(window int, q, ack seq) {
	if s.windowSeq.before(q) || s.windowSeq == q && !ack.before(s.windowAck) {
		s.peerWindow = window
		s.windowSeq, s.windowAck = q, ack
		if s.peerWindow > 0 {
			s.probes, s.sendProbe = 0, false
		}
	}
}

// takeAgain takes the blocks at the start of a list that tell of packets which came twice, and returns the rest.
func (s *sender) takeAgain(now instant, ack seq, blocks []byte) []byte {
	for ; len(blocks) >= sackSize; blocks = blocks[sackSize:] {
		b := sackBlock(blocks)
		if b.end != b.start+1 || ack.before(b.end) || ack-b.end > maxSpan {
			break
		}
		if cost := s.rack.again(now, b.start, &s.rtt); cost > 0 {
			s.undone += cost
			s.stats.spurious++
		}
	}
	return blocks
}

// takeBlocks calls arrived for each packet in the blocks of a packet that is not known to have arrived. Blocks must
// ascend; those that make no sense are left out. newest says that the list acknowledges more than any before.
func (s *sender) takeBlocks(blocks []byte, newest bool, arrived func(*packet)) {
	if len(blocks) > 0 || s.una == s.next {
		s.full = len(blocks) >= maxSACKs*sackSize
		s.cutShort = s.full && !s.thorough
	}
	least, most := seq(0), s.next-s.una // counted from una, so that nothing can hide behind the wrap
	leftOut := 0
	for ; len(blocks) >= sackSize; blocks = blocks[sackSize:] {
		b := sackBlock(blocks)
		start, end := b.start-s.una, b.end-s.una
		if start < least || start >= end || end > most {
			continue
		}
		if s.cutShort && least > 0 {
			if i := s.sacked.search(s.una + least + 1); i < len(s.sacked) && s.sacked[i].end.before(b.start) {
				leftOut++
				if newest {
					leftOut += s.sacked.search(b.start) - i - 1
				}
			}
		}
		least = end
		s.unknown = b.end
		s.gaps = s.sacked.appendMissing(s.gaps[:0], b.start, b.end)
		for _, g := range s.gaps {
			for q := g.start; q != g.end; q++ {
				if slot := s.ring.at(q); *slot != nil {
					arrived(*slot)
					*slot = nil
				}
			}
		}
		s.sacked.add(b.start, b.end)
	}
	if leftOut >= leftOutMany {
		s.thorough, s.cutShort = true, false
	}
}

// arrived takes a packet out of the books for good.
func (s *sender) arrived(now instant, p *packet) {
	telling := !s.cutShort && s.state != timedOut
	switch p.state {
	case packetInFlight:
		s.flight.remove(p)
		s.flightCost -= p.cost()
		s.flightData -= p.n
		s.rack.arrived(now, p, &s.rtt, false, telling)
	case packetLost:
		s.missing.remove(p)
		s.missData -= p.n
		s.stats.spurious++
		s.undone += p.cost()
		s.rack.arrived(now, p, &s.rtt, true, telling)
	case packetQueued, packetDelivered:
		return
	}
	if p.probe != 0 {
		s.mtu.carried(now, p.probe)
	}
	s.rate.arrived(now, p, s.rack.ownTrip(&s.rtt))
	s.held -= p.n
	p.state = packetDelivered
	p.free()
}

// detect marks lost what must be, and sets the reorder timer for what may be later. It returns the bytes newly lost.
func (s *sender) detect(now instant, acked int) (lost int) {
	if now < s.lookAt && s.flight.len > 0 {
		if s.timer == timerNone || s.timer == timerReorder {
			s.timer, s.timerAt = timerReorder, s.lookAt
		}
		return 0
	}
	if s.timer == timerReorder {
		s.timer, s.timerAt = timerNone, 0
	}
	sackedCount := 0
	for _, r := range s.sacked {
		if sackedCount += int(r.end - r.start); sackedCount >= 3 {
			break
		}
	}
	window := s.rack.window(&s.rtt, s.state != open || sackedCount >= 3)
	if s.full {
		window += s.rtt.smoothed / 8 // a block whose report was lost is reported again in turn
	}
	congested, passed := false, 0
	var next *packet // a lost packet leaves the list
	for p := s.flight.first; p != nil; p = next {
		next = p.next
		if s.cutShort && !p.seq.before(s.unknown) {
			passed++
			continue
		}
		is, wait := s.rack.lost(now, p, window)
		if !is {
			if wait > 0 {
				s.timer, s.timerAt = timerReorder, now.add(max(wait, time.Millisecond/4))
			}
			break
		}
		lost += p.cost()
		if p.probe == 0 {
			congested = true
		}
		s.rack.gaveUp(now, p)
		s.lose(now, p)
	}
	if passed > passedMany { // of which the next acknowledgement will not tell either
		s.lookAt = now.add(max(s.rtt.smoothed/16, time.Millisecond))
	}
	if congested && s.state == open {
		s.state, s.highSeq = recovery, s.next
		s.tailOut, s.tails, s.sendTail = false, 0, false
		s.congestion.lost(s.rate.delivered, s.flightCost, acked, lost)
	}
	return lost
}

// lose moves a packet from flight to missing.
func (s *sender) lose(now instant, p *packet) {
	s.flight.remove(p)
	s.flightCost -= p.cost()
	s.flightData -= p.n
	if p.probe != 0 {
		s.mtu.lost(now, p.probe, false)
		p.probe = 0
	}
	p.state = packetLost
	s.missing.push(p)
	s.missData += p.n
}

// setTimer decides what to wait for after packets were sent or acknowledged. It leaves a reorder timer alone.
func (s *sender) setTimer(now instant) {
	if s.timer == timerReorder && s.flight.len > 0 {
		return
	}
	s.timer, s.timerAt = timerNone, 0
	switch {
	case s.flight.len > 0:
		rto := s.timeout()
		s.timer, s.timerAt = timerTimeout, now.add(rto)
		if s.state != timedOut && !s.tailOut {
			latest := s.flight.first.sentAt.add(rto) // not put off for ever by new data
			if wait := s.tailAfter(); wait < rto {
				s.timer, s.timerAt = timerTail, max(min(now.add(wait), latest), now)
			}
		}
	case s.missing.len == 0 && s.queue.len > 0 && s.peerWindow == 0:
		wait := 2 * s.rtt.rto()
		if s.probes == 0 {
			wait = s.rtt.rto()
		}
		s.timer, s.timerAt = timerProbe, now.add(wait)
	}
}

// timeout returns the time until everything is taken for lost, doubled for each time it was.
func (s *sender) timeout() time.Duration {
	rto := s.rtt.rto()
	if s.rack.disordered() {
		rto = max(rto, s.rack.longest()*5/4)
	}
	limit := max(2*rto, rtoBackoffMax)
	for range s.timeouts {
		if rto *= 2; rto >= limit {
			return limit
		}
	}
	return rto
}

func (s *sender) tailAfter() time.Duration {
	if s.rtt.smoothed == 0 {
		return rtoInitial
	}
	wait := 2 * s.rtt.smoothed
	if s.flight.len == 1 {
		wait += tlpAckDelay
	}
	return max(wait, tlpMin)
}

// wake returns when tick must be called, zero for never.
func (s *sender) wake() instant { return earliest(s.timerAt, s.paceAt) }

// tick does what is due at now. It returns false if the peer is gone.
func (s *sender) tick(now instant) bool {
	if s.paceAt != 0 && s.paceAt <= now {
		s.paceAt = 0
	}
	if s.timerAt == 0 || now < s.timerAt {
		return true
	}
	kind := s.timer
	s.timer, s.timerAt = timerNone, 0
	switch kind {
	case timerReorder:
		s.timedLost += s.detect(now, 0)
		if s.timer == timerNone {
			s.setTimer(now)
		}
	case timerTail:
		s.tailOut, s.sendTail = true, true
		s.stats.tails++
		s.timer, s.timerAt = timerTimeout, now.add(s.timeout())
		if s.tails++; s.tails < tailProbes {
			if again := s.tailAfter() << s.tails; again < s.timeout()/2 {
				s.timer, s.timerAt = timerTail, now.add(again)
			}
		}
	case timerTimeout:
		if s.asked && s.questions < askTimes {
			s.ask(now)
			break
		}
		s.timeouts++
		s.stats.timeouts++
		if s.timeouts >= giveUpCount && now.sub(s.stuckSince) >= giveUpAfter {
			return false
		}
		if s.suspectPath() { // nothing but questions, so that the answer cannot cross a packet
			s.asked, s.questions = true, 0
			s.ask(now)
			break
		}
		s.giveUpFlight(now)
	case timerProbe:
		if s.probes++; s.probes > probeLimit && now.sub(s.stuckSince) >= giveUpAfter {
			return false
		}
		s.sendProbe = true
		s.setTimer(now)
	case timerNone:
	}
	return true
}

// ask sends a question. All that are sent in the place of one timeout take as long as that.
func (s *sender) ask(now instant) {
	s.questions++
	s.sendProbe = true
	s.timer, s.timerAt = timerTimeout, now.add(s.timeout()/askTimes)
}

// giveUpFlight takes everything in flight for lost. What is missing goes again from the oldest on, which the peer waits for: it
// may be small, and those that were missing before too large for the path.
func (s *sender) giveUpFlight(now instant) {
	s.state, s.highSeq = timedOut, s.next
	s.tailOut, s.tails, s.sendTail = false, 0, false
	s.missing = packetList{}
	for q := s.una; q != s.next; q++ {
		p := *s.ring.at(q)
		switch {
		case p == nil:
		case p.state == packetInFlight:
			s.lose(now, p)
		case p.state == packetLost:
			s.missing.push(p)
		}
	}
	s.congestion.timedOut(s.flightCost)
	s.pacer.tokens = max(s.pacer.tokens, 1) // what is lost goes at once
	s.timer, s.timerAt = timerTimeout, now.add(s.timeout())
}

// suspectPath reports whether packets may be too large for the path by now: the oldest one is larger than every path
// carries, and did not arrive although it was sent again. Every other timeout goes to finding out.
func (s *sender) suspectPath() bool {
	if s.timeouts < 2 || s.timeouts%2 != 0 {
		return false
	}
	p := *s.ring.at(s.una)
	return p != nil && p.n > minMTU-s.overhead-HeaderSize
}

// pathShrank tells that the peer answers small packets, and expects the oldest one still, although it was sent again long
// before the question. As large packets vanish, they are cut anew if the peer has none of those that follow. If it
// has, their numbers are settled: then the network must cut them.
func (s *sender) pathShrank(now instant) {
	s.asked = false
	s.stats.blackHoles++
	s.mtu.shrink()
	if len(s.sacked) > 0 {
		s.fragment = true
		s.giveUpFlight(now)
		s.state, s.timeouts = open, 0
		s.congestion.recovered()
		return
	}
	old, queue := s.ring, s.queue
	first, next := s.una, s.next
	s.ring, s.queue, s.flight, s.missing = packetRing{}, packetList{}, packetList{}, packetList{}
	s.next = s.una
	s.flightCost, s.flightData, s.missData, s.held = 0, 0, 0, 0
	s.endSent = false
	for q := first; q != next; q++ {
		s.cutAnew(*old.at(q))
	}
	for p := queue.first; p != nil; p = queue.first {
		queue.remove(p)
		s.cutAnew(p)
	}
	s.rack.fack, s.rack.doubts = s.una, nil
	s.state, s.timeouts = open, 0
	s.tailOut, s.tails, s.sendTail, s.sendProbe = false, 0, false, false
	s.congestion.recovered()
	s.setTimer(now)
}

// cutAnew queues the payload of p in packets of the present size, and frees p, which is in no list.
func (s *sender) cutAnew(p *packet) {
	for b := p.payload(); len(b) > 0; {
		if s.queue.last == nil || s.queue.last.n >= s.payloadSize() {
			s.queue.push(newPacket())
		}
		n := s.queue.last.fill(b, s.payloadSize())
		s.held += n
		b = b[n:]
	}
	if p.flags&FlagEnd != 0 {
		if s.queue.last == nil {
			s.queue.push(newPacket())
		}
		s.queue.last.flags |= FlagEnd
	}
	p.state = packetDelivered
	p.free()
}

// pick returns the next packet to send, zero if there is none now. more says that a writer is about to add to the last
// packet, which then waits until it is full.
func (s *sender) pick(now instant, more bool) *packet {
	if s.sendTail {
		s.sendTail = false
		if p := s.queue.first; p != nil && s.spanLeft() {
			return p
		}
		if p := s.flight.last; p != nil && s.missing.len == 0 {
			return s.highest()
		}
	}
	s.paceAt = 0
	p := s.missing.first
	if p == nil {
		p = s.queue.first
		if p == nil || more && p == s.queue.last && p.n < s.payloadSize() && p.flags&FlagEnd == 0 && s.flight.len > 0 {
			if s.flightCost < s.congestion.window {
				s.rate.limited(s.flightCost)
				s.congestion.starved(now)
			}
			return nil
		}
		if !s.spanLeft() {
			return nil
		}
		if s.flightData+s.missData+p.n > s.peerWindow && (s.peerWindow == 0 || s.flight.len > 0) {
			if s.flightCost < min(s.congestion.window, s.congestion.plenty()) { // it shows the window, not the network
				s.rate.limited(s.flightCost)
			}
			if s.peerWindow == 0 && s.flight.len == 0 && s.timer == timerNone {
				s.probes, s.sendProbe, s.stuckSince = 1, true, now
				s.timer, s.timerAt = timerProbe, now.add(s.rtt.rto())
			}
			return nil
		}
	}
	if s.flight.len > 0 && s.flightCost+p.cost() > s.congestion.window {
		return nil
	}
	if !s.pacer.ready(now) {
		s.paceAt = s.pacer.next(now)
		return nil
	}
	return p
}

func (s *sender) spanLeft() bool { return s.next-s.una < maxSpan }

// highest returns the packet in flight with the highest number.
func (s *sender) highest() *packet {
	for q := s.next - 1; !q.before(s.una); q-- {
		if p := *s.ring.at(q); p != nil && p.state == packetInFlight {
			return p
		}
	}
	return nil
}

// sent books a packet that pick returned as sent at now. It returns the padding to send it with.
func (s *sender) sent(now instant, p *packet) (padding int) {
	s.congestion.fed(now)
	if s.flight.len == 0 {
		s.congestion.sending(s.rate.appLimited != 0)
		s.pacer.setRate(now, s.congestion.rate, s.congestion.burst())
		if s.timeouts == 0 {
			s.stuckSince = now
		}
	}
	s.asked = false // an answer could cross p: it would not tell whether the peer has p
	fresh := p.state == packetQueued
	switch p.state {
	case packetQueued:
		s.queue.remove(p)
		p.seq = s.next
		s.ring.grow(s.una, s.next)
		*s.ring.at(s.next) = p
		s.next++
		if p.flags&FlagEnd != 0 {
			s.endSeq, s.endSent = p.seq, true
		}
		if !s.tailOut {
			if pad, ok := s.mtu.padding(now, s.overhead+HeaderSize+p.n); ok {
				padding = pad
				p.probe = s.overhead + HeaderSize + p.n + pad
			}
		}
	case packetLost:
		s.missing.remove(p)
		s.missData -= p.n
	case packetInFlight: // a tail probe
		s.flight.remove(p)
		s.flightCost -= p.cost()
		s.flightData -= p.n
		if p.probe != 0 {
			s.mtu.lost(now, p.probe, false)
			p.probe = 0
		}
	case packetDelivered:
	}
	s.rate.sent(now, p, s.flightCost)
	p.state = packetInFlight
	p.sends++
	p.sentAt = now
	s.flight.push(p)
	s.flightCost += p.cost()
	s.flightData += p.n
	s.pacer.sent(p.cost() + padding)
	s.stats.packets++
	s.stats.sentBytes += uint64(p.n)
	if !fresh {
		s.stats.again++
	}
	if s.timer == timerNone || s.timer == timerProbe || fresh && s.timer == timerTail && !s.tailOut {
		s.setTimer(now)
	}
	return padding
}

// drop frees everything that was not sent or not acknowledged.
func (s *sender) drop() {
	for _, l := range []*packetList{&s.flight, &s.missing, &s.queue} {
		for p := l.first; p != nil; p = l.first {
			l.remove(p)
			p.state = packetDelivered
			p.free()
		}
	}
	s.ring, s.sacked, s.gaps = packetRing{}, nil, nil
	s.flightCost, s.flightData, s.missData, s.held = 0, 0, 0, 0
	s.timer, s.timerAt, s.paceAt = timerNone, 0, 0
	s.sendTail, s.sendProbe = false, false
}
