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

// errSilent says that there was no answer.
var errSilent = errors.New("no answer")

// route is whom to ask, and from which address of ours. The zero route is none.
type route struct{ gateway, local netip.Addr }

// server is one port of the gateway that understands short datagrams.
type server struct {
	route
	port  uint16
	waits []time.Duration // how long to wait for an answer after each time that a request is sent; not changed
}

// exchange sends a request until accept takes a reply. The reply's sender has been checked, its content has not. The
// slice is accept's only until it returns. An error of accept that is not nil ends the exchange.
func (s server) exchange(ctx context.Context, request func(local netip.Addr) []byte,
	accept func(reply []byte) (done bool, err error),
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
			if done, err := accept(buf[:n]); done || err != nil {
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
