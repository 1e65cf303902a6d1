package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

func TestTTLArrives(t *testing.T) {
	for _, mode := range modes {
		for _, addr := range []netip.AddrPort{loopback4, loopback6} {
			t.Run(fmt.Sprintf("%v/%s", addr.Addr(), mode.name), func(t *testing.T) {
				c := listen(t, addr, mode.cfg)
				z, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = z.Close() })
				if addr.Addr().Is4() {
					err = ipv4.NewPacketConn(z).SetControlMessage(ipv4.FlagTTL, true)
				} else {
					err = ipv6.NewPacketConn(z).SetControlMessage(ipv6.FlagHopLimit, true)
				}
				if err != nil {
					t.Fatal(err)
				}
				ttl := func() int {
					oob, buf := make([]byte, 128), make([]byte, 128)
					_, n, _, _, err := z.ReadMsgUDPAddrPort(buf, oob)
					if err != nil {
						t.Fatal(err)
					}
					if addr.Addr().Is4() {
						var cm ipv4.ControlMessage
						if err := cm.Parse(oob[:n]); err != nil {
							t.Fatal(err)
						}
						return cm.TTL
					}
					var cm ipv6.ControlMessage
					if err := cm.Parse(oob[:n]); err != nil {
						t.Fatal(err)
					}
					return cm.HopLimit
				}
				to := z.LocalAddr().(*net.UDPAddr).AddrPort()
				src := c.From(addr.Addr())
				for _, tt := range []struct {
					name string
					send func() error
					want int
				}{
					{"Send", func() error { return c.Send([]byte("x"), to) }, 64},
					{"TTL 1", func() error { return c.SendTTL([]byte("x"), to, 1) }, 1},
					{"Send after TTL 1", func() error { return c.Send([]byte("x"), to) }, 64},
					{"TTL 5", func() error { return src.SendTTL([]byte("x"), to, 5) }, 5},
					{"TTL 255", func() error { return c.SendTTL([]byte("x"), to, 255) }, 255},
					{"SendBatch after TTL 255", func() error { return c.SendBatch(datagrams(1), to) }, 64},
				} {
					if err := tt.send(); err != nil {
						t.Fatalf("%s: %v", tt.name, err)
					}
					if got := ttl(); got != tt.want {
						t.Errorf("%s: arrived with TTL %d, want %d", tt.name, got, tt.want)
					}
				}
			})
		}
	}
}

// TestAnswersLeaveFromTheAddressAsked uses that a host has all of 127.0.0.0/8.
func TestAnswersLeaveFromTheAddressAsked(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			cfg := mode.cfg
			cfg.PacketInfo = true
			server := listen(t, netip.AddrPort{}, cfg)
			client, b := listen(t, netip.AddrPort{}, Config{}), NewBatch()
			port := server.LocalAddr().Port()
			for _, asked := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"} {
				asked := netip.MustParseAddr(asked)
				question := datagrams(100, 100, 50)
				if err := client.SendBatch(question, netip.AddrPortFrom(asked, port)); err != nil {
					t.Fatal(err)
				}
				all := receive(t, server, b, 3)
				for i, g := range all {
					if g.local != asked {
						t.Errorf("datagram %d was sent to %v, want %v", i, g.local, asked)
					}
				}
				src := server.From(all[0].local)
				for name, send := range map[string]func([]byte, netip.AddrPort) error{
					"Send":         src.Send,
					"SendTTL":      func(b []byte, to netip.AddrPort) error { return src.SendTTL(b, to, 9) },
					"SendBatch":    func(b []byte, to netip.AddrPort) error { return src.SendBatch([][]byte{b}, to) },
					"SendSegments": func(b []byte, to netip.AddrPort) error { return src.SendSegments(b, 1, to) },
				} {
					if err := send([]byte("12"), all[0].from); err != nil {
						t.Fatal(err)
					}
					n := 1
					if name == "SendSegments" {
						n = 2
					}
					for _, g := range receive(t, client, b, n) {
						if g.from != src.LocalAddr() || src.LocalAddr() != netip.AddrPortFrom(asked, port) {
							t.Errorf("%s: answer came from %v, want %v:%d", name, g.from, asked, port)
						}
					}
				}
			}
		})
	}
}

