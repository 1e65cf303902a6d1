package tun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

// openTest opens a device, or skips the test where the system has none. It is closed when the test ends.
func openTest(t *testing.T, cfg Config) Device {
	t.Helper()
	d, err := Open(cfg)
	if errors.Is(err, ErrNoDevice) || errors.Is(err, ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// bringUp gives the interface of d addresses, and routes to those that packets are to be sent to.
func bringUp(t *testing.T, d Device, addrs, routes []string) {
	t.Helper()
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range addrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatalf("add address %s: %v", text, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(lo)); err != nil {
		t.Fatal(err)
	}
	for _, text := range routes {
		dst, err := netlink.ParseIPNet(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			t.Fatalf("add route %s: %v", text, err)
		}
	}
}

func TestOpenNamesAndRemovesInterfaces(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	first := openTest(t, Config{})
	second := openTest(t, Config{MTU: 1420})
	if first.Name() != "omega0" || second.Name() != "omega1" {
		t.Errorf("names %s and %s, want omega0 and omega1", first.Name(), second.Name())
	}
	for _, row := range []struct {
		d    Device
		want int
	}{{first, DefaultMTU}, {second, 1420}} {
		if mtu, err := row.d.MTU(); mtu != row.want || err != nil {
			t.Errorf("MTU of %s = %d, %v, want %d", row.d.Name(), mtu, err, row.want)
		}
	}
	if _, err := Open(Config{Name: "omega1"}); !errors.Is(err, ErrBusy) {
		t.Errorf("Open of a name in use: %v, want ErrBusy", err)
	}
	if _, err := Open(Config{Name: "lo"}); !errors.Is(err, ErrBusy) {
		t.Errorf("Open of the loopback interface: %v, want ErrBusy", err)
	}

	// An idle interface that somebody else made to stay must not be taken over either.
	foreign := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "omega2"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if third := openTest(t, Config{}); third.Name() != "omega3" {
		t.Errorf("with a foreign omega2, Open made %s, want omega3", third.Name())
	}

	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("omega0"); err == nil {
		t.Error("omega0 is still there after Close")
	}
	if again := openTest(t, Config{Name: "omega0"}); again.Name() != "omega0" {
		t.Errorf("Open after Close made %s, want omega0", again.Name())
	}
}

func TestCloseEndsRead(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	d := openTest(t, Config{})
	done := make(chan error, 1)
	go func() {
		_, err := d.Read(readBuffers(d), make([]int, d.BatchSize()), 16)
		done <- err
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read = %v, want ErrClosed", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Read still waits ten seconds after Close")
	}
	if _, err := d.Write(packets(1, 100, 100), 16); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v, want ErrClosed", err)
	}
}

func readBuffers(d Device) [][]byte {
	return packets(d.BatchSize(), 16+2048, 16+2048)
}

// mirror sends every packet back with source and destination exchanged, so that an address on the far side seems to
// run what runs here. It returns when d is closed.
func mirror(t *testing.T, d Device, capacity int) {
	const offset = 16
	bufs, sizes := readBuffers(d), make([]int, d.BatchSize())
	out := packets(d.BatchSize(), 0, max(capacity, offset+2048))
	send := make([][]byte, 0, d.BatchSize())
	for {
		n, err := d.Read(bufs, sizes, offset)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
		send = send[:0]
		for i := range n {
			if sizes[i] > 2048 {
				t.Errorf("a packet of %d bytes was read", sizes[i])
				continue
			}
			b := append(out[i][:0], bufs[i][:offset+sizes[i]]...)
			swapAddresses(b[offset:])
			send = append(send, b)
		}
		if len(send) > 0 {
			if _, err := d.Write(send, offset); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		}
	}
}

// Capacities that stand for mirrorLarge.
const uncut, uncutFinished = -1, -2

