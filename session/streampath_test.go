package session

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
	"omegatun/session/secretstream"
	"omegatun/session/udx"
)

// streams opens a stream between two ends, which then lives until the end of the test.
func streams(t *testing.T, a, b *end) (atA, atB *secretstream.Conn) {
	t.Helper()
	return streamTo(t, a, b, b.listen(t))
}

// streamTo is streams where b listens already.
func streamTo(t *testing.T, a, b *end, l *Listener) (atA, atB *secretstream.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	c, err := a.Dial(t.Context(), b.public(), DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return c, (<-accepted).(*secretstream.Conn)
}

// linkOf returns the link of the only stream.
func linkOf(h *Host) (l *link) {
	h.streams.Range(func(k, _ any) bool { l = k.(*link); return false })
	return l
}

// longestGap sends a byte from one to the other every 50 ms and returns the longest time in which none arrived.
func longestGap(t *testing.T, from, to net.Conn, during time.Duration) time.Duration {
	t.Helper()
	arrived := make(chan time.Time, 100)
	go func() {
		defer close(arrived)
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(to, b); err != nil {
				return
			}
			arrived <- time.Now()
			if b[0] == 1 {
				return
			}
		}
	}()
	began := time.Now()
	go func() {
		for time.Since(began) < during {
			from.Write([]byte{0})
			time.Sleep(50 * time.Millisecond)
		}
		from.Write([]byte{1})
	}()
	last, longest := began, time.Duration(0)
	for at := range arrived {
		longest = max(longest, at.Sub(last))
		last = at
	}
	return longest
}

func TestStreamFollowsItsPeer(t *testing.T) {
	moved := netip.MustParseAddr("192.88.99.120")
	for _, row := range []struct {
		name     string
		backward bool // only the peer that stays sends
		move     func(w *world, a *end, nat *lab.NAT)
		limit    time.Duration
	}{
		{"its NAT forgets the mapping", false, func(_ *world, _ *end, nat *lab.NAT) { nat.Rebind() }, time.Second},
		{"its public address changes", false, func(_ *world, _ *end, nat *lab.NAT) { nat.SetPublic(moved) }, time.Second},
		{"its public address changes while it is silent", true, func(_ *world, _ *end, nat *lab.NAT) {
			nat.SetPublic(moved)
		}, 6 * time.Second},
		{"it moves to another network", false, func(w *world, a *end, _ *lab.NAT) {
			other := w.net.NAT("other", lab.Linux(moved))
			a.server.(*labSocket).Host().Move(other, netip.MustParseAddr("192.168.7.7"))
			a.NetworkChanged()
		}, time.Second},
		{"it moves to another network while it is silent", true, func(w *world, a *end, _ *lab.NAT) {
			other := w.net.NAT("other", lab.Linux(moved))
			a.server.(*labSocket).Host().Move(other, netip.MustParseAddr("192.168.7.7"))
			a.NetworkChanged()
		}, 2 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				nat := w.net.NAT("home-a", lab.Symmetric(pubA)) // every mapping has a port of its own
				a := w.end(nat.Host("a", inA), keyOf("b"))
				b := w.end(w.net.Host("b", pubB), keyOf("a"))
				from, to := streams(t, a, b)
				if row.backward {
					from, to = to, from
				}
				if gap := longestGap(t, from, to, 3*time.Second); gap > 100*time.Millisecond {
					t.Fatalf("a gap of %v before anything happened", gap)
				}
				time.Sleep(time.Second) // the last acknowledgement has gone
				row.move(w, a, nat)
				gap := longestGap(t, from, to, 20*time.Second)
				t.Logf("longest gap %v", gap)
				if gap > row.limit {
					t.Errorf("no byte arrived for %v, want %v at most", gap, row.limit)
				}
				from.Close()
				to.Close()
			})
		})
	}
}

// TestStreamIgnoresForgedPackets has somebody who has seen every packet of a stream send what he likes from an address of his own.
func TestStreamIgnoresForgedPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha := w.net.NAT("home-a", lab.Linux(pubA)).Host("a", inA)
		a, b := w.end(ha, keyOf("b")), w.end(w.net.Host("b", pubB), keyOf("a"))
		attacker, err := w.net.Host("attacker", netip.MustParseAddr("192.88.99.66")).Listen(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		from, to := streams(t, a, b)
		victim := linkOf(b.Host)
		before := victim.cur.Load()
		random := rand.New(rand.NewPCG(1, 2))
		over := make(chan struct{})
		var forging sync.WaitGroup
		forging.Go(func() {
			data := make([]byte, 1200)
			for n := 0; !isClosed(over); n++ {
				h := udx.Header{
					Flags: udx.Flags(random.Uint32()), ID: victim.stream.ID(), Window: random.Uint32(),
					Seq: uint32(random.IntN(2000)), Ack: uint32(random.IntN(2000)),
				}
				b := h.Append(nil)
				for i := range data {
					data[i] = byte(random.Uint32())
				}
				switch n % 3 {
				case 0:
					b = append(b, data[:random.IntN(len(data))]...)
				case 1: // a challenge or response with another key
					h.Flags = udx.FlagMessage
					b = appendPathMessage(h.Append(nil), byte(1+n%2), [16]byte{byte(n)}, [32]byte{1})
				}
				attacker.WriteToUDPAddrPort(b, netip.AddrPortFrom(pubB, before.sock.LocalAddr().Port()))
				time.Sleep(100 * time.Microsecond)
			}
		})
		data := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			from.Write(data)
			from.CloseWrite()
		}()
		got, err := io.ReadAll(to)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("%d bytes arrived (%v), want the %d that were sent", len(got), err, len(data))
		}
		if victim.cur.Load() != before {
			t.Error("the stream moved")
		}
		close(over)
		forging.Wait()
	})
}

