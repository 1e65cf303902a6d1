package session

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/session/noise"
	"omegatun/session/secretstream"
	"omegatun/session/udx"
)

// openEnd starts an end with a public address, of which DHT nodes say that anybody can reach it.
func (w *world) openEnd(name string, addr netip.Addr, listed key.Public, relays ...key.Public) *end {
	w.t.Helper()
	w.change = func(cfg *Config) {
		cfg.Port = DefaultPort
		cfg.DHT.Open, cfg.DHT.PublicAddr = true, netip.AddrPortFrom(addr, DefaultPort)
	}
	defer func() { w.change = nil }()
	e := w.through(w.net.Host(name, addr), listed, relays...)
	if e.firewall() != dht.FirewallOpen {
		w.t.Fatalf("%s does not look open", name)
	}
	return e
}

// streamRemote returns where a stream sends its packets.
func streamRemote(c net.Conn) netip.Addr { return c.RemoteAddr().(udx.Addr).AddrPort.Addr() }

// wantEcho carries a megabyte to the other end and back, in pieces.
func wantEcho(t *testing.T, at, from *secretstream.Conn) {
	t.Helper()
	go func() {
		if _, err := io.Copy(from, from); err == nil {
			from.CloseWrite()
		}
	}()
	wantBack(t, at, 1<<20, 50*time.Millisecond)
}

// wantBack sends that many bytes in 64 pieces, one every so often, to an end that echoes them.
func wantBack(t *testing.T, c *secretstream.Conn, size int, every time.Duration) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	go func() {
		for d := data; len(d) > 0; d = d[len(data)/64:] {
			c.Write(d[:len(data)/64])
			time.Sleep(every)
		}
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back (%v), want the %d that were sent", len(got), err, len(data))
	}
}

// A plain stream reaches as far as a tunnel.
func TestStreamsReachAsFarAsTunnels(t *testing.T) {
	r := keyOf("r")
	const soon, late = 350 * time.Millisecond, 1600 * time.Millisecond
	apart := func(w *world) { w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB}) }
	for _, row := range []struct {
		name   string
		ends   func(w *world) (a, b *end)
		want   netip.Addr // where a sends to
		within time.Duration
	}{
		{"random NATs, a port of the server's is mapped", func(w *world) (a, b *end) {
			ha, hb, _, natB := w.behind(lab.Symmetric, lab.Symmetric)
			a = w.end(ha)
			b, _ = w.mapping(hb, natB, 7000, keyOf("a"))
			return a, b
		}, pubB, soon},
		{"random NATs, a port of the client's is mapped", func(w *world) (a, b *end) {
			ha, hb, natA, _ := w.behind(lab.Symmetric, lab.Symmetric)
			a, _ = w.mapping(ha, natA, 7000)
			return a, w.end(hb, keyOf("a"))
		}, pubB, soon},
		{"random NATs, a port of each is mapped", func(w *world) (a, b *end) {
			ha, hb, natA, natB := w.behind(lab.Symmetric, lab.Symmetric)
			a, _ = w.mapping(ha, natA, 7000)
			b, _ = w.mapping(hb, natB, 7001, keyOf("a"))
			return a, b
		}, pubB, soon},
		{"random NATs, IPv6", func(w *world) (a, b *end) {
			ha, hb, _, _ := w.dual(lab.Symmetric, lab.Symmetric)
			return w.end(ha), w.end(hb, keyOf("a"))
		}, sixB, soon},
		{"random NATs, a relay of the client's", func(w *world) (a, b *end) {
			ha, hb, _, _ := w.behind(lab.Symmetric, lab.Symmetric)
			return w.through(ha, keyOf("b"), r), w.end(hb, keyOf("a"))
		}, pubR, soon},
		{"home NATs that cannot reach each other, a relay of the server's", func(w *world) (a, b *end) {
			ha, hb, _, _ := w.behind(lab.Linux, lab.Linux)
			apart(w)
			return w.end(ha), w.through(hb, keyOf("a"), r)
		}, pubR, soon},
		{"both look open and cannot reach each other, a relay of the client's", func(w *world) (a, b *end) {
			a, b = w.openEnd("a", pubA, keyOf("b"), r), w.openEnd("b", pubB, keyOf("a"))
			apart(w)
			return a, b
		}, pubR, late},
		{"both look open and cannot reach each other, a relay of the server's", func(w *world) (a, b *end) {
			a, b = w.openEnd("a", pubA, keyOf("b")), w.openEnd("b", pubB, keyOf("a"), r)
			apart(w)
			return a, b
		}, pubR, late},
		{"the server looks open and cannot be reached, a relay of both", func(w *world) (a, b *end) {
			nat := w.net.NAT("home-a", lab.Linux(pubA))
			a, b = w.through(nat.Host("a", inA), keyOf("b"), r), w.openEnd("b", pubB, keyOf("a"), r)
			apart(w)
			return a, b
		}, pubR, late},
		{"the client looks open and cannot be reached, a relay of the server's", func(w *world) (a, b *end) {
			nat := w.net.NAT("home-b", lab.Linux(pubB))
			a, b = w.openEnd("a", pubA, keyOf("b")), w.through(nat.Host("b", inB), keyOf("a"), r)
			apart(w)
			return a, b
		}, pubR, late},
		{"both are open, with relays", func(w *world) (a, b *end) {
			return w.openEnd("a", pubA, keyOf("b"), r), w.openEnd("b", pubB, keyOf("a"), r)
		}, pubB, soon},
	} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%s %d", row.name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, lab.Config{Seed: seed, Latency: 15 * time.Millisecond})
					w.relay("r", pubR)
					a, b := row.ends(w)
					l := b.listen(t)
					began := time.Now()
					atA, atB := streamTo(t, a, b, l)
					if took := time.Since(began); took > row.within {
						t.Errorf("connected after %v, want %v", took, row.within)
					}
					time.Sleep(2 * time.Second)
					wantEcho(t, atA, atB)
					if got := streamRemote(atA); got != row.want {
						t.Errorf("the stream goes to %v, want %v", got, row.want)
					}
					atA.Close()
					atB.Close()
				})
			})
		}
	}
}

