//go:build unix

package udp

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// reuseAddress lets several programs hear the same multicast group.
func reuseAddress(fd uintptr) error {
	err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if runtime.GOOS != "linux" { // the BSDs want this, too; on Linux it would let only the same user's programs share
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	return err
}