func TestPathMessages(t *testing.T) {
	ours, theirs := [32]byte{1}, [32]byte{2}
	good := appendPathMessage(nil, pathChallenge, [16]byte{3}, ours)
	if kind, nonce, ok := parsePathMessage(good, ours); !ok || kind != pathChallenge || nonce != [16]byte{3} {
		t.Errorf("kind %d, nonce %x, %t", kind, nonce, ok)
	}
	if _, _, ok := parsePathMessage(good, theirs); ok {
		t.Error("a message of the other side is taken")
	}
	for i := range good {
		if _, _, ok := parsePathMessage(good[:i], ours); ok {
			t.Errorf("the first %d bytes are taken", i)
		}
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, _, ok := parsePathMessage(bad, ours); ok {
			t.Errorf("taken with byte %d changed", i)
		}
	}
	if _, _, ok := parsePathMessage(append(bytes.Clone(good), 0), ours); ok {
		t.Error("taken with a byte more")
	}
	if _, _, ok := parsePathMessage(appendPathMessage(nil, 3, [16]byte{}, ours), ours); ok {
		t.Error("a message of an unknown type is taken")
	}
}

func FuzzPathMessage(f *testing.F) {
	secret := [32]byte{1}
	f.Add(appendPathMessage(nil, pathChallenge, [16]byte{3}, secret))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if kind, nonce, ok := parsePathMessage(b, secret); ok {
			if again := appendPathMessage(nil, kind, nonce, secret); !bytes.Equal(again, b) {
				t.Errorf("%x is written as %x", b, again)
			}
		}
	})
}

// What was written before Close reaches a peer that moves meanwhile.
func TestClosedStreamFollowsItsPeer(t *testing.T) {
	for _, row := range []struct {
		name     string
		backward bool // the one that stays has closed
	}{
		{"the one that moves has closed", false},
		{"the one that stays has closed", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
				nat := w.net.NAT("home-a", lab.Symmetric(pubA))
				a := w.end(nat.Host("a", inA), keyOf("b"))
				b := w.end(w.net.Host("b", pubB), keyOf("a"))
				from, to := streams(t, a, b)
				if row.backward {
					from, to = to, from
				}
				time.Sleep(3 * time.Second)
				const size = 1 << 20 // more than is in flight at first
				if n, err := from.Write(make([]byte, size)); n != size || err != nil {
					t.Fatalf("Write: %d, %v", n, err)
				}
				from.Close()
				nat.Rebind()
				began := time.Now()
				if b, err := io.ReadAll(to); len(b) != size || err != nil {
					t.Errorf("read %d bytes (%v), want the %d that were written before Close", len(b), err, size)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
				to.Close()
			})
		})
	}
}

// A direct path that works is not given up for another one that might.
func TestStreamStaysOnADirectPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.end(w.net.Host("a", pubA, sixA), keyOf("b")), w.end(w.net.Host("b", pubB, sixB), keyOf("a"))
		x, y := streams(t, a, b)
		if on := streamRemote(x); on != pubB {
			t.Fatalf("the stream is at %v, want %v", on, pubB)
		}
		for from, to := range map[*end]netip.Addr{a: sixB, b: sixA} {
			from.streams.Range(func(l, _ any) bool {
				l.(*link).offerAddress(netip.AddrPortFrom(to, from.server.LocalAddr().Port()))
				l.(*link).sendProbes(time.Now())
				return true
			})
		}
		if gap := longestGap(t, x, y, 3*time.Second); gap > 100*time.Millisecond {
			t.Errorf("no byte arrived for %v", gap)
		}
		if there, here := streamRemote(x), streamRemote(y); there != pubB || here != pubA {
			t.Errorf("the stream goes to %v and back to %v, want %v and %v", there, here, pubB, pubA)
		}
		x.Close()
		y.Close()
	})
}

// Who has dialled stays where it is at first, but takes what a server sends that was drawn elsewhere before it was up.
func TestServerIsHeardWhereItWasDrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.end(w.net.Host("a", pubA), keyOf("b")), w.end(w.net.Host("b", pubB), keyOf("a"))
		from, to := streams(t, a, b)
		began := time.Now()
		link := linkOf(b.Host)
		here := link.cur.Load()
		there := &route{sock: b.client, remote: here.remote, kind: here.kind}
		if here.sock == there.sock {
			t.Fatal("it is there already")
		}
		link.cur.Store(there)
		if err := link.stream.ChangeRemote(there.sock, there.remote, link.remoteID); err != nil {
			t.Fatal(err)
		}
		io.WriteString(to, "hello")
		buf := make([]byte, 5)
		if _, err := io.ReadFull(from, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("%q arrived, %v", buf, err)
		}
		if took := time.Since(began); took > stayFor/2 {
			t.Errorf("it took %v", took)
		}
		if gap := longestGap(t, to, from, 5*time.Second); gap > 100*time.Millisecond {
			t.Errorf("no byte arrived for %v", gap)
		}
	})
}
