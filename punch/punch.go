package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// Socket is a UDP socket that an attempt owns. Values are compared with ==; methods are safe for concurrent use.
type Socket interface {
	dht.Socket
	// SendTTL is Send with a time to live: the packet is dropped by the ttl-th router.
	SendTTL(b []byte, to netip.AddrPort, ttl int) error
	Close() error
}

// Node is what an attempt needs of the DHT. A *dht.Node is one.
type Node interface {
	// Holepunch sends a sealed payload through relay to the server's slot id and waits for the answer.
	Holepunch(ctx context.Context, relay netip.AddrPort, s dht.Socket, target key.Target, id uint64,
		payload []byte, peer netip.AddrPort) (dht.HolepunchReply, error)
	// Ping asks the node at to how it sees the socket s.
	Ping(ctx context.Context, s dht.Socket, to netip.AddrPort, retries int) (dht.Pong, error)
	// RecentNodes returns up to limit nodes, those heard last first.
	RecentNodes(limit int) []netip.AddrPort
}

// Path is a pair of addresses between which a probe got through, one way at least.
type Path struct {
	Socket Socket         // one of the attempt's
	Remote netip.AddrPort // where the probe came from
}

// Stage is how far an attempt got.
type Stage uint8

// The stages of an attempt, in order.
const (
	StageAsking   Stage = iota // client: asking the server what NAT it is behind. Server: waiting to be asked
	StageSurvey                // finding out the own NAT
	StageInviting              // client: both NATs are known, the server is asked to punch
	StagePunching              // probes are being sent
)

// String returns the stage as the end of a sentence that begins "failed while ".
func (s Stage) String() string {
	switch s {
	case StageAsking:
		return "asking"
	case StageSurvey:
		return "looking at the own NAT"
	case StageInviting:
		return "inviting the peer to punch"
	case StagePunching:
		return "punching"
	}
	return "punching"
}

// The reasons of a [FailedError].
var (
	ErrSilent         = errors.New("the peer does not answer through its relays")
	ErrRemoteAborted  = errors.New("the peer gave up")
	ErrRemoteUnknown  = errors.New("the peer does not know what NAT it is behind")
	ErrRemoteRefused  = errors.New("the peer does not punch")
	ErrLocalUnknown   = errors.New("no node of the network says how it sees us")
	ErrBothRandom     = errors.New("both NATs use another port for each destination")
	ErrUnverified     = errors.New("the peer did not prove that it owns its address")
	ErrBusy           = errors.New("too many attempts through NATs with random ports at once")
	ErrNoProbe        = errors.New("no probe got through")
	ErrNeverAsked     = errors.New("the peer did not begin to punch")
	errClosed         = errors.New("punch: attempt closed")
	errUnknownRefusal = errors.New("the peer refused for an unknown reason")
)

// FailedError reports that an attempt ended without success. It wraps the reason, one of the Err values of this package
// or the error that opening a socket gave.
type FailedError struct {
	Stage         Stage
	Local, Remote dht.Firewall // as far as known
	Reason        error
	After         time.Duration // since the attempt began
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("punch: failed while %v after %v (own NAT %v, peer's %v): %v",
		e.Stage, e.After.Round(time.Millisecond), e.Local, e.Remote, e.Reason)
}

// Unwrap returns the reason.
func (e *FailedError) Unwrap() error { return e.Reason }