func TestPacketInfoIPv6(t *testing.T) {
	c, b := listen(t, netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Config{PacketInfo: true}), NewBatch()
	want := datagrams(10, 10)
	src := c.From(netip.IPv6Loopback())
	if err := src.SendBatch(want, src.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	for _, g := range receive(t, c, b, 2) {
		if g.local != netip.IPv6Loopback() || g.from != src.LocalAddr() {
			t.Errorf("datagram from %v to %v", g.from, g.local)
		}
	}
}

func TestOffloadsAreUsed(t *testing.T) {
	a, z, b := listen(t, loopback4, Config{}), listen(t, loopback4, Config{}), NewBatch()
	if !a.has(AllFeatures) {
		t.Skipf("this kernel offers %v only", Features(a.features.Load()))
	}
	if err := z.Send([]byte("x"), z.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	receive(t, z, b, 1) // now z knows what the batch has room for
	if err := a.SendBatch(datagrams(times(64, 1000)...), z.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	receive(t, z, b, 64)
	if s := a.Stats(); s.SendTrains != 1 || s.SentPackets != 64 || s.SentBytes != 64000 {
		t.Errorf("sender %+v, want 64 packets in 1 train", s)
	}
	if s := z.Stats(); s.ReceiveTrains != 2 || s.ReceivedPackets != 65 || s.ReceivedBytes != 64001 {
		t.Errorf("receiver %+v, want 65 packets in 2 trains", s)
	}
}

// fakeSend makes c send through f, which may pass messages on to the kernel.
func fakeSend(c *Conn, f mmsgFunc) { c.sendmmsg = f }

func TestSendTrouble(t *testing.T) {
	isTrain := func(m *mmsghdr) bool { return m.hdr.Controllen != 0 }
	for _, tt := range []struct {
		name     string
		call     mmsgFunc // refuses something
		lost     bool     // everything
		features Features // left
	}{
		{
			name: "one message a call",
			call: func(fd uintptr, m []mmsghdr) (int, unix.Errno) { return sendmmsg(fd, m[:1]) },
		},
		{
			name: "interrupted",
			call: func() mmsgFunc {
				n := 0
				return func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
					if n++; n%3 != 0 {
						return -1, unix.EINTR
					}
					return sendmmsg(fd, m[:1])
				}
			}(),
		},
		{
			name: "buffer full",
			call: func() mmsgFunc {
				n := 0
				return func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
					if n++; n%2 != 0 {
						return -1, unix.EAGAIN
					}
					return sendmmsg(fd, m[:1])
				}
			}(),
		},
		{
			name: "no checksum offload",
			call: func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
				if isTrain(&m[0]) {
					return -1, unix.EIO
				}
				return sendmmsg(fd, m[:1])
			},
			features: FeatureBatch | FeatureMerge,
		},
		{
			name: "trains refused",
			call: func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
				if isTrain(&m[0]) {
					return -1, unix.EINVAL
				}
				return sendmmsg(fd, m[:1])
			},
			features: FeatureBatch | FeatureMerge,
		},
		{
			name: "trains too large only",
			call: func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
				if isTrain(&m[0]) {
					return -1, unix.EMSGSIZE
				}
				return sendmmsg(fd, m[:1])
			},
		},
		{
			name:     "no such call",
			call:     func(uintptr, []mmsghdr) (int, unix.Errno) { return -1, unix.ENOSYS },
			features: 1 << 7, // none of ours; zero stands for all
		},
		{
			name: "an older datagram's fate",
			call: func() mmsgFunc {
				n := 0
				return func(fd uintptr, m []mmsghdr) (int, unix.Errno) {
					if n++; n == 1 {
						return -1, unix.ECONNREFUSED
					}
					return sendmmsg(fd, m)
				}
			}(),
		},
		{
			name: "no memory",
			call: func(uintptr, []mmsghdr) (int, unix.Errno) { return -1, unix.ENOBUFS },
			lost: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, z := listen(t, loopback4, Config{}), listen(t, loopback4, Config{})
			if !a.has(AllFeatures) {
				t.Skip("this kernel has no offloads")
			}
			fakeSend(a, tt.call)
			want := datagrams(10, 20, 100, 100, 50, 0, 7, 7)
			if err := a.SendBatch(want, z.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			left := Features(a.features.Load())
			switch {
			case tt.lost:
				if s := a.Stats(); s.SendDropped != uint64(len(want)) || s.SentPackets != 0 {
					t.Errorf("stats %+v, want all dropped", s)
				}
				return
			case tt.features == 0 && left != AllFeatures, tt.features != 0 && left != tt.features&AllFeatures:
				t.Errorf("features left: %v", left)
			}
			check(t, tt.name, receive(t, z, NewBatch(), len(want)), want, a.LocalAddr())
			if s := a.Stats(); s.SentPackets != uint64(len(want)) {
				t.Errorf("%d packets counted, want %d", s.SentPackets, len(want))
			}
			fakeSend(a, sendmmsg)
			if err := a.SendBatch(want, z.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			check(t, "afterwards", receive(t, z, NewBatch(), len(want)), want, a.LocalAddr())
		})
	}
}

