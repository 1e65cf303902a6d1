package udx

import (
	"fmt"
	"net"
	"time"
)

// How long a closed stream may go on in the background: without progress; after the peer has all of our data but
// does not end its own; and in any case.
const (
	closeProgress = 30 * time.Second
	closePeer     = 10 * time.Second
	closeMax      = 5 * time.Minute
)

// CloseWrite ends the outgoing direction: the peer reads io.EOF after what was written. It does not wait.
func (s *Stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.closing {
		return s.opError("close write", s.closedErrLocked())
	}
	if s.path.sock == nil {
		return s.opError("close write", ErrNotConnected)
	}
	s.endLocked()
	return nil
}

func (s *Stream) endLocked() {
	s.sender.end()
	s.writers.wake.Broadcast()
	s.wakeLocked()
}

// Close ends both directions and returns at once. Reads and writes, also those under way, return net.ErrClosed. What
// was written is still delivered in the background, with the end of the stream; what the peer sends is acknowledged
// and dropped. If the peer does not end its direction within 10 s after it has everything, or takes nothing for 30
// s, the stream is reset. Done tells when it is over.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil
	}
	s.closing = true
	s.assembly.abandon()
	s.countLocked()
	s.stopSidesLocked()
	if s.finished {
		return nil
	}
	if s.path.sock == nil {
		s.finishLocked(net.ErrClosed)
		return nil
	}
	now := s.mux.now()
	s.closeBy, s.closeEnd = now.add(closeProgress), now.add(closeMax)
	if s.sender.ended {
		s.closeEnd = now.add(closePeer)
	}
	s.endLocked()
	s.openWindowLocked()
	s.setTimerLocked(now)
	return nil
}

func (s *Stream) stopSidesLocked() {
	for _, d := range []*side{&s.readers, &s.writers} {
		if d.timer != nil {
			d.timer.Stop()
		}
		d.wake.Broadcast()
	}
}

// Reset ends the stream at once, in both directions. What was not delivered is dropped, and the peer is told once, over the
// stream's path and the one before. The stream's error becomes err, or net.ErrClosed if that is nil. It does nothing if the
// stream is done.
func (s *Stream) Reset(err error) {
	if err == nil {
		err = net.ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assembly.abandon()
	if s.finished {
		return
	}
	s.destroy = s.path.sock != nil
	s.finishLocked(err)
}

// finishLocked makes the stream done, with its error, nil if both directions have ended.
func (s *Stream) finishLocked(err error) {
	if s.finished {
		return
	}
	s.finished = true
	switch {
	case err == nil:
	case err == ErrReset || err == ErrTimeout: //nolint:errorlint // as passed by the callers
		s.err = fmt.Errorf("udx: %w", err)
	default:
		s.err = err
	}
	close(s.done)
	if s.onDone != nil {
		s.mux.wg.Go(s.onDone)
	}
	next := s.sender.next
	s.sender.drop()
	s.shrinkLocked()
	s.countLocked()
	if s.timer != nil {
		s.timer.Stop()
		s.timerAt = 0
	}
	s.stopSidesLocked()
	if err != nil {
		s.acks.sent()
	}
	if s.acks.due != 0 {
		s.acks.urgent = true // the last one
	}
	if s.destroy || s.acks.urgent {
		s.wakeLocked()
	}
	var l *lingering
	if s.path.sock != nil && err != ErrReset { //nolint:errorlint // as above
		flags := Flags(0)
		if err != nil {
			flags = FlagDestroy
		}
		h := s.headerLocked(flags, next)
		l = &lingering{paths: [2]path{s.path, s.previous}, header: h}
	}
	s.mux.forget(s, l)
}
