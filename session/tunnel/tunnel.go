// Package tunnel is omegatun's datagram: how IP packets travel sealed, unordered and each on its own, with keys
// that come from a finished Noise handshake.
//
// # Negotiation
//
// Each side appends an [Offer] to the handshake payload it sends, after every field of HyperDHT's, which ignores
// what is left over. If both offers are there the tunnel exists as soon as the handshake is complete.
//
//	"omtn"  uint version = 1  uint length, then length bytes:
//	   0 – 3   receiver index   u32 LE: what datagrams to the sender of the offer carry
//	   4       cipher suites    1 ChaCha20-Poly1305, always set; 2 AES-256-GCM, set when the CPU does it in hardware
//	   5 –     features         uint bit set: 1 accepts unfinished checksums, 2 post-quantum rekeying, 4 accepts parts
//
// Bytes after the features belong to later versions and are ignored. A block of another version is skipped by
// its length. AES-256-GCM is used when both sides set it.
//
// # Datagram
//
//	byte  0        0xbe            datagram class (0xff is UDX; 0x03 and 0x13 DHT; length ≤ 1 punch probes)
//	      1        version = 1
//	      2 – 3    zero
//	      4 – 7    receiver index, u32 LE   names session and epoch; random, chosen by the receiver
//	      8 – 15   counter, u64 LE          starts at 0 in each epoch and direction
//	     16 –      AEAD ciphertext and 16-byte tag; associated data is bytes 0 – 15
//
// The 96-bit nonce is the counter as the Noise specification encodes it: four zero bytes, then the counter,
// little-endian with ChaCha20-Poly1305 and big-endian with AES-GCM. Each direction has its own key:
//
//	BLAKE2b-256, keyed with the split key of that direction, of "omegatun tunnel 1" ‖ handshake hash
//
// The first byte of the plaintext says what it is: see [ContentOf]. Control datagrams are [Control] values. A plaintext that is
// too long for the path travels in several datagrams: see [Part].
//
// # Receiving
//
// [IsDatagram] and [ReceiverIndex] find the [Epoch] that a datagram is for, and [Epoch.Open] does the rest, in an
// order that lets a stranger cause neither work nor change: index, counter against the replay window, AEAD, and only
// then is the counter marked. The window is 8,128 packets wide.
//
// # Key confirmation
//
// The first handshake message may be a replay, so the responder cannot know that its peer is there until a
// datagram opens. Until then its [Epoch.Seal] takes control datagrams only, with which it can open its own NAT, and
// refuses everything else with [ErrUnconfirmed]. Whoever uses the Epoch bounds how many it sends, since a replayed
// message can name any address. The initiator sends something at once, a ping or a [Keepalive].
//
// # Rekeying
//
// A [Session] follows the keys of the handshake with others. The initiator asks, the responder answers; both messages travel on an
// authenticated channel of the same session. Each holds what its sender wants datagrams to carry in the new epoch:
//
//	uint number of the epoch, u32 receiver index, X25519 share 32, buffer: ML-KEM-768 encapsulation key, in the answer ciphertext
//
// The ML-KEM part is there if both sides have [FeaturePostQuantum], and empty otherwise. The keys form a chain, whose secret n
// depends on all exchanges up to n:
//
//	chain 0   BLAKE2b-256, keyed with the initiator's split key, of "omegatun chain 1" ‖ responder's split key ‖ handshake hash
//	extract   HKDF-SHA-256, salt: chain n-1; secret: X25519 secret ‖ ML-KEM secret
//	expand    with "omegatun epoch 1" ‖ SHA-256(request ‖ answer) to 96 bytes: chain n, initiator's key, responder's key
//
// The responder goes on sealing with the old key until a datagram of the new epoch has come. Old keys open for 10 s more; no key
// lives longer than 180 s.
//
// # Limitations
//
//   - Only the initiator starts a rekeying.
//   - Keys are overwritten when their time is over, but the Go runtime may have copied them while it moved stacks. The private halves
//     of the key exchange are left to the garbage collector.
package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// HeaderSize is the length of a datagram's header in bytes.
	HeaderSize = 16
	// TagSize is the length of a datagram's authentication tag in bytes.
	TagSize = 16
	// Overhead is how much longer than its plaintext a datagram is, in bytes.
	Overhead = HeaderSize + TagSize

	class   = 0xbe // first byte of every datagram
	version = 1
)

