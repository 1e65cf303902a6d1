//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Datagram is a UDP datagram seen on a device.
type Datagram struct {
	Out      bool // sent by the host that is watched
	From, To netip.AddrPort
	Payload  []byte // valid during the call only
}

// Capture watches a device of a namespace and calls f for each unfragmented IPv4 UDP datagram, from a
// goroutine of its own, until stop is called; stop waits for that goroutine. Packets that the kernel cuts or
// merges on their way to the device are seen as one large datagram.
func (n *Net) Capture(dev string, f func(Datagram)) (stop func() error, err error) {
	var fd int
	err = n.Do(func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
		}
		if err == nil {
			to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: int(req.Uint32())}
			err = errors.Join(
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20),
				unix.Bind(fd, to),
			)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("netlab: capture on %s in %s: %w", dev, n.Name, err)
	}
	var (
		wg   sync.WaitGroup
		done = make(chan struct{})
		once sync.Once
	)
	wg.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			size, from, err := unix.Recvfrom(fd, buf, 0)
			select {
			case <-done:
				return
			default:
			}
			if err != nil {
				time.Sleep(time.Millisecond) // a timeout, or the device is down
				continue
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Protocol == htons(unix.ETH_P_IP) {
				if d, ok := parseUDP(buf[:size]); ok {
					d.Out = ll.Pkttype == unix.PACKET_OUTGOING
					f(d)
				}
			}
		}
	})
	return func() error {
		var err error
		once.Do(func() {
			close(done)
			wg.Wait()
			err = unix.Close(fd)
		})
		return err
	}, nil
}

// htons returns v so that its bytes in memory are big-endian, as the kernel wants protocol numbers.
func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// parseUDP reads an IPv4 packet that holds a whole UDP datagram.
func parseUDP(ip []byte) (Datagram, bool) {
	if len(ip) < 28 || ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return Datagram{}, false
	}
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || total < header+8 || total > len(ip) {
		return Datagram{}, false
	}
	udp := ip[header:total]
	return Datagram{
		From:    netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), binary.BigEndian.Uint16(udp)),
		To:      netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:])), binary.BigEndian.Uint16(udp[2:])),
		Payload: udp[8:],
	}, true
}
