package widechacha

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"omegatun/session/internal/aeadtest"
)

// wide is the AEAD that uses the wide instructions for short messages too.
type wide struct{ *aead }

func (w wide) Seal(dst, nonce, plaintext, additional []byte) []byte {
	return w.seal(dst, nonce, plaintext, additional)
}

func (w wide) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	return w.open(dst, nonce, ciphertext, additional)
}

// pair returns the wide AEAD and the reference for one key.
func pair(t testing.TB, key []byte) (ours wide, reference cipher.AEAD) {
	t.Helper()
	a, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	w, ok := a.(*aead)
	if !ok {
		t.Skip("this processor has no AVX-512 with IFMA")
	}
	return wide{w}, w.short
}

// lengths are where something ends or begins: a block, what is hashed at a time, a run, a piece.
func lengths() (all []int) {
	for n := range 2200 {
		all = append(all, n)
	}
	for _, edge := range []int{run - blockSize, run, 2 * run, piece, run - blockSize + piece, 2 * piece, 65536, 65536 + blockSize} {
		for n := max(2200, edge-70); n <= edge+600; n += 1 + n%7 {
			all = append(all, n)
		}
	}
	return all
}

func TestEveryLengthSealsAsTheReference(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	for _, n := range lengths() {
		ours, reference := pair(t, aeadtest.Random(r, KeySize))
		additional := aeadtest.Random(r, []int{0, 16, n % 70, n % 1500}[n%4])
		nonce, plain := aeadtest.Random(r, NonceSize), aeadtest.Random(r, n)
		want := reference.Seal(nil, nonce, plain, additional)
		if got := ours.Seal(nil, nonce, plain, additional); !bytes.Equal(got, want) {
			t.Fatalf("%d and %d bytes sealed: %x, want %x", n, len(additional), got, want)
		}
		if got, err := ours.Open(nil, nonce, want, additional); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d and %d bytes opened: %x, %v, want %x", n, len(additional), got, err, plain)
		}
	}
}

func TestMessagesAreSealedWhatTheirLength(t *testing.T) {
	ours, reference := pair(t, make([]byte, KeySize))
	nonce := make([]byte, NonceSize)
	for _, n := range []int{0, 1, shortest - 1, shortest, shortest + 1} {
		plain := make([]byte, n)
		sealed := ours.aead.Seal(nil, nonce, plain, nil)
		if want := reference.Seal(nil, nonce, plain, nil); !bytes.Equal(sealed, want) {
			t.Errorf("%d bytes: %x, want %x", n, sealed, want)
		}
		if got, err := ours.aead.Open(nil, nonce, sealed, nil); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes opened: %x, %v", n, got, err)
		}
		sealed[n]++
		if got, err := ours.aead.Open(nil, nonce, sealed, nil); err == nil || got != nil {
			t.Errorf("%d bytes changed: opened as %x", n, got)
		}
	}
	for n := range TagSize {
		if _, err := ours.aead.Open(nil, nonce, make([]byte, n), nil); err == nil {
			t.Errorf("%d bytes: opened", n)
		}
	}
}

// Source: RFC 8439, 2.8.2.
func TestKnownAnswer(t *testing.T) {
	key := make([]byte, KeySize)
	for i := range key {
		key[i] = 0x80 + byte(i)
	}
	nonce := []byte{7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47}
	additional := []byte{0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7}
	const text = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
	const want = "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b29" +
		"05d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116" +
		"1ae10b594f09e26a7e902ecbd0600691"
	ours, _ := pair(t, key)
	if got := hex.EncodeToString(ours.Seal(nil, nonce, []byte(text), additional)); got != want {
		t.Errorf("sealed: %s, want %s", got, want)
	}
}

// The sums of Poly1305 are driven to where carries and the last reduction matter, which random messages hardly ever do.
func TestHashAtItsLimits(t *testing.T) {
	pair(t, make([]byte, KeySize))
	prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 130), big.NewInt(5))
	number := func(b []byte) *big.Int { // little-endian
		b = slices.Clone(b)
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	clamp := number([]byte("\xff\xff\xff\x0f\xfc\xff\xff\x0f\xfc\xff\xff\x0f\xfc\xff\xff\x0f"))
	ones := bytes.Repeat([]byte{0xff}, 16)
	for _, key := range []struct {
		name    string
		r, last []byte
	}{
		{"all bits", ones, ones},
		{"zero", make([]byte, 16), ones},
		{"one", append([]byte{1}, make([]byte, 15)...), make([]byte, 16)},
		{"two", append([]byte{2}, make([]byte, 15)...), make([]byte, 16)},
		{"four", append([]byte{4}, make([]byte, 15)...), append([]byte{1}, make([]byte, 15)...)},
		{"highest", append(make([]byte, 15), 8), ones},
	} {
		for _, blocks := range []int{1, 2, 7, 8, 9, 31, 32, 33, 39, 40, 41, 64, 71, 72, 73, 200} {
			for _, text := range []struct {
				name  string
				block []byte
			}{
				{"ones", ones},
				{"zeros", make([]byte, 16)},
				{"one less than 2^128 - 4", append([]byte{0xfa}, ones[1:]...)},
				{"2^128 - 5", append([]byte{0xfb}, ones[1:]...)},
				{"2^128 - 4", append([]byte{0xfc}, ones[1:]...)},
			} {
				var w work
				w.hashKey((*[32]byte)(slices.Concat(key.r, key.last)), blocks)
				b := bytes.Repeat(text.block, blocks)
				w.hashSome(b, blocks)
				w.hashRest(b)
				tag := w.end(3, 5)

				r := number(key.r)
				r.And(r, clamp)
				sum := new(big.Int)
				lengths := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 3), 5)
				for block := range slices.Chunk(append(b, lengths...), 16) {
					sum.Add(sum, number(append(slices.Clone(block), 1)))
					sum.Mod(sum.Mul(sum, r), prime)
				}
				sum.Add(sum, number(key.last))
				want := make([]byte, 17)
				sum.FillBytes(want)
				slices.Reverse(want)
				if !bytes.Equal(tag[:], want[:16]) {
					t.Errorf("key %s, %d blocks of %s: %x, want %x", key.name, blocks, text.name, tag, want[:16])
				}
			}
		}
	}
}

func TestOutputIsAppendedOrReplacesTheInput(t *testing.T) {
	r := rand.NewChaCha8([32]byte{3})
	ours, reference := pair(t, aeadtest.Random(r, KeySize))
	nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, 16)
	aeadtest.Output(t, ours, reference, r, nonce, additional,
		0, 1, 15, 16, 17, 255, 256, 257, 959, 960, 961, 1424, 1984, 10000, 65535)
}

