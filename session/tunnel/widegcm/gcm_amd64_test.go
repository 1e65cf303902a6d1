package widegcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"omegatun/session/internal/aeadtest"
)

// pair returns our AEAD and the standard library's for one key.
func pair(t testing.TB, key []byte) (ours *AEAD, standard cipher.AEAD) {
	t.Helper()
	if !Supported() {
		t.Skip("this processor has no 512-bit AES instructions")
	}
	ours, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	standard, err = cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return ours, standard
}

func TestEveryLengthSealsAsTheStandardLibrary(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	for n := range 1100 {
		ours, standard := pair(t, aeadtest.Random(r, KeySize))
		nonce, additional, plain := aeadtest.Random(r, NonceSize), aeadtest.Random(r, AdditionalSize), aeadtest.Random(r, n)
		want := standard.Seal(nil, nonce, plain, additional)
		if got := ours.Seal(nil, nonce, plain, additional); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes sealed: %x, want %x", n, got, want)
		}
		if got, err := ours.Open(nil, nonce, want, additional); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes opened: %x, %v, want %x", n, got, err, plain)
		}
	}
}

// The standard library is measured by vectors of its own; these are to make sure that both are not used wrongly in the same way.
//
// Source: computed with OpenSSL's AES-256-GCM.
func TestKnownAnswer(t *testing.T) {
	key := bytes.Repeat([]byte{0x42}, KeySize)
	ours, _ := pair(t, key)
	nonce, additional := bytes.Repeat([]byte{0x24}, NonceSize), bytes.Repeat([]byte{0x11}, AdditionalSize)
	const want = "74e5b0208aade65f52c846cbca5cbf860389131196c73919c4c8a97a3aa4937670e61ed383e340b43710f1ebaf632d13d4"
	if got := hex.EncodeToString(ours.Seal(nil, nonce, []byte("attack at dawn, or a little later"), additional)); got != want {
		t.Errorf("sealed: %s, want %s", got, want)
	}
}

func TestOutputIsAppendedOrReplacesTheInput(t *testing.T) {
	r := rand.NewChaCha8([32]byte{3})
	ours, standard := pair(t, aeadtest.Random(r, KeySize))
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, AdditionalSize)
	aeadtest.Output(t, ours, standard, r, nonce, additional, 0, 1, 15, 16, 17, 255, 256, 257, 1424, 65535)
}

func TestNothingOutsideTheBuffersIsTouched(t *testing.T) {
	r := rand.NewChaCha8([32]byte{4})
	ours, standard := pair(t, aeadtest.Random(r, KeySize))
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, AdditionalSize)
	for _, atEnd := range []bool{false, true} {
		nonce, additional := aeadtest.Fenced(t, nonce, atEnd), aeadtest.Fenced(t, additional, atEnd)
		for _, n := range []int{0, 1, 63, 64, 65, 100, 255, 256, 300, 1424} {
			plain := aeadtest.Random(r, n)
			sealed := standard.Seal(nil, nonce, plain, additional)
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

func TestEveryChangedBitIsNoticed(t *testing.T) {
	r := rand.NewChaCha8([32]byte{5})
	key := aeadtest.Random(r, KeySize)
	ours, _ := pair(t, key)
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, AdditionalSize)
	for _, n := range []int{0, 1, 33, 290} {
		sealed := ours.Seal(nil, nonce, aeadtest.Random(r, n), additional)
		for _, part := range []struct {
			name string
			b    []byte
		}{{"text and tag", sealed}, {"nonce", nonce}, {"associated data", additional}} {
			for bit := range 8 * len(part.b) {
				part.b[bit/8] ^= 1 << (bit % 8)
				out := bytes.Repeat([]byte{0xa5}, n)
				if b, err := ours.Open(out[:0], nonce, sealed, additional); err == nil || b != nil {
					t.Fatalf("%d bytes: bit %d of the %s changed: opened", n, bit, part.name)
				}
				if !bytes.Equal(out, make([]byte, n)) {
					t.Fatalf("%d bytes: bit %d of the %s changed: the output has %x", n, bit, part.name, out)
				}
				part.b[bit/8] ^= 1 << (bit % 8)
			}
		}
		for short := range min(len(sealed), TagSize+3) {
			if _, err := ours.Open(nil, nonce, sealed[:short], additional); err == nil && short < len(sealed) {
				t.Errorf("the first %d of %d bytes: opened", short, len(sealed))
			}
		}
	}
}

func TestMisuseIsRefused(t *testing.T) {
	ours, _ := pair(t, make([]byte, KeySize))
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes is taken", n)
		}
	}
	nonce, additional, b := make([]byte, NonceSize), make([]byte, AdditionalSize), make([]byte, 200)
	for _, row := range []struct {
		name string
		call func()
	}{
		{"short nonce", func() { ours.Seal(nil, nonce[:11], b, additional) }},
		{"long nonce", func() { ours.Seal(nil, append(nonce, 0), b, additional) }},
		{"no associated data", func() { ours.Seal(nil, nonce, b, nil) }},
		{"long associated data", func() { ours.Seal(nil, nonce, b, append(additional, 0)) }},
		{"short nonce to open", func() { _, _ = ours.Open(nil, nonce[:11], b, additional) }},
		{"no associated data to open", func() { _, _ = ours.Open(nil, nonce, b, nil) }},
		{"output a little before the input", func() { ours.Seal(b[:0], nonce, b[1:100], additional) }},
		{"output a little behind the input", func() { ours.Seal(b[:1], nonce, b[:100], additional) }},
		{"tag over the input", func() { ours.Seal(b[:0:100], nonce, b[40:76], additional) }},
		{"opened a little before", func() { _, _ = ours.Open(b[:0], nonce, b[1:100], additional) }},
		{"opened a little behind", func() { _, _ = ours.Open(b[:1], nonce, b[:100], additional) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			row.call()
		})
	}
}

