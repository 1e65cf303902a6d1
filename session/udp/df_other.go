//go:build unix && !linux && !darwin && !freebsd

package udp

import "net/netip"

// setDontFragment does nothing: there is no such option for IPv4, and nobody fragments IPv6 on the way.
func setDontFragment(uintptr, netip.Addr) error { return nil }
