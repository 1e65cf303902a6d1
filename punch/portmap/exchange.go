package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

const (
	// serverPort is where gateways hear PCP and NAT-PMP; announcePort is where hosts hear their announcements.
	serverPort   = 5351
	announcePort = 5350
	// maxForeign is how many datagrams that are no answer are looked at in one exchange.
	maxForeign = 64
)

// resendAfter is a server's waits: 1.5 s in all. The first is that of RFC 6886, 3.1. The gateway is one hop away; what
// is lost is lost on the radio.
var resendAfter = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond}

var (
	// errSilent says that there was no answer.
	errSilent = errors.New("no answer")
	// errForeign says of a datagram that it is not the answer waited for.
	errForeign = errors.New("not an answer")
	// errVersion says that the gateway does not know our version of the protocol.
	errVersion = errors.New("version not supported")
)

// refusedError is a result code of PCP or NAT-PMP other than success.
type refusedError struct {
	code int
	text string // empty: a code that is not in the RFC
}

func (e refusedError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("refused with code %d", e.code)
	}
	return "refused: " + e.text
}

// refused returns the error for a result code; names are those of the protocol.
func refused(code int, names []string) error {
	e := refusedError{code: code}
	if code < len(names) {
		e.text = names[code]
	}
	return e
}

// route is whom to ask, and from which address of ours. The zero route is none.
type route struct{ gateway, local netip.Addr }

// server is one port of the gateway that understands short datagrams.
type server struct {
	route
	port  uint16
	waits []time.Duration // how long to wait for an answer after each time that a request is sent; not changed
}

// exchange sends a request until accept takes a reply, or refuses it with an error other than errForeign. The reply's
// sender has been checked, its content has not. The slice is accept's only until it returns.
func (s server) exchange(ctx context.Context, request func(local netip.Addr) []byte,
	accept func(reply []byte) error,
) error {
	// A connected socket: the system drops what others send, and tells us if nobody listens.
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.local, 0))}
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(s.gateway, s.port).String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return err
	}
	b := request(local.Addr().Unmap().WithZone(""))
	buf := make([]byte, maxPCP+1)
	foreign := 0
	for _, wait := range s.waits {
		if _, err := c.Write(b); err != nil {
			return ended(ctx, err)
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return ended(ctx, err)
		}
		for {
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return ended(ctx, err)
			}
			if err := accept(buf[:n]); !errors.Is(err, errForeign) {
				return err
			}
			if foreign++; foreign == maxForeign {
				return fmt.Errorf("%d datagrams that are no answer", foreign)
			}
		}
	}
	return errSilent
}

// ended returns why an operation on a connection that is closed at the end of ctx has failed.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// checkLifetime returns what to make of the seconds that a gateway granted.
func checkLifetime(seconds uint32) (time.Duration, error) {
	d := min(time.Duration(seconds)*time.Second, maxLifetime)
	if d < minLifetime {
		return 0, fmt.Errorf("mapping granted for only %v", d)
	}
	return d, nil
}