// TestErrorsOfTheRouteLeaveTrainsOn covers what a firewall or a lost route may answer for a while.
func TestErrorsOfTheRouteLeaveTrainsOn(t *testing.T) {
	a := listen(t, loopback4, Config{})
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EACCES} {
		before := a.Stats()
		fakeSend(a, func(uintptr, []mmsghdr) (int, unix.Errno) { return -1, errno })
		if err := a.SendBatch(datagrams(9, 9, 9), a.LocalAddr()); !errors.Is(err, errno) {
			t.Errorf("SendBatch: %v, want %v", err, errno)
		}
		if s := a.Stats(); s.Features != before.Features || s.SendErrors != before.SendErrors+3 {
			t.Errorf("after %v: %+v, before: %+v", errno, s, before)
		}
	}
}

func TestDontFragment(t *testing.T) {
	for _, tt := range []struct {
		addr          netip.AddrPort
		level, option int
	}{
		{loopback4, unix.SOL_IP, unix.IP_MTU_DISCOVER},
		{loopback6, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER},
	} {
		n, err := listen(t, tt.addr, Config{}).getInt(tt.level, tt.option)
		if err != nil || n != unix.IP_PMTUDISC_PROBE {
			t.Errorf("%v: MTU discovery is %d, %v; want PROBE", tt.addr, n, err)
		}
	}
}

func TestSendFragments(t *testing.T) {
	for _, tt := range []struct {
		addr          netip.AddrPort
		level, option int
	}{
		{loopback4, unix.SOL_IP, unix.IP_MTU_DISCOVER},
		{loopback6, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER},
	} {
		c := listen(t, tt.addr, Config{})
		restore := c.allowFragments()
		if n, err := c.getInt(tt.level, tt.option); err != nil || n != unix.IP_PMTUDISC_DONT {
			t.Errorf("%v: meanwhile MTU discovery is %d, %v; want DONT", tt.addr, n, err)
		}
		restore()
		if n, err := c.getInt(tt.level, tt.option); err != nil || n != unix.IP_PMTUDISC_PROBE {
			t.Errorf("%v: afterwards MTU discovery is %d, %v; want PROBE", tt.addr, n, err)
		}
		if err := c.SendFragments([]byte("x"), c.LocalAddr()); err != nil || c.Stats().SentPackets != 1 {
			t.Errorf("%v: SendFragments: %v, %+v", tt.addr, err, c.Stats())
		}
	}
}

func TestEveryDatagramRefused(t *testing.T) {
	a := listen(t, loopback4, Config{})
	fakeSend(a, func(uintptr, []mmsghdr) (int, unix.Errno) { return -1, unix.ENETUNREACH })
	err := a.SendBatch(datagrams(10, 20, 30), netip.MustParseAddrPort("127.0.0.1:9"))
	if e, ok := errors.AsType[*SendError](err); !ok || e.Size != 10 || !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("SendBatch: %v, want a SendError of the first datagram", err)
	}
	if s := a.Stats(); s.SendErrors != 3 || s.SentPackets != 0 {
		t.Errorf("stats %+v, want 3 errors", s)
	}
}

