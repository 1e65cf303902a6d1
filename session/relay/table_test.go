package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/session/udx"
)

// newTestLink makes a link between two addresses without control connections: 111 leads to a1, 222 to b1.
func (r *testRelay) newTestLink() *link {
	r.t.Helper()
	l := &link{seen: time.Now()}
	for i, ids := range [2][2]udx.ID{{0x111, 0xa1}, {0x222, 0xb1}} {
		s := &session{key: keyOf(byte(i + 1))}
		r.mu.Lock()
		r.registry.enter(s)
		r.mu.Unlock()
		l.sides[i] = side{
			link: l, other: &l.sides[1-i], owner: s, id: ids[0], remote: ids[1],
			sock: r.sock, host: addrOf(byte(i+1), 1).Addr(), release: func() {},
		}
	}
	r.mu.Lock()
	r.registry.linked++
	if !r.registry.link(l) {
		r.t.Fatal("link refused")
	}
	r.mu.Unlock()
	if !r.table.add(l) {
		r.t.Fatal("ids taken")
	}
	return l
}

var hostA, hostB = addrOf(1, 4001), addrOf(2, 4002)

func TestPacketsAreForwardedAsByTheReference(t *testing.T) {
	var v struct {
		Packets []struct {
			Dir, Datagram, Header string
			Len                   int  `json:"datagram_len"`
			Payload               byte `json:"payload_all_bytes"`
		}
	}
	load(t, "forwarding.json", &v)
	r := newTestRelay(t, Config{})
	r.newTestLink()
	var early []byte // the packet that the reference dropped, as it should have left
	got := map[string][][]byte{}
	want := map[string][][]byte{}
	for i, p := range v.Packets {
		b := unhex(t, p.Datagram)
		if p.Header != "" {
			b = append(unhex(t, p.Header), bytes.Repeat([]byte{p.Payload}, p.Len-len(p.Header)/2)...)
		}
		from := map[string]netip.AddrPort{"A->relay": hostA, "B->relay": hostB}[p.Dir]
		if !from.IsValid() {
			want[p.Dir] = append(want[p.Dir], b)
			continue
		}
		if i == 0 {
			early = slices.Clone(b)
			binary.LittleEndian.PutUint32(early[4:], 0xb1)
			want["relay->B"] = append(want["relay->B"], early)
		}
		if !r.Receive(r.sock, b, from) {
			t.Fatalf("packet %d is not for the link", i)
		}
		for _, s := range r.sock.take() {
			dir := map[netip.AddrPort]string{hostA: "relay->A", hostB: "relay->B"}[s.to]
			got[dir] = append(got[dir], s.b)
		}
	}
	for _, dir := range []string{"relay->A", "relay->B"} {
		if !slices.EqualFunc(got[dir], want[dir], bytes.Equal) {
			t.Errorf("%s: %x\nrecorded: %x", dir, got[dir], want[dir])
		}
	}
	if n := r.Stats().Links; n != 0 {
		t.Errorf("%d links after DESTROY, want none", n)
	}
}

func TestPacketsThatAreNoneOfOurs(t *testing.T) {
	r := newTestRelay(t, Config{})
	r.newTestLink()
	good := packet(0x111, udx.FlagData, "x")
	for name, b := range map[string][]byte{
		"empty":         {},
		"short":         good[:19],
		"other magic":   append([]byte{0xfe}, good[1:]...),
		"other version": append([]byte{0xff, 2}, good[2:]...),
		"unknown id":    packet(0x333, 0, ""),
	} {
		before := bytes.Clone(b)
		if r.Receive(r.sock, b, hostA) || !bytes.Equal(b, before) || len(r.sock.take()) > 0 {
			t.Errorf("%s: taken or changed", name)
		}
	}
}

