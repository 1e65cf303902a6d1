package control

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerCredentials returns the user at the other end of c, as of when it connected, and that user's groups.
func peerCredentials(c net.Conn) (uid int, gids []int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, nil, fmt.Errorf("%T is not a unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var cred *unix.Xucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if err := errors.Join(err, sockErr); err != nil {
		return 0, nil, err
	}
	for _, gid := range cred.Groups[:min(max(cred.Ngroups, 0), int16(len(cred.Groups)))] {
		gids = append(gids, int(gid))
	}
	return int(cred.Uid), gids, nil
}
