package session

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/punch/portmap"
)

// fakeMapper forwards ports of a lab NAT.
type fakeMapper struct {
	nat    *lab.NAT
	inside netip.AddrPort

	mu        sync.Mutex // guards the fields below
	external  netip.AddrPort
	changes   chan struct{}
	refreshed int
	closed    bool
}

func (m *fakeMapper) set(port uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.external.IsValid() {
		m.nat.Forward(m.external.Port(), netip.AddrPort{})
		m.external = netip.AddrPort{}
	}
	if port != 0 {
		m.external = netip.AddrPortFrom(m.nat.Public(), port)
		m.nat.Forward(port, m.inside)
	}
	close(m.changes)
	m.changes = make(chan struct{})
}

func (m *fakeMapper) External() (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.external, m.external.IsValid()
}

func (m *fakeMapper) Report() portmap.Report {
	external, _ := m.External()
	return portmap.Report{Rounds: 1, Mapping: portmap.Mapping{Protocol: portmap.PCP, External: external, Public: true}}
}

func (m *fakeMapper) Changes() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

func (m *fakeMapper) Refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refreshed++
}

func (m *fakeMapper) Close(context.Context) error {
	m.set(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// mapping starts an end whose router forwards a port to it.
func (w *world) mapping(at *lab.Host, nat *lab.NAT, port uint16, listed ...key.Public) (*end, *fakeMapper) {
	w.t.Helper()
	m := &fakeMapper{nat: nat, changes: make(chan struct{})}
	w.change = func(cfg *Config) {
		cfg.Gateway = func() (gateway, local netip.Addr, ok bool) { return gateway, local, false }
		cfg.newMapper = func(c portmap.Config) portMapper {
			if c.Off || len(c.Secret) == 0 {
				w.t.Errorf("the mapper is configured as %+v, want it on, with a secret", c)
			}
			m.inside = netip.AddrPortFrom(at.Addrs()[0], c.Port)
			m.set(port)
			return m
		}
	}
	defer func() { w.change = nil }()
	return w.end(at, listed...), m
}

func TestAMappedPortIsADirectPath(t *testing.T) {
	for _, row := range []struct {
		name           string
		mapped, dialer string
	}{
		{"of the server", "b", "a"},
		{"of the client", "a", "a"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				ha, hb, natA, natB := w.behind(lab.Symmetric, lab.Symmetric)
				var a, b *end
				var m *fakeMapper
				if row.mapped == "a" {
					a, m = w.mapping(ha, natA, 7000, keyOf("b"))
					b = w.end(hb, keyOf("a"))
				} else {
					a = w.end(ha, keyOf("b"))
					b, m = w.mapping(hb, natB, 7000, keyOf("a"))
				}
				a.listen(t)
				b.listen(t)
				a.Peer(b.public()).Connect()
				if took := a.connected(t, b.public()); took > 300*time.Millisecond {
					t.Errorf("connected after %v", took)
				}
				exchange(t, a, b)
				time.Sleep(time.Second)
				sa, sb := a.Peer(b.public()).Status(), b.Peer(a.public()).Status()
				if sa.Path.Kind != PathDirect || !sa.Mapped || !sb.Mapped {
					t.Errorf("paths %+v (mapped: %v) and %+v (mapped: %v), want direct ones through the mapping",
						sa.Path, sa.Mapped, sb.Path, sb.Mapped)
				}
				for range 20 {
					time.Sleep(time.Minute)
					exchange(t, a, b)
				}

				// The router gives another port.
				m.set(8000)
				time.Sleep(30 * time.Second) // the path that was in use is gone
				mine, other := a, b
				if row.mapped == "b" {
					mine, other = b, a
				}
				want := Endpoint{EndpointMapped, netip.AddrPortFrom(m.nat.Public(), 8000)}
				found := false
				for _, e := range other.Peer(mine.public()).Status().Announced.Endpoints {
					found = found || e == want
				}
				if !found {
					t.Errorf("the peer knows %+v, want %+v among them", other.Peer(mine.public()).Status().Announced.Endpoints, want)
				}
				mine.NetworkChanged()
				if m.refreshed == 0 {
					t.Error("the gateway is not asked anew after a change of network")
				}
				if err := mine.Shutdown(t.Context()); err != nil || !m.closed {
					t.Errorf("shutdown: %v; mapping removed: %v", err, m.closed)
				}
			})
		})
	}
}

// A port that the router grants only after dials have failed is tried at once, however long the pause would have been.
func TestAMappingThatComesLateIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, natA, _ := w.behind(lab.Symmetric, lab.Symmetric)
		a, m := w.mapping(ha, natA, 0, keyOf("b"))
		b := w.end(hb, keyOf("a"))
		a.listen(t)
		b.listen(t)
		a.Peer(b.public()).Connect()
		time.Sleep(2 * time.Minute) // pauses are 15 s and more by now
		if s := a.Peer(b.public()).Status(); s.State == PeerConnected {
			t.Fatalf("connected without a mapping: %+v", s.Path)
		}
		m.set(7000)
		time.Sleep(5 * time.Second) // a dial that is under way ends first
		if s := a.Peer(b.public()).Status(); s.State != PeerConnected || s.Path.Kind != PathDirect {
			t.Errorf("%v by %+v, want connected by the port that was granted", s.State, s.Path)
		}
	})
}

func TestPortMappingCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1})
		gateway := func() (gateway, local netip.Addr, ok bool) {
			t.Error("the gateway is looked for")
			return gateway, local, false
		}
		off := false
		h := w.host(w.net.Host("h", pubA), Config{
			NoPortMapping: true, Gateway: gateway,
			newMapper: func(c portmap.Config) portMapper {
				off = c.Off
				return portmap.New(c)
			},
		})
		if report := h.PortMapping(); !off || report.Rounds != 0 || report.Gateway.IsValid() {
			t.Errorf("off: %v, report %+v", off, report)
		}
	})
}
