package widechacha

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math/bits"
	"reflect"
	"slices"
	"unsafe"

	"golang.org/x/sys/cpu"
)

const (
	blockSize = 64             // of ChaCha20
	run       = 16 * blockSize // bytes of key stream that are made at a time
	piece     = 8 * run        // what is encrypted before it is hashed, or the other way round, so that it is near

	hashBlock = 16 // of Poly1305
	hashWide  = 32 // blocks that are hashed at a time
	hashLeast = 8  // blocks that must be left for the end if any were hashed so
	hashChunk = hashWide * hashBlock

	// shortest is from which length of text on the wide instructions are faster.
	shortest = 1200
	// longest is how many bytes the counter of blocks is enough for.
	longest = 1<<38 - 64
)

var errOpen = errors.New("widechacha: message authentication failed")

// aead is the wide AEAD.
type aead struct {
	key   [KeySize]byte
	short cipher.AEAD // for short messages
}

// widen returns the AEAD for all messages, if this processor has the instructions and its system keeps their registers; otherwise
// short.
func widen(short cipher.AEAD, key []byte) cipher.AEAD {
	x := &cpu.X86
	if !x.HasAVX512F || !x.HasAVX512VL || !x.HasAVX512BW || !x.HasAVX512DQ || !x.HasAVX512IFMA || !x.HasBMI2 {
		return short
	}
	return &aead{key: [KeySize]byte(key), short: short}
}

// Destroy overwrites the key; nothing else may be called after that.
func (a *aead) Destroy() {
	reflect.ValueOf(a.short).Elem().SetZero()
	*a = aead{}
}

// NonceSize is that of [cipher.AEAD].
func (a *aead) NonceSize() int { return NonceSize }

// Overhead is that of [cipher.AEAD].
func (a *aead) Overhead() int { return TagSize }

// Seal is that of [cipher.AEAD]. It panics if the nonce has a wrong length, the text is too long, or the output overlaps the plaintext
// and does not begin where that does.
func (a *aead) Seal(dst, nonce, plaintext, additional []byte) []byte {
	if len(plaintext) < shortest {
		return a.short.Seal(dst, nonce, plaintext, additional)
	}
	return a.seal(dst, nonce, plaintext, additional)
}

func (a *aead) seal(dst, nonce, plaintext, additional []byte) []byte {
	check(nonce, len(plaintext))
	dst = slices.Grow(dst, len(plaintext)+TagSize)
	out := dst[len(dst):][:len(plaintext)+TagSize]
	checkOverlap(out, plaintext)
	var w work
	w.begin(a, nonce, additional, len(plaintext))
	size := len(plaintext)
	for at := 0; at < size; {
		end := nextPiece(at, size)
		w.crypt(out, plaintext, at, end)
		w.hashSome(out[:size], (end-w.hashed)/hashChunk)
		at = end
	}
	w.hashRest(out[:size])
	tag := w.end(len(additional), size)
	copy(out[size:], tag[:])
	w = work{}
	return dst[:len(dst)+len(out)]
}

// Open is that of [cipher.AEAD]. It panics as Seal does. Where the plaintext would be it leaves zeros, if it fails.
func (a *aead) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	if len(ciphertext)-TagSize < shortest {
		return a.short.Open(dst, nonce, ciphertext, additional)
	}
	return a.open(dst, nonce, ciphertext, additional)
}

