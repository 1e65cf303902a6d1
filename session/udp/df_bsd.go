//go:build darwin || freebsd

package udp

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

func setDontFragment(fd uintptr, addr netip.Addr) error {
	if addr.Is6() {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
}
