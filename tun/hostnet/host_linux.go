package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no link-local address.
const addrGenModeNone = 1

// Host is what [Configure] has set up. All methods are safe for concurrent use.
type Host struct {
	log      *slog.Logger
	name     string
	index    int
	source   [2]netip.Addr // of routes: IPv4, IPv6; zero: that family does not work
	problems []error

	mu     sync.Mutex // guards the fields below, and serialises requests
	nl     *netlink.Handle
	closed bool
	addrs  []netip.Prefix // that were set
}

// Configure marks the interface as ours, gives it addresses, brings it up and sets routes through it. If the host has
// IPv6 disabled, or somebody has a route to one of the destinations, the rest is set up and [Host.Problems] says so;
// any other failure is undone and returned. Errors wrap [ErrNoInterface], [ErrForeign], [ErrPermission] and
// [ErrIPv6Disabled] where they apply.
func Configure(cfg Config) (*Host, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hostnet: netlink: %w", err)
	}
	h := &Host{log: cfg.Logger, name: cfg.Interface, nl: nl}
	link, err := h.claim()
	if err != nil {
		nl.Close()
		return nil, err
	}
	if removed, err := cleanup(nl); err != nil || len(removed) > 0 {
		h.log.Info("cleared what an earlier run left behind", "removed", removed, "error", err)
	}
	if err := h.setUp(link, cfg); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// claim finds the interface and marks it.
func (h *Host) claim() (netlink.Link, error) {
	link, err := h.nl.LinkByName(h.name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, fmt.Errorf("hostnet: %s: %w", h.name, ErrNoInterface)
	}
	if err != nil {
		return nil, fmt.Errorf("hostnet: look up %s: %w", h.name, err)
	}
	tap, ok := link.(*netlink.Tuntap)
	if !ok || tap.Mode != netlink.TUNTAP_MODE_TUN || link.Attrs().Alias != "" && link.Attrs().Alias != Alias {
		return nil, fmt.Errorf("hostnet: %s: %w: it is of type %s with alias %q", h.name, ErrForeign,
			link.Type(), link.Attrs().Alias)
	}
	if err := h.nl.LinkSetAlias(link, Alias); err != nil {
		return nil, fmt.Errorf("hostnet: mark %s: %w", h.name, permission(err))
	}
	h.index = link.Attrs().Index
	return link, nil
}

func (h *Host) setUp(link netlink.Link, cfg Config) error {
	ipv6 := h.checkIPv6()
	if ipv6 != nil {
		h.problems = append(h.problems, ipv6)
	} else if err := h.nl.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
		return fmt.Errorf("hostnet: no link-local address for %s: %w", h.name, permission(err))
	}
	if cfg.MTU != 0 {
		if err := h.nl.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("hostnet: set MTU of %s to %d: %w", h.name, cfg.MTU, permission(err))
		}
	}
	if cfg.MaxSegments != 0 {
		if err := h.nl.LinkSetGSOMaxSegs(link, cfg.MaxSegments); err != nil { // it costs packets, not connections
			h.log.Debug("the kernel's batches cannot be limited", "interface", h.name, "error", err)
		}
	}
	for _, a := range cfg.Addrs {
		if a.Addr().Is6() && ipv6 != nil {
			continue
		}
		if err := h.addAddr(link, a); err != nil {
			return err
		}
	}
	if !h.source[0].IsValid() && !h.source[1].IsValid() {
		return ipv6 // there is no IPv4 address to go on with
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("hostnet: bring %s up: %w", h.name, permission(err))
	}
	for _, r := range cfg.Routes {
		switch err := h.AddRoute(r); {
		case errors.Is(err, ErrRouteExists):
			h.problems = append(h.problems, err)
		case errors.Is(err, ErrIPv6Disabled): // has been said
		case err != nil:
			return err
		}
	}
	return nil
}

func (h *Host) addAddr(link netlink.Link, a netip.Prefix) error {
	// Nobody else can have the address of our key, so it need not be looked for.
	addr := &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}
	if err := h.nl.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("hostnet: add address %v to %s: %w", a, h.name, permission(err))
	}
	h.addrs = append(h.addrs, a)
	if source := &h.source[family(a)]; !source.IsValid() {
		*source = a.Addr()
	}
	return nil
}

// family returns the index into Host.source.
func family(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1
	}
	return 0
}

