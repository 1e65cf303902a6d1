package udp

import "golang.org/x/sys/windows"

// reuseAddress lets several programs hear the same multicast group.
func reuseAddress(fd uintptr) error {
	return windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
}
