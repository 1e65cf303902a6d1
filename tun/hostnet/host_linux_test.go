package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"omegatun/tun"
	"omegatun/tun/tuntest"
)

var (
	us4, them4 = netip.MustParsePrefix("10.64.0.1/32"), netip.MustParsePrefix("10.64.0.2/32")
	us6, them6 = netip.MustParsePrefix("fd6f:6d65:6761::1/128"), netip.MustParsePrefix("fd6f:6d65:6761::2/128")
)

func testConfig(name string) Config {
	return Config{
		Interface: name, Addrs: []netip.Prefix{us6, us4}, Routes: []netip.Prefix{them6, them4}, MTU: 1400, MaxSegments: 128,
	}
}

// openDevice opens a device that is closed when the test ends, or skips the test.
func openDevice(t *testing.T) tun.Device {
	t.Helper()
	d, err := tun.Open(tun.Config{})
	if errors.Is(err, tun.ErrNoDevice) || errors.Is(err, tun.ErrPermission) {
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

func configure(t *testing.T, cfg Config) *Host {
	t.Helper()
	h, err := Configure(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// ourRoutes returns the destinations of the routes with our protocol number, in order.
func ourRoutes(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			found = append(found, r.Dst.String())
		}
	}
	slices.Sort(found)
	return found
}

func wantRoutes(t *testing.T, reason string, want ...netip.Prefix) {
	t.Helper()
	var texts []string
	for _, p := range want {
		texts = append(texts, p.String())
	}
	slices.Sort(texts)
	if got := ourRoutes(t); !slices.Equal(got, texts) {
		t.Errorf("%s: our routes are %v, want %v", reason, got, texts)
	}
}

// addresses returns the addresses of an interface, in order.
func addresses(t *testing.T, name string) []string {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, a := range addrs {
		found = append(found, a.IPNet.String())
	}
	slices.Sort(found)
	return found
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wantPackets sends a datagram to each of to and waits until the device has it, with the source it should have. It
// returns what else came.
func wantPackets(t *testing.T, d tun.Device, to map[netip.Addr]netip.Addr) {
	t.Helper()
	packets := make(chan []byte)
	done := make(chan struct{})
	go func() {
		defer close(packets)
		bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 16+65535)
		}
		for {
			n, err := d.Read(bufs, sizes, 16)
			if err != nil {
				return
			}
			for i := range n {
				select {
				case packets <- bytes.Clone(bufs[i][16 : 16+sizes[i]]):
				case <-done:
					return
				}
			}
		}
	}()
	defer close(done)
	for dst := range to {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
		if err != nil {
			t.Fatalf("dial %v: %v", dst, err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Errorf("write to %v: %v", dst, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	missing, late := len(to), time.After(30*time.Second)
	for missing > 0 {
		select {
		case p := <-packets:
			if !bytes.HasSuffix(p, []byte("hello")) {
				t.Logf("the host sent %x as well", p)
				continue
			}
			if err := tuntest.Check(p); err != nil {
				t.Error(err)
			}
			src, dst := p[12:16], p[16:20]
			if p[0]>>4 == 6 {
				src, dst = p[8:24], p[24:40]
			}
			source, _ := netip.AddrFromSlice(src)
			destination, _ := netip.AddrFromSlice(dst)
			if want, ok := to[destination]; !ok || source != want {
				t.Errorf("a packet from %v to %v, want it from %v", source, destination, want)
			}
			missing--
		case <-late:
			t.Fatalf("%d of %d packets are missing", missing, len(to))
		}
	}
}

func TestConfigureAndClose(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	d := openDevice(t)
	h := configure(t, testConfig(d.Name()))
	if p := h.Problems(); len(p) > 0 {
		t.Errorf("Problems = %v, want none", p)
	}
	// That is all: in particular, no link-local address.
	if got, want := addresses(t, d.Name()), []string{us4.String(), us6.String()}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	wantRoutes(t, "after Configure", them4, them6)
	a := link(t, d.Name()).Attrs()
	if a.Alias != Alias || a.MTU != 1400 || a.GSOMaxSegs != 128 || a.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("alias %q, MTU %d, %d segments, flags %#x; want %q, 1400, 128, up",
			a.Alias, a.MTU, a.GSOMaxSegs, a.RawFlags, Alias)
	}
	wantPackets(t, d, map[netip.Addr]netip.Addr{them4.Addr(): us4.Addr(), them6.Addr(): us6.Addr()})

	more := netip.MustParsePrefix("10.64.0.3/32")
	for range 2 { // again is no error
		if err := h.AddRoute(more); err != nil {
			t.Error(err)
		}
	}
	wantRoutes(t, "after AddRoute", them4, them6, more)
	for range 2 {
		if err := h.RemoveRoute(them4); err != nil {
			t.Error(err)
		}
	}
	wantRoutes(t, "after RemoveRoute", them6, more)
	if err := h.AddRoute(netip.MustParsePrefix("0.0.0.0/0")); err == nil {
		t.Error("AddRoute set a default route")
	}

	for range 2 {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	wantRoutes(t, "after Close")
	if got := addresses(t, d.Name()); len(got) > 0 {
		t.Errorf("after Close, addresses %v are left", got)
	}
	if a := link(t, d.Name()).Attrs(); a.Alias != "" || a.RawFlags&unix.IFF_UP != 0 {
		t.Errorf("after Close, alias %q and flags %#x are left", a.Alias, a.RawFlags)
	}
	if err := h.AddRoute(more); !errors.Is(err, net.ErrClosed) {
		t.Errorf("AddRoute after Close: %v, want ErrClosed", err)
	}
	if err := h.RemoveRoute(more); err != nil {
		t.Errorf("RemoveRoute after Close: %v", err)
	}
}

func TestCloseAfterTheDevice(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	d := openDevice(t)
	h := configure(t, testConfig(d.Name()))
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close after the device is gone: %v", err)
	}
	wantRoutes(t, "after both were closed")
}

func TestForeignInterfacesAreNotTouched(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	d := openDevice(t)
	if err := netlink.LinkSetAlias(link(t, d.Name()), "somebody else's"); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		want error
	}{
		{"lo", ErrForeign}, {d.Name(), ErrForeign}, {"nothing", ErrNoInterface},
	} {
		if _, err := Configure(testConfig(row.name)); !errors.Is(err, row.want) {
			t.Errorf("Configure of %s: %v, want %v", row.name, err, row.want)
		}
	}
	a := link(t, d.Name()).Attrs()
	if a.Alias != "somebody else's" || a.RawFlags&unix.IFF_UP != 0 || len(addresses(t, d.Name())) > 0 {
		t.Errorf("the interface was changed: %+v", a)
	}
}

func TestExistingRoutesAreNotReplaced(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	lo := link(t, "lo")
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{them4, them6} {
		// 1024 is the metric that routes get where none is given; another one would be another route.
		foreign := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p)}
		if p.Addr().Is6() {
			foreign.Priority = 1024
		}
		if err := netlink.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
	}
	d := openDevice(t)
	cfg := testConfig(d.Name())
	other := netip.MustParsePrefix("10.64.0.3/32")
	cfg.Routes = append(cfg.Routes, other)
	h := configure(t, cfg)
	problems := h.Problems()
	if len(problems) != 2 || !errors.Is(problems[0], ErrRouteExists) || !errors.Is(problems[1], ErrRouteExists) {
		t.Errorf("Problems = %v, want ErrRouteExists twice", problems)
	}
	wantRoutes(t, "the rest works", other)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	for _, p := range []netip.Prefix{them4, them6} {
		routes, err := netlink.RouteListFiltered(netlinkFamily(p.Addr()), &netlink.Route{Dst: ipNet(p)}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != lo.Attrs().Index {
			t.Errorf("routes to %v are %v, %v, want the foreign one alone", p, routes, err)
		}
	}
}

func TestWithoutIPv6(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
		t.Skip(err)
	}
	d := openDevice(t)
	cfg := testConfig(d.Name())
	cfg.Addrs = []netip.Prefix{us6}
	if _, err := Configure(cfg); !errors.Is(err, ErrIPv6Disabled) {
		t.Errorf("Configure with nothing but IPv6: %v, want ErrIPv6Disabled", err)
	}
	h := configure(t, testConfig(d.Name()))
	problems := h.Problems()
	if len(problems) != 1 || !errors.Is(problems[0], ErrIPv6Disabled) || !strings.Contains(problems[0].Error(), "sysctl -w") {
		t.Errorf("Problems = %v, want ErrIPv6Disabled with the remedy", problems)
	}
	wantRoutes(t, "IPv4 goes on", them4)
	wantPackets(t, d, map[netip.Addr]netip.Addr{them4.Addr(): us4.Addr()})
	if err := h.AddRoute(netip.MustParsePrefix("fd6f:6d65:6761::3/128")); !errors.Is(err, ErrIPv6Disabled) {
		t.Errorf("AddRoute: %v, want ErrIPv6Disabled", err)
	}
	if err := h.RemoveRoute(them6); err != nil {
		t.Errorf("RemoveRoute: %v", err)
	}
}

// TestHolder is the process that TestKilledProcessLeavesNothing kills.
func TestHolder(t *testing.T) {
	if os.Getenv("OMEGATUN_TEST_HOLD") == "" {
		t.Skip("only runs as a process of another test")
	}
	d := openDevice(t)
	configure(t, testConfig(d.Name()))
	fmt.Println("holding " + d.Name())
	select {}
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	openDevice(t) // skips where there is none
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), "OMEGATUN_TEST_HOLD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := out.Read(b)
	if err != nil || string(b[:n]) != "holding omega1\n" {
		t.Fatalf("the process says %q, %v", b[:n], err)
	}
	wantRoutes(t, "while the process lives", them4, them6)
	if err := cmd.Process.Kill(); err != nil { // SIGKILL
		t.Fatal(err)
	}
	_ = cmd.Wait() // says that it was killed
	wantRoutes(t, "after kill -9")
	if _, err := netlink.LinkByName("omega1"); err == nil {
		t.Error("after kill -9, omega1 is still there")
	}
	if removed, err := Cleanup(); len(removed) > 0 || err != nil {
		t.Errorf("Cleanup = %v, %v, want nothing to do", removed, err)
	}
}

