//go:build omegatun_null_cipher

package tunnel

import "crypto/cipher"

// newAEAD returns no cipher at all. It exists to measure what everything but the cipher costs (scripts/bench builds the
// system null-cipher with it) and is in no program that anybody uses.
func newAEAD(_ Suites, _ []byte) (aead cipher.AEAD, limit uint64, err error) {
	return nullAEAD{}, maxAESGCM, nil
}

// nullAEAD copies.
type nullAEAD struct{}

func (nullAEAD) NonceSize() int { return nonceSize }
func (nullAEAD) Overhead() int  { return TagSize }

func (nullAEAD) Seal(dst, _, plaintext, _ []byte) []byte {
	return append(append(dst, plaintext...), make([]byte, TagSize)...)
}

func (nullAEAD) Open(dst, _, ciphertext, _ []byte) ([]byte, error) {
	return append(dst, ciphertext[:len(ciphertext)-TagSize]...), nil
}
