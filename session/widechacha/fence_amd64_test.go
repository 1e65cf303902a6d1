//go:build unix

package widechacha

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"omegatun/session/internal/aeadtest"
)

func TestNothingOutsideTheBuffersIsTouched(t *testing.T) {
	r := rand.NewChaCha8([32]byte{4})
	ours, reference := pair(t, aeadtest.Random(r, KeySize))
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, 100)
	for _, atEnd := range []bool{false, true} {
		nonce := aeadtest.Fenced(t, nonce, atEnd)
		for i, n := range []int{0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 300, 511, 512, 900, 960, 961, 1424, 1984, 1985, 2048, 9152, 20000} {
			additional := aeadtest.Fenced(t, additional[:[]int{0, 1, 16, 100}[i%4]], atEnd)
			plain := aeadtest.Random(r, n)
			sealed := reference.Seal(nil, nonce, plain, additional)
			room := aeadtest.Fenced(t, make([]byte, n+TagSize), atEnd)
			if got := ours.Seal(room[:0], nonce, aeadtest.Fenced(t, plain, atEnd), additional); !bytes.Equal(got, sealed) {
				t.Errorf("%d bytes sealed: %x, want %x", n, got, sealed)
			}
			got, err := ours.Open(aeadtest.Fenced(t, make([]byte, n), atEnd)[:0], nonce, aeadtest.Fenced(t, sealed, atEnd), additional)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes opened: %x, %v", n, got, err)
			}
		}
	}
}
