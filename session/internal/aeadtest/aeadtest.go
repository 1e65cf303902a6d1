// Package aeadtest has what the tests of ciphers in assembler share.
package aeadtest

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Cipher seals and opens as a cipher.AEAD does.
type Cipher interface {
	Seal(dst, nonce, plaintext, additional []byte) []byte
	Open(dst, nonce, ciphertext, additional []byte) ([]byte, error)
}

// Random returns the next n bytes of r.
func Random(r *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// Output tests, with texts of the given lengths, that what ours returns is appended to dst, or replaces the input where that is
// asked for, and is what the reference makes of it; and that nothing behind it changes.
func Output(t *testing.T, ours, reference Cipher, r *rand.ChaCha8, nonce, additional []byte, lengths ...int) {
	t.Helper()
	overhead := len(reference.Seal(nil, nonce, nil, additional))
	for _, n := range lengths {
		plain := Random(r, n)
		sealed := reference.Seal(nil, nonce, plain, additional)
		for _, room := range []int{0, n + overhead, n + overhead + 100} { // none, just enough, and more
			for _, c := range []struct {
				name string
				want []byte
				make func(dst []byte) []byte
			}{
				{name: "seal", want: sealed, make: func(dst []byte) []byte { return ours.Seal(dst, nonce, plain, additional) }},
				{name: "open", want: plain, make: func(dst []byte) []byte {
					b, err := ours.Open(dst, nonce, sealed, additional)
					if err != nil {
						t.Errorf("open %d bytes: %v", n, err)
					}
					return b
				}},
			} {
				dst := append(make([]byte, 0, 4+room), "head"...)
				whole := dst[:cap(dst)]
				for i := 4; i < len(whole); i++ {
					whole[i] = 0xa5
				}
				if got := c.make(dst); !bytes.Equal(got, append([]byte("head"), c.want...)) {
					t.Errorf("%s %d bytes, room for %d: %x", c.name, n, room, got)
				}
				if 4+len(c.want) > len(whole) { // it has moved
					continue
				}
				for i, v := range whole[4+len(c.want):] {
					if v != 0xa5 {
						t.Fatalf("%s %d bytes, room for %d: byte %d behind the output has changed", c.name, n, room, i)
					}
				}
			}
		}
		b := append(bytes.Clone(plain), make([]byte, overhead)...)
		if got := ours.Seal(b[:0], nonce, b[:n], additional); !bytes.Equal(got, sealed) {
			t.Errorf("%d bytes sealed in place: %x, want %x", n, got, sealed)
		}
		if got, err := ours.Open(b[:0], nonce, b, additional); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes opened in place: %x, %v", n, got, err)
		}
	}
}