// checkIPv6 returns an error with the remedy if IPv6 is switched off for the interface.
func (h *Host) checkIPv6() error {
	const sysctl = "/proc/sys/net/ipv6"
	value, err := os.ReadFile(filepath.Join(sysctl, "conf", h.name, "disable_ipv6"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("hostnet: %w: the kernel runs without it; remove \"ipv6.disable=1\" from its command line",
			ErrIPv6Disabled)
	case err == nil && !bytes.Equal(bytes.TrimSpace(value), []byte("0")):
		return fmt.Errorf("hostnet: %w: run \"sysctl -w net.ipv6.conf.default.disable_ipv6=0\" and start again, "+
			"in a container with \"--sysctl net.ipv6.conf.default.disable_ipv6=0\"", ErrIPv6Disabled)
	}
	return nil // if it cannot be read, what follows will tell
}

// Problems returns what could not be set up although the rest works. The errors wrap [ErrIPv6Disabled] or
// [ErrRouteExists] and say what helps.
func (h *Host) Problems() []error { return slices.Clone(h.problems) }

// Interface returns the name of the interface.
func (h *Host) Interface() string { return h.name }

// AddRoute sends packets for the host r to the interface. A route that this Host has set already is no error. Errors
// wrap [ErrRouteExists], [ErrIPv6Disabled], [ErrPermission] or [net.ErrClosed] where they apply.
func (h *Host) AddRoute(r netip.Prefix) error {
	if err := checkHost(r); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("hostnet: add route %v: %w", r, net.ErrClosed)
	}
	route, err := h.route(r)
	if err != nil {
		return err
	}
	err = h.nl.RouteAdd(route) // fails if there is one
	if errors.Is(err, unix.EEXIST) {
		if h.ownsLocked(r) {
			return nil
		}
		return fmt.Errorf("hostnet: route to %v: %w: another program has set it; \"ip route show %v\" shows it",
			r, ErrRouteExists, r)
	}
	if err != nil {
		return fmt.Errorf("hostnet: add route to %v: %w", r, permission(err))
	}
	return nil
}

// RemoveRoute undoes [Host.AddRoute]. It is no error if there is no such route.
func (h *Host) RemoveRoute(r netip.Prefix) error {
	if err := checkHost(r); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	route, err := h.route(r)
	if errors.Is(err, ErrIPv6Disabled) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.nl.RouteDel(route); err != nil && !gone(err) {
		return fmt.Errorf("hostnet: remove route to %v: %w", r, permission(err))
	}
	return nil
}

// route returns the route to r as netlink wants it.
func (h *Host) route(r netip.Prefix) (*netlink.Route, error) {
	source := h.source[family(r)]
	if !source.IsValid() {
		if r.Addr().Is4() {
			return nil, fmt.Errorf("hostnet: route to %v: %s has no IPv4 address", r, h.name)
		}
		for _, err := range h.problems {
			if errors.Is(err, ErrIPv6Disabled) {
				return nil, err
			}
		}
		return nil, fmt.Errorf("hostnet: route to %v: %s has no IPv6 address", r, h.name)
	}
	return &netlink.Route{
		LinkIndex: h.index,
		Dst:       ipNet(r),
		Src:       source.AsSlice(),
		Scope:     netlink.SCOPE_LINK,
		Protocol:  RouteProtocol,
		Table:     unix.RT_TABLE_MAIN,
	}, nil
}

// ownsLocked reports whether the route to r is ours. h.mu is held.
func (h *Host) ownsLocked(r netip.Prefix) bool {
	filter := &netlink.Route{Dst: ipNet(r), LinkIndex: h.index, Protocol: RouteProtocol}
	routes, err := listRoutes(h.nl, netlinkFamily(r.Addr()), filter,
		netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	return err == nil && len(routes) > 0
}

// Close takes the interface down, and its routes, addresses and mark away. If the interface is gone, so are
// they, and there is nothing to do. It may be called more than once.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	defer h.nl.Close()
	link, err := h.nl.LinkByIndex(h.index)
	if err != nil || link.Attrs().Alias != Alias {
		return nil // it is gone; if there is one of this number, it is another
	}
	var errs []error
	if err := h.nl.LinkSetDown(link); err != nil && !gone(err) { // removes the routes
		errs = append(errs, fmt.Errorf("hostnet: take %s down: %w", h.name, err))
	}
	for _, a := range h.addrs {
		if err := h.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove address %v: %w", a, err))
		}
	}
	if err := h.nl.LinkSetAlias(link, ""); err != nil && !gone(err) {
		errs = append(errs, fmt.Errorf("hostnet: unmark %s: %w", h.name, err))
	}
	return errors.Join(errs...)
}

