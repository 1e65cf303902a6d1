package lab_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"omegatun/punch/lab"
)

var behaviors = []lab.Behavior{lab.EndpointIndependent, lab.AddressDependent, lab.AddressAndPortDependent}

// probes are two hosts with two sockets each, as RFC 5780 uses them.
type probes struct{ a1, a2, b1 *lab.Conn }

func newProbes(t *testing.T, n *lab.Network) probes {
	t.Helper()
	a, b := n.Host("server a", serverA), n.Host("server b", serverB)
	return probes{listen(t, a, 1), listen(t, a, 2), listen(t, b, 1)}
}

func TestNATMapsAndFilters(t *testing.T) {
	for _, mapping := range behaviors {
		for _, filtering := range behaviors {
			for _, ports := range []lab.Ports{lab.PreservePorts, lab.RandomPorts, lab.SequentialPorts} {
				t.Run(fmt.Sprintf("%v mapping, %v filtering, ports %d", mapping, filtering, ports), func(t *testing.T) {
					bubble(t, lab.Config{Seed: 3, Latency: time.Millisecond}, func(t *testing.T, n *lab.Network) {
						s := newProbes(t, n)
						home := n.NAT("home", lab.NATConfig{Public: homeA, Mapping: mapping, Filtering: filtering, Ports: ports})
						c := listen(t, home.Host("a", insideA), 5000)

						// Mapping: what do the servers see?
						send(t, c, at(serverA, 1), "x")
						first := want(t, s.a1, "x")
						if first.Addr() != homeA {
							t.Fatalf("packet comes from %v, want %v", first, homeA)
						}
						if keeps := first.Port() == 5000; keeps != (ports == lab.PreservePorts) {
							t.Errorf("port 5000 became %d", first.Port())
						}

						// Filtering: only a1 was sent to.
						send(t, s.a1, first, "from a1")
						want(t, c, "from a1")
						send(t, s.a2, first, "from a2")
						if _, _, ok := next(c); ok != (filtering != lab.AddressAndPortDependent) {
							t.Errorf("a packet from another port of the same host passes: %v", ok)
						}
						send(t, s.b1, first, "from b1")
						if _, _, ok := next(c); ok != (filtering == lab.EndpointIndependent) {
							t.Errorf("a packet from another host passes: %v", ok)
						}

						send(t, c, at(serverA, 2), "x")
						samePort := want(t, s.a2, "x") == first
						send(t, c, at(serverB, 1), "x")
						sameHost := want(t, s.b1, "x") == first
						keeps := ports == lab.PreservePorts // one port serves all remotes
						if wantSame := mapping != lab.AddressAndPortDependent || keeps; samePort != wantSame {
							t.Errorf("another port of the same host sees the same mapping: %v, want %v", samePort, wantSame)
						}
						if wantSame := mapping == lab.EndpointIndependent || keeps; sameHost != wantSame {
							t.Errorf("another host sees the same mapping: %v, want %v", sameHost, wantSame)
						}
						if samePort && sameHost { // after sending to all, all may answer
							send(t, s.b1, first, "again")
							want(t, c, "again")
						}
					})
				})
			}
		}
	}
}

func TestSequentialPortsCountUp(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		home := n.NAT("home", lab.NATConfig{
			Public: homeA, Mapping: lab.AddressAndPortDependent, Ports: lab.SequentialPorts,
		})
		c := listen(t, home.Host("a", insideA), 5000)
		send(t, c, at(serverA, 1), "x")
		first := want(t, s.a1, "x").Port()
		send(t, c, at(serverA, 2), "x")
		if second := want(t, s.a2, "x").Port(); second != first+1 {
			t.Errorf("ports %d, then %d", first, second)
		}
	})
}

func TestPreservedPortIsTakenOnce(t *testing.T) {
	tests := []struct {
		name    string
		mapping lab.Behavior
		shared  bool // between remotes
	}{
		{"endpoint-independent", lab.EndpointIndependent, false},
		{"per remote, as Linux", lab.AddressAndPortDependent, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
				s := newProbes(t, n)
				cfg := lab.PortRestricted(homeA)
				cfg.Mapping = tt.mapping
				home := n.NAT("home", cfg)
				a := listen(t, home.Host("a", insideA), 5000)
				b := listen(t, home.Host("b", netip.MustParseAddr("192.168.1.11")), 5000)
				send(t, a, at(serverA, 1), "a")
				fromA := want(t, s.a1, "a")
				send(t, b, at(serverA, 1), "b")
				fromB := want(t, s.a1, "b")
				if fromA.Port() != 5000 || fromB.Port() == 5000 {
					t.Errorf("two hosts use port 5000 to one remote: %v and %v", fromA, fromB)
				}
				send(t, s.a1, fromB, "to b")
				want(t, b, "to b")
				send(t, b, at(serverB, 1), "b")
				if shared := want(t, s.b1, "b").Port() == 5000; shared != tt.shared {
					t.Errorf("the second host has port 5000 to another remote: %v, want %v", shared, tt.shared)
				}
			})
		})
	}
}

