// Package noise is the handshake of HyperDHT peers: Noise IK on Ed25519 keys, and the payload it carries.
//
//	Noise_IK_Ed25519_ChaChaPoly_BLAKE2b, prologue: the PEER_HANDSHAKE namespace
//
//	  ← s                        the initiator knows the responder's public key
//	  → e, es, s, ss, payload    message 1: 32 + 48 + payload + 16 bytes
//	  ← e, ee, se, payload       message 2: 32 + payload + 16 bytes
//
// One side calls [NewInitiator], [Initiator.Write] and [Initiator.Read], the other [Respond] and
// [Responder.Write]; both end with the same [Result]. The messages travel inside PEER_HANDSHAKE requests, by
// way of DHT nodes that see every byte of them. The payloads are [Payload] values.
//
// The key agreement differs from usual Noise: keys are points of the Edwards curve, and so is the result.
// A remote key must be a canonical encoding of a point of prime order; every other one ends the handshake.
//
// # What a handshake proves
//
// After message 1 the responder knows that the sender of that message once held the remote static key: the
// message may be a replay. After message 2 the initiator knows that it talks to the responder. The responder
// knows the same of the initiator only after something arrives that is sealed with the keys of the [Result].
//
// [Result.Hash] is no secret. It is computed from bytes that every forwarding node sees, and so is everything
// that is derived from it alone, such as [Result.HolepunchSecret].
//
// # Cost
//
// [Respond] costs a Diffie-Hellman operation before it can tell that a message was not made for this key, and a
// second one if it was; [Responder.Write] costs two more, and so do [Initiator.Write] and [Initiator.Read]. An operation
// takes about 0.1 ms on a current core, with the checks of the remote key. Whoever answers strangers limits their
// rate before calling, by source and in total: nothing cheaper can tell a genuine message 1 from junk.
//
// # Limitations
//
//   - Tweaked keys (an explicit scalar in place of a seed) are not supported.
//   - Key material of a handshake is left to the garbage collector, not overwritten.
//
// Source: npm noise-handshake 4.2.0, noise-curve-ed 2.1.0, hyperdht 6.34.0 (lib/noise-wrap.js, lib/messages.js);
// the Noise Protocol Framework, revision 34.
package noise

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	flynn "github.com/flynn/noise"

	"omegatun/dht/key"
)

const (
	// Message1Overhead is how much longer than its payload message 1 is, in bytes.
	Message1Overhead = 96
	// Message2Overhead is how much longer than its payload message 2 is, in bytes.
	Message2Overhead = 48
)

var (
	// ErrKey reports a public key that is not the canonical encoding of a point of prime order.
	ErrKey = errors.New("not a usable Ed25519 public key")
	// ErrMessage is wrapped by the errors of [Respond] and [Initiator.Read]: the message was cut short, was not
	// made for this key or this handshake, or contains an unusable key. It is dropped without an answer.
	ErrMessage = errors.New("handshake message refused")
)

// Result is what both sides hold after the handshake. It prints without its keys.
type Result struct {
	Remote    key.Public // the static key of the other side
	Hash      [64]byte   // the handshake hash: identifies the session, known to every node on the way
	Tx, Rx    [32]byte   // secret keys; Tx of one side is Rx of the other
	Initiator bool       // whether this side wrote message 1
}

// HolepunchSecret returns the secretbox key of the hole punching messages. It follows from [Result.Hash], so
// every node that forwarded the handshake can compute it.
func (r Result) HolepunchSecret() [32]byte {
	namespace := peerHandshake(peerHolepunch)
	return key.KeyedHash(r.Hash[:], namespace[:])
}

// String describes r in words, without its keys.
func (r Result) String() string {
	if r.Initiator {
		return "noise session to " + r.Remote.String()
	}
	return "noise session from " + r.Remote.String()
}

// Format prints [Result.String] for every verb, so that no verb shows the keys.
func (r Result) Format(f fmt.State, _ rune) { fmt.Fprint(f, r.String()) }

// LogValue returns [Result.String], so that no log shows the keys.
func (r Result) LogValue() slog.Value { return slog.StringValue(r.String()) }

// Commands of HyperDHT whose numbers name a namespace.
const (
	peerHandshakeCommand = 0
	peerHolepunch        = 1
)

func peerHandshake(command byte) key.Target { return key.Namespace("hyperswarm/dht", command) }

// handshake is the part that both sides have in common.
type handshake struct {
	state *flynn.HandshakeState
	dh    *dh
}

// newHandshake starts a handshake. A nil random means the system's random source.
func newHandshake(local key.Private, remote *key.Public, random io.Reader) (handshake, error) {
	if local.IsZero() {
		return handshake{}, errors.New("noise: no private key")
	}
	d := new(dh)
	prologue := peerHandshake(peerHandshakeCommand)
	seed := local.Seed()
	config := flynn.Config{
		CipherSuite:   flynn.NewCipherSuite(d, flynn.CipherChaChaPoly, flynn.HashBLAKE2b),
		Random:        random,
		Pattern:       flynn.HandshakeIK,
		Initiator:     remote != nil,
		Prologue:      prologue[:],
		StaticKeypair: keyPair(seed[:]),
	}
	if remote != nil {
		if _, err := d.point(remote[:]); err != nil {
			return handshake{}, fmt.Errorf("noise: remote key %v: %w", *remote, err)
		}
		config.PeerStatic = remote[:]
	}
	state, err := flynn.NewHandshakeState(config)
	if err != nil {
		return handshake{}, fmt.Errorf("noise: %w", err)
	}
	return handshake{state: state, dh: d}, nil
}

