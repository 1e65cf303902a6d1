//go:build !omegatun_null_cipher

package tunnel

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"

	"omegatun/session/tunnel/widegcm"
	"omegatun/session/widechacha"
)

// newAEAD returns the cipher of a suite, and how many datagrams a key may seal.
func newAEAD(suite Suites, k []byte) (aead cipher.AEAD, limit uint64, err error) {
	switch suite {
	case ChaCha20Poly1305:
		aead, err = widechacha.New(k)
		limit = maxChaCha
	case AES256GCM:
		limit = maxAESGCM
		if widegcm.Supported() {
			aead, err = widegcm.New(k)
			break
		}
		var block cipher.Block
		if block, err = aes.NewCipher(k); err == nil {
			aead, err = cipher.NewGCM(block)
			wipe(block) // NewGCM has copied it
		}
	default:
		err = errors.New("not a single known suite")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("tunnel: %v: %w", suite, err)
	}
	return aead, limit, nil
}
