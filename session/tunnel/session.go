package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The lives of keys.
const (
	// RekeyAfter is the age at which an epoch should be followed by another.
	RekeyAfter = 120 * time.Second
	// KeyLife is the age at which the keys of an epoch are destroyed, whatever follows.
	KeyLife = 180 * time.Second
	// OldKeyLife is how long datagrams of an epoch are still opened after another has taken its place.
	OldKeyLife = 10 * time.Second

	// maxEpochs is how many epochs may live at a time: two or three do, if nobody asks for more keys than he needs.
	maxEpochs = 8
)

// Session is the epochs of one handshake, one after the other. Datagrams are sealed in the latest that the peer is known
// to have, and opened in those that still live. All methods are safe for concurrent use. A Session has no goroutine and no
// clock: [Session.Expire] is to be called about twice a second.
//
//	initiator                                                responder
//	Ask ─────────────── number, index, share, ek ──────────▶ Answer: opens in the new epoch as well
//	Finish ◀─────────── number, index, share, ciphertext ───
//	seals in the new epoch ═══════ first datagram ═════════▶ seals in the new epoch
//	                     old keys destroyed 10 s later
//
// The messages travel on a channel that is ordered, and authenticated with the keys of the same handshake.
type Session struct {
	initiator bool
	params    Params // of the first epoch

	send    atomic.Pointer[Epoch]
	receive atomic.Pointer[[]*Epoch] // newest first; replaced, never changed

	mu     sync.Mutex // guards the fields below
	chain  chain
	number uint64 // of the newest epoch
	epochs []aged // newest first
	asking *asking
	closed bool
}

// aged is an epoch and its age.
type aged struct {
	*Epoch
	born     time.Time
	replaced time.Time // zero: not yet
}

// NewSession starts a session with the epoch of the handshake; the arguments are those of [NewEpoch]. now is the time, as it
// is for the other methods.
func NewSession(p Params, initiator bool, tx, rx [32]byte, hash [64]byte, now time.Time) (*Session, error) {
	e, err := NewEpoch(p, initiator, tx, rx, hash)
	if err != nil {
		return nil, err
	}
	s := &Session{initiator: initiator, params: p}
	if initiator {
		s.chain = newChain(tx, rx, hash)
	} else {
		s.chain = newChain(rx, tx, hash)
	}
	s.send.Store(e)
	s.epochs = []aged{{Epoch: e, born: now}}
	s.publishLocked()
	return s, nil
}

// publishLocked lets Open see the epochs. s.mu is held, or nobody else has s.
func (s *Session) publishLocked() {
	list := make([]*Epoch, len(s.epochs))
	for i, e := range s.epochs {
		list[i] = e.Epoch
	}
	s.receive.Store(&list)
}

// Seal is [Epoch.Seal] in the epoch in use.
func (s *Session) Seal(dst, plaintext []byte) ([]byte, error) {
	for {
		e := s.send.Load()
		b, err := e.Seal(dst, plaintext)
		if err == ErrClosed && s.send.Load() != e { //nolint:errorlint // it was replaced meanwhile
			continue
		}
		return b, err
	}
}

// Begin begins a run of datagrams in the epoch in use, as [Sealer.Begin] does.
func (s *Session) Begin(r *Sealer) error {
	for {
		e := s.send.Load()
		err := r.Begin(e)
		if err == ErrClosed && s.send.Load() != e { //nolint:errorlint // it was replaced meanwhile
			continue
		}
		return err
	}
}

// Open is [Epoch.Open] in the epoch that the datagram names.
func (s *Session) Open(dst, datagram []byte) ([]byte, error) {
	var o Opener
	return s.OpenWith(&o, dst, datagram)
}

// OpenWith is Open, with less to do for each datagram.
func (s *Session) OpenWith(o *Opener, dst, datagram []byte) ([]byte, error) {
	index, ok := ReceiverIndex(datagram)
	if !ok {
		return nil, ErrFormat
	}
	list := *s.receive.Load()
	for i, e := range list {
		if e.params.LocalIndex != index {
			continue
		}
		b, err := o.Open(e, dst, datagram)
		if err == nil && i == 0 && s.send.Load() != e {
			s.promote(e)
		}
		return b, err
	}
	return nil, ErrIndex
}

// promote makes the newest epoch the one to seal in: the peer has it.
func (s *Session) promote(e *Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.epochs) > 0 && s.epochs[0].Epoch == e {
		s.send.Store(e)
	}
}

// Confirmed is [Epoch.Confirmed].
func (s *Session) Confirmed() bool { return s.send.Load().Confirmed() }

// Suite returns the cipher in use.
func (s *Session) Suite() Suites { return s.params.Suite }

// Params returns what the first epoch was made with.
func (s *Session) Params() Params { return s.params }

// Number returns the number of the epoch in use for sending, 0 for that of the handshake, and its age.
func (s *Session) Number(now time.Time) (number uint64, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sending := s.send.Load()
	for i, e := range s.epochs {
		if e.Epoch == sending {
			return s.number - uint64(i), now.Sub(e.born)
		}
	}
	return s.number, 0
}