// fakeMessage puts a datagram into m as the kernel would.
func fakeMessage(m *mmsghdr, from netip.AddrPort, data string, flags int32, control []byte) {
	copy(unsafe.Slice(m.hdr.Iov.Base, int(m.hdr.Iov.Len)), data)
	copy(unsafe.Slice(m.hdr.Control, receiveControlSize), control)
	m.hdr.SetControllen(len(control))
	m.hdr.Namelen = setSockaddr((*sockaddr)(unsafe.Pointer(m.hdr.Name)), from, new(zoneCache))
	m.hdr.Flags = flags
	m.n = uint32(len(data))
}

func gro(segment uint32) []byte {
	b, data := appendControl(nil, unix.SOL_UDP, unix.UDP_GRO, 4)
	binary.NativeEndian.PutUint32(data, segment)
	return b
}

func TestReceiveTrouble(t *testing.T) {
	peer := netip.MustParseAddrPort("192.0.2.1:1000")
	peer6 := netip.MustParseAddrPort("[fe80::1%lo]:1000")
	type message struct {
		from    netip.AddrPort
		data    string
		flags   int32
		control []byte
	}
	for _, tt := range []struct {
		name    string
		m       message
		want    []string
		invalid bool
	}{
		{"plain", message{peer, "abc", 0, nil}, []string{"abc"}, false},
		{"empty", message{peer, "", 0, nil}, []string{""}, false},
		{"empty train", message{peer, "", 0, gro(10)}, []string{""}, false},
		{"train", message{peer, "abcde", 0, gro(2)}, []string{"ab", "cd", "e"}, false},
		{"train of equals", message{peer, "abcd", 0, gro(2)}, []string{"ab", "cd"}, false},
		{"train of bytes", message{peer, "abc", 0, gro(1)}, []string{"a", "b", "c"}, false},
		{"train of one", message{peer, "abc", 0, gro(3)}, []string{"abc"}, false},
		{"segments of no size", message{peer, "abc", 0, gro(0)}, []string{"abc"}, false},
		{"segments beyond the data", message{peer, "abc", 0, gro(4)}, []string{"abc"}, false},
		{"huge segments", message{peer, "abc", 0, gro(1 << 31)}, []string{"abc"}, false},
		{"negative segments", message{peer, "abc", 0, gro(^uint32(0))}, []string{"abc"}, false},
		{"IPv6 with a zone", message{peer6, "abc", 0, nil}, []string{"abc"}, false},
		{"port 0", message{netip.AddrPortFrom(peer.Addr(), 0), "abc", 0, nil}, nil, true},
		{"no address", message{netip.MustParseAddrPort("0.0.0.0:9"), "abc", 0, nil}, nil, true},
		{"truncated", message{peer, "abc", unix.MSG_TRUNC, nil}, nil, true},
		{"truncated control", message{peer, "abc", unix.MSG_CTRUNC, gro(1)}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, b := listen(t, loopback4, Config{}), NewBatch()
			c.recvmmsg = func(_ uintptr, m []mmsghdr) (int, unix.Errno) {
				fakeMessage(&m[0], tt.m.from, tt.m.data, tt.m.flags, tt.m.control)
				fakeMessage(&m[1], peer, "next", 0, nil)
				return 2, 0
			}
			if err := c.Receive(b); err != nil {
				t.Fatal(err)
			}
			var all []string
			for i := range b.Len() {
				data, from := b.Datagram(i)
				all = append(all, string(data))
				if want := tt.m.from; from != want && string(data) != "next" {
					t.Errorf("from %v, want %v", from, want)
				}
			}
			if want := append(slices.Clone(tt.want), "next"); !slices.Equal(all, want) {
				t.Errorf("received %q, want %q", all, want)
			}
			if n := c.Stats().ReceiveInvalid; (n == 1) != tt.invalid {
				t.Errorf("%d counted as invalid", n)
			}
		})
	}
}

