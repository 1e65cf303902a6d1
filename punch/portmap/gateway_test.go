package portmap

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// waitFor waits until ok, and looks again at every change of m.
func waitFor(t *testing.T, m *Mapper, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		changed := m.Changes()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s: not within 20 s: %+v", what, m.Report())
		}
	}
}

// TestWholeGateway lets a Mapper talk to a gateway that speaks everything, over loopback.
func TestWholeGateway(t *testing.T) {
	d := newIGD(t, nil)
	x := newBox(t, nil)
	s := x.serve(loopback)
	ssdp := portOf(d.ssdp)
	e := endpoints{port: s.port, ssdpPort: ssdp, search: netip.AddrPortFrom(loopback, ssdp)}
	m := newMapper(Config{
		Gateway: func() (gateway, local netip.Addr, ok bool) { return loopback, loopback, true },
		Port:    4000,
		Name:    d.client().name,
	}, func(cfg *Config, r route) gateway {
		g := e.open(cfg, r)
		g.listen = nil
		return g
	})
	waitFor(t, m, "first round", func() bool { return m.Report().Rounds == 1 })
	if got, ok := m.External(); !ok || got != publicA {
		t.Errorf("External() = %v, %t", got, ok)
	}
	r := m.Report()
	for i, p := range []Protocol{PCP, NATPMP, UPnP} {
		if a := r.Answers[i]; a.Protocol != p || !a.Speaks || a.External != publicA.Addr() || a.Err != nil {
			t.Errorf("answer %+v", a)
		}
	}
	if n, other := x.holds(), d.holds(); n != 1 || len(other) > 0 {
		t.Errorf("%d mappings by PCP, %v by UPnP, want one and none", n, other)
	}
	m.Refresh()
	waitFor(t, m, "refresh", func() bool { return m.Report().Rounds == 2 })
	if err := m.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n := x.holds(); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

func TestNonceForIsRepeatable(t *testing.T) {
	cfg := Config{Port: 4000, Secret: []byte("secret")}
	n := nonceFor(&cfg, gatewayA)
	if again := nonceFor(&cfg, gatewayA); again != n {
		t.Error("two nonces for one mapping")
	}
	other := []nonce{n, nonceFor(&cfg, gatewayB)}
	cfg.Port++
	other = append(other, nonceFor(&cfg, gatewayA))
	cfg.Secret = []byte("another")
	other = append(other, nonceFor(&cfg, gatewayA))
	cfg.Secret = nil
	other = append(other, nonceFor(&cfg, gatewayA), nonceFor(&cfg, gatewayA))
	slices.SortFunc(other, func(a, b nonce) int { return slices.Compare(a[:], b[:]) })
	if got := len(slices.Compact(other)); got != 6 {
		t.Errorf("%d nonces differ, want 6", got)
	}
}

func TestHear(t *testing.T) {
	socket := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	gatewaySocket, stranger, free := socket(), socket(), socket()
	to := netip.AddrPortFrom(loopback, portOf(free))
	free.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	heard, ended := make(chan announcement, 1), make(chan error, 1)
	from := server{route{loopback, loopback}, portOf(gatewaySocket), nil}
	go func() {
		ended <- hear(ctx, from, netip.AddrPortFrom(standard.announce.Addr(), to.Port()), heard)
	}()
	forged := pmpResponse{epoch: 1, address: publicA.Addr()}.append(nil)
	real := pmpResponse{epoch: 2, address: publicA.Addr()}.append(nil)
	for {
		// Until it listens, what is sent is lost.
		stranger.WriteToUDPAddrPort(forged, to)
		gatewaySocket.WriteToUDPAddrPort([]byte("noise"), to)
		gatewaySocket.WriteToUDPAddrPort(real, to)
		select {
		case a := <-heard:
			if want := (announcement{NATPMP, 2, publicA.Addr()}); a != want {
				t.Errorf("heard %+v, want %+v", a, want)
			}
		case err := <-ended:
			if strings.Contains(err.Error(), "no such device") || strings.Contains(err.Error(), "operation not permitted") {
				t.Skipf("no multicast here: %v", err)
			}
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	enough := errors.New("enough")
	cancel(enough)
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("hear: %v, want %v", err, enough)
	}
}
