//go:build !linux

package udp

import (
	"errors"
	"fmt"
)

// beside is Beside.
func (*Conn) beside() (*Conn, error) {
	return nil, fmt.Errorf("udp: several sockets at one port: %w", errors.ErrUnsupported)
}
