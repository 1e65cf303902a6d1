package noise

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	flynn "github.com/flynn/noise"

	"omegatun/dht/key"
)

// keySize is the length of a public key and of a shared secret in bytes.
const keySize = 32

// dh is the key agreement on Ed25519 keys, in the form that the noise package asks for. A private key is the
// 32-byte seed and the public key; the shared secret is a compressed Edwards point.
//
// A dh serves one handshake: it remembers the points that it has checked, because a handshake uses each remote
// key twice and checking costs half as much as the multiplication. It is not safe for concurrent use.
type dh struct{ checked [2]checkedKey } // the latest first

// checkedKey is a public key that decodePoint accepted; point is nil in the zero value.
type checkedKey struct {
	encoded [keySize]byte
	point   *edwards25519.Point
}

// DHName is part of the protocol name.
func (*dh) DHName() string { return "Ed25519" }

// DHLen returns the length of a public key.
func (*dh) DHLen() int { return keySize }

// GenerateKeypair makes an ephemeral key from 32 bytes of random.
func (*dh) GenerateKeypair(random io.Reader) (flynn.DHKey, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return flynn.DHKey{}, fmt.Errorf("ephemeral key: %w", err)
	}
	return keyPair(seed[:]), nil
}

func keyPair(seed []byte) flynn.DHKey {
	private := ed25519.NewKeyFromSeed(seed)
	return flynn.DHKey{Private: private, Public: private[ed25519.SeedSize:]}
}

// DH multiplies the point public with the scalar of private. The error wraps [ErrKey].
func (d *dh) DH(private, public []byte) ([]byte, error) {
	p, err := d.point(public)
	if err != nil {
		return nil, err
	}
	digest := sha512.Sum512(private[:ed25519.SeedSize])
	defer clear(digest[:])
	// The scalar is reduced modulo the order of the base point, which changes nothing for points of that order.
	scalar, err := edwards25519.NewScalar().SetBytesWithClamping(digest[:32])
	if err != nil {
		panic("noise: " + err.Error()) // only for a wrong length
	}
	return new(edwards25519.Point).ScalarMult(scalar, p).Bytes(), nil
}

// point decodes and checks a public key, unless it is one of the last two.
func (d *dh) point(public []byte) (*edwards25519.Point, error) {
	for _, c := range d.checked {
		if c.point != nil && bytes.Equal(c.encoded[:], public) {
			return c.point, nil
		}
	}
	p, err := decodePoint(public)
	if err != nil {
		return nil, err
	}
	d.checked[0], d.checked[1] = checkedKey{[keySize]byte(public), p}, d.checked[0]
	return p, nil
}

// minusOne is the group order less one: multiplying with it negates a point of prime order, and only such.
func minusOne() *edwards25519.Scalar {
	one, err := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic("noise: " + err.Error())
	}
	return edwards25519.NewScalar().Negate(one)
}

// decodePoint decodes a public key. It refuses an encoding that is not canonical or not on the curve, the
// identity, and points of low or mixed order, with which a shared secret would be predictable or would
// reveal bits of the private key. It takes variable time, public keys being public.
func decodePoint(public []byte) (*edwards25519.Point, error) {
	p, err := new(edwards25519.Point).SetBytes(public)
	if err != nil || !bytes.Equal(p.Bytes(), public) {
		return nil, ErrKey
	}
	identity := edwards25519.NewIdentityPoint()
	if p.Equal(identity) == 1 {
		return nil, ErrKey
	}
	negated := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(minusOne(), p, edwards25519.NewScalar())
	if negated.Add(negated, p).Equal(identity) != 1 {
		return nil, ErrKey
	}
	return p, nil
}

// Shared returns the Diffie-Hellman of two static keys, which is also mixed into message 1 (ss): a secret that the owners of both
// keys have without having talked, and nobody else. It is to be hashed before use. The error wraps [ErrKey].
func Shared(local key.Private, remote key.Public) (shared [keySize]byte, err error) {
	seed := local.Seed()
	defer clear(seed[:])
	b, err := new(dh).DH(keyPair(seed[:]).Private, remote[:])
	if err != nil {
		return shared, err
	}
	return [keySize]byte(b), nil
}