func TestMappingLifetime(t *testing.T) {
	const life = 30 * time.Second
	tests := []struct {
		name           string
		refreshInbound bool
		keep           func(t *testing.T, c, s *lab.Conn, outside netip.AddrPort) // every 20 s
		alive          bool
	}{
		{"silence ends it", false, nil, false},
		{"outbound packets keep it", false, func(t *testing.T, c, s *lab.Conn, _ netip.AddrPort) {
			send(t, c, at(serverA, 1), "x")
			want(t, s, "x")
		}, true},
		{"inbound packets do not keep it", false, func(t *testing.T, _, s *lab.Conn, outside netip.AddrPort) {
			send(t, s, outside, "in")
		}, false},
		{"inbound packets keep it where the NAT says so", true, func(t *testing.T, _, s *lab.Conn, outside netip.AddrPort) {
			send(t, s, outside, "in")
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
				s := newProbes(t, n)
				cfg := lab.RandomPort(homeA)
				cfg.Lifetime, cfg.RefreshInbound = life, tt.refreshInbound
				home := n.NAT("home", cfg)
				c := listen(t, home.Host("a", insideA), 5000)
				send(t, c, at(serverA, 1), "x")
				outside := want(t, s.a1, "x")
				for range 3 {
					time.Sleep(20 * time.Second)
					if tt.keep != nil {
						tt.keep(t, c, s.a1, outside)
					}
				}
				if got := len(home.Mappings(c.LocalAddrPort())) == 0 && len(home.Mappings(at(insideA, 5000))) == 1; got != tt.alive {
					t.Errorf("mapping exists: %v, want %v", got, tt.alive)
				}
				send(t, c, at(serverA, 1), "last")
				if same := want(t, s.a1, "last") == outside; same != tt.alive {
					t.Errorf("after a minute the mapping is the same: %v, want %v", same, tt.alive)
				}
			})
		})
	}
}

func TestPermissionExpiresBeforeMapping(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		cfg := lab.PortRestricted(homeA)
		cfg.Lifetime = 30 * time.Second
		c := listen(t, n.NAT("home", cfg).Host("a", insideA), 5000)
		send(t, c, at(serverA, 1), "x")
		outside := want(t, s.a1, "x")
		for range 4 {
			time.Sleep(10 * time.Second)
			send(t, c, at(serverB, 1), "x")
			want(t, s.b1, "x")
		}
		send(t, s.a1, outside, "late")
		wantNothing(t, c, "nothing was sent to a1 for 40 s")
		send(t, s.b1, outside, "fresh")
		want(t, c, "fresh")
	})
}

func TestHairpin(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		for _, filtering := range behaviors {
			t.Run(fmt.Sprintf("hairpin %v, %v filtering", hairpin, filtering), func(t *testing.T) {
				bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
					s := newProbes(t, n)
					home := n.NAT("home", lab.NATConfig{
						Public: homeA, Filtering: filtering, Hairpin: hairpin, Ports: lab.RandomPorts,
					})
					a := listen(t, home.Host("a", insideA), 5000)
					b := listen(t, home.Host("b", netip.MustParseAddr("192.168.1.11")), 5000)
					send(t, a, at(serverA, 1), "a")
					outA := want(t, s.a1, "a")
					send(t, b, at(serverA, 1), "b")
					outB := want(t, s.a1, "b")

					send(t, a, outB, "hello")
					got, from, ok := next(b)
					if wantOK := hairpin && filtering == lab.EndpointIndependent; ok != wantOK {
						t.Fatalf("unasked packet through the public address passes: %v, want %v", ok, wantOK)
					}
					if ok && (got != "hello" || from != outA) {
						t.Errorf("got %q from %v, want it from the external address %v", got, from, outA)
					}
					send(t, b, outA, "and back") // now both have sent
					if _, from, ok := next(a); ok != hairpin || ok && from != outB {
						t.Errorf("answer passes: %v from %v, want %v from %v", ok, from, hairpin, outB)
					}
				})
			})
		}
	}
}