// mirrorLarge is mirror for a queue, with the methods of Large.
func mirrorLarge(t *testing.T, d Large, q Queue, finish bool) {
	const offset = 16
	var arena []byte
	var ends []int
	var bufs [][]byte
	var unfinished []bool
	for {
		n, err := q.ReadLarge()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
		arena, ends, bufs, unfinished = arena[:0], ends[:0], bufs[:0], unfinished[:0]
		for i := range n {
			packet, longest := q.Packet(i)
			if longest > 1400 || longest > len(packet) {
				t.Errorf("a packet of %d bytes stands for some of up to %d", len(packet), longest)
			}
			for b, partial := q.Cut(i, MinHeadroom, finish); b != nil; b, partial = q.Cut(i, MinHeadroom, finish) {
				if p := b[MinHeadroom:]; len(p) > longest || partial && finish || !partial && tuntest.Check(p) != nil {
					t.Errorf("%x was cut, %d bytes at most, unfinished: %v", p, longest, partial)
				}
				arena = append(arena, make([]byte, offset)...)
				start := len(arena)
				arena = append(arena, b[MinHeadroom:]...)
				swapAddresses(arena[start:])
				ends, unfinished = append(ends, len(arena)), append(unfinished, partial)
			}
		}
		start := 0
		for _, end := range ends {
			bufs = append(bufs, arena[start:end:end])
			start = end
		}
		if n, err := d.WriteLarge(bufs, offset, unfinished); (err != nil || n != len(bufs)) && !errors.Is(err, os.ErrClosed) {
			t.Errorf("WriteLarge = %d, %v, want %d", n, err, len(bufs))
		}
	}
}

// swapAddresses exchanges source and destination, which no checksum notices.
func swapAddresses(packet []byte) {
	from, size := 12, 4
	if packet[0]>>4 == 6 {
		from, size = 8, 16
	}
	for i := from; i < from+size; i++ {
		packet[i], packet[i+size] = packet[i+size], packet[i]
	}
}

// TestTrafficThroughTheKernel sends TCP and UDP through a real interface, in large writes that are cut and merged,
// and one by one.
func TestTrafficThroughTheKernel(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	if err := openTest(t, Config{}).Close(); err != nil { // skips where there is none
		t.Error(err)
	}
	for _, row := range []struct {
		name     string
		noMerge  bool
		capacity int
		queues   int
	}{
		{"merging", false, MergeCapacity(16), 0},
		{"merging switched off", true, MergeCapacity(16), 0},
		{"buffers without room to merge", false, 0, 0},
		{"the plain path, merging", false, MergeCapacity(16), 2},
		{"the plain path, buffers too small to merge", false, 0, 0},
		{"uncut", false, uncut, 0},
		{"uncut, merging switched off", true, uncut, 1},
		{"uncut, finished", false, uncutFinished, 0},
		{"two queues", false, uncut, 2},
		{"two queues, merging switched off", true, uncut, 2},
		{"two queues, finished", false, uncutFinished, 2},
		{"four queues", false, uncut, 4},
	} {
		t.Run(row.name, func(t *testing.T) {
			plain := strings.Contains(row.name, "plain")
			d := openTest(t, Config{MTU: 1400, NoMerge: row.noMerge, Plain: plain, Queues: row.queues})
			if _, large := d.(Large); large == plain {
				t.Errorf("the device is a Large: %v, want %v", large, !plain)
			}
			bringUp(t, d, []string{"10.64.0.1/32", "fd6f:6d65:6761::1/128"}, []string{"10.64.0.2/32", "fd6f:6d65:6761::2/128"})
			var wg sync.WaitGroup
			if row.capacity < 0 {
				queues := d.(Large).Queues()
				if len(queues) != max(1, row.queues) {
					t.Errorf("there are %d queues, want %d", len(queues), max(1, row.queues))
				}
				for _, q := range queues {
					wg.Go(func() { mirrorLarge(t, d.(Large), q, row.capacity == uncutFinished) })
				}
			} else {
				wg.Go(func() { mirror(t, d, row.capacity) })
			}
			t.Run("TCP over IPv4", func(t *testing.T) { tcpThrough(t, "10.64.0.1", "10.64.0.2") })
			t.Run("TCP over IPv6", func(t *testing.T) { tcpThrough(t, "fd6f:6d65:6761::1", "fd6f:6d65:6761::2") })
			t.Run("UDP over IPv4", func(t *testing.T) { udpThrough(t, "10.64.0.1", "10.64.0.2") })
			t.Run("UDP over IPv6", func(t *testing.T) { udpThrough(t, "fd6f:6d65:6761::1", "fd6f:6d65:6761::2") })
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			wg.Wait()
		})
	}
}

