//go:build linux

package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"omegatun/punch/lab"
)

// sandbox says why the tests cannot run here.
var sandbox struct{ missing error }

func TestMain(m *testing.M) {
	sandbox.missing = Enter()
	os.Exit(m.Run())
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	if sandbox.missing != nil {
		t.Skip(sandbox.missing)
	}
	l, err := New(context.Background(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		if left, err := os.ReadDir(netnsDir); err != nil || len(left) > 0 {
			t.Errorf("namespaces left: %v, %v", left, err)
		}
	})
	return l
}

func newSite(t *testing.T, l *Lab, name string, nat NAT) *Site {
	t.Helper()
	s, err := l.Site(name, nat)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	natA = NAT{WAN: netip.MustParseAddr("192.88.99.101"), LAN: netip.MustParsePrefix("192.168.1.0/24")}
	natB = NAT{WAN: netip.MustParseAddr("192.88.99.102"), LAN: netip.MustParsePrefix("192.168.1.0/24")}
)

func listenUDP(t *testing.T, n *Net, addr string) *net.UDPConn {
	t.Helper()
	c, err := n.ListenUDP(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receive returns the next datagram, or "" if there is none for 10 s.
func receive(t *testing.T, c *net.UDPConn) (text string, from netip.AddrPort) {
	t.Helper()
	return receiveWithin(t, c, 10*time.Second)
}

// receiveStray returns the next datagram, or "" if there is none for 200 ms, as it should be.
func receiveStray(t *testing.T, c *net.UDPConn) (text string, from netip.AddrPort) {
	t.Helper()
	return receiveWithin(t, c, 200*time.Millisecond)
}

func receiveWithin(t *testing.T, c *net.UDPConn, wait time.Duration) (text string, from netip.AddrPort) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return "", netip.AddrPort{}
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func send(t *testing.T, c *net.UDPConn, text, to string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), netip.MustParseAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

func TestRoutersKeepPortsAndDropStrangers(t *testing.T) {
	l := newLab(t)
	a, b := newSite(t, l, "a", natA), newSite(t, l, "b", natB) // the same prefix inside: it must not matter
	if _, err := l.PublicAddrs(1); err != nil {
		t.Fatal(err)
	}
	node := listenUDP(t, l.Internet, "192.88.99.10:49737")
	ca, cb := listenUDP(t, a.Host(), "192.168.1.10:5000"), listenUDP(t, b.Host(), "192.168.1.10:6000")

	send(t, ca, "hello", "192.88.99.10:49737")
	if got, from := receive(t, node); got != "hello" || from.String() != "192.88.99.101:5000" {
		t.Errorf("the node received %q from %v, want hello from 192.88.99.101:5000", got, from)
	}
	send(t, node, "answer", "192.88.99.101:5000")
	if got, _ := receive(t, ca); got != "answer" {
		t.Errorf("host a received %q, want the node's answer", got)
	}
	send(t, cb, "stranger", "192.88.99.101:5000")
	if got, from := receiveStray(t, ca); got != "" {
		t.Errorf("host a received %q from %v, which it never talked to", got, from)
	}
	send(t, ca, "punch", "192.88.99.102:6000")
	if got, from := receive(t, cb); got != "punch" || from.String() != "192.88.99.101:5000" {
		t.Errorf("host b received %q from %v after punching, want punch from 192.88.99.101:5000", got, from)
	}
	if got, err := l.NodeBytes(); err != nil || got != 28+5+28+6 {
		t.Errorf("exchanged with the node: %d bytes, %v, want %d", got, err, 28+5+28+6)
	}
	flows, err := l.Flows()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{ // headers of IPv4 and UDP included
		"192.88.99.101:5000 192.88.99.102:6000": 28 + 5,
		"192.88.99.102:6000 192.88.99.101:5000": 28 + 8,
	}
	for _, f := range flows {
		name := fmt.Sprintf("%v %v", f.From, f.To)
		if f.Packets != 1 || f.Bytes != want[name] {
			t.Errorf("flow %s: %d packets of %d bytes, want 1 of %d", name, f.Packets, f.Bytes, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("flows missing: %v", want)
	}
}

func TestRandomRouterMapsEachFlowToAnotherPort(t *testing.T) {
	l := newLab(t)
	nat := natA
	nat.Random = true
	a := newSite(t, l, "a", nat)
	if _, err := l.PublicAddrs(3); err != nil {
		t.Fatal(err)
	}
	c := listenUDP(t, a.Host(), "192.168.1.10:5000")
	ports := map[uint16]bool{}
	for _, addr := range []string{"192.88.99.10:49737", "192.88.99.11:49737", "192.88.99.12:49737"} {
		node := listenUDP(t, l.Internet, addr)
		send(t, c, "hello", addr)
		_, from := receive(t, node)
		ports[from.Port()] = true
	}
	if len(ports) < 2 || ports[0] {
		t.Errorf("three nodes saw the ports %v, want different ones", ports)
	}
}

func TestProbesWithALowTTLDieInTheInternet(t *testing.T) {
	l := newLab(t)
	a, b := newSite(t, l, "a", natA), newSite(t, l, "b", natB)
	for _, row := range []struct {
		ttl  string
		want bool
	}{{"5", false}, {"64", true}} {
		listener := listenUDP(t, b.Router, "192.88.99.102:"+row.ttl+"00")
		if err := b.Router.Run("nft", "insert", "rule", "inet", "filter", "input", "udp", "dport", row.ttl+"00", "accept"); err != nil {
			t.Fatal(err)
		}
		if err := a.Host().Sysctl("net.ipv4.ip_default_ttl=" + row.ttl); err != nil {
			t.Fatal(err)
		}
		send(t, listenUDP(t, a.Host(), "0.0.0.0:0"), "probe", "192.88.99.102:"+row.ttl+"00")
		next := receiveStray
		if row.want {
			next = receive
		}
		if got, _ := next(t, listener); (got != "") != row.want {
			t.Errorf("TTL %s: received %q, want it to arrive: %v", row.ttl, got, row.want)
		}
	}
}

func TestLinkHasTheAccidentsAskedFor(t *testing.T) {
	const frames = 6_000
	for _, row := range []struct {
		name  string
		imp   Impairment
		check func(s LinkStats, arrived, repeated, disordered, altered int) string
	}{
		{"none", Impairment{}, func(s LinkStats, arrived, repeated, disordered, altered int) string {
			return wantCounts(arrived, frames, repeated, 0, disordered, 0, altered, 0)
		}},
		{"loss", Impairment{Loss: 0.05}, func(s LinkStats, arrived, repeated, disordered, altered int) string {
			return wantCounts(arrived, frames-int(s.Lost), repeated, 0, disordered, 0, altered, 0)
		}},
		{"duplicate", Impairment{Duplicate: 0.05}, func(s LinkStats, arrived, repeated, disordered, altered int) string {
			return wantCounts(arrived, frames, repeated, int(s.Duplicated), disordered, 0, altered, 0)
		}},
		{"reorder", Impairment{Reorder: 0.05}, func(s LinkStats, arrived, repeated, disordered, altered int) string {
			return wantCounts(arrived, frames, repeated, 0, disordered, int(s.Reordered), altered, 0)
		}},
		{"corrupt", Impairment{Corrupt: 0.05}, func(s LinkStats, arrived, repeated, disordered, altered int) string {
			return wantCounts(arrived, frames, repeated, 0, disordered, 0, altered, int(s.Corrupted))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLab(t)
			nat := natA
			nat.Link = &Impairment{}
			a := newSite(t, l, "a", nat)
			if _, err := l.PublicAddrs(1); err != nil {
				t.Fatal(err)
			}
			node := listenUDP(t, l.Internet, "192.88.99.10:49737")
			c := listenUDP(t, a.Host(), "192.168.1.10:5000")
			send(t, c, "hello", "192.88.99.10:49737")
			if got, _ := receive(t, node); got != "hello" {
				t.Fatalf("received %q, want hello", got)
			}
			a.Link.Set(row.imp)
			before := a.Link.Stats()
			var arrived, repeated, disordered, altered int
			seen, highest := make([]bool, frames), -1
			b := make([]byte, 2048)
			// Window by window, so that no socket buffer overflows.
			for i := range frames {
				send(t, c, strings.Repeat(fmt.Sprintf("%08d", i), 12), "192.88.99.10:49737")
				last := i == frames-1
				if i%100 != 99 && !last {
					continue
				}
				for {
					wait := 10 * time.Millisecond
					if last {
						wait = time.Second
					}
					node.SetReadDeadline(time.Now().Add(wait))
					n, _, err := node.ReadFromUDPAddrPort(b)
					if err != nil {
						if a.Link.Stats().Frames-before.Frames <= uint64(i) {
							continue // the machine is busy
						}
						break
					}
					seq, err := strconv.Atoi(string(b[:min(8, n)]))
					if err != nil || seq < 0 || seq >= frames || string(b[:n]) != strings.Repeat(fmt.Sprintf("%08d", seq), 12) {
						altered++
						continue
					}
					switch {
					case seen[seq]:
						repeated++
					case seq < highest:
						disordered++
						arrived++
					default:
						arrived++
					}
					seen[seq], highest = true, max(highest, seq)
				}
			}
			s := a.Link.Stats()
			s.Frames -= before.Frames
			if s.Frames < frames {
				t.Errorf("%d frames counted, want at least %d", s.Frames, frames)
			}
			if happened := s.Lost + s.Duplicated + s.Reordered + s.Corrupted; row.name != "none" &&
				(happened < frames*3/100 || happened > frames*7/100) {
				t.Errorf("%d accidents with %d frames, want about %d", happened, frames, frames*5/100)
			}
			if complaint := row.check(s, arrived, repeated, disordered, altered); complaint != "" {
				t.Error(complaint)
			}
		})
	}
}

// wantCounts compares pairs of got and want: arrived, repeated, disordered, altered. A late frame may find nobody
// to overtake it, so some may be missing; a frame that is not the test's (ARP) may meet an accident too.
func wantCounts(pairs ...int) string {
	names := []string{"arrived", "repeated", "disordered", "altered"}
	for i, name := range names {
		got, want := pairs[2*i], pairs[2*i+1]
		if name == "arrived" {
			continue
		}
		if got > want || got < want*8/10 {
			return fmt.Sprintf("%s: %d, want %d", name, got, want)
		}
	}
	if got, want := pairs[0]+pairs[6], pairs[1]; got < want-5 || got > want+5 {
		return fmt.Sprintf("arrived: %d, want %d", got, want)
	}
	return ""
}

func TestCaptureSeesBothDirections(t *testing.T) {
	l := newLab(t)
	a := newSite(t, l, "a", natA)
	if _, err := l.PublicAddrs(1); err != nil {
		t.Fatal(err)
	}
	node := listenUDP(t, l.Internet, "192.88.99.10:49737")
	c := listenUDP(t, a.Host(), "192.168.1.10:5000")
	seen := make(chan string, 10)
	stop, err := a.Host().Capture("eth0", func(d Datagram) {
		seen <- fmt.Sprintf("%v %v %v %s", d.Out, d.From, d.To, d.Payload)
	})
	if err != nil {
		t.Fatal(err)
	}
	send(t, c, "hello", "192.88.99.10:49737")
	receive(t, node)
	send(t, node, "answer", "192.88.99.101:5000")
	receive(t, c)
	for _, want := range []string{
		"true 192.168.1.10:5000 192.88.99.10:49737 hello",
		"false 192.88.99.10:49737 192.168.1.10:5000 answer",
	} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("captured %s, want %s", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("nothing captured, want %s", want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestProcessesLiveInTheirNamespaceAndEndWithTheLab(t *testing.T) {
	l := newLab(t)
	a := newSite(t, l, "a", natA)
	lines := make(chan string, 10)
	p, err := a.Host().Start(Cmd{
		Args:   []string{"sh", "-c", "ip -o -4 addr show dev eth0; echo $WORD; exec sleep 600"},
		Env:    []string{"WORD=hello"},
		OnLine: func(line string) { lines <- line },
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-lines; !strings.Contains(got, "192.168.1.10/24") {
		t.Errorf("the process sees %q, want the host's address", got)
	}
	if got := <-lines; got != "hello" {
		t.Errorf("environment: %q, want hello", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("the process lives on after the lab was closed")
	}
	if code, err := p.Wait(t.Context()); code != 130 || err != nil {
		t.Errorf("exit status %d, %v, want 130 (interrupted)", code, err)
	}
}

func TestRoutersForgetAndMove(t *testing.T) {
	for _, row := range []struct {
		name string
		box  *lab.NATConfig
	}{
		{"netfilter", nil},
		{"in user space", &lab.NATConfig{Filtering: lab.AddressAndPortDependent}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLab(t)
			nat := natA
			nat.Box = row.box
			a := newSite(t, l, "a", nat)
			if _, err := l.PublicAddrs(1); err != nil {
				t.Fatal(err)
			}
			node := listenUDP(t, l.Internet, "192.88.99.10:49737")
			c := listenUDP(t, a.Host(), "192.168.1.10:5000")
			for _, step := range []struct {
				name string
				do   func() error
				from string
			}{
				{"at first", func() error { return nil }, "192.88.99.101:5000"},
				{"forgotten", a.Forget, "192.88.99.101:5000"},
				{"moved", func() error { return a.Renumber(netip.MustParseAddr("192.88.99.111")) }, "192.88.99.111:5000"},
			} {
				if err := step.do(); err != nil {
					t.Fatal(err)
				}
				send(t, node, "early", step.from)
				if got, _ := receiveStray(t, c); got != "" {
					t.Errorf("%s: the host received %q before it had sent, want nothing", step.name, got)
				}
				send(t, c, "hello", "192.88.99.10:49737")
				got, from := receive(t, node)
				if got != "hello" || from.String() != step.from {
					t.Errorf("%s: the node received %q from %v, want hello from %s", step.name, got, from, step.from)
				}
				send(t, node, "answer", from.String())
				if got, _ := receive(t, c); got != "answer" {
					t.Errorf("%s: the host received %q, want the answer", step.name, got)
				}
			}
		})
	}
}

func TestLinksDropLargePackets(t *testing.T) {
	l := newLab(t)
	s, err := l.Public("a", netip.MustParseAddr("192.88.99.101"), &Impairment{MTU: 600, Delay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.PublicAddrs(1); err != nil {
		t.Fatal(err)
	}
	node := listenUDP(t, l.Internet, "192.88.99.10:49737")
	c := listenUDP(t, s.Host(), "192.88.99.101:5000")
	small, large := strings.Repeat("s", 600-28), strings.Repeat("l", 601-28)
	send(t, c, large, "192.88.99.10:49737")
	send(t, c, small, "192.88.99.10:49737")
	if got, _ := receive(t, node); got != small {
		t.Errorf("received %d bytes, want the %d that fit", len(got), len(small))
	}
	s.Link.Set(Impairment{Down: true})
	send(t, c, small, "192.88.99.10:49737")
	if got, _ := receiveStray(t, node); got != "" {
		t.Errorf("received %d bytes through a cut cable", len(got))
	}
}

// IPv6 is not translated, but only answers get in.
func TestSitesHaveIPv6(t *testing.T) {
	l := newLab(t)
	a, b := natA, natB
	a.IPv6, b.IPv6 = netip.MustParsePrefix("2001:db7:0:1::/64"), netip.MustParsePrefix("2001:db7:0:2::/64")
	a.Link = &Impairment{}
	sa, sb := newSite(t, l, "a", a), newSite(t, l, "b", b)
	at := [2]string{netip.AddrPortFrom(sa.Addrs6[0], 5000).String(), netip.AddrPortFrom(sb.Addrs6[0], 6000).String()}
	ca, cb := listenUDP(t, sa.Host(), at[0]), listenUDP(t, sb.Host(), at[1])
	stranger := listenUDP(t, sb.Host(), netip.AddrPortFrom(sb.Addrs6[0], 6001).String())
	send(t, stranger, "stranger", at[0])
	if got, from := receiveStray(t, ca); got != "" {
		t.Errorf("host a received %q from %v, want nothing", got, from)
	}
	var got string
	var from netip.AddrPort
	for range 50 { // what b sends opens its router; on a busy machine that is too late for the first hello
		send(t, cb, "opening", at[0])
		send(t, ca, "hello", at[1])
		if got, from = receiveStray(t, cb); got != "" {
			break
		}
	}
	if got != "hello" || from.String() != at[0] {
		t.Errorf("host b received %q from %v, want hello from %s", got, from, at[0])
	}
	send(t, cb, "answer", at[0])
	for got = "opening"; got == "opening"; {
		got, from = receive(t, ca)
	}
	if got != "answer" || from.String() != at[1] {
		t.Errorf("host a received %q from %v, want answer from %s", got, from, at[1])
	}
}
