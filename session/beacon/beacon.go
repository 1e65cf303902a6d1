// Package beacon is how machines that list each other find each other on a local network, without the Internet and without
// telling anyone else who they are.
//
// A machine that misses peers sends a beacon to a multicast group. In it is one entry for each of up to twelve peers, which
// only that peer can tell from random bytes. Whoever finds its own entry answers with a handshake, straight to the sender.
// All integers are little-endian.
//
//	byte  0        0xbf              datagram class
//	      1        version = 1
//	      2        kind: 0 beacon, 1 first handshake message, 2 second
//	      3        zero
//
//	beacon, 454 bytes
//	      4 – 19   nonce             random in each beacon
//	     20 – 21   port              UDP, where the sender is reached; its address is the one that the beacon comes from
//	     22 –      12 entries        in random order; those that are not needed are random
//
//	entry, 36 bytes
//	      0 –  7   BLAKE2b-256, keyed with the name key, of nonce ‖ address ‖ port; cut off
//	      8 – 35   XChaCha20-Poly1305 with the seal key; nonce: that of the beacon and eight zeros; associated data: address ‖ port
//	               plaintext: u32 minutes since 1970 by the sender's clock; the first 8 bytes of the nonce of a beacon of the
//	               receiver's that the sender has heard lately, else zeros
//
//	handshake message
//	      4 – 11   id                random, the same in the answer
//	     12 –      Noise message     as in HyperDHT (package noise)
//
// An address has 16 bytes, an IPv4 address the mapped ones. The keys of a pair and a direction:
//
//	shared    Diffie-Hellman of the two static keys, as in the handshake (ss)
//	name key  BLAKE2b-256, keyed with shared, of "omegatun beacon 1 name" ‖ sender's public key ‖ receiver's public key
//	seal key  the same of "omegatun beacon 1 seal" ‖ …
//
// # What a bystander learns
//
// That a machine with this address runs omegatun and misses somebody. Not whom, not how many, and not whether the sender of
// another beacon is the same. Knowing the public keys of both does not help.
//
// A beacon that is played again carries the address of its sender, or is not recognised. Its receiver acts on it at once
// only if it is less than an hour old. Clocks may be wrong, though, so an older one is acted on if it echoes a beacon that
// the receiver sent itself a short while ago; that it was heard shows only in the receiver's next regular beacon, in
// bytes that nobody else can tell from random.
package beacon

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"omegatun/dht/key"
)

// Kind is what a datagram of this class is.
type Kind uint8

// The kinds.
const (
	KindBeacon Kind = 0
	KindFirst  Kind = 1 // first handshake message
	KindSecond Kind = 2 // its answer
)

const (
	// Size is the length of a beacon in bytes.
	Size = entriesAt + Entries*entrySize
	// Entries is how many peers a beacon is for at most.
	Entries = 12
	// MaxHandshake bounds a handshake message in bytes.
	MaxHandshake = 1200
	// Fresh is how far the clocks of two machines may be apart for a beacon to be acted on at once.
	Fresh = time.Hour

	class       = 0xbf
	version     = 1
	headerSize  = 4
	nonceSize   = 16
	portAt      = headerSize + nonceSize
	entriesAt   = portAt + 2
	nameSize    = 8
	echoSize    = 8
	plainSize   = 4 + echoSize
	entrySize   = nameSize + plainSize + chacha20poly1305.Overhead
	handshakeAt = headerSize + 8
)

// ErrFormat is wrapped by errors about datagrams of this class.
var ErrFormat = errors.New("beacon: malformed datagram")

// Is reports whether b is of this package's class, by its first byte.
func Is(b []byte) bool { return len(b) > 1 && b[0] == class }

// KindOf returns what a datagram is. The error wraps [ErrFormat].
func KindOf(b []byte) (Kind, error) {
	if len(b) < headerSize || b[0] != class || b[1] != version || b[3] != 0 || Kind(b[2]) > KindSecond {
		return 0, fmt.Errorf("%w: header", ErrFormat)
	}
	return Kind(b[2]), nil
}

// Nonce names a beacon.
type Nonce [nonceSize]byte

// Echo is the part of a nonce that the peer sends back. Zero: none.
type Echo [echoSize]byte

// Echo returns the part that the peer sends back.
func (n Nonce) Echo() Echo { return Echo(n[:echoSize]) }

// Pair is what two machines that list each other, and nobody else, know: keys of both directions. It prints nothing of them.
type Pair struct{ out, in keys }

type keys struct{ name, seal [32]byte }

// NewPair returns the keys. shared is the Diffie-Hellman of the static keys (noise.Shared).
func NewPair(shared [32]byte, local, remote key.Public) Pair {
	derive := func(from, to key.Public) keys {
		return keys{
			name: key.KeyedHash(shared[:], []byte("omegatun beacon 1 name"), from[:], to[:]),
			seal: key.KeyedHash(shared[:], []byte("omegatun beacon 1 seal"), from[:], to[:]),
		}
	}
	return Pair{out: derive(local, remote), in: derive(remote, local)}
}

// Format prints that there are keys.
func (*Pair) Format(f fmt.State, _ rune) { fmt.Fprint(f, "beacon keys") }

