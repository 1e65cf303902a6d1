package session

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

// access is the cable between a home and the Internet: 60 ms from home to home and back, and 30 ms to a node of the DHT.
var access = lab.Link{Latency: 15 * time.Millisecond}

// carrier puts two homes behind one carrier's NAT.
func (w *world) carrier(cfg lab.NATConfig) (ha, hb *lab.Host) {
	c := w.net.NAT("carrier", cfg)
	a := c.NAT("home-a", lab.Linux(netip.MustParseAddr("100.64.1.1")))
	b := c.NAT("home-b", lab.Linux(netip.MustParseAddr("100.64.1.2")))
	a.SetLink(access)
	b.SetLink(access)
	return a.Host("a", inA), b.Host("b", inB)
}

// somewhere puts two hosts behind a home router each, unless they are to be open to everybody.
func (w *world) somewhere(openA, openB bool, link lab.Link) (ha, hb *lab.Host) {
	w.change = func(cfg *Config) {
		if addr := cfg.Network.Addrs()[0]; addr == pubA || addr == pubB {
			cfg.Port, cfg.DHT.Open, cfg.DHT.PublicAddr = DefaultPort, true, netip.AddrPortFrom(addr, DefaultPort)
		}
	}
	host := func(name string, open bool, public, inside netip.Addr) *lab.Host {
		if open {
			h := w.net.Host(name, public)
			h.SetLink(link)
			return h
		}
		nat := w.net.NAT("home-"+name, lab.Linux(public))
		nat.SetLink(link)
		return nat.Host(name, inside)
	}
	return host("a", openA, pubA, inA), host("b", openB, pubB, inB)
}

func noHairpin(cfg lab.NATConfig) lab.NATConfig {
	cfg.Hairpin = false
	return cfg
}

// openFilter is a NAT with a random port for each destination that lets everybody in.
func openFilter(public netip.Addr) lab.NATConfig {
	cfg := lab.Symmetric(public)
	cfg.Filtering = lab.EndpointIndependent
	return cfg
}

// counting is a NAT with the next port for each destination.
func counting(public netip.Addr) lab.NATConfig {
	cfg := lab.Symmetric(public)
	cfg.Ports = lab.SequentialPorts
	return cfg
}

// TestWeaknessesOfTheReference has a row for each pair that npm hyperdht does not connect, or not every time, 60 ms from one
// another, with a relay. Every try of a row is connected within usable, the first packet is not lost, and the path in the end is as wanted.
func TestWeaknessesOfTheReference(t *testing.T) {
	accepting := func(public netip.Addr) lab.NATConfig {
		cfg := lab.Linux(public)
		cfg.AcceptInbound = true
		return cfg
	}
	between := func(a, b func(netip.Addr) lab.NATConfig) func(*world) (ha, hb *lab.Host) {
		return func(w *world) (*lab.Host, *lab.Host) {
			ha, hb, natA, natB := w.behind(a, b)
			natA.SetLink(access)
			natB.SetLink(access)
			return ha, hb
		}
	}
	// apart puts two hosts where they do not reach each other. Those that are open are so to everybody else.
	apart := func(openA, openB bool) func(*world) (ha, hb *lab.Host) {
		return func(w *world) (ha, hb *lab.Host) {
			w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
			return w.somewhere(openA, openB, access)
		}
	}
	const whatever = PathKind(99)
	for _, row := range []struct {
		name   string
		place  func(*world) (ha, hb *lab.Host)
		net    lab.Config
		usable time.Duration
		want   PathKind
		within time.Duration
	}{
		{name: "random to random", place: between(lab.Symmetric, lab.Symmetric), usable: 350 * time.Millisecond, want: PathRelay},
		{
			name: "counting to counting", place: between(counting, counting),
			usable: 350 * time.Millisecond, want: PathDirect, within: 2 * time.Second,
		},
		{
			name: "counting to random", place: between(counting, lab.Symmetric), usable: 350 * time.Millisecond, want: PathRelay,
		},
		{
			name: "counting to consistent", place: between(counting, lab.Linux),
			usable: 350 * time.Millisecond, want: PathDirect, within: time.Second,
		},
		{
			name: "consistent to counting", place: between(lab.Linux, counting),
			usable: 350 * time.Millisecond, want: PathDirect, within: time.Second,
		},
		{
			name: "relay and punch race", place: between(lab.Linux, lab.Linux),
			usable: 350 * time.Millisecond, want: PathDirect, within: 2 * time.Second,
		},
		{
			name: "one carrier without hairpin", place: func(w *world) (ha, hb *lab.Host) { return w.carrier(noHairpin(lab.Carrier(pubA))) },
			usable: 350 * time.Millisecond, want: PathRelay,
		},
		{
			name:   "one carrier with a random port for each destination",
			place:  func(w *world) (ha, hb *lab.Host) { return w.carrier(noHairpin(lab.Symmetric(pubA))) },
			usable: 350 * time.Millisecond, want: PathRelay,
		},
		{name: "two homes that cannot reach each other", place: apart(false, false), usable: 350 * time.Millisecond, want: PathRelay},
		{name: "two open hosts that cannot", place: apart(true, true), usable: 350 * time.Millisecond, want: PathRelay},
		{name: "an open host and a home that it cannot reach", place: apart(true, false), usable: 350 * time.Millisecond, want: PathRelay},
		{name: "a home and an open host that it cannot reach", place: apart(false, true), usable: 350 * time.Millisecond, want: PathRelay},
		{
			name: "a probe that gets through one way only", place: between(openFilter, lab.Linux),
			usable: 350 * time.Millisecond, want: whatever,
		},
		{
			name: "early packets steal the port", place: between(accepting, accepting), net: lab.Config{Hops: -1},
			usable: 350 * time.Millisecond, want: whatever,
		},
	} {
		for seed := range uint64(20) {
			t.Run(fmt.Sprint(row.name, " ", seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cfg := row.net
					cfg.Seed = seed
					w := newWorld(t, cfg)
					w.relay("r", pubR)
					ha, hb := row.place(w)
					a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
					b.listen(t)
					if err := a.Peer(b.public()).Send([][]byte{packet("the first one")}); err != nil {
						t.Fatal(err)
					}
					took := a.connected(t, b.public())
					if took > row.usable {
						t.Errorf("connected after %v, want %v", took, row.usable)
					}
					t.Logf("connected after %v", took)
					b.wantPacket(t, a.public(), "the first one")
					if row.want != whatever {
						a.wantPath(t, b.public(), row.want, row.within)
					}
					for range 10 {
						exchange(t, a, b)
						time.Sleep(time.Second)
					}
				})
			})
		}
	}
}