// Due reports whether it is time to [Session.Ask]: the keys are those of the handshake or have reached [RekeyAfter], or an AEAD
// has done half of what it may, and nothing has been asked. It is always false at a responder.
func (s *Session) Due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.initiator || s.closed || s.asking != nil || len(s.epochs) == 0 {
		return false
	}
	e := s.epochs[0]
	return s.number == 0 || now.Sub(e.born) >= RekeyAfter || e.counter.Load() > e.limit/2 || e.window.last.Load() > e.limit/2
}

// Ask starts another epoch, at the initiator, and returns the request for the peer. index is what datagrams to us will carry in it:
// it must find this Session from now on.
func (s *Session) Ask(index uint32) (request []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case !s.initiator:
		return nil, errors.New("tunnel: a responder does not ask for keys")
	case s.asking != nil:
		return nil, errors.New("tunnel: keys are being agreed on already")
	}
	if s.asking, err = ask(s.number+1, index, s.postQuantum()); err != nil {
		return nil, err
	}
	return s.asking.request, nil
}

func (s *Session) postQuantum() bool { return s.params.Features&FeaturePostQuantum != 0 }

// Answer takes a request, at the responder, and returns the answer for the peer. index is as for Ask. From now on datagrams of the
// new epoch are opened; the first one that is makes it the epoch to seal in. The error wraps [ErrRekey] if the
// peer is to blame; nothing has changed then.
func (s *Session) Answer(request []byte, index uint32, now time.Time) (reply []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case s.initiator:
		return nil, errors.Join(ErrRekey, errors.New("tunnel: a responder asks for keys"))
	case len(s.epochs) > 1 && s.send.Load() != s.epochs[0].Epoch:
		return nil, errors.Join(ErrRekey, errors.New("tunnel: asked for keys before the last ones were used"))
	case len(s.epochs) >= maxEpochs:
		return nil, errors.Join(ErrRekey, errors.New("tunnel: asked for keys too often"))
	}
	m, reply, next, tx, rx, err := answer(&s.chain, s.number+1, index, s.postQuantum(), request)
	if err != nil {
		return nil, err
	}
	return reply, s.followLocked(next, index, m.index, tx, rx, now)
}

// Finish takes the answer to what was asked. From now on datagrams are sealed in the new epoch; the caller sends one at
// once, if only a ping, so that the peer does the same. The error is as for Answer.
func (s *Session) Finish(reply []byte, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	a := s.asking
	if a == nil {
		return errors.Join(ErrRekey, errors.New("tunnel: an answer that was not asked for"))
	}
	m, next, tx, rx, err := a.finish(&s.chain, reply)
	if err != nil {
		return err
	}
	s.asking = nil
	if err := s.followLocked(next, a.index, m.index, tx, rx, now); err != nil {
		return err
	}
	s.send.Store(s.epochs[0].Epoch)
	return nil
}

// followLocked adds an epoch. s.mu is held.
func (s *Session) followLocked(next chain, local, remote uint32, tx, rx [32]byte, now time.Time) error {
	p := s.params
	p.LocalIndex, p.RemoteIndex = local, remote
	e, err := newEpoch(p, s.initiator, tx, rx)
	if err != nil {
		return err
	}
	s.chain = next
	s.number++
	s.epochs = append([]aged{{Epoch: e, born: now}}, s.epochs...)
	s.publishLocked()
	return nil
}

// Expire destroys the keys that have lived long enough and returns the indexes that no datagram to us needs any more. It
// reports false when there is nothing left to seal in: the session has ended.
func (s *Session) Expire(now time.Time) (gone []uint32, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sending := s.send.Load()
	keep := s.epochs[:0:0]
	older := false
	for _, e := range s.epochs {
		if older && e.replaced.IsZero() {
			e.replaced = now
		}
		older = older || e.Epoch == sending
		if now.Sub(e.born) < KeyLife && (e.replaced.IsZero() || now.Sub(e.replaced) < OldKeyLife) {
			keep = append(keep, e)
			alive = alive || e.Epoch == sending
			continue
		}
		e.Close()
		gone = append(gone, e.params.LocalIndex)
	}
	s.epochs = keep
	if len(gone) > 0 {
		s.publishLocked()
	}
	return gone, alive && !s.closed
}

// Indexes returns what datagrams to us may carry, and will carry when what was asked for is answered.
func (s *Session) Indexes() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []uint32
	for _, e := range s.epochs {
		list = append(list, e.params.LocalIndex)
	}
	if s.asking != nil {
		list = append(list, s.asking.index)
	}
	return list
}

// Close destroys all keys. Later calls fail with [ErrClosed] or [ErrIndex]. It may be called more than once.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.asking = true, nil
	clear(s.chain[:])
	for _, e := range s.epochs {
		e.Close()
	}
}

// String describes the session, without its keys.
func (s *Session) String() string { return s.send.Load().String() }

// Format prints [Session.String] for every verb, so that no verb shows the keys.
func (s *Session) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }
