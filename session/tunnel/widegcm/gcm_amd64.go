package widegcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// Supported reports whether this processor has the instructions, and its system keeps their registers. The methods of an AEAD must
// not be called without.
func Supported() bool {
	x := &cpu.X86
	return x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ &&
		x.HasAES && x.HasBMI2
}

const (
	roundKeys = 15
	highest   = 17 // power of the hash key: 16 blocks at a time, and one of lengths
)

// AEAD is a [cipher.AEAD] whose associated data has 16 bytes. It is safe for concurrent use. To destroy the key set it to the zero
// value.
type AEAD struct{ k keys }

// keys is as the assembler expects it.
type keys struct {
	round  [roundKeys][16]byte
	powers [highest][2]uint64 // of the hash key, times x, reflected; the highest first
	_      [16][2]uint64      // zeros, by which what lies behind the end is multiplied
}

var _ cipher.AEAD = (*AEAD)(nil)

// New returns the AEAD for a key of 32 bytes, which is not kept.
func New(key []byte) (*AEAD, error) {
	if len(key) != KeySize {
		return nil, errKeySize
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	a := new(AEAD)
	a.k.expand((*[KeySize]byte)(key))
	var h [16]byte
	block.Encrypt(h[:], h[:])
	hash := element{binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint64(h[:])}
	power := hash
	for i := range highest {
		a.k.powers[highest-1-i] = power.timesX()
		power = power.times(hash)
	}
	clear(h[:])
	return a, nil
}

// expand makes the round keys (FIPS 197, 5.2).
func (k *keys) expand(key *[KeySize]byte) {
	const words = 4 * roundKeys
	var w [words]uint32
	for i := range 8 {
		w[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	constant := uint32(1)
	for i := 8; i < words; i++ {
		t := w[i-1]
		switch i % 8 {
		case 0:
			t = bits.RotateLeft32(subWord(t), -8) ^ constant
			constant <<= 1
		case 4:
			t = subWord(t)
		}
		w[i] = w[i-8] ^ t
	}
	for i, v := range w {
		binary.LittleEndian.PutUint32(k.round[i/4][4*(i%4):], v)
	}
	clear(w[:])
}

// element is a polynomial of GCM's field: the highest bit of the second word is that of 1, the lowest of the first that
// of x^127.
type element [2]uint64

// timesX returns what the product of two reflected polynomials lacks, because it has 255 bits and not 256.
func (e element) timesX() element {
	carry := -(e[1] >> 63) // all bits, or none
	return element{e[0]<<1 ^ carry&1, e[1]<<1 | e[0]>>63 ^ carry&0xc2<<56}
}

// times returns the product, slowly, and as fast for every element.
func (e element) times(f element) (product element) {
	for i := range 128 {
		mask := -(f[1-i/64] >> (63 - i%64) & 1)
		product[0] ^= e[0] & mask
		product[1] ^= e[1] & mask
		carry := -(e[0] & 1)
		e = element{e[0]>>1 | e[1]<<63, e[1]>>1 ^ carry&0xe1<<56}
	}
	return product
}

// NonceSize is that of [cipher.AEAD].
func (a *AEAD) NonceSize() int { return NonceSize }

// Overhead is that of [cipher.AEAD].
func (a *AEAD) Overhead() int { return TagSize }

// Seal is that of [cipher.AEAD]. It panics if a length is wrong, or if the output overlaps the plaintext and does not begin where that
// does.
func (a *AEAD) Seal(dst, nonce, plaintext, additional []byte) []byte {
	check(nonce, additional, len(plaintext))
	dst = slices.Grow(dst, len(plaintext)+TagSize)
	out := dst[len(dst):][:len(plaintext)+TagSize]
	checkOverlap(out, plaintext)
	var tag [TagSize]byte
	seal(&a.k, unsafe.SliceData(out), unsafe.SliceData(plaintext), len(plaintext), unsafe.SliceData(nonce),
		unsafe.SliceData(additional), &tag[0])
	copy(out[len(plaintext):], tag[:])
	return dst[:len(dst)+len(out)]
}

// Open is that of [cipher.AEAD]. It panics as Seal does. Where the plaintext would be it leaves zeros, if it fails.
func (a *AEAD) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	check(nonce, additional, len(ciphertext))
	size := len(ciphertext) - TagSize
	if size < 0 {
		return nil, errOpen
	}
	dst = slices.Grow(dst, size)
	out := dst[len(dst):][:size]
	checkOverlap(out, ciphertext)
	sealed := [TagSize]byte(ciphertext[size:])
	var tag [TagSize]byte
	open(&a.k, unsafe.SliceData(out), unsafe.SliceData(ciphertext), size, unsafe.SliceData(nonce), unsafe.SliceData(additional), &tag[0])
	if subtle.ConstantTimeCompare(tag[:], sealed[:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return dst[:len(dst)+size], nil
}

// check panics if a length is wrong.
func check(nonce, additional []byte, size int) {
	switch {
	case len(nonce) != NonceSize:
		panic("widegcm: the nonce is not 12 bytes long")
	case len(additional) != AdditionalSize:
		panic("widegcm: the associated data is not 16 bytes long")
	case uint64(size) > (1<<32-2)*16:
		panic("widegcm: message too long")
	}
}

// checkOverlap panics if the memory of both overlaps, unless they begin at the same place.
func checkOverlap(a, b []byte) {
	if len(a) == 0 || len(b) == 0 || &a[0] == &b[0] {
		return
	}
	if uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1])) {
		panic("widegcm: buffers overlap")
	}
}

// seal encrypts n bytes of src to dst and leaves the tag; open decrypts them and leaves the tag that they should have. dst and src are
// the same or lie apart; tag is used before the end.
//
//go:noescape
func seal(k *keys, dst, src *byte, n int, nonce, aad, tag *byte)

//go:noescape
func open(k *keys, dst, src *byte, n int, nonce, aad, tag *byte)

// subWord substitutes each byte of w (FIPS 197, 5.2).
//
//go:noescape
func subWord(w uint32) uint32
