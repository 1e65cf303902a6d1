package tunnel

import (
	"encoding/binary"
)

// maxReserve is how many counters a [Sealer] reserves at a time, at most.
const maxReserve = 32

// Sealer seals runs of datagrams: it does once what [Epoch.Seal] does for each. It belongs to one goroutine; several
// goroutines with a Sealer each may seal in one Epoch at the same time. The zero value is ready to use.
//
//	if err := s.Begin(e); err != nil { … }
//	for … { train, err = s.Seal(train, packet) }
//	s.End() // before anything that may wait: [Epoch.Close] waits for it
//
// Counters rise within a run. They are reserved 1, 2, 4, … and then 32 at a time, so that sealers on several processors do not
// meet at each packet, and what is left is given back at the end. Only if others have reserved counters meanwhile those are lost, fewer
// than the run had: the peer takes them for datagrams that did not arrive.
type Sealer struct {
	e         *Epoch // nil: no run
	nonce     [nonceSize]byte
	next, end uint64 // counters that are reserved and not used
	reserve   uint64 // how many are reserved next
}

// Begin begins a run of datagrams of e. The error is [ErrClosed]; then there is no run.
func (s *Sealer) Begin(e *Epoch) error {
	e.send.mu.RLock()
	if e.send.aead == nil {
		e.send.mu.RUnlock()
		return ErrClosed
	}
	s.e, s.next, s.end, s.reserve = e, 0, 0, 1
	return nil
}

// End ends the run.
func (s *Sealer) End() {
	// As long as the counters are ours nobody sets the next one below their end. If it is there still, nobody has any above.
	if s.next < s.end {
		s.e.counter.CompareAndSwap(s.end, s.next)
	}
	s.e.send.mu.RUnlock()
	s.e = nil
}

// Seal is [Epoch.Seal].
func (s *Sealer) Seal(dst, plaintext []byte) ([]byte, error) {
	if !s.e.confirmed.Load() && ContentOf(plaintext) != ContentControl {
		return dst, ErrUnconfirmed
	}
	if s.next == s.end {
		first, end, err := s.e.reserve(s.reserve)
		if err != nil {
			return dst, err
		}
		s.next, s.end, s.reserve = first, end, min(2*s.reserve, maxReserve)
	}
	counter := s.next
	s.next++
	return s.e.seal(dst, plaintext, counter, &s.nonce), nil
}

// Opener opens datagrams as [Epoch.Open] does, with less to do for each. It belongs to one goroutine. The zero value is
// ready to use.
type Opener struct{ nonce [nonceSize]byte }

// Open is [Epoch.Open] of e.
func (o *Opener) Open(e *Epoch, dst, datagram []byte) ([]byte, error) {
	return e.open(dst, datagram, &o.nonce)
}

// reserve returns n counters that nobody else has, or fewer, but at least one: first is among them, end is not.
func (e *Epoch) reserve(n uint64) (first, end uint64, err error) {
	if e.counter.Load() >= e.limit { // keeps the counter from growing for ever
		return 0, 0, ErrExhausted
	}
	end = e.counter.Add(n)
	if first = end - n; first >= e.limit {
		return 0, 0, ErrExhausted
	}
	return first, min(end, e.limit), nil
}

// seal is the part of Seal behind the checks of state. e.send.mu is held for reading, the key is there, and the counter is the
// caller's and used for the first time.
func (e *Epoch) seal(dst, plaintext []byte, counter uint64, nonce *[nonceSize]byte) []byte {
	e.nonce(nonce, counter)
	start := len(dst)
	dst = append(dst, class, version, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, e.params.RemoteIndex)
	dst = binary.LittleEndian.AppendUint64(dst, counter)
	return e.send.aead.Seal(dst, nonce[:], plaintext, dst[start:])
}