// A path that answers late takes over from the relay, by both sides' leave.
func TestRelayedStreamsFindLateDirectPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		w.relay("r", pubR)
		a, b := w.openEnd("a", pubA, keyOf("b"), keyOf("r")), w.openEnd("b", pubB, keyOf("a"))
		w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
		atA, atB := streams(t, a, b)
		if got := streamRemote(atA); got != pubR {
			t.Fatalf("the stream goes to %v, want the relay", got)
		}
		w.net.Partition()
		wantEcho(t, atA, atB)
		if toA, toB := streamRemote(atB), streamRemote(atA); toA != pubA || toB != pubB {
			t.Errorf("the stream goes to %v and %v, want %v and %v", toA, toB, pubA, pubB)
		}
		atA.Close()
		atB.Close()
	})
}

// Whoever knows the id of a relayed stream cannot draw it away from the relay.
func TestRelayedStreamsIgnoreForgedPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		w.relay("r", pubR)
		hb := w.net.NAT("home-b", lab.Symmetric(pubB)).Host("b", inB)
		a, b := w.openEnd("a", pubA, keyOf("b"), keyOf("r")), w.end(hb, keyOf("a"))
		w.net.Partition([]netip.Addr{pubA}, []netip.Addr{pubB})
		atA, atB := streams(t, a, b)
		var victim *link
		a.streams.Range(func(k, _ any) bool {
			if l := k.(*link); l.remote == b.public() {
				victim = l
			}
			return true
		})
		attacker, err := w.net.Host("attacker", netip.MustParseAddr("192.88.99.66")).Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		for _, flags := range []udx.Flags{udx.FlagHeartbeat, udx.FlagMessage, udx.FlagData, 0} {
			for seq := range uint32(10) { // one of them is the next
				h := udx.Header{Flags: flags, ID: victim.stream.ID(), Window: 1 << 20, Seq: seq}
				attacker.WriteToUDPAddrPort(append(h.Append(nil), "forged"...), netip.AddrPortFrom(pubA, DefaultPort))
			}
			time.Sleep(time.Second)
			if got := streamRemote(atA); got != pubR {
				t.Errorf("after packets with flags %v the stream goes to %v, want the relay", flags, got)
			}
		}
		wantEcho(t, atA, atB)
		atA.Close()
		atB.Close()
	})
}

// Whoever finds out in the middle of a Dial that anyone can reach it has told the server otherwise, and must not wait for it to
// come. A server in JavaScript would not.
func TestDialByOneThatTurnsOutToBeOpen(t *testing.T) {
	for _, told := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
			ha, hb := w.somewhere(true, false, lab.Link{})
			a, b := w.end(ha), w.end(hb)
			if _, open := a.node.RemoteAddr(); !open {
				t.Fatal("it is not open")
			}
			l := a.newLink(a.public(), b.public(), true, time.Now())
			defer l.close(ErrClosed)
			var err error
			if l.stream, err = a.newStream(l); err != nil {
				t.Fatal(err)
			}
			relay, server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 88, 99, 10}), DefaultPort), netip.AddrPortFrom(pubB, 4000)
			hs := handshaking{
				reply: dht.HandshakeReply{Server: server, Relay: relay, Relayed: true},
				payload: noise.Payload{
					Firewall:  uint64(dht.FirewallUnknown),
					Holepunch: &noise.HolepunchInfo{Relays: []noise.RelayPair{{Relay: relay, Peer: server}}},
				},
			}
			client, err := a.findPath(t.Context(), l, &hs, told)
			if err != nil || (client != nil) == told {
				t.Errorf("told the server that it is open: %v; it punches: %v, %v", told, client != nil, err)
			}
			if client != nil {
				client.Close()
			}
		})
	}
}
