package tunnel

import (
	"encoding/binary"
)

// Sealer seals runs of datagrams: it does once what [Epoch.Seal] does for each. It belongs to one goroutine. The zero
// value is ready to use.
//
//	if err := s.Begin(e); err != nil { … }
//	for … { train, err = s.Seal(train, packet) }
//	s.End() // before anything that may wait: [Epoch.Close] waits for it
type Sealer struct {
	e     *Epoch // nil: no run
	nonce [nonceSize]byte
}

// Begin begins a run of datagrams of e. The error is [ErrClosed]; then there is no run.
func (s *Sealer) Begin(e *Epoch) error {
	e.send.mu.RLock()
	if e.send.aead == nil {
		e.send.mu.RUnlock()
		return ErrClosed
	}
	s.e = e
	return nil
}

// End ends the run.
func (s *Sealer) End() {
	s.e.send.mu.RUnlock()
	s.e = nil
}

// Seal is [Epoch.Seal].
func (s *Sealer) Seal(dst, plaintext []byte) ([]byte, error) {
	if !s.e.confirmed.Load() && ContentOf(plaintext) != ContentControl {
		return dst, ErrUnconfirmed
	}
	return s.e.seal(dst, plaintext, &s.nonce)
}

// Opener opens datagrams as [Epoch.Open] does, with less to do for each. It belongs to one goroutine. The zero value is
// ready to use.
type Opener struct{ nonce [nonceSize]byte }

// Open is [Epoch.Open] of e.
func (o *Opener) Open(e *Epoch, dst, datagram []byte) ([]byte, error) {
	return e.open(dst, datagram, &o.nonce)
}

// seal is the part of Seal behind the checks of state. e.send.mu is held for reading, and the key is there.
func (e *Epoch) seal(dst, plaintext []byte, nonce *[nonceSize]byte) ([]byte, error) {
	if e.counter.Load() >= e.limit { // keeps the counter from growing for ever
		return dst, ErrExhausted
	}
	counter := e.counter.Add(1) - 1
	if counter >= e.limit {
		return dst, ErrExhausted
	}
	e.nonce(nonce, counter)
	start := len(dst)
	dst = append(dst, class, version, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, e.params.RemoteIndex)
	dst = binary.LittleEndian.AppendUint64(dst, counter)
	return e.send.aead.Seal(dst, nonce[:], plaintext, dst[start:]), nil
}
