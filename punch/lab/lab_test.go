package lab_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

var (
	serverA = netip.MustParseAddr("192.88.99.10")
	serverB = netip.MustParseAddr("192.88.99.11")
	homeA   = netip.MustParseAddr("192.88.99.101")
	homeB   = netip.MustParseAddr("192.88.99.102")
	insideA = netip.MustParseAddr("192.168.1.10")
	insideB = netip.MustParseAddr("192.168.2.10")
)

// bubble runs f in a bubble with a network.
func bubble(t *testing.T, cfg lab.Config, f func(t *testing.T, n *lab.Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := lab.New(cfg)
		t.Cleanup(func() { n.Close() })
		f(t, n)
	})
}

func listen(t *testing.T, h *lab.Host, port uint16) *lab.Conn {
	t.Helper()
	c, err := h.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func send(t *testing.T, c *lab.Conn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

// next returns the next datagram that arrives within ten seconds.
func next(c *lab.Conn) (text string, from netip.AddrPort, ok bool) {
	b := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, from, err := c.ReadFromUDPAddrPort(b)
	return string(b[:n]), from, err == nil
}

// want fails the test unless the next datagram is text, and returns its source.
func want(t *testing.T, c *lab.Conn, text string) netip.AddrPort {
	t.Helper()
	got, from, ok := next(c)
	if !ok || got != text {
		t.Fatalf("got %q (arrived: %v), want %q", got, ok, text)
	}
	return from
}

func wantNothing(t *testing.T, c *lab.Conn, reason string) {
	t.Helper()
	if got, from, ok := next(c); ok {
		t.Fatalf("got %q from %v, want nothing: %s", got, from, reason)
	}
}

func TestHostsExchangeDatagramsWithLatency(t *testing.T) {
	bubble(t, lab.Config{Latency: 10 * time.Millisecond}, func(t *testing.T, n *lab.Network) {
		a, b := listen(t, n.Host("a", serverA), 0), listen(t, n.Host("b", serverB), 7)
		start := time.Now()
		send(t, a, at(serverB, 7), "ping")
		from := want(t, b, "ping")
		if from != at(serverA, a.LocalAddrPort().Port()) {
			t.Errorf("ping comes from %v, want the sender's port %v", from, a.LocalAddrPort())
		}
		send(t, b, from, "pong")
		want(t, a, "pong")
		if took := time.Since(start); took != 20*time.Millisecond {
			t.Errorf("the exchange took %v, want 20ms", took)
		}
	})
}

func TestConnReadEnds(t *testing.T) {
	tests := []struct {
		name string
		end  func(c *lab.Conn)
		want error
	}{
		{"deadline in the past", func(c *lab.Conn) { c.SetReadDeadline(time.Now().Add(-1)) }, os.ErrDeadlineExceeded},
		{"deadline later", func(c *lab.Conn) { c.SetReadDeadline(time.Now().Add(time.Minute)) }, os.ErrDeadlineExceeded},
		{"deadline replaced", func(c *lab.Conn) {
			c.SetReadDeadline(time.Now().Add(time.Hour))
			c.SetReadDeadline(time.Now().Add(time.Minute))
		}, os.ErrDeadlineExceeded},
		{"closed", func(c *lab.Conn) { c.Close() }, net.ErrClosed},
	}
	for _, tt := range tests {
		for _, blocked := range []bool{false, true} {
			name := tt.name
			if blocked {
				name += " while a read waits"
			}
			t.Run(name, func(t *testing.T) {
				bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
					c := listen(t, n.Host("a", serverA), 0)
					if !blocked {
						tt.end(c)
					}
					done := make(chan error)
					go func() {
						_, _, err := c.ReadFromUDPAddrPort(make([]byte, 10))
						done <- err
					}()
					synctest.Wait()
					if blocked {
						tt.end(c)
					}
					if err := <-done; !errors.Is(err, tt.want) {
						t.Errorf("read: %v, want %v", err, tt.want)
					}
				})
			})
		}
	}
}

