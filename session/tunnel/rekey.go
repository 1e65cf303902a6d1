package tunnel

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

const (
	chainLabel = "omegatun chain 1"
	epochLabel = "omegatun epoch 1"
)

// ErrRekey is wrapped by errors about the peer's rekeying messages.
var ErrRekey = errors.New("tunnel: unusable rekeying message")

// rekey is a message by which the two sides agree on the keys of another epoch. The initiator of the session asks, the
// responder answers.
//
//	uint number, u32 index, X25519 share 32, buffer kem
//
// Bytes after the last field belong to later versions: they are ignored, but part of the transcript.
type rekey struct {
	number uint64   // of the epoch: 1 for the first one that does not come from the handshake
	index  uint32   // datagrams to the sender of the message carry it
	share  [32]byte // X25519 public key, made for this one epoch
	kem    []byte   // ML-KEM-768 encapsulation key or, in the answer, ciphertext; empty without FeaturePostQuantum
}

func (m rekey) append(b []byte) []byte {
	b = compact.AppendUint(b, m.number)
	b = compact.AppendUint32(b, m.index)
	b = append(b, m.share[:]...)
	return compact.AppendBuffer(b, m.kem)
}

// parseRekey decodes b, which kem aliases. It wants a kem of size bytes.
func parseRekey(b []byte, size int) (rekey, error) {
	r := compact.NewReader(b)
	m := rekey{number: r.Uint(), index: r.Uint32(), share: r.Fixed32(), kem: r.Buffer()}
	if len(m.kem) != size {
		r.Fail(fmt.Errorf("%d bytes for ML-KEM, want %d", len(m.kem), size))
	}
	if m.index == 0 {
		r.Fail(errors.New("receiver index 0"))
	}
	if err := r.Err(); err != nil {
		return rekey{}, fmt.Errorf("%w: %w", ErrRekey, err)
	}
	return m, nil
}

// chain is the secret that all later keys of a session depend on.
type chain [32]byte

func newChain(initiatorTx, responderTx [32]byte, hash [64]byte) chain {
	return chain(key.KeyedHash(initiatorTx[:], []byte(chainLabel), responderTx[:], hash[:]))
}

// next derives what follows from the shared secrets and the two messages: the next secret of the chain and the keys of
// the epoch, that of the initiator's datagrams first.
func (c *chain) next(x25519, kem, request, answer []byte) (next chain, initiator, responder [32]byte, err error) {
	shared := append(append(make([]byte, 0, len(x25519)+len(kem)), x25519...), kem...)
	defer clear(shared)
	prk, err := hkdf.Extract(sha256.New, shared, c[:])
	if err != nil {
		return chain{}, initiator, responder, err
	}
	defer clear(prk)
	transcript := sha256.New()
	transcript.Write(request)
	transcript.Write(answer)
	out, err := hkdf.Expand(sha256.New, prk, epochLabel+string(transcript.Sum(nil)), 3*32)
	if err != nil {
		return chain{}, initiator, responder, err
	}
	defer clear(out)
	return chain(out[:32]), [32]byte(out[32:64]), [32]byte(out[64:]), nil
}

// asking is what the initiator keeps while it waits for an answer.
type asking struct {
	request []byte
	index   uint32
	number  uint64
	private *ecdh.PrivateKey
	kem     *mlkem.DecapsulationKey768 // nil without FeaturePostQuantum
}

// ask makes a request.
func ask(number uint64, index uint32, postQuantum bool) (*asking, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &asking{index: index, number: number, private: private}
	if postQuantum {
		if a.kem, err = mlkem.GenerateKey768(); err != nil {
			return nil, err
		}
	}
	a.write()
	return a, nil
}

func (a *asking) write() {
	m := rekey{number: a.number, index: a.index, share: [32]byte(a.private.PublicKey().Bytes())}
	if a.kem != nil {
		m.kem = a.kem.EncapsulationKey().Bytes()
	}
	a.request = m.append(nil)
}

// finish takes the answer. The error wraps [ErrRekey].
func (a *asking) finish(c *chain, answer []byte) (m rekey, next chain, tx, rx [32]byte, err error) {
	size := 0
	if a.kem != nil {
		size = mlkem.CiphertextSize768
	}
	if m, err = parseRekey(answer, size); err != nil {
		return m, next, tx, rx, err
	}
	if m.number != a.number {
		return m, next, tx, rx, fmt.Errorf("%w: answer for epoch %d, want %d", ErrRekey, m.number, a.number)
	}
	x25519, err := exchange(a.private, m.share)
	if err != nil {
		return m, next, tx, rx, err
	}
	defer clear(x25519)
	var kem []byte
	if a.kem != nil {
		if kem, err = a.kem.Decapsulate(m.kem); err != nil {
			return m, next, tx, rx, fmt.Errorf("%w: %w", ErrRekey, err)
		}
		defer clear(kem)
	}
	next, tx, rx, err = c.next(x25519, kem, a.request, answer)
	return m, next, tx, rx, err
}

// answer makes the answer to a request, and what follows from it. The error wraps [ErrRekey] if it is the peer's fault.
func answer(c *chain, number uint64, index uint32, postQuantum bool, request []byte) (
	m rekey, reply []byte, next chain, tx, rx [32]byte, err error,
) {
	size := 0
	if postQuantum {
		size = mlkem.EncapsulationKeySize768
	}
	if m, err = parseRekey(request, size); err != nil {
		return m, nil, next, tx, rx, err
	}
	if m.number != number {
		return m, nil, next, tx, rx, fmt.Errorf("%w: request for epoch %d, want %d", ErrRekey, m.number, number)
	}
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return m, nil, next, tx, rx, err
	}
	x25519, err := exchange(private, m.share)
	if err != nil {
		return m, nil, next, tx, rx, err
	}
	defer clear(x25519)
	ours := rekey{number: number, index: index, share: [32]byte(private.PublicKey().Bytes())}
	var kem []byte
	if postQuantum {
		encapsulation, err := mlkem.NewEncapsulationKey768(m.kem)
		if err != nil {
			return m, nil, next, tx, rx, fmt.Errorf("%w: %w", ErrRekey, err)
		}
		kem, ours.kem = encapsulation.Encapsulate()
		defer clear(kem)
	}
	reply = ours.append(nil)
	next, rx, tx, err = c.next(x25519, kem, request, reply)
	return m, reply, next, tx, rx, err
}

func exchange(private *ecdh.PrivateKey, share [32]byte) ([]byte, error) {
	public, err := ecdh.X25519().NewPublicKey(share[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRekey, err)
	}
	secret, err := private.ECDH(public)
	if err != nil { // a share of low order
		return nil, fmt.Errorf("%w: %w", ErrRekey, err)
	}
	return secret, nil
}
