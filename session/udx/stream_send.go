package udx

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

const (
	// A batch is what is sent without looking at the stream again: as much as the kernel cuts up in one call.
	batchPackets = 44
	batchBytes   = 65507

	maxMessage = maxDatagram - HeaderSize // what the reference implementation can receive
)

// batch is a number of datagrams on their way out.
type batch struct {
	to      []path
	bufs    [][]byte
	packets []*packet // of the same index, nil for packets without a number
	size    int
	refused []bool // the host would not send it: too long
	large   int    // the one with this index, less one, is to be cut up on the way; zero: none

	probe [maxMTU]byte // a packet with padding
	ack   [HeaderSize + maxSACKs*sackSize]byte
	beat  [HeaderSize]byte
	block []seqRange
}

var batches = sync.Pool{New: func() any { return new(batch) }} //nolint:gochecknoglobals // a cache

func (b *batch) add(to *path, buf []byte, p *packet) {
	b.to = append(b.to, *to)
	b.bufs = append(b.bufs, buf)
	b.packets = append(b.packets, p)
	b.refused = append(b.refused, false)
	b.size += len(buf)
	if p != nil {
		p.sending = true
	}
}

func (b *batch) full() bool { return len(b.bufs) >= batchPackets || b.size+maxMTU > batchBytes }

// send sends everything, runs of equal size at once where the socket can. Errors count as loss.
func (b *batch) send() {
	for i := 0; i < len(b.bufs); {
		to, size := b.to[i], len(b.bufs[i])
		if i+1 == b.large {
			b.sendLarge(i)
			i++
			continue
		}
		j := i + 1
		if sock, ok := to.sock.(BatchSocket); ok {
			for j < len(b.bufs) && j+1 != b.large && b.to[j] == to && len(b.bufs[j-1]) == size && len(b.bufs[j]) <= size {
				j++
			}
			if j > i+1 {
				_ = sock.SendBatch(b.bufs[i:j], to.addr)
				i = j
				continue
			}
		}
		if err := to.sock.Send(b.bufs[i], to.addr); err != nil && errors.Is(err, syscall.EMSGSIZE) {
			b.refused[i] = true
		}
		i = j
	}
}

// sendLarge sends a packet which is cut up on the way if the socket can ask for that.
func (b *batch) sendLarge(i int) {
	if f, ok := b.to[i].sock.(FragmentSocket); ok {
		_ = f.SendFragments(b.bufs[i], b.to[i].addr)
		return
	}
	_ = b.to[i].sock.Send(b.bufs[i], b.to[i].addr)
}

// release gives back the packets of the batch and empties it. The lock of the stream is held.
func (b *batch) release(now instant, s *sender) {
	for i, p := range b.packets {
		if p == nil {
			continue
		}
		p.sending = false
		if p.done {
			p.done = false
			p.free()
		} else if b.refused[i] && p.probe != 0 {
			s.mtu.lost(now, p.probe, true)
			p.probe = 0
		}
	}
	b.large = 0
	clear(b.to)
	clear(b.bufs)
	clear(b.packets)
	b.to, b.bufs, b.packets, b.refused, b.size = b.to[:0], b.bufs[:0], b.packets[:0], b.refused[:0], 0
}

// wakeLocked makes sure that a goroutine sends what is due.
func (s *Stream) wakeLocked() {
	if !s.flushing && s.path.sock != nil {
		s.flushing = true
		s.mux.run(s.flush)
	}
}

// flush sends until nothing is due. One goroutine at a time does.
func (s *Stream) flush() {
	b := batches.Get().(*batch)
	s.mu.Lock()
	now := s.mux.now()
	for s.collectLocked(now, b) {
		s.mu.Unlock()
		b.send()
		s.mu.Lock()
		now = s.mux.now()
		b.release(now, &s.sender)
	}
	s.flushing = false
	s.setTimerLocked(now)
	s.mu.Unlock()
	batches.Put(b)
}

// headerLocked returns the header of a packet that goes now.
func (s *Stream) headerLocked(flags Flags, q seq) Header {
	s.window = s.windowLocked()
	return Header{Flags: flags, ID: s.path.id, Window: s.window, Seq: uint32(q), Ack: uint32(s.assembly.expected)}
}

