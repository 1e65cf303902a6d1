package dht

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"net/netip"
	"time"
)

// tokenLife is how long a key issues tokens; it is accepted as long again.
const tokenLife = 7500 * time.Millisecond

// tokens issues and checks the tokens that prove where a requester receives. A token is a pseudorandom function of the
// requester's host under a secret key; nothing is remembered per requester. The zero value is ready.
//
// The function is AES, on two blocks that name the host: a fifth of the time of a hash. npm dht-rpc hashes the host's text with
// BLAKE2b; nobody else can tell.
type tokens struct {
	current, previous cipher.Block
	since             time.Time // when current became current; zero before the first token
	room              Token     // what is being computed
}

// advance replaces keys that are too old.
func (t *tokens) advance(now time.Time) {
	if t.since.IsZero() {
		t.current, t.previous, t.since = newTokenKey(), newTokenKey(), now
		return
	}
	rounds := int64(now.Sub(t.since) / tokenLife)
	if rounds <= 0 {
		return
	}
	for range min(rounds, 2) { // after two rounds no old token is good any more
		t.current, t.previous = newTokenKey(), t.current
	}
	t.since = t.since.Add(time.Duration(rounds) * tokenLife)
}

func newTokenKey() cipher.Block {
	var secret [16]byte
	rand.Read(secret[:])
	b, err := aes.NewCipher(secret[:])
	if err != nil {
		panic("dht: " + err.Error()) // the length is right
	}
	return b
}

// issue returns the token of host.
func (t *tokens) issue(host netip.Addr, now time.Time) Token {
	t.advance(now)
	return t.token(t.current, host)
}

// valid reports whether token was issued to host within the last 7.5 to 15 s.
func (t *tokens) valid(token Token, host netip.Addr, now time.Time) bool {
	t.advance(now)
	current, previous := t.token(t.current, host), t.token(t.previous, host)
	return subtle.ConstantTimeCompare(token[:], current[:])|subtle.ConstantTimeCompare(token[:], previous[:]) == 1
}

// token returns the token of an IPv4 host under a key.
func (t *tokens) token(k cipher.Block, host netip.Addr) Token {
	ip := host.As4()
	first, second := t.room[:aes.BlockSize], t.room[aes.BlockSize:]
	clear(t.room[:])
	copy(first, ip[:])
	copy(second, ip[:])
	second[len(second)-1] = 1
	k.Encrypt(first, first)
	k.Encrypt(second, second)
	return t.room
}
