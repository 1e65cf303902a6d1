package dht

import (
	"crypto/rand"
	"crypto/subtle"
	"net/netip"
	"time"

	"omegatun/dht/key"
)

// tokenLife is how long a secret issues tokens; it is accepted as long again.
const tokenLife = 7500 * time.Millisecond

// tokens issues and checks the tokens that prove where a requester receives. A token is the hash of the
// requester's host under a secret; nothing is remembered per requester. The zero value is ready.
type tokens struct {
	current, previous [32]byte
	since             time.Time // when current became current; zero before the first token
}

// advance replaces secrets that are too old.
func (t *tokens) advance(now time.Time) {
	if t.since.IsZero() {
		rand.Read(t.current[:])
		rand.Read(t.previous[:])
		t.since = now
		return
	}
	rounds := int64(now.Sub(t.since) / tokenLife)
	if rounds <= 0 {
		return
	}
	for range min(rounds, 2) { // after two rounds no old token is good any more
		t.rotate()
	}
	t.since = t.since.Add(time.Duration(rounds) * tokenLife)
}

func (t *tokens) rotate() { t.current, t.previous = key.Hash(t.previous[:]), t.current }

// issue returns the token of host.
func (t *tokens) issue(host netip.Addr, now time.Time) Token {
	t.advance(now)
	return tokenFor(t.current, host)
}

// valid reports whether token was issued to host within the last 7.5 to 15 s.
func (t *tokens) valid(token Token, host netip.Addr, now time.Time) bool {
	t.advance(now)
	current, previous := tokenFor(t.current, host), tokenFor(t.previous, host)
	return subtle.ConstantTimeCompare(token[:], current[:])|subtle.ConstantTimeCompare(token[:], previous[:]) == 1
}

// tokenFor returns the token of an IPv4 host under a secret. BLAKE2b with the secret in front is as good as a MAC, and
// takes one block and no memory. npm dht-rpc hashes the host's text with BLAKE2b's own key; nobody else can tell.
func tokenFor(secret [32]byte, host netip.Addr) Token {
	ip := host.As4()
	return Token(key.Hash(secret[:], ip[:]))
}