func TestPacketsFromElsewhereAreDropped(t *testing.T) {
	r := newTestRelay(t, Config{})
	r.newTestLink()
	other := &sink{}
	hello := func() []byte { return packet(0x111, udx.FlagHeartbeat, "") }
	r.forward(addrOf(9, 4001), hello())                     // a stranger may not be first
	r.forward(netip.AddrPortFrom(hostA.Addr(), 0), hello()) // nobody can be answered at port 0
	if !r.Receive(other, hello(), hostA) {
		t.Error("a packet on another socket was not taken")
	}
	r.forward(hostA, hello())
	r.forward(hostB, packet(0x222, 0, ""), sent{hostB, packet(0xb1, udx.FlagHeartbeat, "")}, sent{hostA, packet(0xa1, 0, "")})
	r.forward(addrOf(1, 4444), packet(0x111, udx.FlagData, "x")) // from another port, now that it is known
	r.forward(addrOf(1, 4444), packet(0x111, udx.FlagDestroy, ""))
	if !r.Receive(other, packet(0x111, udx.FlagData, "x"), hostA) || len(other.take())+len(r.sock.take()) > 0 {
		t.Error("a packet on another socket was not dropped")
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(hostA.Addr().As16()), hostA.Port())
	r.forward(mapped, packet(0x111, udx.FlagData, "y"), sent{hostB, packet(0xb1, udx.FlagData, "y")})
	if n := r.Stats().Foreign; n != 6 {
		t.Errorf("%d packets counted as foreign, want 6", n)
	}
}

func TestFirstPacketsAreKept(t *testing.T) {
	for _, tc := range []struct {
		name       string
		size, sent int
		kept       int
	}{
		{"small ones", 30, 12, maxEarly},
		{"large ones", 2000, 12, maxEarlyBytes / 2000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newTestRelay(t, Config{})
			r.newTestLink()
			var want []sent
			for i := range tc.sent {
				payload := string(bytes.Repeat([]byte{byte(i)}, tc.size-udx.HeaderSize))
				r.forward(hostA, packet(0x111, udx.FlagMessage, payload))
				if i < tc.kept {
					want = append(want, sent{hostB, packet(0xb1, udx.FlagMessage, payload)})
				}
			}
			want = append(want, sent{hostA, packet(0xa1, 0, "")})
			r.forward(hostB, packet(0x222, 0, ""), want...)
			r.forward(hostB, packet(0x222, 0, ""), sent{hostA, packet(0xa1, 0, "")})
			st := r.Stats()
			if int(st.Undelivered) != tc.sent-tc.kept || int(st.Packets) != tc.kept+2 {
				t.Errorf("%d packets dropped, %d forwarded, want %d, %d", st.Undelivered, st.Packets, tc.sent-tc.kept, tc.kept+2)
			}
		})
	}
}

func TestDestroyEndsTheLink(t *testing.T) {
	r := newTestRelay(t, Config{})
	r.newTestLink()
	r.forward(hostA, packet(0x111, 0, ""))
	r.forward(hostB, packet(0x222, 0, ""), sent{hostB, packet(0xb1, 0, "")}, sent{hostA, packet(0xa1, 0, "")})
	r.forward(hostA, packet(0x111, udx.FlagDestroy, ""), sent{hostB, packet(0xb1, udx.FlagDestroy, "")})
	if r.Receive(r.sock, packet(0x111, 0, ""), hostA) || r.Receive(r.sock, packet(0x222, 0, ""), hostB) {
		t.Error("packets are still for the link")
	}
}

func TestTakenIDsAreRefused(t *testing.T) {
	r := newTestRelay(t, Config{})
	l := r.newTestLink()
	for _, ids := range [][2]udx.ID{{0x111, 5}, {5, 0x222}, {5, 5}} {
		other := &link{}
		other.sides[0].id, other.sides[1].id = ids[0], ids[1]
		if r.table.add(other) {
			t.Errorf("ids %x were added", ids)
		}
		r.table.remove(other) // takes nothing of the first link's
	}
	if r.table.find(packet(0x222, 0, "")) != &l.sides[1] {
		t.Error("the first link is lost")
	}
}

