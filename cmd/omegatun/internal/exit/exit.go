// Package exit has the errors that end the command: each carries its exit status, a reason in one sentence, and what
// the reader can do about it.
//
// The statuses are a contract with scripts. They never change their meaning.
package exit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Code is the exit status of the command.
type Code int

// The exit statuses.
const (
	OK          Code = 0   // done
	Other       Code = 1   // something else went wrong
	Usage       Code = 2   // wrong arguments, or a wrong configuration
	NoDaemon    Code = 3   // no omegatun is running that could answer
	Permission  Code = 4   // a capability, a group or a file mode is missing
	UnknownPeer Code = 5   // the peer is unknown, or the name is ambiguous
	NotFound    Code = 6   // the peer is not in the DHT
	NoPath      Code = 7   // the peer was found, but no path to it
	Refused     Code = 8   // the other side said no
	Timeout     Code = 9   // nothing came back in time
	Interrupted Code = 130 // ended by the user before it was done
)

// Help is the table of exit statuses, for help texts.
const Help = `Exit status:
  0    done
  1    something else went wrong
  2    wrong arguments, or a wrong configuration
  3    no omegatun is running that could answer
  4    a permission is missing (the message says which)
  5    the peer is unknown, or the name is ambiguous
  6    the peer was not found in the DHT
  7    the peer was found, but no path to it (the message says why)
  8    the other side refused
  9    nothing came back in time
  130  interrupted`

// Error ends the command with a status. Values are immutable.
type Error struct {
	Code   Code
	Reason string // one sentence, lower case, without a full stop
	Try    string // the next step, usually a command; empty: none is known
	Err    error  // the cause, for errors.Is; may be nil. Reason has of its text what is needed
}

// New returns an error whose reason is the formatted text; a %w in it becomes the cause.
func New(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Reason: err.Error(), Err: errors.Unwrap(err)}
}

// Wrap returns an error with err as its cause. The reason is the formatted text alone, where err says too much.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Reason: fmt.Sprintf(format, args...), Err: err}
}

// WithTry returns e with the next step set.
func (e *Error) WithTry(format string, args ...any) *Error {
	with := *e
	with.Try = fmt.Sprintf(format, args...)
	return &with
}

func (e *Error) Error() string { return e.Reason }

func (e *Error) Unwrap() error { return e.Err }

// From returns err as an [Error]: itself if it is one or wraps one, Interrupted for [context.Canceled], Timeout for
// [context.DeadlineExceeded], and otherwise Other. Text that was wrapped around an Error is kept in the reason.
// It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if err.Error() == e.Reason {
			return e
		}
		return &Error{Code: e.Code, Reason: err.Error(), Try: e.Try, Err: err}
	}
	code := Other
	switch {
	case errors.Is(err, context.Canceled):
		code = Interrupted
	case errors.Is(err, context.DeadlineExceeded):
		code = Timeout
	}
	return &Error{Code: code, Reason: err.Error(), Err: err}
}

// Text returns the message for people: "error: reason", and the next step on a line of its own.
func (e *Error) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "error: %s\n", e.Reason)
	for i, line := range strings.Split(e.Try, "\n") {
		switch {
		case line == "":
		case i == 0:
			fmt.Fprintf(&b, "  try: %s\n", line)
		default:
			fmt.Fprintf(&b, "       %s\n", line)
		}
	}
	return b.String()
}

// wire is the form of an Error in JSON.
type wire struct {
	Schema int    `json:"schema"`
	Event  string `json:"event"`
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
	Try    string `json:"try,omitempty"`
}

// MarshalJSON returns the message for programs: {"schema":1,"event":"error","code","reason","try"}.
func (e *Error) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // commands in Try contain < and >
	err := enc.Encode(wire{Schema: 1, Event: "error", Code: e.Code, Reason: e.Reason, Try: e.Try})
	return b.Bytes(), err
}

// UnmarshalJSON reads what [Error.MarshalJSON] writes.
func (e *Error) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	if w.Event != "error" {
		return fmt.Errorf("event is %q, not an error", w.Event)
	}
	*e = Error{Code: w.Code, Reason: w.Reason, Try: w.Try}
	return nil
}
