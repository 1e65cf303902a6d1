package control

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerCredentials returns the user at the other end of c, as of when it connected, and that user's primary group.
// The other groups need no look: the socket's mode has let them through, or it has not.
func peerCredentials(c net.Conn) (uid int, gids []int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, nil, fmt.Errorf("%T is not a unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, sockErr); err != nil {
		return 0, nil, err
	}
	return int(cred.Uid), []int{int(cred.Gid)}, nil
}