// result collects what the handshake produced. The cipher states are those that its last message returned.
func (h *handshake) result(initiator bool, fromInitiator, fromResponder *flynn.CipherState) Result {
	r := Result{
		Remote:    key.Public(h.state.PeerStatic()),
		Hash:      [64]byte(h.state.ChannelBinding()),
		Tx:        fromInitiator.UnsafeKey(),
		Rx:        fromResponder.UnsafeKey(),
		Initiator: initiator,
	}
	if !initiator {
		r.Tx, r.Rx = r.Rx, r.Tx
	}
	return r
}

// Format keeps every verb from printing the secrets below.
func (handshake) Format(f fmt.State, _ rune) { fmt.Fprint(f, "noise handshake") }

// Initiator is the connecting side of one handshake. It is not safe for concurrent use.
type Initiator struct{ handshake }

// NewInitiator prepares a handshake with the owner of the key remote. The error wraps [ErrKey] if remote is not
// a usable key, as a mistyped one often is not.
func NewInitiator(local key.Private, remote key.Public) (*Initiator, error) {
	return newInitiator(local, remote, nil)
}

func newInitiator(local key.Private, remote key.Public, random io.Reader) (*Initiator, error) {
	h, err := newHandshake(local, &remote, random)
	if err != nil {
		return nil, err
	}
	return &Initiator{h}, nil
}

// Write returns message 1. It is called once; the same bytes may be sent to several relays. Nodes that forward
// the message cannot read payload. Whoever learns the responder's private key later can.
func (i *Initiator) Write(payload []byte) ([]byte, error) {
	message, _, _, err := i.state.WriteMessage(make([]byte, 0, Message1Overhead+len(payload)), payload)
	if err != nil {
		return nil, fmt.Errorf("noise: write message 1: %w", err)
	}
	return message, nil
}

// Read takes message 2, does not keep it, and returns its payload. After an error, which wraps [ErrMessage], i
// waits for message 2 as before: a forged reply does not end the handshake. After success i is of no more use.
func (i *Initiator) Read(message []byte) (payload []byte, r Result, err error) {
	// The ephemeral key is checked first: the state would not survive a failure in the middle of the message.
	if len(message) < Message2Overhead {
		return nil, Result{}, fmt.Errorf("noise: read message 2: %w: %d bytes", ErrMessage, len(message))
	}
	if _, err := i.dh.point(message[:keySize]); err != nil {
		return nil, Result{}, fmt.Errorf("noise: read message 2: %w: %w", ErrMessage, err)
	}
	payload, fromInitiator, fromResponder, err := i.state.ReadMessage(nil, message)
	if err != nil {
		return nil, Result{}, fmt.Errorf("noise: read message 2: %w: %w", ErrMessage, err)
	}
	return payload, i.result(true, fromInitiator, fromResponder), nil
}

// Responder is the listening side of one handshake, after message 1. It is not safe for concurrent use.
type Responder struct {
	handshake
	payload []byte
}

// Respond takes message 1, which was sent to the owner of local, and does not keep it. The error wraps
// [ErrMessage]. The message may be a replay: see the package comment.
func Respond(local key.Private, message []byte) (*Responder, error) {
	return respond(local, message, nil)
}

func respond(local key.Private, message []byte, random io.Reader) (*Responder, error) {
	if len(message) < Message1Overhead { // saves two DH operations
		return nil, fmt.Errorf("noise: read message 1: %w: %d bytes", ErrMessage, len(message))
	}
	h, err := newHandshake(local, nil, random)
	if err != nil {
		return nil, err
	}
	payload, _, _, err := h.state.ReadMessage(nil, message)
	if err != nil {
		return nil, fmt.Errorf("noise: read message 1: %w: %w", ErrMessage, err)
	}
	return &Responder{handshake: h, payload: payload}, nil
}

// Remote returns the static key of the initiator.
func (r *Responder) Remote() key.Public { return key.Public(r.state.PeerStatic()) }

// Payload returns the payload of message 1. The caller may keep it.
func (r *Responder) Payload() []byte { return r.payload }

// Write returns message 2 and the session. It is called once. Only the owner of [Responder.Remote] can read
// payload.
func (r *Responder) Write(payload []byte) (message []byte, result Result, err error) {
	message, fromInitiator, fromResponder, err := r.state.WriteMessage(
		make([]byte, 0, Message2Overhead+len(payload)), payload)
	if err != nil {
		return nil, Result{}, fmt.Errorf("noise: write message 2: %w", err)
	}
	return message, r.result(false, fromInitiator, fromResponder), nil
}