// collectLocked puts into b what is due, and reports whether that is anything.
func (s *Stream) collectLocked(now instant, b *batch) bool {
	d := &s.sender
	if s.destroy {
		s.destroy = false
		h := s.headerLocked(FlagDestroy, d.next)
		h.put(b.beat[:])
		b.add(&s.path, b.beat[:], nil)
		if to := &s.previous; to.sock != nil { // the peer may not have come after us yet
			h.ID = to.id
			h.put(b.ack[:])
			b.add(to, b.ack[:HeaderSize], nil)
		}
		return true
	}
	if !s.finished {
		s.collectDataLocked(now, b)
		if d.sendProbe {
			d.sendProbe = false
			s.headerLocked(FlagHeartbeat, d.next).put(b.beat[:])
			b.add(&s.path, b.beat[:], nil)
		}
	}
	if s.acks.ready(now) {
		s.acks.sent()
		b.block = s.assembly.appendBlocks(b.block[:0])
		flags := Flags(0)
		if len(b.block) > 0 {
			flags = FlagSACK
		}
		s.headerLocked(flags, d.next).put(b.ack[:])
		b.add(&s.path, appendSACKs(b.ack[:HeaderSize], b.block), nil)
	}
	return len(b.bufs) > 0
}

func (s *Stream) collectDataLocked(now instant, b *batch) {
	d := &s.sender
	probed := false
	for !b.full() {
		p := d.pick(now, s.writers.busy)
		if p == nil {
			break
		}
		if p.sending { // a tail probe of what this batch carries
			break
		}
		padding := d.sent(now, p)
		to, fragment := s.pathLocked(p)
		h := s.headerLocked(p.flags, p.seq)
		h.ID = to.id
		if padding > 0 && !probed {
			probed = true
			h.Offset = uint8(padding)
			h.put(b.probe[:])
			clear(b.probe[HeaderSize : HeaderSize+padding])
			n := copy(b.probe[HeaderSize+padding:], p.payload())
			b.add(to, b.probe[:HeaderSize+padding+n], p)
			continue
		}
		h.put(p.buf[:])
		b.add(to, p.buf[:HeaderSize+p.n], p)
		if fragment { // one in a batch is enough
			b.large = len(b.bufs)
			break
		}
	}
	if len(b.bufs) > 0 && len(s.assembly.ranges) == 0 && len(s.assembly.again) == 0 {
		s.acks.sent() // every packet carries it
	}
}

// pathLocked returns the path for a packet: the current one. A packet that was cut for a larger path may not fit there.
// If that is known the network is asked to cut it up. Else it is tried as it is, after that it goes the previous way
// every other time.
func (s *Stream) pathLocked(p *packet) (to *path, fragment bool) {
	switch {
	case p.n <= s.sender.payloadSize():
	case s.sender.fragment:
		return &s.path, true
	case p.sends > 2 && p.sends%2 == 1 && s.previous.sock != nil:
		return &s.previous, false
	}
	return &s.path, false
}

// setTimerLocked sets the timer to when something is due next, if that is before it fires anyway.
func (s *Stream) setTimerLocked(now instant) {
	at := s.acks.due
	if !s.finished {
		at = earliest(at, s.sender.wake())
		if s.closing {
			at = earliest(at, earliest(s.closeBy, s.closeEnd))
		}
		if s.onlyReceivesLocked() {
			if s.quiet.at == 0 {
				s.quiet.at = now.add(quietTime)
			}
			at = earliest(at, s.quiet.at)
		}
	}
	if at == 0 || s.flushing || s.path.sock == nil && !s.closing || s.timerAt != 0 && s.timerAt <= at {
		return
	}
	s.timerAt = at
	wait := max(at.sub(now), 0)
	if s.timer == nil {
		s.timer = s.mux.afterFunc(wait, s.tick)
	} else {
		s.timer.Reset(wait)
	}
}

// tick is called by the timer, in a goroutine of its own, which becomes the one that sends.
func (s *Stream) tick() {
	s.mu.Lock()
	now := s.mux.now()
	s.timerAt = 0
	if !s.finished {
		switch {
		case !s.sender.tick(now):
			s.mux.log.Debug("stream timed out", "id", s.id, "remote", s.path.addr)
			s.destroy = s.path.sock != nil
			s.finishLocked(ErrTimeout)
		case s.closing && (s.closeBy <= now || s.closeEnd <= now):
			s.destroy = s.path.sock != nil
			s.finishLocked(ErrTimeout)
		case s.onlyReceivesLocked() && s.quiet.at != 0 && s.quiet.at <= now:
			ask, gone := s.quiet.look(now, s.heard)
			s.sender.sendProbe = ask
			if gone {
				s.destroy = true
				s.finishLocked(ErrTimeout)
			}
		}
	}
	if s.finished || s.flushing || s.path.sock == nil {
		s.mu.Unlock()
		return
	}
	s.flushing = true
	s.mux.wg.Add(1)
	s.mu.Unlock()
	defer s.mux.wg.Done()
	s.flush()
}