func TestNothingIsAllocated(t *testing.T) {
	ours, _ := pair(t, make([]byte, KeySize))
	nonce, additional, b := make([]byte, NonceSize), make([]byte, AdditionalSize), make([]byte, 1500)
	n := testing.AllocsPerRun(100, func() {
		sealed := ours.Seal(b[:0], nonce, b[:1400], additional)
		if _, err := ours.Open(b[:0], nonce, sealed, additional); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAgainstStandardLibrary(f *testing.F) {
	f.Add(make([]byte, KeySize), make([]byte, NonceSize), make([]byte, AdditionalSize), []byte("hello"))
	f.Add(bytes.Repeat([]byte{255}, KeySize), bytes.Repeat([]byte{255}, NonceSize), bytes.Repeat([]byte{255}, AdditionalSize),
		bytes.Repeat([]byte{255}, 700))
	f.Fuzz(func(t *testing.T, key, nonce, additional, text []byte) {
		if len(key) != KeySize || len(nonce) != NonceSize || len(additional) != AdditionalSize {
			return
		}
		ours, standard := pair(t, key)
		sealed := standard.Seal(nil, nonce, text, additional)
		if got := ours.Seal(nil, nonce, text, additional); !bytes.Equal(got, sealed) {
			t.Errorf("sealed: %x, want %x", got, sealed)
		}
		if got, err := ours.Open(nil, nonce, sealed, additional); err != nil || !bytes.Equal(got, text) {
			t.Errorf("opened: %x, %v, want %x", got, err, text)
		}
		got, err := ours.Open(nil, nonce, text, additional)
		want, wantErr := standard.Open(nil, nonce, text, additional)
		if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) {
			t.Errorf("the text opened: %x, %v, want %x, %v", got, err, want, wantErr)
		}
	})
}

func BenchmarkAEAD(b *testing.B) {
	r := rand.NewChaCha8([32]byte{2})
	ours, standard := pair(b, aeadtest.Random(r, KeySize))
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, AdditionalSize)
	for _, size := range []int{64, 256, 1424, 8192, 65536} {
		plain := aeadtest.Random(r, size)
		room := make([]byte, 0, size+TagSize)
		for _, c := range []struct {
			name string
			aead cipher.AEAD
		}{{"wide", ours}, {"standard", standard}} {
			sealed := c.aead.Seal(nil, nonce, plain, additional)
			b.Run(fmt.Sprintf("seal/%d/%s", size, c.name), func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					c.aead.Seal(room, nonce, plain, additional)
				}
			})
			b.Run(fmt.Sprintf("open/%d/%s", size, c.name), func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := c.aead.Open(room, nonce, sealed, additional); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