func TestEveryChangedBitIsNoticed(t *testing.T) {
	r := rand.NewChaCha8([32]byte{5})
	ours, _ := pair(t, aeadtest.Random(r, KeySize))
	for _, n := range []int{0, 1, 33, 290, 1100} {
		nonce, additional := aeadtest.Random(r, NonceSize), aeadtest.Random(r, n/2)
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
		for short := TagSize; short < min(len(sealed), TagSize+40); short++ {
			if _, err := ours.Open(nil, nonce, sealed[:short], additional); err == nil {
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
	nonce, b := make([]byte, NonceSize), make([]byte, 3*shortest)
	n := 2 * shortest
	for _, row := range []struct {
		name string
		call func()
	}{
		{"short nonce", func() { ours.Seal(nil, nonce[:11], b, nil) }},
		{"long nonce", func() { ours.Seal(nil, append(nonce, 0), b, nil) }},
		{"short nonce to open", func() { _, _ = ours.Open(nil, nonce[:11], b, nil) }},
		{"output a little before the input", func() { ours.Seal(b[:0], nonce, b[1:n], nil) }},
		{"output a little behind the input", func() { ours.Seal(b[:1], nonce, b[:n], nil) }},
		{"tag over the input", func() { ours.Seal(b[:0], nonce, b[shortest+8:2*shortest+8], nil) }},
		{"opened a little before", func() { _, _ = ours.Open(b[:0], nonce, b[1:n], nil) }},
		{"opened a little behind", func() { _, _ = ours.Open(b[:1], nonce, b[:n], nil) }},
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

func TestDestroyLeavesNoKey(t *testing.T) {
	key := bytes.Repeat([]byte{0xa5}, KeySize)
	ours, reference := pair(t, key)
	ours.Destroy()
	if ours.key != [KeySize]byte{} || ours.short != nil {
		t.Errorf("the key is still there: %x", ours.key)
	}
	zero, err := chacha20poly1305.New(make([]byte, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, NonceSize)
	if got, want := reference.Seal(nil, nonce, nil, nil), zero.Seal(nil, nonce, nil, nil); !bytes.Equal(got, want) {
		t.Error("the key for short messages is still there")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	ours, _ := pair(t, make([]byte, KeySize))
	nonce, additional, b := make([]byte, NonceSize), make([]byte, 16), make([]byte, 3000)
	n := testing.AllocsPerRun(100, func() {
		sealed := ours.Seal(b[:0], nonce, b[:2900], additional)
		if _, err := ours.Open(b[:0], nonce, sealed, additional); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAgainstReference(f *testing.F) {
	f.Add(make([]byte, KeySize), make([]byte, NonceSize), []byte(nil), []byte("hello"))
	f.Add(bytes.Repeat([]byte{255}, KeySize), bytes.Repeat([]byte{255}, NonceSize), bytes.Repeat([]byte{255}, 20),
		bytes.Repeat([]byte{255}, 1700))
	f.Fuzz(func(t *testing.T, key, nonce, additional, text []byte) {
		if len(key) != KeySize || len(nonce) != NonceSize {
			return
		}
		ours, reference := pair(t, key)
		sealed := reference.Seal(nil, nonce, text, additional)
		if got := ours.Seal(nil, nonce, text, additional); !bytes.Equal(got, sealed) {
			t.Errorf("sealed: %x, want %x", got, sealed)
		}
		if got, err := ours.Open(nil, nonce, sealed, additional); err != nil || !bytes.Equal(got, text) {
			t.Errorf("opened: %x, %v, want %x", got, err, text)
		}
		if len(text) < TagSize {
			return
		}
		got, err := ours.Open(nil, nonce, text, additional)
		want, wantErr := reference.Open(nil, nonce, text, additional)
		if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) {
			t.Errorf("the text opened: %x, %v, want %x, %v", got, err, want, wantErr)
		}
	})
}

func BenchmarkAEAD(b *testing.B) {
	r := rand.NewChaCha8([32]byte{2})
	key := aeadtest.Random(r, KeySize)
	ours, _ := pair(b, key)
	reference, err := chacha20poly1305.New(key)
	if err != nil {
		b.Fatal(err)
	}
	nonce := aeadtest.Random(r, NonceSize)
	for _, size := range []int{64, 768, 1424, 16384, 65536} {
		plain := aeadtest.Random(r, size)
		for _, c := range []struct {
			name string
			aead cipher.AEAD
		}{{"wide", ours.aead}, {"reference", reference}} {
			sealed := c.aead.Seal(nil, nonce, plain, nil)
			for _, parallel := range []int{1, 0} { // on one processor, and on all
				b.Run(fmt.Sprintf("seal/%d/%s/%d", size, c.name, parallel), func(b *testing.B) {
					each(b, parallel, size, func(room []byte) { c.aead.Seal(room, nonce, plain, nil) })
				})
				b.Run(fmt.Sprintf("open/%d/%s/%d", size, c.name, parallel), func(b *testing.B) {
					each(b, parallel, size, func(room []byte) {
						if _, err := c.aead.Open(room, nonce, sealed, nil); err != nil {
							b.Error(err)
						}
					})
				})
			}
		}
	}
}

// each does something with a text of that size, over and over: on one processor, or on all if parallel is 0.
func each(b *testing.B, parallel, size int, do func(room []byte)) {
	b.SetBytes(int64(size))
	if parallel == 1 {
		room := make([]byte, 0, size+TagSize)
		for b.Loop() {
			do(room)
		}
		return
	}
	b.RunParallel(func(pb *testing.PB) {
		room := make([]byte, 0, size+TagSize)
		for pb.Next() {
			do(room)
		}
	})
}