// TestOpenPairsLeaveTheRelayAlone has pairs of which one side is open, 40 ms from one another, connect without a word to the relay that
// both know.
func TestOpenPairsLeaveTheRelayAlone(t *testing.T) {
	for _, row := range []struct {
		name         string
		openA, openB bool
	}{{"both open", true, true}, {"the one that dials", true, false}, {"the one that is dialled", false, true}} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1})
				r := w.relay("r", pubR)
				ha, hb := w.somewhere(row.openA, row.openB, lab.Link{Latency: 10 * time.Millisecond})
				a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
				b.listen(t)
				a.Peer(b.public()).Connect()
				if took := a.connected(t, b.public()); took > 150*time.Millisecond {
					t.Errorf("connected after %v", took)
				}
				b.connected(t, a.public())
				time.Sleep(time.Second)
				if s, _ := r.RelayStats(); s.Clients != 0 {
					t.Errorf("the relay was asked: %+v", s)
				}
			})
		})
	}
}

// TestGuessedPortsAreFoundSoon measures how long a pair is relayed of which one NAT's port has to be guessed.
func TestGuessedPortsAreFoundSoon(t *testing.T) {
	tries := uint64(100)
	if testing.Short() || raceEnabled {
		tries = 10
	}
	for _, row := range []struct {
		name string
		a, b func(netip.Addr) lab.NATConfig
	}{
		{"random to consistent", lab.Symmetric, lab.Linux},
		{"consistent to random", lab.Linux, lab.Symmetric},
	} {
		t.Run(row.name, func(t *testing.T) {
			var took []time.Duration
			for seed := range tries {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed})
					w.relay("r", pubR)
					ha, hb, natA, natB := w.behind(row.a, row.b)
					natA.SetLink(access)
					natB.SetLink(access)
					a, b := w.through(ha, keyOf("b"), keyOf("r")), w.through(hb, keyOf("a"), keyOf("r"))
					b.listen(t)
					began := time.Now()
					a.Peer(b.public()).Connect()
					if usable := a.connected(t, b.public()); usable > 350*time.Millisecond {
						t.Errorf("seed %d: connected after %v", seed, usable)
					}
					a.wantPath(t, b.public(), PathDirect, 20*time.Minute)
					took = append(took, time.Since(began))
				})
			}
			slices.Sort(took)
			median, p90 := took[len(took)/2], took[len(took)*9/10]
			t.Logf("direct after %v (median), %v (p90), %v (longest)", median, p90, took[len(took)-1])
			n := len(took)
			if tries >= 100 && (countOver(took, 2500*time.Millisecond) > atMost(0.5, n) || countOver(took, 8*time.Second) > atMost(0.1, n)) {
				t.Errorf("direct after %v (median) and %v (p90)", median, p90) // goals: 2 s and 6 s
			}
		})
	}
}

// TestHalfOfAllPacketsLost counts the tries that connect within 30 s.
func TestHalfOfAllPacketsLost(t *testing.T) {
	const tries = 20
	soon := 0
	for seed := range uint64(tries) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: seed})
			ha, hb, natA, natB := w.behind(lab.Linux, lab.Linux)
			natA.SetLink(access)
			natB.SetLink(access)
			a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
			b.listen(t)
			w.net.SetLink(lab.Link{Loss: 0.5})
			began := time.Now()
			a.Peer(b.public()).Connect()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := a.Peer(b.public()).Wait(ctx); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if time.Since(began) <= 30*time.Second {
				soon++
			}
		})
	}
	t.Logf("%d of %d tries connect within 30 s", soon, tries)
	if soon < tries*3/4 {
		t.Errorf("%d of %d tries connect within 30 s", soon, tries)
	}
}
