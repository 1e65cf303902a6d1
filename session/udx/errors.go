package udx

import "errors"

// Errors of a stream. They are wrapped; use errors.Is. Further ones are net.ErrClosed (used after Close),
// io.ErrClosedPipe (Write after CloseWrite) and os.ErrDeadlineExceeded.
var (
	ErrReset        = errors.New("reset by the peer")
	ErrTimeout      = errors.New("the peer does not answer") // data stayed unacknowledged for too long
	ErrNotConnected = errors.New("not connected")            // the stream has no remote address yet
	ErrConnected    = errors.New("already connected")
	ErrIDInUse      = errors.New("stream id in use")
	ErrTooLong      = errors.New("message too long")
)