// Errors of this package, without further wrapping where they are returned per datagram.
var (
	// ErrFormat reports a datagram that is too short or whose fixed bytes are not those of this version.
	ErrFormat = errors.New("tunnel: not a datagram of this version")
	// ErrIndex reports a datagram for another epoch.
	ErrIndex = errors.New("tunnel: datagram is for another epoch")
	// ErrReplay reports a counter that was seen before, is older than the window, or that no key may reach.
	ErrReplay = errors.New("tunnel: datagram was seen before, or is too old")
	// ErrAuth reports a datagram that was not sealed by the peer, or changed on the way.
	ErrAuth = errors.New("tunnel: datagram is not authentic")
	// ErrUnconfirmed reports that the responder may not send packets yet.
	ErrUnconfirmed = errors.New("tunnel: the peer has not sent anything yet")
	// ErrExhausted reports that the key has sealed as many datagrams as it may.
	ErrExhausted = errors.New("tunnel: the key is used up")
	// ErrClosed reports use of an epoch after [Epoch.Close].
	ErrClosed = errors.New("tunnel: epoch is closed")
	// ErrOffer is wrapped by errors about the peer's offer.
	ErrOffer = errors.New("tunnel: malformed offer")
	// ErrControl is wrapped by errors about control datagrams.
	ErrControl = errors.New("tunnel: malformed control datagram")
)

// IsDatagram reports whether b is of this package's class, by its first byte.
func IsDatagram(b []byte) bool { return len(b) > 1 && b[0] == class }

// ReceiverIndex returns the index of the epoch that a datagram is for. It reports false if b is no datagram of
// this version. Nothing about b is authentic yet.
func ReceiverIndex(b []byte) (index uint32, ok bool) {
	if len(b) < Overhead || binary.LittleEndian.Uint32(b) != class|version<<8 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(b[4:]), true
}

// Content is the kind of a plaintext.
type Content uint8

const (
	// ContentUnknown is anything else: it is dropped.
	ContentUnknown Content = iota
	// ContentIP is an IPv4 or IPv6 packet.
	ContentIP
	// ContentControl is a [Control] datagram.
	ContentControl
	// ContentUnfinished is a byte 0x02, a byte of flags, zero so far, and an IP packet whose TCP or UDP checksum field
	// holds the sum of the pseudo-header only. It is sent to peers that set [FeatureUnfinished].
	ContentUnfinished
	// ContentPart is a [Part]. It is sent to peers that set [FeatureParts].
	ContentPart
	// ContentStream is a UDX packet of the control stream, which begins with ff. Only a whole put together from parts can be one.
	ContentStream
)

// UnfinishedHeader is the length of what precedes the IP packet in [ContentUnfinished], in bytes.
const UnfinishedHeader = 2

// First bytes of a plaintext that is no IP packet.
const (
	contentControl    = 0x01
	contentUnfinished = 0x02
	contentStream     = 0xff
)

// AppendUnfinished appends the bytes that precede the IP packet in [ContentUnfinished].
func AppendUnfinished(b []byte) []byte { return append(b, contentUnfinished, 0) }

// ContentOf tells the kind of a plaintext from its first byte. Nothing but that byte is checked.
func ContentOf(plaintext []byte) Content {
	if len(plaintext) == 0 {
		return ContentUnknown
	}
	switch first := plaintext[0]; {
	case first>>4 == 4, first>>4 == 6:
		return ContentIP
	case first == contentControl:
		return ContentControl
	case first == contentUnfinished:
		return ContentUnfinished
	case first == contentPart:
		return ContentPart
	case first == contentStream:
		return ContentStream
	}
	return ContentUnknown
}

// String returns the kind in words.
func (c Content) String() string {
	switch c {
	case ContentUnknown:
		return "unknown"
	case ContentIP:
		return "ip"
	case ContentControl:
		return "control"
	case ContentUnfinished:
		return "unfinished"
	case ContentPart:
		return "part"
	case ContentStream:
		return "stream"
	}
	return fmt.Sprintf("content %d", uint8(c))
}