func (a *aead) open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	size := len(ciphertext) - TagSize
	check(nonce, size)
	dst = slices.Grow(dst, size)
	out := dst[len(dst):][:size]
	checkOverlap(out, ciphertext)
	sealed := [TagSize]byte(ciphertext[size:])
	text := ciphertext[:size]
	var w work
	w.begin(a, nonce, additional, size)
	for at := 0; at < size; {
		end := nextPiece(at, size)
		if w.hashed < end {
			w.hashSome(text, (end-w.hashed+hashChunk-1)/hashChunk)
		}
		if w.hashed < end {
			w.hashRest(text)
		}
		w.crypt(out, text, at, end)
		at = end
	}
	tag := w.end(len(additional), size)
	w = work{}
	if subtle.ConstantTimeCompare(tag[:], sealed[:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return dst[:len(dst)+size], nil
}

// nextPiece returns where the piece of a text that begins at at ends: the first with what the key of Poly1305 leaves of a run.
func nextPiece(at, size int) int {
	if at == 0 {
		return min(run-blockSize, size)
	}
	return min(at+piece, size)
}

// check panics if a length is wrong.
func check(nonce []byte, size int) {
	switch {
	case len(nonce) != NonceSize:
		panic("widechacha: the nonce is not 12 bytes long")
	case uint64(size) > longest:
		panic("widechacha: message too long")
	}
}

// checkOverlap panics if the memory of both overlaps, unless they begin at the same place.
func checkOverlap(a, b []byte) {
	if len(a) == 0 || len(b) == 0 || &a[0] == &b[0] {
		return
	}
	if uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1])) {
		panic("widechacha: buffers overlap")
	}
}

// work is one message that is being sealed or opened.
type work struct {
	key    *[KeySize]byte
	nonce  *byte
	stream [run]byte // of key: where there is less than a run to encrypt
	made   int       // offset in the text of what stream begins with
	powers table
	hash   hash
	r      [3]uint64 // of the key of Poly1305: what is multiplied with, in limbs
	last   [2]uint64 // what is added at the end
	hashed int       // bytes of the text
}

// table has the powers of Poly1305's key as the assembler expects them: in each row first the 32nd, then down to the first. The
// rows are limbs of 44, 44 and 42 bits, and the second and third limb times 20.
type table [5][hashWide + 8]uint64

// hash is the sum so far, in limbs, eight numbers side by side: the next eight blocks are added to them.
type hash [3][8]uint64

// begin makes the keys of a message, whose text has size bytes, and hashes the associated data.
func (w *work) begin(a *aead, nonce, additional []byte, size int) {
	w.key, w.nonce = &a.key, unsafe.SliceData(nonce)
	keyStream(&w.stream, w.key, w.nonce, 0)
	w.made = -blockSize
	w.hashKey((*[32]byte)(w.stream[:32]), max(size, len(additional))/hashBlock)
	if whole := len(additional) / hashBlock; whole > 0 {
		w.hashSome(additional, (whole-hashLeast)/hashWide)
		w.hashBlocks(additional[w.hashed:], whole-w.hashed/hashBlock)
	}
	if rest := len(additional) % hashBlock; rest > 0 {
		var b [hashBlock]byte
		copy(b[:], additional[len(additional)-rest:])
		w.hashBlocks(b[:], 1)
	}
	w.hashed = 0
}

// hashKey sets the key of Poly1305, for up to that many blocks at a time.
func (w *work) hashKey(key *[32]byte, blocks int) {
	low := binary.LittleEndian.Uint64(key[0:]) & 0x0ffffffc0fffffff
	high := binary.LittleEndian.Uint64(key[8:]) & 0x0ffffffc0ffffffc
	w.last = [2]uint64{binary.LittleEndian.Uint64(key[16:]), binary.LittleEndian.Uint64(key[24:])}
	w.r = [3]uint64{low & ones44, (low>>44 | high<<20) & ones44, high >> 24}
	powers(&w.powers, &w.r, min(blocks, hashWide))
}

// crypt encrypts or decrypts the piece of the text from at to end.
func (w *work) crypt(out, text []byte, at, end int) {
	if at > 0 {
		counter := uint32(at/blockSize) + 1
		if runs := (end - at) / run; runs > 0 {
			xorRuns(&out[at], &text[at], runs, w.key, w.nonce, counter)
			at += runs * run
			counter += uint32(runs) * (run / blockSize)
		}
		if at == end {
			return
		}
		keyStream(&w.stream, w.key, w.nonce, counter)
		w.made = at
	}
	xor(&out[at], &text[at], &w.stream[at-w.made], end-at)
}

