package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
	"omegatun/session/protomux"
	"omegatun/session/tunnel"
)

var announcements = []struct {
	name string
	a    Announced
	wire string
}{
	{"nothing", Announced{}, ""},
	{"texts", Announced{Version: "1.0", Name: "büro"}, "\x01\x031.0\x02\x05büro"},
	{
		"addresses",
		Announced{Addresses: []netip.Addr{netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("fd6f::1")}, MTU: 1280},
		"\x03\x16\x04\x0a\x40\x00\x01\x06\xfd\x6f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x04\x03\xfd\x00\x05",
	},
	{
		"endpoints",
		Announced{Endpoints: []Endpoint{
			{EndpointLocal, netip.MustParseAddrPort("192.168.1.10:49737")},
			{EndpointMapped, netip.MustParseAddrPort("[2001:db8::1]:1")},
		}},
		"\x05\x1c\x00\x04\xc0\xa8\x01\x0a\x49\xc2\x02\x06\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00",
	},
	{"relays", Announced{Relays: []key.Public{{1}}, Relaying: true}, "\x06\x20\x01" + strings.Repeat("\x00", 31) + "\x07\x01\x01"},
}

func TestAnnouncementsOnTheWire(t *testing.T) {
	for _, row := range announcements {
		wire := row.a.append(nil, &Announced{})
		if string(wire) != row.wire {
			t.Errorf("%s: append: %x, want %x", row.name, wire, row.wire)
		}
		var got Announced
		if err := got.update([]byte(row.wire)); err != nil || !reflect.DeepEqual(got, row.a) {
			t.Errorf("%s: update: %+v, %v, want %+v", row.name, got, err, row.a)
		}
		if err := got.update([]byte("\x63\x02ab")); err != nil || !reflect.DeepEqual(got, row.a) {
			t.Errorf("%s: after an unknown field: %+v, %v", row.name, got, err)
		}
		if b := got.append(nil, &row.a); len(b) != 0 {
			t.Errorf("%s: an unchanged announcement makes a change of %x", row.name, b)
		}
		gone := Announced{}.clone()
		if err := got.update(gone.append(nil, &row.a)); err != nil || len(got.append(nil, &Announced{})) != 0 {
			t.Errorf("%s: %+v is left after all was taken back (%v)", row.name, got, err)
		}
	}
}

func TestBadAnnouncementsChangeNothing(t *testing.T) {
	for _, row := range []struct{ name, wire string }{
		{"field cut off", "\x01\x041.0"},
		{"no length", "\x01"},
		{"address of an unknown family", "\x03\x05\x05\x0a\x40\x00\x01"},
		{"half an address", "\x03\x04\x04\x0a\x40\x00"},
		{"too many addresses", "\x03" + string(rune(85)) + strings.Repeat("\x04\x01\x02\x03\x04", 17)},
		{"mtu above that of any packet", "\x04\x05\xfe\x00\x00\x01\x00"},
		{"half a key", "\x06\x02ab"},
		{"too long", strings.Repeat("\x63\x02ab", maxAnnounced/4+1)},
	} {
		a := Announced{Name: "before"}
		if err := a.update([]byte("\x02\x05after" + row.wire)); !errors.Is(err, errAnnounced) || a.Name != "before" {
			t.Errorf("%s: update: %+v, %v, want errAnnounced", row.name, a, err)
		}
	}
}

func TestTextOfPeersIsMadeFitForTerminals(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"laptop", "laptop"},
		{"\x1b[31mred\n", "\ufffd[31mred\ufffd"},
		{"a\xffb", "a\ufffdb"},
		{strings.Repeat("ü", 40), strings.Repeat("ü", 32)},
		{strings.Repeat("x", 63) + "ü", strings.Repeat("x", 63)},
	} {
		if got := cleanText(row.in); got != row.want {
			t.Errorf("cleanText(%q): %q, want %q", row.in, got, row.want)
		}
	}
}