func TestNestedNATs(t *testing.T) {
	bubble(t, lab.Config{Seed: 1, Latency: time.Millisecond}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		carrier := n.NAT("carrier", lab.Carrier(homeA))
		homes := []*lab.NAT{
			carrier.NAT("home 1", lab.Linux(netip.MustParseAddr("100.64.2.1"))),
			carrier.NAT("home 2", lab.Linux(netip.MustParseAddr("100.64.2.2"))),
		}
		a := listen(t, homes[0].Host("a", insideA), 5000)
		b := listen(t, homes[1].Host("b", insideA), 5000) // the same private address in another home
		send(t, a, at(serverA, 1), "a")
		outA := want(t, s.a1, "a")
		send(t, b, at(serverA, 1), "b")
		outB := want(t, s.a1, "b")
		if outA.Addr() != homeA || outB.Addr() != homeA || outA == outB {
			t.Fatalf("two homes appear as %v and %v", outA, outB)
		}
		send(t, s.a1, outA, "to a")
		want(t, a, "to a")
		send(t, s.b1, outA, "stranger")
		wantNothing(t, a, "the home router filters, though the carrier does not")

		send(t, a, outB, "punch") // opens home 1
		wantNothing(t, b, "home 2 does not know that address yet")
		send(t, b, outA, "punch back")
		if from := want(t, a, "punch back"); from != outB {
			t.Errorf("hairpinned packet comes from %v, want %v", from, outB)
		}
		// Neighbours in the carrier's network reach each other without it.
		inner := homes[1].Mappings(at(insideA, 5000))
		send(t, b, at(netip.MustParseAddr("100.64.2.1"), 5000), "x")
		send(t, a, inner[0], "through the carrier's LAN")
		want(t, b, "through the carrier's LAN")
	})
}

func TestLANNeighboursTalkDirectly(t *testing.T) {
	bubble(t, lab.Config{Seed: 1, Latency: time.Second}, func(t *testing.T, n *lab.Network) {
		home := n.NAT("home", lab.Symmetric(homeA))
		a := listen(t, home.Host("a", insideA), 5000)
		b := listen(t, home.Host("b", netip.MustParseAddr("192.168.1.11")), 5000)
		start := time.Now()
		send(t, a, at(netip.MustParseAddr("192.168.1.11"), 5000), "hello")
		if from := want(t, b, "hello"); from != at(insideA, 5000) {
			t.Errorf("neighbour appears as %v", from)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v, want no time", took)
		}
		send(t, a, at(insideB, 5000), "elsewhere")
		wantNothing(t, b, "private addresses of other homes lead nowhere")
	})
}

func TestTTLOpensOwnNATOnly(t *testing.T) {
	tests := []struct {
		name    string
		hops    int
		ttl     int
		arrives bool
	}{
		{"a low TTL dies in the core", 8, 5, false},
		{"a short core lets it through", 2, 5, true},
		{"one too few for the second NAT", 3, 5, false}, // home, 3 in the core, then the other home's NAT
		{"dies at the own NAT", 8, 1, false},
		{"normal", 8, 64, true},
		{"no routers between", -1, 5, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, lab.Config{Seed: 1, Hops: tt.hops}, func(t *testing.T, n *lab.Network) {
				a := listen(t, n.NAT("home a", lab.PortRestricted(homeA)).Host("a", insideA), 5000)
				b := listen(t, n.NAT("home b", lab.FullCone(homeB)).Host("b", insideB), 6000)
				send(t, b, at(serverB, 1), "x") // makes the mapping
				if err := a.WriteTTL([]byte("p"), at(homeB, 6000), tt.ttl); err != nil {
					t.Fatal(err)
				}
				if _, _, ok := next(b); ok != tt.arrives {
					t.Errorf("arrives: %v, want %v", ok, tt.arrives)
				}
				send(t, b, at(homeA, 5000), "back")
				if _, _, ok := next(a); ok != (tt.ttl > 1) {
					t.Errorf("the answer passes the own NAT: %v, want %v", ok, tt.ttl > 1)
				}
			})
		})
	}
}

func TestFirewallRoutesAndFilters(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		fw := n.NAT("fw", lab.Firewall())
		c := listen(t, fw.Host("a", homeA), 5000)
		send(t, s.a1, at(homeA, 5000), "unasked")
		wantNothing(t, c, "nothing was sent")
		send(t, c, at(serverA, 1), "out")
		if from := want(t, s.a1, "out"); from != at(homeA, 5000) {
			t.Errorf("source became %v", from)
		}
		send(t, s.a1, at(homeA, 5000), "answer")
		want(t, c, "answer")
		send(t, s.b1, at(homeA, 5000), "stranger")
		wantNothing(t, c, "b was not sent to")
	})
}

func TestIPv6PassesANATUntranslated(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		six, far := netip.MustParseAddr("2001:db8:1::10"), netip.MustParseAddr("2001:db8:2::1")
		home := n.NAT("carrier", lab.Symmetric(homeA)).NAT("home", lab.Linux(netip.MustParseAddr("100.64.2.1")))
		c, err := home.Host("a", insideA, six).Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := n.Host("s", far).Listen(at(far, 9))
		if err != nil {
			t.Fatal(err)
		}
		send(t, s, at(six, c.LocalAddrPort().Port()), "unasked")
		wantNothing(t, c, "IPv6 is filtered")
		send(t, c, at(far, 9), "out")
		from := want(t, s, "out")
		if from.Addr() != six {
			t.Fatalf("IPv6 source became %v", from)
		}
		send(t, s, from, "answer")
		want(t, c, "answer")
	})
}

