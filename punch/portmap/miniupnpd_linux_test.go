package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/tun/tuntest"
)

// namespace is a network namespace beside the one that the test runs in.
type namespace struct {
	t   *testing.T
	pid int // of a process that keeps it alive
}

func newNamespace(t *testing.T) namespace {
	t.Helper()
	cmd := exec.Command("cat") // ends with its standard input, and so with us
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no second network namespace: %v", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return namespace{t, cmd.Process.Pid}
}

// command returns a command that runs in n; the zero namespace is the test's own.
func (n namespace) command(args ...string) *exec.Cmd {
	if n.pid != 0 {
		args = append([]string{"nsenter", "-t", fmt.Sprint(n.pid), "-n"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// run runs lines of commands, and returns what they print.
func (n namespace) run(t *testing.T, lines string) string {
	t.Helper()
	var all strings.Builder
	for line := range strings.Lines(lines) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		out, err := n.command(args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// dial returns a UDP socket in n.
func (n namespace) dial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.pid))
		if err != nil {
			ch <- result{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			ch <- result{nil, err}
			return
		}
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		ch <- result{c, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r.c
}

const (
	routerRules = `table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan" accept
    jump miniupnpd
  }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting {
    type nat hook postrouting priority 100;
    jump postrouting_miniupnpd
    oifname "wan" masquerade
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
`
	daemonConfig = `ext_ifname=wan
listening_ip=lan
http_port=0
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
min_lifetime=10
max_lifetime=86400
system_uptime=no
uuid=00000000-0000-0000-0000-000000000001
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 192.168.7.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`
)

// TestMiniupnpd maps ports at the gateway program that many routers run:
//
//	test 192.168.7.10 ── 192.168.7.1 lan, router, wan 11.0.0.101 ── 11.0.0.1 stranger
//
// The addresses outside are not of a reserved range, because miniupnpd refuses to work with those. These namespaces are
// connected to each other and to nothing else.
func TestMiniupnpd(t *testing.T) {
	for _, tool := range []string{"miniupnpd", "nft", "ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: apt-get install miniupnpd-nftables nftables iproute2 util-linux", err)
		}
	}
	if !tuntest.InNamespace(t) {
		return
	}
	host, router, stranger := namespace{t: t}, newNamespace(t), newNamespace(t)
	host.run(t, fmt.Sprintf("ip link add eth0 type veth peer name lan netns %d", router.pid))
	router.run(t, fmt.Sprintf("ip link add wan type veth peer name eth0 netns %d", stranger.pid))
	host.run(t, `ip link set lo up
		ip addr add 192.168.7.10/24 dev eth0
		ip link set eth0 up
		ip route add default via 192.168.7.1`)
	router.run(t, `ip link set lo up
		ip addr add 192.168.7.1/24 dev lan
		ip link set lan up
		ip addr add 11.0.0.101/24 dev wan
		ip link set wan up
		sysctl -qw net.ipv4.ip_forward=1`)
	stranger.run(t, `ip addr add 11.0.0.1/24 dev eth0
		ip link set eth0 up`)
	rules := router.command("nft", "-f", "-")
	rules.Stdin = strings.NewReader(routerRules)
	if out, err := rules.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "miniupnpd.conf")
	if err := os.WriteFile(config, []byte(daemonConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() (stop func()) {
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := router.command("miniupnpd", "-d", "-f", config, "-P", filepath.Join(dir, "pid"))
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return sync.OnceFunc(func() {
			cmd.Process.Kill() // as a power cut does
			cmd.Wait()
			log.Close()
			if t.Failed() {
				text, _ := os.ReadFile(log.Name())
				t.Logf("miniupnpd:\n%s", text[max(0, len(text)-8000):])
			}
		})
	}
	stop := start()
	t.Cleanup(func() { stop() })

	gatewayAddr, local := netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("192.168.7.10")
	public := netip.MustParseAddr("11.0.0.101")
	config1 := func(port uint16) Config {
		return Config{Port: port, Gateway: func() (g, l netip.Addr, ok bool) { return gatewayAddr, local, true }}
	}
	// reaches sends from the stranger, and reports whether it arrives here in time.
	reaches := func(t *testing.T, c *net.UDPConn, to netip.AddrPort, wait time.Duration) bool {
		t.Helper()
		if _, err := stranger.dial(t, to).Write([]byte("knock")); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(wait))
		_, _, err := c.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}

	mapped := func(t *testing.T, m *Mapper, want Protocol) {
		t.Helper()
		for range 20 { // the daemon is starting
			waitFor(t, m, "a round", func() bool { return m.Report().Rounds > 0 })
			if m.Report().Mapping.Protocol != 0 {
				break
			}
			rounds := m.Report().Rounds
			m.Refresh()
			waitFor(t, m, "another round", func() bool { return m.Report().Rounds > rounds })
		}
		if r := m.Report(); r.Mapping.Protocol != want {
			t.Fatalf("mapped by %v, want %v: %+v", r.Mapping.Protocol, want, r)
		}
	}

	for i, p := range []Protocol{PCP, NATPMP, UPnP} {
		t.Run(p.String(), func(t *testing.T) {
			port := uint16(41000 + i)
			c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			m := newMapper(config1(port), func(cfg *Config, r route) gateway {
				g := standard.open(cfg, r)
				g.clients = slices.DeleteFunc(g.clients, func(c client) bool { return c.protocol() != p })
				return g
			})
			defer m.Close(context.Background())
			mapped(t, m, p)
			external, ok := m.External()
			if want := netip.AddrPortFrom(public, port); !ok || external != want {
				t.Errorf("External() = %v, %t, want %v", external, ok, want)
			}
			if !reaches(t, c, external, 10*time.Second) {
				t.Errorf("a datagram to %v does not arrive\n%s", external, router.run(t, "nft list ruleset"))
			}
			rounds := m.Report().Rounds
			m.Refresh()
			waitFor(t, m, "renewal", func() bool { return m.Report().Rounds > rounds })
			if again, ok := m.External(); !ok || again != external {
				t.Errorf("after a renewal: %v, %t, want %v", again, ok, external)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
			if rules := router.run(t, "nft list ruleset"); strings.Contains(rules, fmt.Sprint(port)) {
				t.Errorf("still mapped:\n%s", rules)
			}
			if reaches(t, c, external, 300*time.Millisecond) {
				t.Error("a datagram arrives after Close")
			}
		})
	}

	t.Run("restart", func(t *testing.T) {
		m := New(config1(41003))
		defer m.Close(context.Background())
		mapped(t, m, PCP)
		for _, a := range m.Report().Answers {
			if !a.Speaks || a.External != public || a.Err != nil {
				t.Errorf("%v: %+v", a.Protocol, a)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		heard, ended := make(chan announcement, 100), make(chan error, 1)
		go func() {
			s := server{route{gatewayAddr, local}, serverPort, nil}
			ended <- hear(ctx, s, standard.announce, heard)
		}()
		stop()
		router.run(t, "nft flush chain inet filter prerouting_miniupnpd\nnft flush chain inet filter miniupnpd")
		stop = start()
		select {
		case a := <-heard:
			t.Logf("heard %+v", a)
		case err := <-ended:
			t.Error(err)
		case <-time.After(10 * time.Second):
			t.Error("nothing heard of a gateway that started")
		}
		cancel()
		rounds := m.Report().Rounds
		m.Refresh() // the Mapper has heard it too, but waits before it asks again
		waitFor(t, m, "round after the restart", func() bool { return m.Report().Rounds > rounds })
		if r := m.Report(); r.Restarts != 1 || r.Mapping.External != netip.AddrPortFrom(public, 41003) {
			t.Errorf("after a restart: %+v", r)
		}
		if rules := router.run(t, "nft list ruleset"); !strings.Contains(rules, "41003") {
			t.Errorf("not mapped again:\n%s", rules)
		}
	})
}
