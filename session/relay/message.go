package relay

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"omegatun/dht/compact"
	"omegatun/session/udx"
)

// Protocol is the name of the protomux protocol. It belongs into protomux.Config.Protocols on both sides: either
// may open the channel first.
const Protocol = "blind-relay"

// The numbers of the messages.
const (
	messagePair   = 0
	messageUnpair = 1
)

const flagInitiator = 1

// ErrMessage reports a message that cannot be decoded. It is wrapped in what says why.
var ErrMessage = errors.New("relay: malformed message")

// Token names a pair at the relay. Whoever knows it can be one of the two, so it is random and told only to the peer.
type Token [32]byte

// NewToken returns a random token.
func NewToken() (t Token) {
	rand.Read(t[:]) // never fails
	return t
}

// String returns the first four bytes, to tell tokens apart in logs.
func (t Token) String() string { return hex.EncodeToString(t[:4]) + "…" }

// GoString is String: tokens are not for printing.
func (t Token) GoString() string { return t.String() }

// pair is message 0.
type pair struct {
	initiator bool
	token     Token
	stream    udx.ID
	seq       uint64
}

func (p pair) append(b []byte) []byte {
	var flags byte
	if p.initiator {
		flags |= flagInitiator
	}
	b = append(b, flags)
	b = append(b, p.token[:]...)
	b = compact.AppendUint(b, uint64(p.stream))
	return compact.AppendUint(b, p.seq)
}

func parsePair(b []byte) (pair, error) {
	r := compact.NewReader(b)
	p := pair{initiator: r.Uint8()&flagInitiator != 0, token: r.Fixed32()}
	id := r.Uint()
	p.stream, p.seq = udx.ID(id), r.Uint()
	if err := r.Err(); err != nil {
		return pair{}, fmt.Errorf("%w: pair: %v", ErrMessage, err)
	}
	if id > math.MaxUint32 {
		return pair{}, fmt.Errorf("%w: pair: stream id %d", ErrMessage, id)
	}
	return p, nil
}

// appendUnpair appends message 1.
func appendUnpair(b []byte, t Token) []byte { return append(append(b, 0), t[:]...) }

func parseUnpair(b []byte) (Token, error) {
	r := compact.NewReader(b)
	r.Uint8()
	t := Token(r.Fixed32())
	if err := r.Err(); err != nil {
		return Token{}, fmt.Errorf("%w: unpair: %v", ErrMessage, err)
	}
	return t, nil
}
