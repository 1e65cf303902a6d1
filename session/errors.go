package session

import (
	"errors"
	"fmt"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

var (
	// ErrNotFound reports that no DHT node knows the key: its owner has not announced itself, or not yet.
	ErrNotFound = errors.New("not announced in the DHT")
	// ErrNoAnswer reports that the key is announced but its owner did not answer the handshake: it has
	// just gone, or it does not list our key. The two look the same, on purpose.
	ErrNoAnswer = errors.New("announced, but does not answer: it is not running any more, or it does not allow our key")
	// ErrIncompatible reports that the peer answered with a handshake that cannot be used.
	ErrIncompatible = errors.New("the peer speaks another version of the protocol")
	// ErrNoTunnel reports that the peer is a HyperDHT program that carries no IP packets.
	ErrNoTunnel = errors.New("the peer is not an omegatun: it offers no tunnel")
	// ErrPeerClosed is wrapped by the cause of a connection that the peer has ended.
	ErrPeerClosed = errors.New("the peer closed the connection")
	// ErrCutOff reports that a closed stream was not given the time to deliver what had been written to it.
	ErrCutOff = errors.New("session: a stream was cut off before all was delivered")
	// ErrClosed reports that the Host, Listener or Peer has been closed.
	ErrClosed = errors.New("session: closed")
	// ErrRemoved is the cause of ending a connection whose peer has been removed from the list.
	ErrRemoved = errors.New("session: peer removed")
	// ErrKeysExpired is the cause of ending a connection whose keys could not be replaced in time.
	ErrKeysExpired = errors.New("session: keys could not be replaced in time")
	// ErrIPv6Only reports that this machine has no IPv4 address, without which nobody can be found: the DHT is IPv4 only.
	// Connections that exist go on over IPv6.
	ErrIPv6Only = errors.New("this machine has IPv6 only, and peers are found over IPv4")
	// ErrNotConnected reports that a peer has no working path at the moment.
	ErrNotConnected = errors.New("session: not connected")
)

// Stage is how far an attempt to connect came.
type Stage string

// The stages of an attempt, in order.
const (
	StageFind      Stage = "find"      // looking for the peer in the DHT
	StageHandshake Stage = "handshake" // the relays pass on the handshake
	StagePath      Stage = "path"      // trying paths between the two
)

// A DialError tells why a peer could not be reached.
type DialError struct {
	Key   key.Public
	Stage Stage         // where it ended
	After time.Duration // since the attempt began
	Err   error         // ErrNotFound, ErrNoAnswer, a *NoPathError, a context's error, …
}

func (e *DialError) Error() string {
	return fmt.Sprintf("connect to %s: %v (after %v, while in stage %q)",
		e.Key.Short(), e.Err, e.After.Round(time.Millisecond), e.Stage)
}

func (e *DialError) Unwrap() error { return e.Err }

// A NoPathError reports that the two machines know of each other but no datagram passes between them.
type NoPathError struct {
	Local, Remote dht.Firewall // NAT classes as found
	Tried         []Path       // candidates that did not answer
	Err           error        // what the hole puncher said; may be nil
}

func (e *NoPathError) Error() string {
	tried := "there is no address to try"
	switch n := len(e.Tried); {
	case n == 1:
		tried = "the only address that could be tried does not answer"
	case n > 1:
		tried = fmt.Sprintf("none of %d addresses answers", n)
	}
	s := fmt.Sprintf("no path: %s (our NAT: %v, theirs: %v)", tried, e.Local, e.Remote)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NoPathError) Unwrap() error { return e.Err }
