package protomux

import (
	"errors"
	"fmt"

	"omegatun/dht/compact"
)

// Types of the frames of channel 0.
const (
	typeBatch = iota
	typeOpen
	typeReject
	typeClose
)

// ErrProtocol reports a frame that the peer must not send. It is wrapped in what says why.
var ErrProtocol = errors.New("protomux: the peer broke the protocol")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// name tells channels apart: the protocol, and what the protocol calls this instance of it. No id and an empty one
// are the same.
type name struct{ protocol, id string }

// opening is the content of an open frame.
type opening struct {
	channel   uint64 // the opener's number
	name      name
	handshake []byte
}

// append appends the frame to b.
func (o opening) append(b []byte) []byte {
	b = appendHeader(b, 0, typeOpen)
	b = compact.AppendUint(b, o.channel)
	b = compact.AppendString(b, o.name.protocol)
	b = compact.AppendString(b, o.name.id)
	return append(b, o.handshake...)
}

// parseOpening decodes what follows the header of an open frame. The handshake aliases b.
func parseOpening(b []byte) (opening, error) {
	r := compact.NewReader(b)
	o := opening{channel: r.Uint(), name: name{protocol: r.String(), id: r.String()}}
	if err := r.Err(); err != nil {
		return opening{}, violation("open: %v", err)
	}
	o.handshake = r.Rest()
	return o, nil
}

// parseID decodes what follows the header of a reject or close frame.
func parseID(b []byte) (uint64, error) {
	r := compact.NewReader(b)
	id := r.Uint()
	if err := r.Err(); err != nil {
		return 0, violation("channel number: %v", err)
	}
	return id, nil
}

// appendHeader appends what every frame starts with.
func appendHeader(b []byte, channel, typ uint64) []byte {
	return compact.AppendUint(compact.AppendUint(b, channel), typ)
}

// parseHeader decodes the start of a frame and returns what follows, which aliases b.
func parseHeader(b []byte) (channel, typ uint64, rest []byte, err error) {
	r := compact.NewReader(b)
	channel, typ = r.Uint(), r.Uint()
	if err := r.Err(); err != nil {
		return 0, 0, nil, violation("frame: %v", err)
	}
	return channel, typ, r.Rest(), nil
}

// appendBatch appends a batch of frames, of which there is at least one.
func appendBatch(b []byte, frames [][]byte) []byte {
	b = appendHeader(b, 0, typeBatch)
	var current uint64
	for i, f := range frames {
		r := compact.NewReader(f)
		channel := r.Uint()
		if i > 0 && channel != current {
			b = compact.AppendUint(b, 0)
		}
		if i == 0 || channel != current {
			b = compact.AppendUint(b, channel)
			current = channel
		}
		b = compact.AppendBuffer(b, r.Rest())
	}
	return b
}

// eachItem calls f with the items of a batch, of which b is what follows the header: the channel, and the frame after
// it, which aliases b. It stops at the first error. Items before a broken one have been seen by f.
func eachItem(b []byte, f func(channel uint64, item []byte) error) error {
	r := compact.NewReader(b)
	channel := r.Uint()
	for r.Err() == nil && r.Len() > 0 {
		item := r.Buffer()
		switch {
		case r.Err() != nil:
		case len(item) == 0:
			channel = r.Uint()
		default:
			if err := f(channel, item); err != nil {
				return err
			}
		}
	}
	if err := r.Err(); err != nil {
		return violation("batch: %v", err)
	}
	return nil
}
