// Package widechacha is ChaCha20-Poly1305 (RFC 8439) with 512-bit registers, on processors that have them and multiply 52 bits in
// each lane (AVX-512 IFMA), as Intel's servers have since Ice Lake and AMD's since Zen 4: sixteen blocks of ChaCha20 and eight of
// Poly1305 at a time. Elsewhere, and for short messages, it is golang.org/x/crypto/chacha20poly1305, which uses 256 bits.
//
// What is sealed is what that package would seal; the tests compare both. No branch and no address depends on keys or data.
//
// Sources: RFC 8439; Gueron and Krasnov, Fast Prime Field Elliptic-curve Cryptography with 256-bit primes, for radix 2^44 the comments
// of OpenSSL's poly1305-x86_64.pl.
//
// Limitation: no other processors.
package widechacha

import (
	"crypto/cipher"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes in bytes.
const (
	KeySize   = chacha20poly1305.KeySize
	NonceSize = chacha20poly1305.NonceSize
	TagSize   = chacha20poly1305.Overhead
)

// New returns the AEAD for a key of 32 bytes, which is copied. It is safe for concurrent use. Where the plaintext would be it leaves
// zeros, if Open fails. If it has a method Destroy, that overwrites the key; otherwise setting it to the zero value does.
func New(key []byte) (cipher.AEAD, error) {
	short, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, err
	}
	return widen(short, key), nil
}