// Cleanup removes what earlier processes left behind, and returns what that was, in words. It touches neither what
// others have made nor what a living process of ours uses: only marked interfaces that no process holds, and routes
// of our protocol number that lead to interfaces without our mark.
func Cleanup() ([]string, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hostnet: netlink: %w", err)
	}
	defer nl.Close()
	return cleanup(nl)
}

func cleanup(nl *netlink.Handle) (removed []string, err error) {
	links, err := listLinks(nl)
	if err != nil {
		return nil, err
	}
	var errs []error
	ours := make(map[int]bool)
	for _, link := range links {
		attrs := link.Attrs()
		if tap, ok := link.(*netlink.Tuntap); !ok || tap.Mode != netlink.TUNTAP_MODE_TUN || attrs.Alias != Alias {
			continue
		}
		ours[attrs.Index] = true
		// While it is up, it has a carrier exactly if a process holds it.
		if attrs.RawFlags&unix.IFF_UP == 0 || attrs.RawFlags&unix.IFF_LOWER_UP != 0 {
			continue
		}
		if err := nl.LinkDel(link); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove interface %s: %w", attrs.Name, permission(err)))
			continue
		}
		removed = append(removed, "interface "+attrs.Name)
	}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := listRoutes(nl, f, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			errs = append(errs, err)
		}
		for _, r := range routes {
			if ours[r.LinkIndex] {
				continue // with the interface, if that was removed
			}
			if err := nl.RouteDel(&r); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("hostnet: remove route to %v: %w", r.Dst, permission(err)))
				continue
			}
			removed = append(removed, fmt.Sprintf("route to %v", r.Dst))
		}
	}
	return removed, errors.Join(errs...)
}

// Networks returns the networks that the host is on: those of its addresses, and those that routes lead to without a
// gateway. Networks of loopback, of our interfaces and link-local ones are left out, and so are default routes, also those
// that other VPNs make of several parts, such as 0.0.0.0/1 and 128.0.0.0/1.
func Networks() ([]netip.Prefix, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hostnet: netlink: %w", err)
	}
	defer nl.Close()
	skip, err := skippedLinks(nl)
	if err != nil {
		return nil, err
	}
	var networks []netip.Prefix
	const widest = 8 // bits; a wider one is a part of a default route
	add := func(index int, n *net.IPNet) {
		p, ok := prefix(n)
		if ok && !skip[index] && p.Bits() >= widest && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			networks = append(networks, p.Masked())
		}
	}
	addrs, err := listAddrs(nl)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		add(a.LinkIndex, a.IPNet)
	}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := listRoutes(nl, f, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0 && r.Type == unix.RTN_UNICAST && r.Dst != nil {
				add(r.LinkIndex, r.Dst)
			}
		}
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return slices.Compact(networks), nil
}

// skippedLinks returns the indexes of loopback and of our own interfaces.
func skippedLinks(nl *netlink.Handle) (map[int]bool, error) {
	links, err := listLinks(nl)
	if err != nil {
		return nil, err
	}
	skip := make(map[int]bool)
	for _, link := range links {
		if a := link.Attrs(); a.RawFlags&unix.IFF_LOOPBACK != 0 || a.Alias == Alias {
			skip[a.Index] = true
		}
	}
	return skip, nil
}

// listAttempts is how often a list is asked for that the kernel could not finish because it changed meanwhile.
const listAttempts = 5

// list asks until the kernel could answer in one go.
func list[T any](what string, ask func() ([]T, error)) ([]T, error) {
	var all []T
	var err error
	for range listAttempts {
		if all, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("hostnet: list %s: %w", what, err)
	}
	return all, nil
}

func listLinks(nl *netlink.Handle) ([]netlink.Link, error) { return list("interfaces", nl.LinkList) }

func listAddrs(nl *netlink.Handle) ([]netlink.Addr, error) {
	return list("addresses", func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
}

func listRoutes(nl *netlink.Handle, family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return list("routes", func() ([]netlink.Route, error) { return nl.RouteListFiltered(family, filter, mask) })
}

// permission gives an error of the kernel that means it this package's meaning.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w; run as root or with CAP_NET_ADMIN", ErrPermission, err)
	}
	return err
}

// gone reports whether err says that what was to be removed is not there.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EADDRNOTAVAIL)
}

func netlinkFamily(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// ipNet is where netip meets the package that speaks netlink; prefix is the way back.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}
