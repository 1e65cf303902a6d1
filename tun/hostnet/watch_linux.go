package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses to ask the kernel's way to. Any public ones do, and nothing is sent to them; these are root name servers
// (a, c), which are routed everywhere.
var (
	probe4 = netip.AddrFrom4([4]byte{198, 41, 0, 4})
	probe6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x05, 0x00, 0x00, 0x02, 15: 0x0c})
)

// Current returns how the host is connected now.
func Current() (State, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return State{}, fmt.Errorf("hostnet: netlink: %w", err)
	}
	defer nl.Close()
	return current(nl)
}

func current(nl *netlink.Handle) (State, error) {
	skip, err := skippedLinks(nl)
	if err != nil {
		return State{}, err
	}
	addrs, err := listAddrs(nl)
	if err != nil {
		return State{}, err
	}
	var s State
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for _, a := range addrs {
		p, ok := prefix(a.IPNet)
		if !ok || skip[a.LinkIndex] || a.Flags&unusable != 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsLoopback() {
			continue
		}
		s.Addrs = append(s.Addrs, p.Addr())
	}
	slices.SortFunc(s.Addrs, netip.Addr.Compare)
	s.Addrs = slices.Compact(s.Addrs)
	s.Route4, s.Route6 = routeTo(nl, probe4), routeTo(nl, probe6)
	return s, nil
}

// routeTo returns the way to a, zero if there is none.
func routeTo(nl *netlink.Handle, a netip.Addr) Route {
	routes, err := nl.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type != 0 && routes[0].Type != unix.RTN_UNICAST {
		return Route{}
	}
	gateway, _ := netip.AddrFromSlice(routes[0].Gw)
	source, _ := netip.AddrFromSlice(routes[0].Src)
	return Route{Interface: routes[0].LinkIndex, Gateway: gateway.Unmap(), Source: source.Unmap()}
}

// Watch tells when the [State] of the host changes. It reports what has settled: after changes that follow each other
// closely, once. Of states that nobody received, the newest is kept. The channel is closed when ctx ends, or if the
// kernel ceases to tell; its goroutines have ended then, or end at once.
func Watch(ctx context.Context) (<-chan State, error) {
	file, err := subscribe()
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hostnet: netlink: %w", err), file.Close())
	}
	last, err := current(nl) // after subscribing, so that nothing is missed
	if err != nil {
		nl.Close()
		return nil, errors.Join(err, file.Close())
	}
	noise := make(chan struct{}, 1)
	go listen(file, noise)
	states := make(chan State, 1)
	go func() {
		defer close(states)
		defer nl.Close()
		stop := context.AfterFunc(ctx, func() { _ = file.Close() }) // ends listen
		defer stop()
		for settle(ctx, noise) {
			s, err := current(nl)
			if err != nil || s.Equal(last) {
				continue // if the kernel did not answer, it will be asked at the next event
			}
			last = s
			select { // we are the only sender, so there is room after this
			case <-states:
			default:
			}
			states <- s
		}
	}()
	return states, nil
}

// subscribe opens a socket on which the kernel announces changes.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hostnet: netlink: %w", err)
	}
	const groups = unix.RTMGRP_LINK |
		unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("hostnet: subscribe to changes: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// listen makes a noise for every message, until file is closed. What the message says does not matter, and neither
// does it if the kernel had to leave some out (ENOBUFS): the state is asked for anew.
func listen(file *os.File, noise chan<- struct{}) {
	defer close(noise)
	b := make([]byte, 64<<10)
	for {
		_, err := file.Read(b)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case noise <- struct{}{}:
		default:
		}
	}
}

const (
	// quiet is how long nothing must have happened: longer than an interface takes to get its addresses and routes from
	// one DHCP answer, and short beside the seconds it takes to notice a dead path.
	quiet = 250 * time.Millisecond
	// longest is after how long a change is reported even if there is no quiet.
	longest = 2 * time.Second
)

// settle waits for a noise and then for quiet. It returns false when ctx has ended or noise is closed.
func settle(ctx context.Context, noise <-chan struct{}) bool {
	select {
	case _, ok := <-noise:
		if !ok {
			return false
		}
	case <-ctx.Done():
		return false
	}
	deadline := time.NewTimer(longest)
	defer deadline.Stop()
	for {
		calm := time.NewTimer(quiet)
		select {
		case _, ok := <-noise:
			calm.Stop()
			if !ok {
				return false
			}
		case <-calm.C:
			return true
		case <-deadline.C:
			calm.Stop()
			return true
		case <-ctx.Done():
			calm.Stop()
			return false
		}
	}
}