// hashSome hashes n times 32 blocks of the text, or as many as leave eight blocks or more for hashRest.
func (w *work) hashSome(text []byte, n int) {
	n = min(n, (len(text)/hashBlock-w.hashed/hashBlock-hashLeast)/hashWide)
	if n > 0 {
		absorb(&w.hash, &w.powers, &text[w.hashed], n)
		w.hashed += n * hashChunk
	}
}

// hashRest hashes what is left of the text, and zeros that complete its last block.
func (w *work) hashRest(text []byte) {
	w.hashBlocks(text[w.hashed:], (len(text)-w.hashed)/hashBlock)
	if rest := len(text) % hashBlock; rest > 0 {
		var b [hashBlock]byte
		copy(b[:], text[len(text)-rest:])
		w.hashBlocks(b[:], 1)
	}
	w.hashed = len(text)
}

// hashBlocks hashes n blocks, at least eight if the last ones were hashed by hashSome.
func (w *work) hashBlocks(b []byte, n int) {
	for n > 0 {
		m := min(n, hashWide)
		absorbLast(&w.hash, &w.powers, &b[0], m)
		b = b[m*hashBlock:]
		n -= m
	}
}

const (
	ones44 = 1<<44 - 1
	ones42 = 1<<42 - 1
)

// end hashes the lengths and returns the tag.
func (w *work) end(additional, size int) (tag [TagSize]byte) {
	var lengths [hashBlock]byte
	binary.LittleEndian.PutUint64(lengths[0:], uint64(additional))
	binary.LittleEndian.PutUint64(lengths[8:], uint64(size))
	w.hashBlocks(lengths[:], 1)

	h0, h1, h2 := w.hash[0][0], w.hash[1][0], w.hash[2][0]
	for range 2 {
		h1 += h0 >> 44
		h2 += h1 >> 44
		h0 = h0&ones44 + h2>>42*5
		h1 &= ones44
		h2 &= ones42
	}
	// All limbs are in their ranges now: the second time something is carried from the last one only if the first has become small.
	// 2^130 - 5 is subtracted if the hash is not less than that.
	g0 := h0 + 5
	g1 := h1 + g0>>44
	g2 := h2 + g1>>44
	mask := -(g2 >> 42)
	h0 ^= (h0 ^ g0&ones44) & mask
	h1 ^= (h1 ^ g1&ones44) & mask
	h2 ^= (h2 ^ g2&ones42) & mask
	low, carry := bits.Add64(h0|h1<<44, w.last[0], 0)
	high, _ := bits.Add64(h1>>20|h2<<24, w.last[1], carry)
	binary.LittleEndian.PutUint64(tag[0:], low)
	binary.LittleEndian.PutUint64(tag[8:], high)
	return tag
}

// keyStream makes 16 blocks, the first with that counter.
//
//go:noescape
func keyStream(out *[run]byte, key *[KeySize]byte, nonce *byte, counter uint32)

// xorRuns encrypts runs times 16 blocks, at least once; dst and src are the same or lie apart.
//
//go:noescape
func xorRuns(dst, src *byte, runs int, key *[KeySize]byte, nonce *byte, counter uint32)

// xor encrypts n bytes with the key stream at stream; dst and src are the same or lie apart.
//
//go:noescape
func xor(dst, src, stream *byte, n int)

// powers fills the table with powers of r up to the eighth, the 16th or the 32nd, so that there are at least n.
//
//go:noescape
func powers(t *table, r *[3]uint64, n int)

// absorb hashes n times 32 blocks, at least once.
//
//go:noescape
func absorb(h *hash, t *table, p *byte, n int)

// absorbLast hashes n blocks, 1 to 32 but not fewer than h has numbers beside zeros behind them, and leaves one number.
//
//go:noescape
func absorbLast(h *hash, t *table, p *byte, n int)