func TestUDPBlocked(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		cfg := lab.Linux(homeA)
		cfg.BlockUDP = true
		c := listen(t, n.NAT("office", cfg).Host("a", insideA), 5000)
		send(t, c, at(serverA, 1), "x")
		wantNothing(t, s.a1, "UDP is blocked")
	})
}

func TestForwardAndDMZ(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		cfg := lab.Symmetric(homeA)
		cfg.DMZ = insideA
		home := n.NAT("home", cfg)
		a := listen(t, home.Host("a", insideA), 5000)
		b := listen(t, home.Host("b", netip.MustParseAddr("192.168.1.11")), 6000)
		send(t, s.a1, at(homeA, 5000), "to the DMZ")
		want(t, a, "to the DMZ")
		home.Forward(7000, at(netip.MustParseAddr("192.168.1.11"), 6000))
		home.Rebind()
		send(t, s.a1, at(homeA, 7000), "forwarded")
		want(t, b, "forwarded")
		send(t, b, at(serverA, 1), "answer")
		if from := want(t, s.a1, "answer"); from != at(homeA, 7000) {
			t.Errorf("the answer comes from %v, want the forwarded port", from)
		}
		home.Forward(7000, netip.AddrPort{})
		send(t, s.a1, at(homeA, 7000), "no longer")
		wantNothing(t, b, "the forwarding was ended")
	})
}

func TestAcceptInboundStealsThePort(t *testing.T) {
	for _, accept := range []bool{false, true} {
		t.Run(fmt.Sprint(accept), func(t *testing.T) {
			bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
				s := newProbes(t, n)
				cfg := lab.Linux(homeA)
				cfg.AcceptInbound = accept
				c := listen(t, n.NAT("home", cfg).Host("a", insideA), 5000)
				send(t, c, at(serverA, 1), "x")
				want(t, s.a1, "x")
				send(t, s.b1, at(homeA, 5000), "early")
				wantNothing(t, c, "filtered either way")
				send(t, c, at(serverB, 1), "x")
				if from := want(t, s.b1, "x"); (from.Port() != 5000) != accept {
					t.Errorf("after an early packet the port is %d", from.Port())
				}
				send(t, c, at(serverA, 1), "x")
				if from := want(t, s.a1, "x"); from.Port() != 5000 {
					t.Errorf("the port to others changed to %d", from.Port())
				}
			})
		})
	}
}

func TestRebindAndNewPublicAddress(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		s := newProbes(t, n)
		home := n.NAT("home", lab.RandomPort(homeA))
		c := listen(t, home.Host("a", insideA), 5000)
		send(t, c, at(serverA, 1), "x")
		before := want(t, s.a1, "x")
		home.Rebind()
		send(t, s.a1, before, "old")
		wantNothing(t, c, "the mapping is forgotten")
		send(t, c, at(serverA, 1), "x")
		if after := want(t, s.a1, "x"); after == before {
			t.Errorf("still %v after a rebind", after)
		}
		home.SetPublic(homeB)
		send(t, c, at(serverA, 1), "x")
		after := want(t, s.a1, "x")
		if after.Addr() != homeB || home.Public() != homeB {
			t.Errorf("source is %v after the public address changed to %v", after, homeB)
		}
		send(t, s.a1, after, "new")
		want(t, c, "new")
		send(t, s.a1, before, "old")
		wantNothing(t, c, "the old address is nobody's")
	})
}

func TestMappingsAreForgottenInBulk(t *testing.T) {
	bubble(t, lab.Config{Seed: 1}, func(t *testing.T, n *lab.Network) {
		cfg := lab.Symmetric(homeA)
		cfg.Lifetime = time.Second
		home := n.NAT("home", cfg)
		c := listen(t, home.Host("a", insideA), 5000)
		seen := make(map[int]bool)
		for i := range 70000 { // more than there are ports
			send(t, c, at(serverA, uint16(i%60000+1)), "x")
			if i%5000 == 0 {
				time.Sleep(2 * time.Second)
				seen[len(home.Mappings(at(insideA, 5000)))] = true
			}
		}
		if lost := n.Stats().Lost["no port left at home"]; lost != 0 {
			t.Errorf("%d packets found no port", lost)
		}
		if !seen[0] || slices.Max(mapsKeys(seen)) > 5000 {
			t.Errorf("mappings that exist after their life: %v", seen)
		}
	})
}

func mapsKeys(m map[int]bool) []int {
	var list []int
	for k := range m {
		list = append(list, k)
	}
	return list
}