func TestReceivePassesErrorsOver(t *testing.T) {
	c, b := listen(t, loopback4, Config{}), NewBatch()
	failures := 0
	calls := 0
	c.recvmmsg = func(_ uintptr, m []mmsghdr) (int, unix.Errno) {
		calls++
		switch {
		case calls%2 == 0:
			return -1, unix.EINTR
		case failures > 0:
			failures--
			return -1, unix.ECONNREFUSED
		}
		fakeMessage(&m[0], c.LocalAddr(), "x", 0, nil)
		return 1, 0
	}
	failures = receiveTries - 1
	if err := c.Receive(b); err != nil || b.Len() != 1 {
		t.Errorf("Receive after %d errors: %v, %d datagrams", receiveTries-1, err, b.Len())
	}
	if n := c.Stats().SocketErrors; n != receiveTries-1 {
		t.Errorf("%d errors counted", n)
	}
	failures = receiveTries
	if err := c.Receive(b); !errors.Is(err, unix.ECONNREFUSED) || b.Len() != 0 {
		t.Errorf("Receive after %d errors: %v, %d datagrams; want the error", receiveTries, err, b.Len())
	}
	if err := c.Receive(b); err != nil || b.Len() != 1 {
		t.Errorf("Receive afterwards: %v, %d datagrams", err, b.Len())
	}
}

func TestReceiveWithoutTheCall(t *testing.T) {
	a, z := listen(t, loopback4, Config{}), listen(t, loopback4, Config{})
	z.recvmmsg = func(uintptr, []mmsghdr) (int, unix.Errno) { return -1, unix.ENOSYS }
	want := datagrams(times(20, 500, 3)...)
	b := NewBatch()
	for range 2 {
		if err := a.SendBatch(want, z.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		check(t, "ENOSYS", receive(t, z, b, len(want)), want, a.LocalAddr())
	}
	if f := z.Stats().Features; f != 0 {
		t.Errorf("features left: %v", f)
	}
}

func TestOverflowIsCounted(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			cfg := mode.cfg
			cfg.ReadBuffer = 1 // the kernel makes it a few KiB
			a, z, b := listen(t, loopback4, Config{}), listen(t, loopback4, cfg), NewBatch()
			const sent = 100
			for range sent {
				if err := a.Send(make([]byte, 1000), z.LocalAddr()); err != nil {
					t.Fatal(err)
				}
			}
			// The count travels with the next datagram that fits in.
			if err := z.Receive(b); err != nil {
				t.Fatal(err)
			}
			if err := z.udp.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			for z.Receive(b) == nil { // empty the buffer
			}
			if err := a.Send([]byte("x"), z.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			receive(t, z, b, 1)
			if s := z.Stats(); s.ReceiveOverflow == 0 || s.ReceiveOverflow+s.ReceivedPackets != sent+1 {
				t.Errorf("%d received and %d dropped of %d", s.ReceivedPackets, s.ReceiveOverflow, sent+1)
			}
		})
	}
}

func TestOverflowWrapsRound(t *testing.T) {
	c := listen(t, loopback4, Config{})
	for _, n := range []uint32{10, 10, 1<<32 - 1, 5, 5} {
		c.overflow(n)
	}
	if got, want := c.Stats().ReceiveOverflow, uint64(1<<32+5); got != want {
		t.Errorf("overflow %d, want %d", got, want)
	}
}

func TestBuffersAndMark(t *testing.T) {
	c := listen(t, loopback4, Config{ReadBuffer: 100000, WriteBuffer: 50000})
	if s := c.Stats(); s.ReadBuffer != 200000 || s.WriteBuffer != 100000 {
		t.Errorf("buffers %d and %d, want twice what was asked for", s.ReadBuffer, s.WriteBuffer)
	}
	if system := listen(t, loopback4, Config{ReadBuffer: -1, WriteBuffer: -1}).Stats(); system.ReadBuffer <= 0 {
		t.Errorf("the system's default is %d", system.ReadBuffer)
	}
	if os.Geteuid() != 0 {
		t.Skip("a mark and larger buffers need root")
	}
	c = listen(t, loopback4, Config{Mark: 0x1234, ReadBuffer: 32 << 20})
	if n, err := c.getInt(unix.SOL_SOCKET, unix.SO_MARK); err != nil || n != 0x1234 {
		t.Errorf("mark %#x, %v", n, err)
	}
	if s := c.Stats(); s.ReadBuffer != 64<<20 {
		t.Errorf("receive buffer %d, want beyond the limit", s.ReadBuffer)
	}
}

