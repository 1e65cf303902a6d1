// Package key has the keys of the network: Ed25519 identities, their text forms, and the hashes that
// name things in the DHT.
//
// The types are distinct so that a key cannot be handed to a function that wants a hash. A [Private]
// never prints its secret, whatever the formatting verb.
//
// Source: npm hypercore-crypto, hyperdht-id-encoding; RFC 8032.
package key

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// SeedSize is the length in bytes of the seed that an identity is derived from.
const SeedSize = 32

// z32 is z-base-32: its own alphabet, most significant bits first, no padding.
var z32 = base32.NewEncoding("ybndrfg8ejkmcpqxot1uwisza345h769").WithPadding(base32.NoPadding)

// textLen is the length of a key in z-base-32; its last character carries one bit.
const textLen = 52

// What the errors of [ParsePublic] wrap.
var (
	// ErrInvalid is wrapped by every error of [ParsePublic].
	ErrInvalid = errors.New("not a public key")
	// ErrSecret is wrapped as well if the text is no key but a secret, which must not be shown.
	ErrSecret = errors.New("a secret connection string of holesail")
)

// What the connection strings of npm holesail begin with. Behind the first stands the server's public key. Behind the
// second stands a text whose SHA-256 hash is the seed of both ends' identity.
const (
	holesailPublic = "hs://0000"
	holesailSecret = "hs://s"
)

// Public is an Ed25519 public key: the address of a peer. The zero value is no key.
type Public [32]byte

// ParsePublic reads a key as 52 characters of z-base-32 or 64 of hex. A leading "pear://" is dropped, or "hs://0000" as npm
// holesail has it, and so is everything from the next slash. Letters may be upper or lower case. It does not check that the
// key is a point on the curve. The error wraps [ErrInvalid] and says what is wrong, without quoting s; it wraps [ErrSecret]
// too if s must not be quoted.
func ParsePublic(s string) (Public, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	if strings.HasPrefix(text, holesailSecret) {
		return Public{}, fmt.Errorf("%w: it is %w", ErrInvalid, ErrSecret)
	}
	if rest, ok := strings.CutPrefix(text, "pear://"); ok {
		text = rest
	} else {
		text = strings.TrimPrefix(text, holesailPublic)
	}
	text, _, _ = strings.Cut(text, "/")
	var k Public
	switch len(text) {
	case hex.EncodedLen(len(k)):
		if _, err := hex.Decode(k[:], []byte(text)); err != nil {
			return Public{}, fmt.Errorf("%w: 64 characters, but not all of them are hex digits", ErrInvalid)
		}
		return k, nil
	case textLen:
		b, err := z32.DecodeString(text)
		if err != nil || len(b) != len(k) {
			return Public{}, fmt.Errorf("%w: 52 characters, but not all of them are z-base-32", ErrInvalid)
		}
		copy(k[:], b)
		if k.String() != text { // the last character has four unused bits
			return Public{}, fmt.Errorf("%w: its last character cannot end a key; was it cut or mistyped?", ErrInvalid)
		}
		return k, nil
	}
	return Public{}, fmt.Errorf("%w: it has %d characters, a key has 52 (z-base-32) or 64 (hex)", ErrInvalid, len(text))
}

// String returns the key as 52 characters of z-base-32. Package fmt's %v and %s print that; its %x prints the digits of this
// text, and not [Public.Hex].
func (k Public) String() string { return z32.EncodeToString(k[:]) }

// Hex returns the key as 64 hex digits.
func (k Public) Hex() string { return hex.EncodeToString(k[:]) }

// Short returns the first eight characters of the key, for logs and tables.
func (k Public) Short() string { return k.String()[:8] }

// IsZero reports whether k is the zero value, which is no key.
func (k Public) IsZero() bool { return k == Public{} }

// Compare orders keys by their bytes, as [bytes.Compare] does.
func (k Public) Compare(o Public) int { return bytes.Compare(k[:], o[:]) }

// Target returns the hash under which the owner of k is announced in the DHT.
func (k Public) Target() Target { return Hash(k[:]) }

// Verify reports whether sig is k's Ed25519 signature of message.
func (k Public) Verify(message []byte, sig [64]byte) bool {
	return !weak(k) && !weak(Public(sig[:32])) && ed25519.Verify(k[:], message, sig[:])
}

// MarshalText returns the z-base-32 form.
func (k Public) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is [ParsePublic].
func (k *Public) UnmarshalText(text []byte) (err error) {
	*k, err = ParsePublic(string(text))
	return err
}

// Private is an identity: an Ed25519 key pair. The zero value is none. Values are immutable and safe for
// concurrent use. There is no == on them, because that would not take constant time.
type Private struct {
	_      [0]func()
	secret ed25519.PrivateKey // seed, then public key; nil in the zero value
}

// Generate makes a new identity from the system's random source.
func Generate() Private {
	var seed [SeedSize]byte
	rand.Read(seed[:]) // never fails
	return FromSeed(seed)
}

// FromSeed derives the identity of a seed, as RFC 8032 does.
func FromSeed(seed [SeedSize]byte) Private {
	return Private{secret: ed25519.NewKeyFromSeed(seed[:])}
}

// IsZero reports whether p is the zero value.
func (p Private) IsZero() bool { return p.secret == nil }

// Public returns the public half; the zero key if p is zero.
func (p Private) Public() (k Public) {
	if p.secret != nil {
		copy(k[:], p.secret[SeedSize:])
	}
	return k
}

// Seed returns the secret seed. p must not be zero.
func (p Private) Seed() [SeedSize]byte { return [SeedSize]byte(p.secret[:SeedSize]) }

// Sign returns the Ed25519 signature of message. p must not be zero.
func (p Private) Sign(message []byte) [64]byte {
	return [64]byte(ed25519.Sign(p.secret, message))
}

// String returns the public half in words; the secret never prints.
func (p Private) String() string {
	if p.IsZero() {
		return "no private key"
	}
	return "private key of " + p.Public().String()
}

// Format prints [Private.String] for every verb, so that no verb shows the secret.
func (p Private) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }

// Target is a place in the DHT's key space: the BLAKE2b-256 hash of a public key, a topic or a value.
type Target [32]byte

// Hash returns the BLAKE2b-256 hash of the concatenation of parts.
func Hash(parts ...[]byte) Target {
	var room [256]byte
	b := room[:0]
	for _, p := range parts {
		b = append(b, p...)
	}
	return blake2b.Sum256(b)
}

// KeyedHash returns the BLAKE2b-256 hash of the concatenation of parts under BLAKE2b's own key parameter.
// It panics if secret is longer than 64 bytes.
func KeyedHash(secret []byte, parts ...[]byte) (t Target) {
	h, err := blake2b.New256(secret)
	if err != nil {
		panic("key: " + err.Error())
	}
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(t[:0])
	return t
}

// ParseTarget reads a target as 64 hex digits.
func ParseTarget(s string) (t Target, err error) {
	if len(s) != hex.EncodedLen(len(t)) {
		return Target{}, fmt.Errorf("not a target: it has %d characters, a target has 64 hex digits", len(s))
	}
	if _, err := hex.Decode(t[:], []byte(s)); err != nil {
		return Target{}, errors.New("not a target: 64 characters, but not all of them are hex digits")
	}
	return t, nil
}

// String returns the target as 64 hex digits.
func (t Target) String() string { return hex.EncodeToString(t[:]) }

// Namespace returns H(H(name) || n): how the protocols of the network separate their hashes and signatures.
func Namespace(name string, n byte) Target {
	outer := Hash([]byte(name))
	return Hash(outer[:], []byte{n})
}
