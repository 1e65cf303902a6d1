package udp

import (
	"errors"

	"golang.org/x/sys/windows"
)

const truncatedFlag = windows.MSG_TRUNC

func isInUse(err error) bool { // WSAEACCES: someone has it with SO_EXCLUSIVEADDRUSE
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}

func isTooLarge(err error) bool { return errors.Is(err, windows.WSAEMSGSIZE) }

// isNoBuffer reports that the system was short of memory for a datagram, which is therefore lost like any other.
func isNoBuffer(err error) bool { return errors.Is(err, windows.WSAENOBUFS) }

// isLate reports an error of an earlier datagram (an ICMP answer to it) that the system hands to the next call.
func isLate(err error) bool {
	return errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAENETRESET)
}
