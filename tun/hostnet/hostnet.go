// Package hostnet sets up the host's side of the packet device: the addresses of its interface and the routes to
// peers. It undoes all of it, and tells when the host's own connections change.
//
// On Linux it speaks netlink; it never runs a program. What it sets carries its mark, so that it can be told from
// what belongs to others: interfaces have the alias "omegatun" ([Alias]), routes the protocol number 111
// ([RouteProtocol]). "ip route show proto 111" lists them. An interface that is not a TUN, or has somebody else's
// alias, is refused. A route that exists is never replaced.
//
// The kernel removes addresses and routes with the interface, and the interface with the process that held it, even
// one that was killed. [Cleanup], which [Configure] begins with, removes what could outlive that.
//
// The interface gets no link-local address (its address generation mode is "none"), so it solicits no routers and
// accepts no advertisements. Only host routes are set, /32 and /128, in the main table, with our address as their
// source.
//
// Limitations: Linux only; elsewhere [Configure] and [Watch] fail with [ErrUnsupported]. Policy routing rules are not
// set.
package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
)

const (
	// Alias marks the interfaces that are ours (IFLA_IFALIAS; "ip link" shows it).
	Alias = "omegatun"
	// RouteProtocol marks the routes that are ours (rtm_protocol). It is the letter o, which nobody else has
	// registered in iproute2's rt_protos.
	RouteProtocol = 111
)

var (
	// ErrUnsupported means that this system's network cannot be configured from here.
	ErrUnsupported = errors.New("configuring the network is not supported on this system yet")
	// ErrPermission means that this process may not configure the network: it lacks CAP_NET_ADMIN.
	ErrPermission = errors.New("not permitted to configure the network")
	// ErrNoInterface means that the interface does not exist.
	ErrNoInterface = errors.New("no such interface")
	// ErrForeign means that the interface is not one of ours. It was not touched.
	ErrForeign = errors.New("interface belongs to somebody else")
	// ErrIPv6Disabled means that the system has IPv6 switched off. IPv4 addresses and routes work.
	ErrIPv6Disabled = errors.New("IPv6 is disabled on this host")
	// ErrRouteExists means that somebody else has set a route to the same destination. It was not touched.
	ErrRouteExists = errors.New("route exists")
)

// Config describes the host's side of one interface to [Configure].
type Config struct {
	Interface string
	Addrs     []netip.Prefix // our addresses, /32 and /128
	Routes    []netip.Prefix // to peers, /32 and /128
	MTU       int            // bytes; zero: leave it
	// MaxSegments is the number of packets that the kernel may hand over as one large one: the batch size of the
	// device, which drops what exceeds it. Zero: leave it.
	MaxSegments int
	Logger      *slog.Logger // nil: discard
}

func (cfg *Config) check() error {
	if len(cfg.Addrs) == 0 {
		return errors.New("hostnet: an interface needs an address")
	}
	for _, p := range slices.Concat(cfg.Addrs, cfg.Routes) {
		if err := checkHost(p); err != nil {
			return err
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// checkHost returns an error unless p is a single unicast address.
func checkHost(p netip.Prefix) error {
	a := p.Addr()
	if !p.IsSingleIP() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return fmt.Errorf("hostnet: %v is not the address of one host, with /32 or /128", p)
	}
	return nil
}

// State is how the host is connected. Interfaces of ours and loopback do not count.
type State struct {
	// Addrs are the addresses that other hosts may reach it at, sorted, without link-local ones.
	Addrs []netip.Addr
	// Route4 and Route6 say how packets to the Internet leave. Zero: they do not.
	Route4, Route6 Route
}

// Route is the first step of a packet.
type Route struct {
	Interface int        // index; zero: there is no route
	Gateway   netip.Addr // zero: the destination is on the link
	Source    netip.Addr // which the kernel chooses
}

// Equal reports whether nothing has changed.
func (s State) Equal(o State) bool {
	return slices.Equal(s.Addrs, o.Addrs) && s.Route4 == o.Route4 && s.Route6 == o.Route6
}

// LocalAddrs returns [State.Addrs] of now.
func LocalAddrs() ([]netip.Addr, error) {
	s, err := Current()
	return s.Addrs, err
}

// Gateway returns the router that packets to the Internet go to first over IPv4, and the address they leave from. ok is
// false if there is none: no connection, a link without a router (as of PPP or of another VPN that takes everything), or
// a system whose routes are not known. It asks the kernel, which takes well under a millisecond.
func Gateway() (gateway, local netip.Addr, ok bool) {
	s, err := Current()
	r := s.Route4
	if err != nil || !r.Gateway.Is4() || !r.Source.Is4() {
		return netip.Addr{}, netip.Addr{}, false
	}
	return r.Gateway, r.Source, true
}
