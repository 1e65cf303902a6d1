//go:build !linux && !darwin

package control

import (
	"errors"
	"net"
)

// peerCredentials is not known here.
func peerCredentials(net.Conn) (uid int, gids []int, err error) {
	return 0, nil, errors.ErrUnsupported
}
