package tunnel

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"omegatun/dht/key"
)

const (
	keyLabel  = "omegatun tunnel 1"
	nonceSize = 12

	// A key seals no more datagrams than this. The first limit is far from where ChaCha20-Poly1305 weakens, and
	// only keeps the counter from ever wrapping; with AES-GCM an attacker's chance of a forgery grows with the
	// number of blocks sealed.
	maxChaCha = 1 << 60
	maxAESGCM = 1 << 32
)

// Epoch is a pair of keys and their state: it seals datagrams to the peer and opens those from it. All methods
// are safe for concurrent use. It has no goroutine and no clock.
type Epoch struct {
	params Params
	limit  uint64 // counters are below it

	confirmed atomic.Bool // something from the peer has been opened, or we are the initiator
	nonces    sync.Pool   // *[nonceSize]byte: the AEAD interface would make each one escape

	_       [64]byte // sending and receiving do not share a cache line
	send    direction
	counter atomic.Uint64 // of the next datagram to seal: see reserve

	_       [64]byte
	receive direction
	window  window // of the datagrams opened
}

// direction is the key of one direction.
type direction struct {
	mu   sync.RWMutex // read-locked while the key is in use, locked to destroy it
	aead cipher.AEAD  // nil once destroyed
}

// NewEpoch derives the first keys of a session from the outcome of the handshake: tx and rx are the split keys
// of this side, hash is the handshake hash. The caller must not use tx and rx for anything that is sealed with
// AEAD nonces of its own.
func NewEpoch(p Params, initiator bool, tx, rx [32]byte, hash [64]byte) (*Epoch, error) {
	return newEpoch(p, initiator, epochKey(tx, hash), epochKey(rx, hash))
}

// newEpoch makes an epoch of two keys.
func newEpoch(p Params, initiator bool, send, receive [32]byte) (*Epoch, error) {
	defer clear(send[:])
	defer clear(receive[:])
	e := &Epoch{params: p}
	e.nonces.New = func() any { return new([nonceSize]byte) }
	e.confirmed.Store(initiator)
	var err error
	if e.send.aead, e.limit, err = newAEAD(p.Suite, send[:]); err != nil {
		return nil, err
	}
	if e.receive.aead, _, err = newAEAD(p.Suite, receive[:]); err != nil {
		return nil, err
	}
	return e, nil
}

func epochKey(split [32]byte, hash [64]byte) key.Target {
	return key.KeyedHash(split[:], []byte(keyLabel), hash[:])
}

// wipe overwrites what a pointer to key material points to.
func wipe(pointer any) {
	if d, ok := pointer.(interface{ Destroy() }); ok {
		d.Destroy()
		return
	}
	if v := reflect.ValueOf(pointer); v.Kind() == reflect.Pointer {
		v.Elem().SetZero()
	}
}

// Params returns what the epoch was made with.
func (e *Epoch) Params() Params { return e.params }

// Suite returns the cipher in use.
func (e *Epoch) Suite() Suites { return e.params.Suite }

// Confirmed reports whether the peer is known to hold the keys, so that [Epoch.Seal] takes packets. It is true from
// the start at the initiator, to whom the handshake has proved it.
func (e *Epoch) Confirmed() bool { return e.confirmed.Load() }

// String describes the epoch, without its keys.
func (e *Epoch) String() string {
	return fmt.Sprintf("tunnel epoch %08x to %08x, %v", e.params.LocalIndex, e.params.RemoteIndex, e.params.Suite)
}

// Format prints [Epoch.String] for every verb, so that no verb shows the keys.
func (e *Epoch) Format(f fmt.State, _ rune) { fmt.Fprint(f, e.String()) }

// nonce encodes counter as the Noise specification does for the suite.
func (e *Epoch) nonce(nonce *[nonceSize]byte, counter uint64) {
	if e.params.Suite == AES256GCM {
		binary.BigEndian.PutUint64(nonce[4:], counter)
	} else {
		binary.LittleEndian.PutUint64(nonce[4:], counter)
	}
}

// Seal appends the datagram that carries plaintext to dst and returns the extended slice. It allocates only if
// dst has no room for len(plaintext) + [Overhead] more bytes. The plaintext must either lie apart from that room,
// so that it is sealed into a train of datagrams, or be exactly where its ciphertext goes, [HeaderSize] bytes
// behind the end of dst; otherwise Seal panics. Empty plaintexts may be sealed, but peers drop them.
//
// Counters are handed out in the order of the calls. The error is [ErrUnconfirmed] (of anything but a control
// datagram, at a responder that has not heard its peer), [ErrExhausted] or [ErrClosed]; dst is then as it was.
func (e *Epoch) Seal(dst, plaintext []byte) ([]byte, error) {
	if !e.confirmed.Load() && ContentOf(plaintext) != ContentControl {
		return nil, ErrUnconfirmed
	}
	e.send.mu.RLock()
	defer e.send.mu.RUnlock()
	if e.send.aead == nil {
		return nil, ErrClosed
	}
	counter, _, err := e.reserve(1)
	if err != nil {
		return nil, err
	}
	nonce := e.nonces.Get().(*[nonceSize]byte)
	defer e.nonces.Put(nonce)
	return e.seal(dst, plaintext, counter, nonce), nil
}

// Open appends the plaintext of a datagram to dst and returns the extended slice. It allocates only if dst has
// no room for len(datagram) - [Overhead] more bytes. That room must either lie apart from the datagram or begin
// exactly where the ciphertext does, as with datagram[:HeaderSize] for dst; otherwise Open panics.
//
// The error is one of [ErrFormat], [ErrIndex], [ErrReplay], [ErrAuth] and [ErrClosed]. The datagram has then
// changed nothing, but for the room behind dst, which holds nothing of use.
func (e *Epoch) Open(dst, datagram []byte) ([]byte, error) {
	nonce := e.nonces.Get().(*[nonceSize]byte)
	defer e.nonces.Put(nonce)
	return e.open(dst, datagram, nonce)
}

func (e *Epoch) open(dst, datagram []byte, nonce *[nonceSize]byte) ([]byte, error) {
	index, ok := ReceiverIndex(datagram)
	if !ok {
		return nil, ErrFormat
	}
	if index != e.params.LocalIndex {
		return nil, ErrIndex
	}
	header, sealed := datagram[:HeaderSize], datagram[HeaderSize:]
	counter := binary.LittleEndian.Uint64(header[8:])
	if counter >= e.limit || !e.window.fresh(counter) {
		return nil, ErrReplay
	}
	e.receive.mu.RLock()
	defer e.receive.mu.RUnlock()
	if e.receive.aead == nil {
		return nil, ErrClosed
	}
	e.nonce(nonce, counter)
	dst, err := e.receive.aead.Open(dst, nonce[:], sealed, header)
	if err != nil {
		return nil, ErrAuth
	}
	if !e.window.mark(counter) { // another goroutine was faster with the same datagram
		return nil, ErrReplay
	}
	if !e.confirmed.Load() {
		e.confirmed.Store(true)
	}
	return dst, nil
}

// Close overwrites the keys. It waits for calls in progress; later ones fail with [ErrClosed]. It may be called
// more than once.
func (e *Epoch) Close() {
	for _, d := range []*direction{&e.send, &e.receive} {
		d.mu.Lock()
		if d.aead != nil {
			wipe(d.aead)
			d.aead = nil
		}
		d.mu.Unlock()
	}
}
