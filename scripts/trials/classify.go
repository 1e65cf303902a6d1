//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"omegatun/punch/lab"
	"omegatun/scripts/netlab"
)

// reflectors are four sockets on the internet, of two addresses with two ports each, that tell a datagram's source (RFC 5780).
type reflectors [2][2]*net.UDPConn

func newReflectors(l *netlab.Lab, addrs [2]netip.Addr) (r reflectors, err error) {
	for i, a := range addrs {
		for j := range 2 {
			if r[i][j], err = l.Internet.ListenUDP(netip.AddrPortFrom(a, 3478+uint16(j))); err != nil {
				return r, errors.Join(err, r.close())
			}
		}
	}
	return r, nil
}

func (r reflectors) close() error {
	var errs []error
	for _, row := range r {
		for _, c := range row {
			if c != nil {
				errs = append(errs, c.Close())
			}
		}
	}
	return errors.Join(errs...)
}

const (
	reflectWait = 400 * time.Millisecond
	insidePort  = 5353
)

// seen returns the source of the next datagram that reflector i, j receives.
func (r reflectors) seen(i, j int) (netip.AddrPort, bool) { return receive(r[i][j]) }

func receive(c *net.UDPConn) (netip.AddrPort, bool) {
	if err := c.SetReadDeadline(time.Now().Add(reflectWait)); err != nil {
		return netip.AddrPort{}, false
	}
	b := make([]byte, 64)
	_, from, err := c.ReadFromUDPAddrPort(b)
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err == nil
}

func (r reflectors) addr(i, j int) netip.AddrPort {
	a := r[i][j].LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// behavior is what a NAT was found to do.
type behavior struct {
	Blocked   bool   `json:"blocked,omitempty"`
	Mapping   string `json:"mapping,omitempty"`
	Filtering string `json:"filtering,omitempty"`
	Ports     string `json:"ports,omitempty"`
	mapping   lab.Behavior
	filtering lab.Behavior
}

// classify finds out what the way from a host to the internet does to UDP.
func (r reflectors) classify(h *netlab.Net) (b behavior, err error) {
	c, err := h.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), insidePort))
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	from := make(map[[2]int]netip.AddrPort)
	var order []uint16
	for _, at := range [][2]int{{0, 0}, {0, 1}, {1, 0}, {1, 1}} {
		if at == [2]int{0, 1} { // filtering first, while only one reflector has been sent to
			b.filtering = apdm
			if r.passes(c, 0, 1, from[[2]int{0, 0}]) {
				b.filtering = adm
			}
			if r.passes(c, 1, 1, from[[2]int{0, 0}]) {
				b.filtering = eim
			}
		}
		if _, err := c.WriteToUDPAddrPort([]byte("?"), r.addr(at[0], at[1])); err != nil {
			return b, err
		}
		a, ok := r.seen(at[0], at[1])
		if !ok {
			b.Blocked = true
			return b, nil
		}
		from[at] = a
		order = append(order, a.Port())
	}
	switch {
	case from[[2]int{0, 0}] != from[[2]int{0, 1}]:
		b.mapping = apdm
	case from[[2]int{0, 0}] != from[[2]int{1, 0}]:
		b.mapping = adm
	}
	sequential := true
	for i := 1; i < len(order); i++ {
		sequential = sequential && order[i] == order[i-1]+1
	}
	switch {
	case b.mapping == eim && order[0] == insidePort:
		b.Ports = "kept"
	case b.mapping == eim:
		b.Ports = "changed"
	case sequential:
		b.Ports = "sequential"
	default:
		b.Ports = "random"
	}
	b.Mapping, b.Filtering = b.mapping.String(), b.filtering.String()
	return b, nil
}

// passes reports whether a datagram of reflector i, j reaches the host at the address that another has seen.
func (r reflectors) passes(c *net.UDPConn, i, j int, to netip.AddrPort) bool {
	if _, err := r[i][j].WriteToUDPAddrPort([]byte("!"), to); err != nil {
		return false
	}
	_, ok := receive(c)
	return ok
}

// check builds every profile and compares what it does with what its name says. It prints a line for each.
func check(ctx context.Context, w *output, prefix string) error {
	type row struct {
		Profile string `json:"profile"`
		About   string `json:"about"`
		behavior
		OK bool `json:"ok"`
	}
	var rows []row
	table := newTable("profile", "mapping", "filtering", "ports", "as named")
	for _, p := range append(slices.Clip(profiles), udpBlocked) {
		b, err := classifyProfile(ctx, p, prefix)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		ok := b.mapping == p.mapping && b.filtering == p.filtering && b.Ports == p.ports
		if p.class == blocked {
			ok = b.Blocked
			b.Mapping, b.Filtering, b.Ports = "blocked", "", ""
		}
		rows = append(rows, row{p.name, p.about, b, ok})
		verdict := "yes"
		if !ok {
			verdict = "NO"
			w.failed++
		}
		table.add(p.name, b.Mapping, b.Filtering, b.Ports, verdict)
	}
	w.add("profiles", "NAT profiles, as found from outside", rows, table)
	return nil
}

func classifyProfile(ctx context.Context, p profile, prefix string) (b behavior, err error) {
	l, err := netlab.New(ctx, prefix, nil)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	addrs, err := l.PublicAddrs(2)
	if err != nil {
		return b, err
	}
	r, err := newReflectors(l, [2]netip.Addr{addrs[0].Addr(), addrs[1].Addr()})
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	at, err := p.at(l, 0, 0)
	if err != nil {
		return b, err
	}
	return r.classify(at.host)
}