func FuzzAnnounced(f *testing.F) {
	for _, row := range announcements {
		f.Add([]byte(row.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again Announced
		if a.update(b) != nil {
			return
		}
		wire := a.append(nil, &Announced{})
		if err := again.update(wire); err != nil || !bytes.Equal(again.append(nil, &Announced{}), wire) {
			t.Fatalf("%+v is read back as %+v, %v", a, again, err)
		}
	})
}

// pair is two connected ends behind a home router each. a dials.
func (w *world) pair() (a, b *end, natA, natB *lab.NAT) {
	w.t.Helper()
	ha, hb, natA, natB := w.homes()
	a, b = w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
	a.listen(w.t)
	b.listen(w.t)
	a.Peer(b.public()).Connect()
	a.connected(w.t, b.public())
	b.connected(w.t, a.public())
	exchange(w.t, a, b)
	return a, b, natA, natB
}

func TestPeersAnnounceThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b, _, _ := w.pair()
		a.Announce(Announced{Name: "a\x1b", Version: "1", MTU: 1400, Relaying: true})
		time.Sleep(time.Second)
		got := b.Peer(a.public()).Status().Announced
		want := Announced{
			Name: "a\ufffd", Version: "1", MTU: 1400,
			Endpoints: []Endpoint{
				{EndpointLocal, netip.AddrPortFrom(inA, a.Addr().Port())},
				{EndpointPublic, netip.AddrPortFrom(pubA, a.node.Info().Port)},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("b knows %+v of a, want %+v", got, want)
		}
	})
}

func TestKeysChangeUnderTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b, _, _ := w.pair()
		time.Sleep(500 * time.Millisecond)
		for _, p := range []*Peer{a.Peer(b.public()), b.Peer(a.public())} {
			if s := p.Status(); s.Epoch != 1 {
				t.Errorf("epoch %d half a second after connecting, want 1", s.Epoch)
			}
		}
		if f := a.Peer(b.public()).cur.Load().epoch.Params().Features; f&tunnel.FeaturePostQuantum == 0 {
			t.Error("keys are not post-quantum")
		}
		link := a.Peer(b.public()).cur.Load()
		const n = 12000 // of 50 ms: ten minutes
		arrived := 0
		for i := range n {
			for _, s := range [][2]*end{{a, b}, {b, a}} {
				if err := s[0].Peer(s[1].public()).Send([][]byte{packet(fmt.Sprint(i))}); err != nil {
					t.Fatalf("%s sends %d: %v", s[0].name, i, err)
				}
			}
			time.Sleep(50 * time.Millisecond)
			for len(a.got) > 0 {
				<-a.got
				arrived++
			}
			for len(b.got) > 0 {
				<-b.got
				arrived++
			}
			if s := a.Peer(b.public()).Status(); s.KeyAge > tunnel.RekeyAfter+2*time.Second {
				t.Fatalf("keys are %v old", s.KeyAge)
			}
		}
		if arrived != 2*n {
			t.Errorf("%d packets arrived, want %d", arrived, 2*n)
		}
		if got := a.Peer(b.public()).cur.Load(); got != link {
			t.Error("the link was replaced")
		}
		if e := a.Peer(b.public()).Status().Epoch; e != 5 {
			t.Errorf("epoch %d after ten minutes, want 5", e)
		}
		if n := len(link.epoch.Indexes()); n != 1 {
			t.Errorf("%d epochs live, want one", n)
		}
		indexes := 0
		a.links.Range(func(any, any) bool { indexes++; return true })
		if indexes != 2 { // that of the handshake, which names the link, and the one in use
			t.Errorf("%d indexes are known, want 2", indexes)
		}
	})
}

func TestIdleTunnelIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b, _, _ := w.pair()
		time.Sleep(time.Minute)
		var packets, sizes atomic.Int64
		w.net.Drop(func(p lab.Packet) bool {
			if p.From.Addr() == pubA && p.To.Addr() == pubB || p.From.Addr() == pubB && p.To.Addr() == pubA {
				packets.Add(1)
				sizes.Add(int64(len(p.Payload)))
			}
			return false
		})
		time.Sleep(10 * time.Minute)
		t.Logf("%d packets, %d bytes in ten minutes", packets.Load(), sizes.Load())
		if n := packets.Load(); n > 10*14 { // 2.4 pings with their answers, half a rekeying of about 14
			t.Errorf("%d packets in ten idle minutes", n)
		}
		began := time.Now()
		if pong, err := a.Peer(b.public()).Ping(t.Context()); err != nil || time.Since(began) > 60*time.Millisecond {
			t.Errorf("the first ping after ten minutes: %v, %v", pong, err)
		}
	})
}

func TestTunnelOutlivesItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b, _, _ := w.pair()
		time.Sleep(20 * time.Second)
		old := a.Peer(b.public()).cur.Load()
		old.stream.Reset(errors.New("test"))
		const n = 400
		for i := range n {
			for _, s := range [][2]*end{{a, b}, {b, a}} {
				if err := s[0].Peer(s[1].public()).Send([][]byte{packet(fmt.Sprint(i))}); err != nil {
					t.Fatalf("%s sends %d: %v", s[0].name, i, err)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if len(a.got) != n || len(b.got) != n {
			t.Errorf("%d and %d of %d packets arrived", len(a.got), len(b.got), n)
		}
		now := a.Peer(b.public()).cur.Load()
		if now == old || now.control.Load() == nil {
			t.Error("no new link has taken the place of the one that lost its stream")
		}
	})
}

func TestKeysThatCannotBeReplacedExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b, _, _ := w.pair()
		w.net.Drop(func(p lab.Packet) bool { // only the tunnel passes
			return len(p.Payload) > 0 && p.Payload[0] != 0xbe
		})
		link := a.Peer(b.public()).cur.Load()
		began := time.Now()
		for link.cause() == nil {
			if s := a.Peer(b.public()).Status(); s.KeyAge > tunnel.KeyLife+time.Second {
				t.Fatalf("keys are %v old", s.KeyAge)
			}
			_ = a.Peer(b.public()).Send([][]byte{packet("data")})
			time.Sleep(time.Second)
			if time.Since(began) > 2*tunnel.KeyLife {
				t.Fatal("the link lives on")
			}
		}
		if err := link.cause(); !errors.Is(err, ErrKeysExpired) && !errors.Is(err, ErrNotConnected) {
			t.Errorf("the link ended: %v", err)
		}
		if took := time.Since(began); took < tunnel.KeyLife-5*time.Second {
			t.Errorf("the tunnel survived only %v without its stream", took)
		}
		w.net.Drop(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.Peer(b.public()).Wait(ctx); err != nil {
			t.Fatalf("not connected again: %v", err)
		}
	})
}

func TestPeersThatMoveIntoOneLANFindEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, natA, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		a.listen(t)
		b.listen(t)
		a.Peer(b.public()).Connect()
		b.Peer(a.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		exchange(t, a, b)
		time.Sleep(30 * time.Second)
		hb.Move(natA, netip.MustParseAddr("192.168.1.11"))
		b.NetworkChanged()
		began := time.Now()
		for b.Peer(a.public()).Status().Path.Kind != PathLAN || a.Peer(b.public()).Status().Path.Kind != PathLAN {
			time.Sleep(50 * time.Millisecond)
			if time.Since(began) > 10*time.Second {
				t.Fatalf("paths %+v and %+v, want the local network",
					a.Peer(b.public()).Status().Path, b.Peer(a.public()).Status().Path)
			}
		}
		t.Logf("found after %v", time.Since(began))
		exchange(t, a, b)
	})
}

// messagePipe is one end of a stream of messages in memory.
type messagePipe struct {
	in, out chan []byte
	end     chan struct{}
	once    *sync.Once
}

func (p messagePipe) ReadMessage() ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-p.end:
		return nil, io.EOF
	}
}

func (p messagePipe) WriteMessage(b []byte) error {
	select {
	case p.out <- bytes.Clone(b):
		return nil
	case <-p.end:
		return net.ErrClosed
	}
}

func (p messagePipe) Close() error {
	p.once.Do(func() { close(p.end) })
	return nil
}

// Whichever side is first, it waits for the other one. Both would lose the channel otherwise, and make another handshake.
func TestControlChannelMayBeOpenedByThePeerFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ab, ba, end, once := make(chan []byte, 8), make(chan []byte, 8), make(chan struct{}), new(sync.Once)
		first := newControlMux(messagePipe{ba, ab, end, once})
		defer first.Close()
		second := newControlMux(messagePipe{ab, ba, end, once})
		defer second.Close()
		open := func(m *protomux.Mux) *protomux.Channel {
			c, err := m.Open(controlProtocol, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Send(t.Context(), messageHello, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			return c
		}
		a := open(first)
		synctest.Wait() // the other one has read that
		b := open(second)
		for _, c := range []*protomux.Channel{a, b} {
			if typ, got, err := c.Receive(t.Context()); typ != messageHello || string(got) != "hello" || err != nil {
				t.Errorf("received %d %q, %v", typ, got, err)
			}
		}
	})
}