func TestCleanupRemovesOnlyWhatIsDeadAndOurs(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	alive := openDevice(t)
	configure(t, testConfig(alive.Name()))
	lo := link(t, "lo")
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	// Two interfaces that stay without a process, one of them marked.
	for _, name := range []string{"dead0", "foreign0"} {
		device := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(device); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetAlias(link(t, "dead0"), Alias); err != nil {
		t.Fatal(err)
	}
	// Two stray routes, one with our number.
	stray, foreign := netip.MustParsePrefix("10.64.0.7/32"), netip.MustParsePrefix("10.64.0.8/32")
	for p, protocol := range map[netip.Prefix]netlink.RouteProtocol{stray: RouteProtocol, foreign: 0} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Protocol: protocol}); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := Cleanup()
	if want := []string{"interface dead0", "route to 10.64.0.7/32"}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("Cleanup = %v, %v, want %v", removed, err, want)
	}
	wantRoutes(t, "those of the living", them4, them6)
	if _, err := netlink.LinkByName("dead0"); err == nil {
		t.Error("dead0 is still there")
	}
	link(t, "foreign0")
	link(t, alive.Name())
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(foreign)}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) != 1 {
		t.Errorf("the foreign route: %v, %v, want it left alone", routes, err)
	}
	if removed, err := Cleanup(); len(removed) > 0 || err != nil {
		t.Errorf("Cleanup again = %v, %v, want nothing to do", removed, err)
	}
}

