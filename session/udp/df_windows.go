package udp

import (
	"net/netip"

	"golang.org/x/sys/windows"
)

// ipDontFragment is IP_DONTFRAGMENT, and IPV6_DONTFRAG, of ws2ipdef.h.
const ipDontFragment = 14

func setDontFragment(fd uintptr, addr netip.Addr) error {
	level := windows.IPPROTO_IP
	if addr.Is6() {
		level = windows.IPPROTO_IPV6
	}
	return windows.SetsockoptInt(windows.Handle(fd), level, ipDontFragment, 1)
}
