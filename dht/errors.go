package dht

import (
	"errors"
	"fmt"
)

var (
	// ErrTimeout reports that a node did not answer any attempt of a request.
	ErrTimeout = errors.New("dht: no answer")
	// ErrClosed reports that the node, or the announcement, is closed.
	ErrClosed = errors.New("dht: closed")
	// ErrSuspended reports that the node is suspended.
	ErrSuspended = errors.New("dht: suspended")
	// ErrBadReply reports an answer that lacks what was asked for. From [Node.Handshake] it mostly means that
	// the node asked knows no way to the server.
	ErrBadReply = errors.New("dht: unusable answer")
	// ErrMalformed is wrapped by the errors of every Parse function.
	ErrMalformed = errors.New("dht: malformed message")
	// ErrNoNodes reports that no member of the network answered a query.
	ErrNoNodes = errors.New("dht: no nodes answered")
	// ErrAnnounced reports that a key is already being served by the node.
	ErrAnnounced = errors.New("dht: key already announced by this node")
)

// ReplyError is a node's refusal of a request.
type ReplyError struct{ Code uint64 }

// The codes of a [ReplyError], as on the wire.
const (
	CodeUnknownCommand = 1  // the node does not serve the command, or is no member of the network
	CodeInvalidToken   = 2  // the token is older than 7.5 to 15 s, or was issued to another host
	CodeSeqReused      = 16 // another value is stored under the same sequence number
	CodeSeqTooLow      = 17 // a value with a higher sequence number is stored
)

func (e *ReplyError) Error() string {
	switch e.Code {
	case CodeUnknownCommand:
		return "dht: refused: unknown command"
	case CodeInvalidToken:
		return "dht: refused: invalid token"
	case CodeSeqReused:
		return "dht: refused: sequence number already used for another value"
	case CodeSeqTooLow:
		return "dht: refused: a newer value is stored"
	}
	return fmt.Sprintf("dht: refused: error %d", e.Code)
}

// wrapParse makes err, unless it is nil, an error of parsing the named message.
func wrapParse(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
}