func TestBatchesAreCutWhereTheyMust(t *testing.T) {
	r := newTestRelay(t, Config{})
	r.newTestLink()
	r.forward(hostA, packet(0x111, 0, ""))
	r.forward(hostB, packet(0x222, 0, ""), sent{hostB, packet(0xb1, 0, "")}, sent{hostA, packet(0xa1, 0, "")})
	k := r.NewBatch()
	long, short := string(make([]byte, 100)), "s"
	for _, tc := range []struct {
		name  string
		sizes []string // to B; "" is a packet to A
		calls int
	}{
		{"equal", []string{long, long, long}, 1},
		{"last is shorter", []string{long, long, short}, 1},
		{"shorter in the middle", []string{long, short, long}, 2},
		{"longer after shorter", []string{short, long}, 2},
		{"other direction between", []string{long, "", long}, 3},
		{"more than a run", slices.Repeat([]string{long}, maxRun+1), 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := map[netip.AddrPort][][]byte{}
			for _, s := range tc.sizes {
				b, from, to, id := packet(0x111, udx.FlagMessage, s), hostA, hostB, udx.ID(0xb1)
				if s == "" {
					b, from, to, id = packet(0x222, udx.FlagMessage, s), hostB, hostA, 0xa1
				}
				want[to] = append(want[to], packet(id, udx.FlagMessage, s))
				if !k.Add(r.sock, b, from) {
					t.Fatal("not for the link")
				}
			}
			k.Flush()
			calls := r.sock.calls
			got := map[netip.AddrPort][][]byte{}
			for _, s := range r.sock.take() {
				got[s.to] = append(got[s.to], s.b)
			}
			for _, to := range []netip.AddrPort{hostA, hostB} {
				if !slices.EqualFunc(got[to], want[to], bytes.Equal) {
					t.Errorf("to %v: %x, want %x", to, got[to], want[to])
				}
			}
			if calls != tc.calls {
				t.Errorf("%d calls, want %d", calls, tc.calls)
			}
		})
	}
}

func TestSocketsWithoutBatches(t *testing.T) {
	r := newTestRelay(t, Config{})
	l := r.newTestLink()
	s := &plain{}
	for i := range l.sides {
		l.sides[i].sock = s
		l.sides[i].addr = []netip.AddrPort{hostA, hostB}[i]
	}
	k := r.NewBatch()
	for range 3 {
		k.Add(s, packet(0x111, 0, "x"), hostA)
	}
	k.Flush()
	if got := s.s.take(); len(got) != 3 {
		t.Errorf("%d datagrams sent, want 3", len(got))
	}
}

func TestRateIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 1_000_000, 1000
		r := newTestRelay(t, Config{Rate: rate})
		r.newTestLink()
		r.forward(hostA, packet(0x111, 0, ""))
		r.Receive(r.sock, packet(0x222, 0, ""), hostB)
		r.sock.take()
		send := func(n int) (passed int) {
			for range n {
				r.Receive(r.sock, packet(0x111, 0, string(make([]byte, size-udx.HeaderSize))), hostA)
			}
			return len(r.sock.take())
		}
		if n := send(1000); n < rate/4/size-1 || n > rate/4/size {
			t.Errorf("%d packets passed at once, want a quarter of a second's worth, %d", n, rate/4/size)
		}
		passed := 0
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			passed += send(30)
		}
		if passed < rate/size-2 || passed > rate/size+2 {
			t.Errorf("%d packets passed in a second, want %d", passed, rate/size)
		}
		if st := r.Stats(); st.Limited == 0 || int(st.Limited)+int(st.Packets) != 2+1000+3000 {
			t.Errorf("%d packets limited, %d passed", st.Limited, st.Packets)
		}
		r.forward(hostB, packet(0x222, 0, "x"), sent{hostA, packet(0xa1, 0, "x")}) // the other client is not affected
	})
}

func TestIdleLinksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{IdleTimeout: 30 * time.Second})
		r.newTestLink()
		r.forward(hostA, packet(0x111, 0, ""))
		for range 5 {
			time.Sleep(29 * time.Second)
			if !r.Receive(r.sock, packet(0x111, 0, ""), hostA) {
				t.Fatal("a link with traffic has ended")
			}
		}
		time.Sleep(32 * time.Second)
		if r.Receive(r.sock, packet(0x111, 0, ""), hostA) {
			t.Error("the link lives after 32 s without a packet, want 30")
		}
	})
}

