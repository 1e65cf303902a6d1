//go:build unix

package udp

import (
	"errors"
	"syscall"
)

const truncatedFlag = syscall.MSG_TRUNC

func isInUse(err error) bool    { return errors.Is(err, syscall.EADDRINUSE) }
func isTooLarge(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }

// isNoBuffer reports that the system was short of memory for a datagram, which is therefore lost like any other.
func isNoBuffer(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// isLate reports an error of an earlier datagram (an ICMP answer to it) that the system hands to the next call.
func isLate(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