// SendMessage sends b as an unordered message, at once and once: it may be lost, doubled, or overtaken, and is not
// held back when the network is full. It does not keep b. A message that exceeds what the path carries, which Stats
// tells (MTU less 48 bytes over IPv4), is lost without notice; ErrTooLong is returned for more than 2,028 bytes.
func (s *Stream) SendMessage(b []byte) error { return s.sendMessage(b, path{}) }

// SendMessageTo is [Stream.SendMessage] to any address, where the stream has the given id. The stream's path does not change. Unlike
// SendMessage it works after Close too, until the stream is done: what is still to be delivered may have to find another path.
func (s *Stream) SendMessageTo(sock Socket, remote netip.AddrPort, remoteID ID, b []byte) error {
	return s.sendMessage(b, path{sock, unmap(remote), remoteID})
}

func (s *Stream) sendMessage(b []byte, to path) error {
	if len(b) > maxMessage {
		return s.opError("send message", ErrTooLong)
	}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	n := copy(buf[HeaderSize:], b)
	return s.sendNow("send message", FlagMessage, buf[:HeaderSize+n], to)
}

// SendMessages sends each of b as SendMessage does, in order, with as few system calls as the socket can. If one is too
// long none is sent. It keeps neither b nor what is in it.
func (s *Stream) SendMessages(b [][]byte) error {
	size := 0
	for _, m := range b {
		if len(m) > maxMessage {
			return s.opError("send messages", ErrTooLong)
		}
		size += HeaderSize + len(m)
	}
	if len(b) == 0 {
		return nil
	}
	s.mu.Lock()
	if err := s.sendableLocked(); err != nil {
		s.mu.Unlock()
		return s.opError("send messages", err)
	}
	h := s.headerLocked(FlagMessage, s.sender.next)
	to := s.path
	s.mu.Unlock()

	t := trains.Get().(*train)
	defer trains.Put(t)
	t.arena, t.datagrams = slices.Grow(t.arena[:0], size), t.datagrams[:0]
	for _, m := range b {
		start := len(t.arena)
		t.arena = append(h.Append(t.arena), m...)
		t.datagrams = append(t.datagrams, t.arena[start:])
	}
	if err := t.send(to); err != nil {
		return fmt.Errorf("udx: send messages: %w", err)
	}
	return nil
}

// train is the room in which messages are put together.
type train struct {
	arena     []byte
	datagrams [][]byte
}

var trains = sync.Pool{New: func() any { return new(train) }} //nolint:gochecknoglobals // a cache

// send sends the datagrams, runs of equal size at once where the socket can, and returns the first error.
func (t *train) send(to path) (first error) {
	batch, batched := to.sock.(BatchSocket)
	for d := t.datagrams; len(d) > 0; {
		n := 1
		for batched && n < len(d) && n < batchPackets && len(d[n-1]) == len(d[0]) && len(d[n]) <= len(d[0]) &&
			(n+1)*len(d[0]) <= batchBytes {
			n++
		}
		var err error
		if n > 1 {
			err = batch.SendBatch(d[:n], to.addr)
		} else {
			err = to.sock.Send(d[0], to.addr)
		}
		if first == nil {
			first = err
		}
		d = d[n:]
	}
	return first
}

// Heartbeat sends a packet that only asks for an acknowledgement. It shows the path to NATs and relays.
func (s *Stream) Heartbeat() error {
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	return s.sendNow("heartbeat", FlagHeartbeat, buf[:HeaderSize], path{})
}

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }} //nolint:gochecknoglobals // a cache

// sendNow sends a datagram whose header is missing over the stream's path, or to another place.
func (s *Stream) sendNow(op string, flags Flags, b []byte, to path) error {
	s.mu.Lock()
	if err := s.sendableLocked(); err != nil && (to.sock == nil || !s.closing || s.finished) {
		s.mu.Unlock()
		return s.opError(op, err)
	}
	if to.sock == nil {
		to = s.path
	}
	h := s.headerLocked(flags, s.sender.next)
	h.ID = to.id
	h.put(b)
	s.mu.Unlock()
	if err := to.sock.Send(b, to.addr); err != nil {
		return fmt.Errorf("udx: %s: %w", op, err)
	}
	return nil
}

// sendableLocked returns why nothing can be sent beside the stream, nil if it can.
func (s *Stream) sendableLocked() error {
	switch {
	case s.finished || s.closing:
		return s.closedErrLocked()
	case s.path.sock == nil:
		return ErrNotConnected
	}
	return nil
}

// closedErrLocked returns what an operation on a closed or failed stream reports.
func (s *Stream) closedErrLocked() error {
	if s.closing || s.err == nil {
		return net.ErrClosed
	}
	return s.err
}