// tcpThrough sends 4 MB to what listens here, by way of the mirror.
func tcpThrough(t *testing.T, here, there string) {
	l, err := net.Listen("tcp", net.JoinHostPort(here, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make([]byte, 4<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range sent {
		sent[i] = byte(rnd.Uint32())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(there, port))
		if err != nil {
			t.Error(err)
			cancel()
			return
		}
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	context.AfterFunc(ctx, func() { _ = l.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != netip.MustParseAddr(there) {
		t.Errorf("the connection comes from %v, want %s: it did not go through the device", got, there)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d bytes, %v, want the %d sent", len(got), err, len(sent))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// udpThrough sends itself a datagram by way of the mirror.
func udpThrough(t *testing.T, here, there string) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(here), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	to := netip.AddrPortFrom(netip.MustParseAddr(there), port)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort([]byte("round"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "round" || from != to {
		t.Errorf("received %q from %v, %v, want %q from %v", b[:n], from, err, "round", to)
	}
}

// TestBothPathsCarryTheSame writes each batch of mergeRows to the kernel by way of the queue and of wireguard/tun, and reads with
// raw sockets what programs would get.
func TestBothPathsCarryTheSame(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	const offset = 16
	for _, kind := range []struct {
		plain  bool
		queues int
	}{{false, 1}, {false, 2}, {false, 4}, {true, 1}} {
		plain := kind.plain
		d := openTest(t, Config{MTU: 1500, Plain: plain, Queues: kind.queues})
		bringUp(t, d, []string{us4.Addr().String() + "/32", us6.Addr().String() + "/128"},
			[]string{them4.Addr().String() + "/32", them6.Addr().String() + "/128"})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			t.Skip(err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		at := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}
		if err := errors.Join(unix.Bind(fd, at), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)); err != nil {
			t.Fatal(err)
		}
		for _, row := range mergeRows {
			name := fmt.Sprintf("%s, plain: %v, queues: %d", row.name, plain, kind.queues)
			var bufs [][]byte
			for _, p := range row.packets {
				bufs = append(bufs, append(make([]byte, offset, offset+len(p)), p...)) // wireguard/tun's merging reorders
			}
			if n, err := d.Write(bufs, offset); err != nil || n != len(row.packets) {
				t.Errorf("%s: Write = %d, %v, want %d", name, n, err, len(row.packets))
			}
			var frames [][]byte
			for b := make([]byte, 1<<17); ; {
				n, from, err := unix.Recvfrom(fd, b, 0)
				if errors.Is(err, unix.EAGAIN) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING { // what the host answers
					frames = append(frames, slices.Clone(b[:n]))
				}
			}
			wantSame(t, name, recut(t, frames), row.packets)
		}
		if err := errors.Join(unix.Close(fd), d.Close()); err != nil {
			t.Error(err)
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// TestHostilePacketsAreSurvived writes what a peer could send into the merging code and the kernel.
func TestHostilePacketsAreSurvived(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	d := openTest(t, Config{})
	bringUp(t, d, []string{"10.64.0.1/32", "fd6f:6d65:6761::1/128"}, nil)
	rnd := rand.New(rand.NewPCG(3, 4))
	const offset = 16
	seed := func() []byte {
		src, dst := netip.MustParseAddr("10.64.0.2"), netip.MustParseAddr("10.64.0.1")
		if rnd.IntN(2) == 0 {
			src, dst = netip.MustParseAddr("fd6f:6d65:6761::2"), netip.MustParseAddr("fd6f:6d65:6761::1")
		}
		from, to := netip.AddrPortFrom(src, uint16(rnd.IntN(300))), netip.AddrPortFrom(dst, 9)
		payload := make([]byte, rnd.IntN(1200))
		if rnd.IntN(2) == 0 {
			return tuntest.UDP(from, to, payload)
		}
		return tuntest.TCP(from, to, tuntest.Segment{Seq: uint32(rnd.IntN(5000)), Flags: byte(rnd.Uint32()), Payload: payload})
	}
	bufs := packets(300, 0, MergeCapacity(offset))
	out := make([][]byte, 0, len(bufs))
	written := 0
	for range 100 {
		out = out[:0]
		for i := range 1 + rnd.IntN(len(bufs)) {
			b := append(bufs[i][:0], make([]byte, offset)...)
			b = append(b, seed()...)
			for range rnd.IntN(4) { // in the headers, mostly
				b[offset+rnd.IntN(min(len(b)-offset, 60))] = byte(rnd.Uint32())
			}
			if rnd.IntN(8) == 0 {
				b = b[:offset+1+rnd.IntN(len(b)-offset)]
			}
			out = append(out, b)
		}
		n, _ := d.Write(out, offset) // errors are expected, panics are not
		written += n
	}
	if written == 0 {
		t.Error("not one packet was written")
	}
}
