package secretstream

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305" //nolint:staticcheck // deprecated for AEADs, but libsodium's format needs it bare

	"omegatun/session/widechacha"
)

const (
	headerSize = 24
	macSize    = 16
	overhead   = 1 + macSize // of a message's body, in bytes

	blockSize = 64            // of ChaCha20
	headroom  = blockSize - 1 // bytes in front of a body that seal and open use as scratch space
)

// Tags of a message. Only tagMessage is sent.
const (
	tagMessage = 0
	tagRekey   = 2 // a bit: the key changes after the message
)

// state is one direction of libsodium's secretstream (XChaCha20-Poly1305), without additional data, which the
// protocol does not use. With k the key and n the nonce, which is a counter u32 and 8 more bytes, a message is
//
//	ChaCha20(k, n), block 0    its first 32 bytes are the Poly1305 key
//	block 1                    encrypts the tag and 63 zero bytes; byte 0 of the result is sent
//	block 2 and on             encrypt the message
//	MAC                        of the 64 bytes and the ciphertext, then (length mod 16) zero bytes, then both lengths
//
// This is ChaCha20-Poly1305 of the 64 bytes and the message in one, but for the zero bytes: the AEAD would put in
// as many as complete a block of 16. The two agree when the length of the message is a multiple of 8. So the AEAD,
// which is several times faster than its parts, encrypts always and authenticates then; other messages get a
// MAC of their own.
type state struct {
	key   [widechacha.KeySize]byte
	nonce [widechacha.NonceSize]byte
	aead  cipher.AEAD // for key

	block [2 * blockSize]byte // scratch space
	mac   [macSize]byte       // scratch space
}

// init sets the state from the key of the direction and the header of its first frame.
func (s *state) init(k [32]byte, header []byte) {
	subkey, err := chacha20.HChaCha20(k[:], header[:16])
	if err != nil {
		panic("secretstream: " + err.Error()) // only for wrong lengths
	}
	s.setKey(subkey, header[16:headerSize])
}

func (s *state) setKey(k, inonce []byte) {
	copy(s.key[:], k)
	binary.LittleEndian.PutUint32(s.nonce[:], 1)
	copy(s.nonce[4:], inonce)
	var err error
	if s.aead, err = widechacha.New(s.key[:]); err != nil {
		panic("secretstream: " + err.Error()) // only for wrong lengths
	}
}

// keystream returns blocks from to to of the ChaCha20 keystream, in scratch space.
func (s *state) keystream(from, to uint32) []byte {
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		panic("secretstream: " + err.Error()) // only for wrong lengths
	}
	c.SetCounter(from)
	b := s.block[:(to-from)*blockSize]
	clear(b)
	c.XORKeyStream(b, b)
	return b
}

// aeadAuthenticates reports whether the AEAD's tag is the MAC of a message of that length.
func aeadAuthenticates(length int) bool { return length%8 == 0 }

// authenticate computes the MAC of b, which is the 64 bytes of the tag and the ciphertext, into scratch space.
func (s *state) authenticate(oneTimeKey, b []byte) []byte {
	var tail [15 + 16]byte // zero bytes, no additional data, length of b
	pad := len(b) % 16     // the 64 bytes do not change it
	binary.LittleEndian.PutUint64(tail[pad+8:], uint64(len(b)))
	p := poly1305.New((*[32]byte)(oneTimeKey))
	p.Write(b)             //nolint:errcheck // a hash, which never fails
	p.Write(tail[:pad+16]) //nolint:errcheck // as above
	return p.Sum(s.mac[:0])
}

// seal seals the message in buf[at+1 : at+1+length]: it writes the encrypted tag to buf[at], the ciphertext over the
// message and the MAC behind it. It keeps the bytes in front of at, which are at least headroom many.
func (s *state) seal(buf []byte, at, length int, tag byte) {
	var kept [headroom]byte
	front := at - headroom
	copy(kept[:], buf[front:])
	end := at + 1 + length
	clear(buf[front : at+1])
	buf[front] = tag
	s.aead.Seal(buf[front:front], s.nonce[:], buf[front:end], nil)
	mac := buf[end : end+macSize]
	if !aeadAuthenticates(length) {
		copy(mac, s.authenticate(s.keystream(0, 1)[:32], buf[front:end]))
	}
	buf[at] = buf[front]
	copy(buf[front:], kept[:])
	s.advance(mac, tag)
}

// open opens the body buf[at:end], at least overhead bytes, in place: the message is then buf[at+1 : end-macSize].
// The headroom bytes in front of at are lost. It reports whether the message is authentic; the state has changed
// only then.
func (s *state) open(buf []byte, at, end int) bool {
	front := at - headroom
	length := end - at - overhead
	mac := s.mac[:]
	copy(mac, buf[end-macSize:end]) // the buffer's is overwritten
	sent := buf[at]
	if aeadAuthenticates(length) {
		copy(buf[front:], s.keystream(1, 2))
		buf[front] = sent
		if _, err := s.aead.Open(buf[front:front], s.nonce[:], buf[front:end], nil); err != nil {
			return false
		}
	} else {
		blocks := s.keystream(0, 2)
		copy(buf[front:], blocks[blockSize:])
		buf[front] = sent
		var want [macSize]byte
		copy(want[:], mac)
		if subtle.ConstantTimeCompare(s.authenticate(blocks[:32], buf[front:end-macSize]), want[:]) == 0 {
			return false
		}
		s.aead.Seal(buf[front:front], s.nonce[:], buf[front:end-macSize], nil) // decrypts; its tag means nothing
	}
	s.advance(mac, buf[front])
	return true
}

// advance moves the state past a message.
func (s *state) advance(mac []byte, tag byte) {
	subtle.XORBytes(s.nonce[4:], s.nonce[4:], mac[:8])
	counter := binary.LittleEndian.Uint32(s.nonce[:]) + 1
	binary.LittleEndian.PutUint32(s.nonce[:], counter)
	if tag&tagRekey != 0 || counter == 0 {
		s.rekey()
	}
}

// rekey replaces the key by one that does not lead back to it.
func (s *state) rekey() {
	var next [len(s.key) + 8]byte
	copy(next[:], s.key[:])
	copy(next[len(s.key):], s.nonce[4:])
	subtle.XORBytes(next[:], next[:], s.keystream(0, 1))
	s.setKey(next[:len(s.key)], next[len(s.key):])
}
