//go:build !linux

package hostnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Host is what [Configure] has set up. There is none on this system.
type Host struct{}

// Configure fails with [ErrUnsupported].
func Configure(cfg Config) (*Host, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("hostnet: %s: %w", cfg.Interface, ErrUnsupported)
}

// Problems returns nil.
func (h *Host) Problems() []error { return nil }

// Interface returns an empty name.
func (h *Host) Interface() string { return "" }

// AddRoute fails with [ErrUnsupported].
func (h *Host) AddRoute(netip.Prefix) error {
	return fmt.Errorf("hostnet: add route: %w", ErrUnsupported)
}

// RemoveRoute fails with [ErrUnsupported].
func (h *Host) RemoveRoute(netip.Prefix) error {
	return fmt.Errorf("hostnet: remove route: %w", ErrUnsupported)
}

// Close does nothing.
func (h *Host) Close() error { return nil }

// Cleanup finds nothing: the system removes everything with the interface.
func Cleanup() ([]string, error) { return nil, nil }

// Networks returns the networks of the host's addresses, without loopback and link-local ones.
func Networks() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	var networks []netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Bits() > 0 && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			networks = append(networks, p.Masked())
		}
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return slices.Compact(networks), nil
}

// Current returns the addresses of the host. The routes are not known on this system.
func Current() (State, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return State{}, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	var s State
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			s.Addrs = append(s.Addrs, p.Addr())
		}
	}
	slices.SortFunc(s.Addrs, netip.Addr.Compare)
	s.Addrs = slices.Compact(s.Addrs)
	return s, nil
}

// Look fails with [ErrUnsupported].
func Look([]netip.Prefix) (Neighbours, error) {
	return Neighbours{}, fmt.Errorf("hostnet: look around: %w", ErrUnsupported)
}

// Watch fails with [ErrUnsupported].
func Watch(context.Context) (<-chan State, error) {
	return nil, fmt.Errorf("hostnet: watch: %w", ErrUnsupported)
}
