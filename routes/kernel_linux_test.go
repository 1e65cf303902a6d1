package routes_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/tun"
	"omegatun/tun/hostnet"
	"omegatun/tun/tuntest"
)

// unreachable is a Session that has given up.
type unreachable struct{}

func (unreachable) SendFrom(func(offset int, finish bool) ([]byte, bool)) error {
	return routes.ErrUnreachable
}

// reflector is a Session whose peer sends every packet back with source and destination exchanged, so that the peer
// seems to run what runs here.
type reflector struct {
	f *routes.Forwarder
	p *routes.Peer
}

func (r *reflector) SendFrom(next func(offset int, finish bool) ([]byte, bool)) error {
	var bufs [][]byte
	var unfinished []bool
	for p, partial := next(0, false); p != nil; p, partial = next(0, false) {
		b := append(make([]byte, routes.Headroom, tun.MergeCapacity(routes.Headroom)), p...)
		from, size := routes.Headroom+12, 4
		if p[0]>>4 == 6 {
			from, size = routes.Headroom+8, 16
		}
		for j := from; j < from+size; j++ {
			b[j], b[j+size] = b[j+size], b[j]
		}
		bufs, unfinished = append(bufs, b), append(unfinished, partial)
	}
	r.f.Deliver(r.p, bufs, routes.Headroom, unfinished)
	return nil
}

// TestTheKernelUnderstands runs a forwarder on a real interface and lets the kernel's sockets judge what it does.
func TestTheKernelUnderstands(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	var self, live, dead, absent key.Public
	self[0], live[0], dead[0], absent[0] = 1, 2, 3, 4
	dev, err := tun.Open(tun.Config{MTU: 1420})
	if errors.Is(err, tun.ErrNoDevice) || errors.Is(err, tun.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	hosts := func(keys ...key.Public) (list []netip.Prefix) {
		for _, k := range keys {
			list = append(list, netip.PrefixFrom(routes.Addr6(k), 128), netip.PrefixFrom(routes.Addr4(k), 32))
		}
		return list
	}
	host, err := hostnet.Configure(hostnet.Config{
		Interface: dev.Name(), Addrs: hosts(self), Routes: hosts(live, dead, absent), MaxSegments: dev.BatchSize(),
	})
	if err != nil {
		t.Fatal(err)
	}
	f := routes.NewForwarder(dev, routes.Config{Local: []netip.Addr{routes.Addr6(self), routes.Addr4(self)}})
	session := &reflector{f: f}
	if session.p, err = f.AddPeer(routes.PeerConfig{Key: live, Prefixes: hosts(live), MTU: 1300}); err != nil {
		t.Fatal(err)
	}
	session.p.SetSession(session)
	if _, err := f.AddPeer(routes.PeerConfig{Key: dead, Prefixes: hosts(dead), Session: unreachable{}}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := errors.Join(host.Close(), dev.Close()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})

	for _, row := range []struct {
		family string
		addr   func(key.Public) netip.Addr
	}{{"IPv4", routes.Addr4}, {"IPv6", routes.Addr6}} {
		t.Run("TCP is carried over "+row.family, func(t *testing.T) { echo(t, row.addr(self), row.addr(live)) })
		t.Run("a dead peer is reported over "+row.family, func(t *testing.T) { wantUnreachable(t, row.addr(dead)) })
		t.Run("no peer is reported over "+row.family, func(t *testing.T) { wantUnreachable(t, row.addr(absent)) })
		t.Run("the tunnel's MTU is learnt over "+row.family, func(t *testing.T) { wantPathMTU(t, row.addr(live), 1300) })
	}
	s := session.p.Stats()
	if s.TxPackets == 0 || s.RxPackets == 0 || s.Dropped[routes.TooBig] == 0 || s.Dropped[routes.Malformed] != 0 {
		t.Errorf("Stats of the live peer = %+v", s)
	}
	if s := f.Stats(); s.Dropped[routes.NoRoute] == 0 || s.Dropped[routes.SourceNotOurs] != 0 {
		t.Errorf("Stats of the forwarder = %+v", s)
	}
}

// echo connects to there, which leads to what listens here, and has a megabyte returned.
func echo(t *testing.T, here, there netip.Addr) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(here, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = l.Close() }()
	wg.Go(func() {
		c, err := l.AcceptTCP()
		if err != nil {
			t.Error(err)
			return
		}
		if n, err := c.ReadFrom(c); err != nil || n != 1<<20 {
			t.Errorf("echoed %d bytes, %v, want a megabyte", n, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(there, port).String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	b, total := make([]byte, 64<<10), 0
	for {
		n, err := c.Read(b)
		total += n
		if err != nil {
			break
		}
	}
	if total != 1<<20 {
		t.Errorf("received %d bytes back, want a megabyte", total)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// wantUnreachable fails the test unless connecting to a fails at once with EHOSTUNREACH or ENETUNREACH.
func wantUnreachable(t *testing.T, a netip.Addr) {
	start := time.Now()
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 9).String(), 10*time.Second)
	if err == nil {
		t.Fatal(errors.Join(errors.New("connected"), c.Close()))
	}
	if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) || time.Since(start) > 5*time.Second {
		t.Errorf("dial %v: %v after %v, want unreachable at once", a, err, time.Since(start))
	}
}

// wantPathMTU fails the test unless a large datagram to a makes the kernel learn this MTU.
func wantPathMTU(t *testing.T, a netip.Addr, want int) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	mtu := func() (value int) {
		level, option := syscall.IPPROTO_IP, syscall.IP_MTU
		if a.Is6() {
			level, option = syscall.IPPROTO_IPV6, 24 // IPV6_MTU
		}
		get := func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), level, option) }
		if err := errors.Join(raw.Control(get), err); err != nil {
			t.Fatal(err)
		}
		return value
	}
	if got := mtu(); got != 1420 {
		t.Fatalf("MTU before = %d, want the interface's 1420", got)
	}
	if _, err := c.Write(make([]byte, 1350)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); mtu() != want; {
		if time.Now().After(deadline) {
			t.Fatalf("MTU = %d, want %d", mtu(), want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