// addVeth makes a pair of interfaces that are up, and gives the first one an address.
func addVeth(t *testing.T, address string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan1"}); err != nil {
		t.Skipf("this system has no veth: %v", err)
	}
	wan := link(t, "wan0")
	if err := errors.Join(netlink.LinkSetUp(wan), netlink.LinkSetUp(link(t, "wan1"))); err != nil {
		t.Fatal(err)
	}
	addAddress(t, wan, address)
	return wan
}

func addAddress(t *testing.T, l netlink.Link, address string) {
	t.Helper()
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
}

func TestNetworks(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	wan := addVeth(t, "192.0.2.5/24")
	addAddress(t, wan, "2001:db8::5/64")
	onLink, via := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")
	everything, half := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("0.0.0.0/1")
	gateway := netip.MustParseAddr("192.0.2.1").AsSlice()
	for _, r := range []*netlink.Route{
		{Dst: ipNet(onLink), Scope: netlink.SCOPE_LINK},
		{Dst: ipNet(via), Gw: gateway},
		{Dst: ipNet(everything), Gw: gateway},
		{Dst: ipNet(half), Scope: netlink.SCOPE_LINK},
	} {
		r.LinkIndex = wan.Attrs().Index
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	d := openDevice(t)
	configure(t, testConfig(d.Name()))
	got, err := Networks()
	want := []netip.Prefix{onLink, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Networks = %v, %v, want %v", got, err, want)
	}
}