// TestSmallMTU runs in a network namespace whose loopback takes packets of 1500 bytes, as Ethernet does.
func TestSmallMTU(t *testing.T) {
	runtime.LockOSThread() // and never unlock it: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skipf("cannot make a network namespace: %v", err)
	}
	if err := loopbackUp(1500); err != nil {
		t.Skipf("cannot set up loopback: %v", err)
	}
	for _, addr := range []netip.AddrPort{loopback4, loopback6} {
		fits := 1500 - 28
		if addr.Addr().Is6() {
			fits = 1500 - 48
		}
		for _, mode := range modes {
			a, z, b := listen(t, addr, mode.cfg), listen(t, addr, Config{}), NewBatch()
			name, before := fmt.Sprintf("%v/%s", addr.Addr(), mode.name), a.Stats().Features

			want := datagrams(times(10, fits)...)
			if err := a.SendBatch(want, z.LocalAddr()); err != nil {
				t.Fatalf("%s: SendBatch of what fits: %v", name, err)
			}
			check(t, name, receive(t, z, b, len(want)), want, a.LocalAddr())

			// The last one of a train that does not fit is small enough; those around it are, too.
			large := datagrams(append([]int{500}, times(10, fits+1, fits, 100)...)...)
			err := a.SendBatch(large, z.LocalAddr())
			if e, ok := errors.AsType[*SendError](err); !ok || !errors.Is(err, ErrTooLarge) || e.Size != fits+1 {
				t.Fatalf("%s: SendBatch of what does not fit: %v, want ErrTooLarge for %d bytes", name, err, fits+1)
			}
			want = [][]byte{large[0], large[11], large[12]}
			check(t, name, receive(t, z, b, len(want)), want, a.LocalAddr())
			if err := a.Send(large[1], z.LocalAddr()); !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%s: Send: %v, want ErrTooLarge", name, err)
			}
			s := a.Stats()
			if s.SendTooLarge != 11 || s.SentPackets != 13 || s.SendErrors != 0 {
				t.Errorf("%s: stats %+v", name, s)
			}
			if before != s.Features {
				t.Errorf("%s: features %v, before %v", name, s.Features, before)
			}
		}
	}
}

// loopbackUp brings up the loopback interface of this thread's network namespace.
func loopbackUp(mtu uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint32(mtu)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func FuzzParseControl(f *testing.F) {
	f.Add(gro(1200))
	f.Add(sourceControl(netip.MustParseAddr("192.0.2.1")))
	f.Add(sourceControl(netip.MustParseAddr("2001:db8::1")))
	f.Add(appendOverflow(gro(1), 7))
	f.Add(appendSegment(appendTTL(nil, true, 3), 9))
	f.Add(gro(1)[:unix.SizeofCmsghdr])
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseControl(b, new(zoneCache))
		if c.segment < 0 || c.segment > 65535 {
			t.Fatalf("segment %d", c.segment)
		}
		var wire []byte
		if c.segment != 0 {
			wire = append(wire, gro(uint32(c.segment))...)
		}
		if c.hasOverflow {
			wire = appendOverflow(wire, c.overflow)
		}
		if c.local.IsValid() {
			wire = append(wire, sourceControl(c.local)...)
		}
		if again := parseControl(wire, new(zoneCache)); again != c {
			t.Fatalf("%x: %+v, encoded and parsed again %+v", b, c, again)
		}
	})
}

func appendOverflow(b []byte, n uint32) []byte {
	b, data := appendControl(b, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 4)
	binary.NativeEndian.PutUint32(data, n)
	return b
}

func TestParseControl(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		name string
		b    []byte
		want control
	}{
		{"nothing", nil, control{}},
		{"segment", gro(1200), control{segment: 1200}},
		{"IPv4", sourceControl(four), control{local: four}},
		{"IPv6", sourceControl(six), control{local: six}},
		{"all", appendOverflow(append(sourceControl(six), gro(9)...), 3), control{9, 3, true, six}},
		{"unknown first", append(appendTTL(nil, false, 9), gro(5)...), control{segment: 5}},
	} {
		if got := parseControl(tt.b, new(zoneCache)); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if len(tt.b) != 0 && tt.name != "all" && tt.name != "unknown first" {
			for n := range tt.b[:unix.SizeofCmsghdr+1] { // every truncation within header and data
				if got := parseControl(tt.b[:n], new(zoneCache)); got != (control{}) {
					t.Errorf("%s, first %d bytes: %+v, want nothing", tt.name, n, got)
				}
			}
		}
	}
}