func TestForwardingDoesNotAllocate(t *testing.T) {
	r := newTestRelay(t, Config{Rate: 1 << 40})
	l := r.newTestLink()
	l.sides[0].addr, l.sides[1].addr = hostA, hostB
	s := &counting{}
	l.sides[0].sock, l.sides[1].sock = s, s
	k := r.NewBatch()
	b := packet(0x111, udx.FlagMessage, string(make([]byte, 1300)))
	if n := testing.AllocsPerRun(100, func() {
		for range 8 {
			binary.LittleEndian.PutUint32(b[4:], 0x111)
			k.Add(s, b, hostA)
		}
		k.Flush()
	}); n != 0 {
		t.Errorf("%v allocations for 8 datagrams", n)
	}
	if s.n == 0 {
		t.Error("nothing was sent")
	}
}

// counting is a Socket that only counts.
type counting struct{ n int }

func (s *counting) Send([]byte, netip.AddrPort) error { s.n++; return nil }
func (s *counting) SendBatch(b [][]byte, _ netip.AddrPort) error {
	s.n += len(b)
	return nil
}

func BenchmarkForward(b *testing.B) {
	for _, rate := range []int{0, 1 << 40} {
		b.Run(map[bool]string{true: "unlimited", false: "limited"}[rate == 0], func(b *testing.B) {
			server := NewServer(Config{Rate: rate})
			defer server.Close()
			s := &counting{}
			l := &link{}
			for i, ids := range [2][2]udx.ID{{0x111, 0xa1}, {0x222, 0xb1}} {
				c := &session{key: keyOf(byte(i))}
				server.registry.enter(c)
				l.sides[i] = side{link: l, other: &l.sides[1-i], owner: c, id: ids[0], remote: ids[1], sock: s}
			}
			l.sides[0].addr, l.sides[1].addr = hostA, hostB
			server.table.add(l)
			k := server.NewBatch()
			train := make([][]byte, 32)
			for i := range train {
				train[i] = packet(0x111, udx.FlagMessage, string(make([]byte, 1300)))
			}
			b.SetBytes(1320)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				p := train[i%len(train)]
				binary.LittleEndian.PutUint32(p[4:], 0x111)
				k.Add(s, p, hostA)
				if i++; i%len(train) == 0 {
					k.Flush()
				}
			}
		})
	}
}

// FuzzForward gives the relay arbitrary datagrams: whatever leaves it came in, but for the id.
func FuzzForward(f *testing.F) {
	f.Add(packet(0x111, udx.FlagData, "hello"), true, true)
	f.Add(packet(0x222, udx.FlagDestroy, ""), false, true)
	f.Add([]byte{}, false, false)
	f.Fuzz(func(t *testing.T, b []byte, fromA, heard bool) {
		r := newTestRelay(t, Config{})
		l := r.newTestLink()
		if heard {
			l.sides[0].addr, l.sides[1].addr = hostA, hostB
		}
		from := map[bool]netip.AddrPort{true: hostA, false: hostB}[fromA]
		before := bytes.Clone(b)
		known := r.Receive(r.sock, b, from)
		out := r.sock.take()
		if !known && (!bytes.Equal(before, b) || len(out) > 0) {
			t.Errorf("%x is not for a link, but changed or sent", before)
		}
		if len(out) > 1 || len(out) == 1 && (out[0].to == from || len(out[0].b) != len(before) ||
			!bytes.Equal(out[0].b[:4], before[:4]) || !bytes.Equal(out[0].b[8:], before[8:])) {
			t.Errorf("%x from %v: sent %v", before, from, out)
		}
	})
}

func TestReserveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, Config{})
		a, b := r.client(1), r.client(2)
		r.ids.mu.Lock()
		r.ids.err = errors.New("no ids")
		r.ids.mu.Unlock()
		token := NewToken()
		errs := make(chan error, 2)
		for i, c := range []*served{a, b} {
			go func() {
				ctx, cancel := timeout(t, 15*time.Second)
				defer cancel()
				_, err := c.Pair(ctx, i == 0, token, 5)
				errs <- err
			}()
		}
		for range 2 {
			if err := <-errs; err == nil {
				t.Error("paired without stream ids")
			}
		}
		r.ids.wantHeld(t, 0, "after a failure")
		if st := r.Stats(); st.Links != 0 || r.registry.linked != 0 {
			t.Errorf("%d links, %d counted", st.Links, r.registry.linked)
		}
	})
}
