package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// beside is Beside. A port that is bound with SO_REUSEPORT can be bound again, by another omegatun too, which would not be told
// that it is taken. So the first socket is bound without, and joins the group that it is then the first of.
//
// Source: Linux, net/core/sock_reuseport.c (reuseport_add_sock, for a first one that got the option late) and net/ipv4/udp.c.
func (c *Conn) beside() (*Conn, error) {
	if c.hubbed {
		return nil, fmt.Errorf("udp: a socket beside one in a Hub: %w", errors.ErrUnsupported)
	}
	if err := c.setInt(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, fmt.Errorf("udp: share port %d: %w: %w", c.local.Port(), errors.ErrUnsupported, err)
	}
	return bind(c.cfg, c.local, func(fd uintptr, addr netip.Addr, cfg Config) error {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		return setOptions(fd, addr, cfg)
	})
}