// TestAgainstParser compares our encoding with golang.org/x/sys/unix's.
func TestAgainstParser(t *testing.T) {
	b := appendSegment(appendTTL(sourceControl(netip.MustParseAddr("192.0.2.1")), false, 7), 1200)
	all, err := unix.ParseSocketControlMessage(b)
	if err != nil || len(all) != 3 {
		t.Fatalf("%d messages, %v", len(all), err)
	}
	for i, want := range []struct {
		level, kind int32
		size        int
	}{
		{unix.SOL_IP, unix.IP_PKTINFO, 12}, {unix.SOL_IP, unix.IP_TTL, 4}, {unix.SOL_UDP, unix.UDP_SEGMENT, 2},
	} {
		h := all[i].Header
		if h.Level != want.level || h.Type != want.kind || len(all[i].Data) != want.size {
			t.Errorf("message %d: %+v with %d bytes, want %+v", i, h, len(all[i].Data), want)
		}
	}
}

func TestZoneCache(t *testing.T) {
	ifi, err := net.InterfaceByIndex(1)
	if err != nil {
		t.Skipf("no interface 1: %v", err)
	}
	var z zoneCache
	for range 2 {
		if got := z.toName(1); got != ifi.Name {
			t.Errorf("interface 1 is %q, want %q", got, ifi.Name)
		}
		if got := z.toIndex(ifi.Name); got != 1 {
			t.Errorf("interface %q is %d, want 1", ifi.Name, got)
		}
		if got := z.toName(1 << 30); got != "1073741824" {
			t.Errorf("no interface is %q", got)
		}
	}
	for zone, want := range map[string]uint32{"": 0, "77": 77, "no such interface": 0, "99999999999": 0} {
		if got := z.toIndex(zone); got != want {
			t.Errorf("zone %q is %d, want %d", zone, got, want)
		}
	}
}

func TestSendBuffersSuitTheLine(t *testing.T) {
	const most = 256 << 10
	for _, row := range []struct {
		name string
		size int
		took time.Duration
		want int
	}{
		{"a fast line", most, 100 * time.Microsecond, most},
		{"neither", most, 2 * time.Millisecond, most},
		{"a slow one", most, 8 * time.Millisecond, most / 4},
		{"a very slow one", most, 10 * time.Second, most / 8},
		{"a very slow one with a small buffer", 10 << 10, 10 * time.Second, leastWriteBuffer},
		{"with the smallest", leastWriteBuffer, time.Second, leastWriteBuffer},
		{"smaller than that from the start", 4 << 10, time.Second, 4 << 10},
		{"fast again", 16 << 10, 100 * time.Microsecond, 32 << 10},
		{"nearly as large as it was", 200 << 10, 100 * time.Microsecond, most},
		{"larger than asked for", 2 * most, 0, 2 * most},
	} {
		if got := suitBuffer(row.size, most, row.took); got != row.want {
			t.Errorf("%s: %d bytes after %v become %d, want %d", row.name, row.size, row.took, got, row.want)
		}
	}
}

// TestSlowSocketsGetSmallBuffers has a socket that is full for a long time, and then is not.
func TestSlowSocketsGetSmallBuffers(t *testing.T) {
	c := listen(t, loopback4, Config{})
	full := c.Stats().WriteBuffer
	for range 20 {
		c.waited(time.Second)
	}
	if got := c.Stats().WriteBuffer; got >= full/8 {
		t.Errorf("the send buffer has %d bytes, %d at first; want less than an eighth", got, full)
	}
	train := bytes.Repeat([]byte("datagram"), 8<<10)
	if err := c.SendSegments(train, 1024, c.LocalAddr()); err != nil {
		t.Error(err)
	}
	if s := c.Stats(); s.SentPackets != 64 || s.SendTrains < 64*1024/leastWriteBuffer {
		t.Errorf("64 datagrams of 1 KiB left as %d in %d trains, want no train larger than the buffer", s.SentPackets, s.SendTrains)
	}
	for range 20 {
		c.waited(0)
	}
	if got := c.Stats().WriteBuffer; got != full {
		t.Errorf("the send buffer has %d bytes at last, want %d as at first", got, full)
	}
}
