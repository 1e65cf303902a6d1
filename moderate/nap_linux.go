package moderate

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nap sleeps for much less than the Go runtime can, which rounds up to a millisecond. It keeps its thread and its
// processor meanwhile. A signal ends it early.
func Nap(d time.Duration) {
	// Without this the kernel adds another 50 us, to have fewer interrupts. It is the thread's, and stays.
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, 1, 0)
	t := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}
