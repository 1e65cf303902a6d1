package key

import (
	"crypto/ed25519"
	"encoding/binary"
	"testing"
)

// With a key of small order, one in a few messages has a signature of zeros.
func TestWeakKeysSignNothing(t *testing.T) {
	accepted := 0
	for _, p := range weakPoints {
		for _, sign := range []byte{0, 0x80} {
			k := p
			k[31] |= sign
			for i := range uint32(64) {
				message := binary.LittleEndian.AppendUint32(nil, i)
				for _, r := range weakPoints {
					var sig [64]byte
					copy(sig[:], r[:])
					if ed25519.Verify(k[:], message, sig[:]) {
						accepted++
					}
					if k.Verify(message, sig) {
						t.Fatalf("%x signed %x", k[:], message)
					}
				}
			}
		}
	}
	if accepted == 0 {
		t.Error("the test shows nothing: the standard library refuses them as well")
	}
	good := Generate()
	if message := []byte("hello"); !good.Public().Verify(message, good.Sign(message)) {
		t.Error("a good signature is refused")
	}
}