// place is the address and port of a sender as they are hashed.
func place(a netip.AddrPort) [18]byte {
	var b [18]byte
	ip := a.Addr().As16()
	copy(b[:], ip[:])
	binary.LittleEndian.PutUint16(b[16:], a.Port())
	return b
}

func (k *keys) id(n Nonce, at [18]byte) [nameSize]byte {
	h := key.KeyedHash(k.name[:], n[:], at[:])
	return [nameSize]byte(h[:])
}

// For is a peer that a beacon is for.
type For struct {
	Pair *Pair
	Echo Echo // of the last beacon heard from it; zero: none lately
}

// Append appends a beacon to b and returns its nonce. It comes from at, by whose port the sender is reached. Of peers, the
// first twelve are in it. now is the sender's clock.
func Append(b []byte, at netip.AddrPort, peers []For, now time.Time) ([]byte, Nonce) {
	var n Nonce
	rand.Read(n[:]) // never fails
	b = append(b, class, version, byte(KindBeacon), 0)
	b = append(b, n[:]...)
	b = binary.LittleEndian.AppendUint16(b, at.Port())
	start := len(b)
	b = append(b, make([]byte, Entries*entrySize)...)
	rand.Read(b[start:])
	where := place(at)
	order := mrand.Perm(Entries)
	for i, p := range peers[:min(len(peers), Entries)] {
		e := b[start+order[i]*entrySize:][:entrySize]
		id := p.Pair.out.id(n, where)
		copy(e, id[:])
		var plain [plainSize]byte
		binary.LittleEndian.PutUint32(plain[:], minutes(now))
		copy(plain[4:], p.Echo[:])
		p.Pair.out.aead().Seal(e[:nameSize], sealNonce(n), plain[:], where[:])
	}
	return b, n
}

func minutes(t time.Time) uint32 { return uint32(t.Unix() / 60) }

func (k *keys) aead() cipher.AEAD {
	a, err := chacha20poly1305.NewX(k.seal[:])
	if err != nil {
		panic("beacon: " + err.Error()) // only for a wrong length
	}
	return a
}

func sealNonce(n Nonce) []byte {
	b := make([]byte, chacha20poly1305.NonceSizeX)
	copy(b, n[:])
	return b
}

// Beacon is a beacon that was received. It aliases the datagram.
type Beacon struct {
	Nonce Nonce
	At    netip.AddrPort // where the sender is reached, if one of the entries is authentic
	ids   map[[nameSize]byte]int
	rest  []byte // entries
}

// Parse decodes a beacon that came from an address. Nothing about it is authentic yet. The error wraps [ErrFormat].
func Parse(b []byte, from netip.Addr) (*Beacon, error) {
	kind, err := KindOf(b)
	if err != nil {
		return nil, err
	}
	port := uint16(0)
	if kind == KindBeacon && len(b) == Size {
		port = binary.LittleEndian.Uint16(b[portAt:])
	}
	if port == 0 || !from.IsValid() {
		return nil, fmt.Errorf("%w: no beacon", ErrFormat)
	}
	n := &Beacon{
		Nonce: Nonce(b[headerSize:]), At: netip.AddrPortFrom(from.Unmap(), port),
		ids: make(map[[nameSize]byte]int, Entries), rest: b[entriesAt:],
	}
	for i := range Entries {
		n.ids[[nameSize]byte(n.rest[i*entrySize:])] = i
	}
	return n, nil
}

// Find reports whether the beacon has an entry of that peer for us. If so, age is by how much the clocks say that it is old,
// negative if it is ahead, and echo names the beacon of ours that the peer has heard; zero: none. It costs a hash.
func (b *Beacon) Find(p *Pair, now time.Time) (age time.Duration, echo Echo, ok bool) {
	where := place(b.At)
	i, ok := b.ids[p.in.id(b.Nonce, where)]
	if !ok {
		return 0, Echo{}, false
	}
	e := b.rest[i*entrySize:][:entrySize]
	plain, err := p.in.aead().Open(nil, sealNonce(b.Nonce), e[nameSize:], where[:])
	if err != nil {
		return 0, Echo{}, false
	}
	age = time.Duration(int64(minutes(now))-int64(binary.LittleEndian.Uint32(plain))) * time.Minute
	return age, Echo(plain[4:]), true
}

// AppendHandshake appends a datagram with a handshake message.
func AppendHandshake(b []byte, kind Kind, id uint64, message []byte) []byte {
	b = append(b, class, version, byte(kind), 0)
	b = binary.LittleEndian.AppendUint64(b, id)
	return append(b, message...)
}

// ParseHandshake decodes a datagram of kind first or second. message aliases b. The error wraps [ErrFormat].
func ParseHandshake(b []byte) (kind Kind, id uint64, message []byte, err error) {
	if kind, err = KindOf(b); err != nil {
		return 0, 0, nil, err
	}
	if kind == KindBeacon || len(b) <= handshakeAt || len(b) > handshakeAt+MaxHandshake {
		return 0, 0, nil, fmt.Errorf("%w: no handshake", ErrFormat)
	}
	return kind, binary.LittleEndian.Uint64(b[headerSize:]), b[handshakeAt:], nil
}