func TestDeadlineCanBeLifted(t *testing.T) {
	bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
		c := listen(t, n.Host("a", serverA), 7)
		c.SetReadDeadline(time.Now().Add(time.Second))
		time.Sleep(2 * time.Second)
		c.SetReadDeadline(time.Time{})
		send(t, c, at(serverA, 7), "to myself")
		if b := make([]byte, 20); true {
			if k, _, err := c.ReadFromUDPAddrPort(b); err != nil || string(b[:k]) != "to myself" {
				t.Errorf("read %q, %v after the deadline was lifted", b[:k], err)
			}
		}
	})
}

func TestListen(t *testing.T) {
	bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
		h := n.Host("a", serverA, netip.MustParseAddr("2001:db8::1"))
		tests := []struct {
			name string
			at   string
			ok   bool
		}{
			{"an address of the host", "192.88.99.10:7", true},
			{"the same again", "192.88.99.10:7", false},
			{"all addresses, same port", "0.0.0.0:7", false},
			{"the other family", "[2001:db8::1]:7", true},
			{"all of the other family, same port", "[::]:7", false},
			{"a foreign address", "192.88.99.11:8", false},
			{"all of IPv4", "0.0.0.0:8", true},
			{"all of IPv6 beside it", "[::]:8", true},
			{"an IPv6 address, same port", "[2001:db8::1]:8", false},
		}
		for _, tt := range tests {
			if _, err := h.Listen(netip.MustParseAddrPort(tt.at)); (err == nil) != tt.ok {
				t.Errorf("%s: Listen(%s): %v, want success: %v", tt.name, tt.at, err, tt.ok)
			}
		}
	})
}

func TestEachFamilyHasItsSocket(t *testing.T) {
	bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
		six := netip.MustParseAddr("2001:db8::1")
		h := n.Host("a", serverA, six)
		four, err := h.Listen(at(netip.IPv4Unspecified(), 7))
		if err != nil {
			t.Fatal(err)
		}
		both, err := n.Host("b", serverB, netip.MustParseAddr("2001:db8::2")).Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		send(t, both, at(six, 7), "lost: there is no socket for IPv6 yet")
		wantNothing(t, four, "it is for IPv4")
		only, err := h.Listen(at(netip.IPv6Unspecified(), 7))
		if err != nil {
			t.Fatal(err)
		}
		send(t, both, at(serverA, 7), "four")
		want(t, four, "four")
		send(t, both, at(six, 7), "six")
		want(t, only, "six")
		if err := only.WriteTTL([]byte("x"), both.LocalAddrPort(), 64); err != nil {
			t.Errorf("IPv6 to IPv6: %v", err)
		}
		if err := only.WriteTTL([]byte("x"), at(serverB, 1), 64); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("IPv4 from a socket for IPv6: %v, want EAFNOSUPPORT", err)
		}
		n.SetLink6(lab.Link{Latency: 5 * time.Millisecond})
		for _, l := range []struct {
			to   netip.Addr
			sock *lab.Conn
			want time.Duration
		}{{serverA, four, 0}, {six, only, 5 * time.Millisecond}} {
			began := time.Now()
			send(t, both, at(l.to, 7), "how long?")
			want(t, l.sock, "how long?")
			if took := time.Since(began); took != l.want {
				t.Errorf("to %v: %v, want %v", l.to, took, l.want)
			}
		}
	})
}

func TestHostWithTwoFamiliesAnswersInKind(t *testing.T) {
	bubble(t, lab.Config{}, func(t *testing.T, n *lab.Network) {
		six := netip.MustParseAddr("2001:db8::1")
		h := n.Host("a", serverA, six)
		a, err := h.Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := n.Host("b", serverB, netip.MustParseAddr("2001:db8::2")).Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range h.Addrs() {
			send(t, b, at(addr, a.LocalAddrPort().Port()), "ping")
			send(t, a, want(t, a, "ping"), "pong")
			if from := want(t, b, "pong"); from.Addr() != addr {
				t.Errorf("the answer comes from %v, want %v", from.Addr(), addr)
			}
		}
	})
}
