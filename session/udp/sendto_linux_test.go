package udp

import (
	"errors"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestSendToGoesOnAfterAnError has the kernel refuse a datagram in the middle of a batch.
func TestSendToGoesOnAfterAnError(t *testing.T) {
	for _, tt := range []struct {
		name  string
		errno unix.Errno
		want  error // nil: only lost
	}{
		{"not reachable", unix.ENETUNREACH, unix.ENETUNREACH},
		{"too large", unix.EMSGSIZE, ErrTooLarge},
		{"no memory", unix.ENOBUFS, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, z, y := listen(t, loopback4, Config{}), listen(t, loopback4, Config{}), listen(t, loopback4, Config{})
			refused := y.LocalAddr()
			fakeSend(c, func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
				for i := range m {
					if getSockaddr((*sockaddr)(nameOf(&m[i])), m[i].hdr.Namelen, new(zoneCache)) != refused {
						continue
					}
					if i == 0 {
						return 0, tt.errno
					}
					return sendmmsg(fd, m[:i])
				}
				return sendmmsg(fd, m)
			})
			b := datagrams(times(6, 100)...)
			to := z.LocalAddr()
			err := c.SendTo(b, []netip.AddrPort{to, to, refused, to, refused, to})
			switch e, ok := errors.AsType[*SendError](err); {
			case tt.want == nil && err != nil, tt.want != nil && !errors.Is(err, tt.want):
				t.Errorf("SendTo: %v, want %v", err, tt.want)
			case ok && e.To != refused:
				t.Errorf("the error names %v, want %v", e.To, refused)
			}
			check(t, "the others", receive(t, z, NewBatch(), 4), [][]byte{b[0], b[1], b[3], b[5]}, c.LocalAddr())
		})
	}
}

// nameOf returns where the address of m is.
func nameOf(m *mmsghdr) unsafe.Pointer { return unsafe.Pointer(m.hdr.Name) }
