package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
)

// modes are the ways a Conn may work; what the system lacks is off in all of them.
var modes = []struct {
	name string
	cfg  Config
}{
	{"all", Config{}},
	{"no segment", Config{Disable: FeatureSegment}},
	{"no merge", Config{Disable: FeatureMerge}},
	{"no offload", Config{NoOffload: true}},
	{"portable", Config{Disable: AllFeatures}},
}

func listen(t testing.TB, addr netip.AddrPort, cfg Config) *Conn {
	t.Helper()
	cfg.Addr = addr
	c, err := Listen(cfg)
	if err != nil {
		if addr.Addr().Is6() {
			t.Skipf("no IPv6 on this host: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// got is a received datagram, copied.
type got struct {
	data  string
	from  netip.AddrPort
	local netip.Addr
}

// receive waits for n datagrams.
func receive(t testing.TB, c *Conn, b *Batch, n int) (all []got) {
	t.Helper()
	if err := c.udp.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for len(all) < n {
		if err := c.Receive(b); err != nil {
			t.Fatalf("Receive after %d of %d datagrams: %v", len(all), n, err)
		}
		for i := range b.Len() {
			data, from := b.Datagram(i)
			if cap(data) != len(data) {
				t.Fatalf("datagram of %d bytes has capacity %d", len(data), cap(data))
			}
			all = append(all, got{string(data), from, b.Local(i)})
		}
	}
	return all
}

// datagrams makes datagrams of the given sizes with random content.
func datagrams(sizes ...int) (b [][]byte) {
	r := rand.NewChaCha8([32]byte{1})
	for _, n := range sizes {
		d := make([]byte, n)
		_, _ = r.Read(d)
		b = append(b, d)
	}
	return b
}

// times returns n sizes.
func times(n, size int, tail ...int) (sizes []int) {
	for range n {
		sizes = append(sizes, size)
	}
	return append(sizes, tail...)
}

var batches = []struct {
	name  string
	sizes []int
}{
	{"nothing", nil},
	{"one byte", []int{1}},
	{"empty", []int{0}},
	{"one", []int{1200}},
	{"bytes", times(63, 1)},
	{"hundreds", times(64, 100)},
	{"full train", times(64, 1000)},
	{"full train and one", times(65, 1000)},
	{"odd tail", times(20, 1200, 7)},
	{"two trains, odd tail", times(64+20, 700, 699)},
	{"MTU of Ethernet", times(44, 1472)},
	{"sum over the largest", times(64, 1472, 1)},
	{"shorter, longer, shorter", []int{500, 400, 500, 400, 400, 300, 301}},
	{"empty in a run", []int{100, 100, 0, 100, 0, 0, 50}},
	{"all different", []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1200, 11, 1100, 12, 1000, 9000, 8999}},
	{"more than one call", func() (sizes []int) {
		for i := range 150 {
			sizes = append(sizes, 10+i)
		}
		return sizes
	}()},
	{"largest over loopback", []int{65536 - 48}},
	{"two large", []int{32000, 32000, 32000}},
}

// TestBatchesArrive sends each batch between each pair of modes; whatever the way, the same datagrams arrive in the
// same order.
func TestBatchesArrive(t *testing.T) {
	for _, addr := range []netip.AddrPort{loopback4, loopback6} {
		for _, from := range modes {
			for _, to := range modes {
				t.Run(fmt.Sprintf("%v/%s to %s", addr.Addr(), from.name, to.name), func(t *testing.T) {
					a, z, b := listen(t, addr, from.cfg), listen(t, addr, to.cfg), NewBatch()
					for _, tt := range batches {
						want := datagrams(tt.sizes...)
						if err := a.SendBatch(want, z.LocalAddr()); err != nil {
							t.Fatalf("%s: SendBatch: %v", tt.name, err)
						}
						check(t, tt.name, receive(t, z, b, len(want)), want, a.LocalAddr())
					}
					if s := z.Stats(); s.ReceiveInvalid != 0 || s.ReceiveOverflow != 0 || s.ReceivedPackets != a.Stats().SentPackets {
						t.Errorf("receiver %+v\nsender %+v", s, a.Stats())
					}
				})
			}
		}
	}
}

func check(t *testing.T, name string, all []got, want [][]byte, from netip.AddrPort) {
	t.Helper()
	if len(all) != len(want) {
		t.Fatalf("%s: %d datagrams, want %d", name, len(all), len(want))
	}
	for i, g := range all {
		if g.data != string(want[i]) {
			t.Fatalf("%s: datagram %d is not what was sent: %d bytes, want %d", name, i, len(g.data), len(want[i]))
		}
		if g.from != from {
			t.Fatalf("%s: datagram %d is from %v, want %v", name, i, g.from, from)
		}
	}
}

func TestSegmentsArrive(t *testing.T) {
	for _, tt := range []struct {
		name          string
		size, segment int
	}{
		{"nothing", 0, 100},
		{"one", 100, 100},
		{"shorter than a segment", 99, 100},
		{"bytes", 64, 1},
		{"full train", 64 * 1000, 1000},
		{"train and a byte", 64*1000 + 1, 1000},
		{"odd tail", 30*1200 + 7, 1200},
		{"sum over the largest", 64 * 1472, 1472},
		{"large segments", 100000, 40000},
		{"largest", MaxDatagram, MaxDatagram},
	} {
		for _, mode := range modes {
			t.Run(tt.name+"/"+mode.name, func(t *testing.T) {
				a, z := listen(t, loopback4, mode.cfg), listen(t, loopback4, mode.cfg)
				b := datagrams(tt.size)[0]
				if err := a.SendSegments(b, tt.segment, z.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				var want [][]byte
				for rest := b; len(rest) > 0; rest = rest[len(want[len(want)-1]):] {
					want = append(want, rest[:min(tt.segment, len(rest))])
				}
				check(t, tt.name, receive(t, z, NewBatch(), len(want)), want, a.LocalAddr())
			})
		}
	}
	a := listen(t, loopback4, Config{})
	if err := a.SendSegments([]byte("x"), 0, a.LocalAddr()); !errors.Is(err, errSegment) {
		t.Errorf("SendSegments with segments of no size: %v, want %v", err, errSegment)
	}
}

// TestDatagramsInOneArrayLeaveAsTrain covers gathering of neighbours, clipped and not, and with a gap.
func TestDatagramsInOneArrayLeaveAsTrain(t *testing.T) {
	a, z, b := listen(t, loopback4, Config{}), listen(t, loopback4, Config{}), NewBatch()
	arena := datagrams(10000)[0]
	for _, tt := range []struct {
		name string
		cut  func(i int) []byte
	}{
		{"joined", func(i int) []byte { return arena[i*100 : i*100+100] }},
		{"clipped", func(i int) []byte { return arena[i*100 : i*100+100 : i*100+100] }},
		{"apart", func(i int) []byte { return arena[i*101 : i*101+100] }},
		{"backwards", func(i int) []byte { return arena[(63-i)*100 : (63-i)*100+100] }},
		{"the same", func(int) []byte { return arena[:100] }},
	} {
		var want [][]byte
		for i := range 64 {
			want = append(want, tt.cut(i))
		}
		before := a.Stats().SendTrains
		if err := a.SendBatch(want, z.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		check(t, tt.name, receive(t, z, b, len(want)), want, a.LocalAddr())
		if n := a.Stats().SendTrains - before; a.has(FeatureSegment) && n != 1 {
			t.Errorf("%s: 64 datagrams left in %d trains, want 1", tt.name, n)
		}
	}
}

// TestSendersAreToldApart has several senders at once, each with trains of its own size, in every mode of the receiver.
func TestSendersAreToldApart(t *testing.T) {
	const senders, rounds, train = 4, 25, 16
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			cfg := mode.cfg
			cfg.ReadBuffer = 4 << 20
			z := listen(t, loopback4, cfg)
			size := make(map[netip.AddrPort]int)
			next := make(map[netip.AddrPort]uint32)
			var wg sync.WaitGroup
			defer wg.Wait()
			for s := range senders {
				a := listen(t, loopback4, Config{})
				size[a.LocalAddr()] = 101 + 97*s
				wg.Go(func() {
					seq := uint32(0)
					for range rounds {
						var batch [][]byte
						for range train {
							d := bytes.Repeat([]byte{byte(s)}, 101+97*s)
							binary.LittleEndian.PutUint32(d, seq)
							seq++
							batch = append(batch, d)
						}
						if err := a.SendBatch(batch, z.LocalAddr()); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for _, g := range receive(t, z, NewBatch(), senders*rounds*train) {
				if len(g.data) != size[g.from] {
					t.Fatalf("%d bytes from %v, want %d", len(g.data), g.from, size[g.from])
				}
				if seq := binary.LittleEndian.Uint32([]byte(g.data)); seq != next[g.from] {
					t.Fatalf("datagram %d from %v, want %d", seq, g.from, next[g.from])
				}
				next[g.from]++
				if want := strings.Repeat(g.data[4:5], len(g.data)-4); g.data[4:] != want {
					t.Fatalf("datagram from %v holds bytes of another", g.from)
				}
			}
		})
	}
}

// TestConcurrentSendersShareASocket has every method of one Conn called at once.
func TestConcurrentSendersShareASocket(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			a, z := listen(t, loopback4, mode.cfg), listen(t, loopback4, Config{ReadBuffer: 4 << 20})
			src := a.From(netip.MustParseAddr("127.0.0.1"))
			const each = 20
			batch := datagrams(times(8, 300, 200)...)
			var wg sync.WaitGroup
			defer wg.Wait()
			for _, send := range []func() error{
				func() error { return a.Send(batch[0], z.LocalAddr()) },
				func() error { return a.SendTTL(batch[0], z.LocalAddr(), 5) },
				func() error { return a.SendBatch(batch, z.LocalAddr()) },
				func() error { return a.SendSegments(batch[0], 100, z.LocalAddr()) },
				func() error { return src.SendBatch(batch, z.LocalAddr()) },
				func() error { return src.SendTTL(batch[0], z.LocalAddr(), 5) },
				func() error { a.Stats(); return nil },
			} {
				wg.Go(func() {
					for range each {
						if err := send(); err != nil {
							t.Error(err)
						}
					}
				})
			}
			receive(t, z, NewBatch(), each*(1+1+9+3+9+1))
		})
	}
}

func TestReceiveDataMayBeModified(t *testing.T) {
	a, z, b := listen(t, loopback4, Config{}), listen(t, loopback4, Config{}), NewBatch()
	want := datagrams(times(10, 50)...)
	if err := a.SendBatch(want, z.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(want); {
		if err := z.Receive(b); err != nil {
			t.Fatal(err)
		}
		for k := range b.Len() {
			data, _ := b.Datagram(k)
			if !bytes.Equal(data, want[i]) {
				t.Fatalf("datagram %d was changed through its neighbour", i)
			}
			clear(data)
			_ = append(data, "beyond the end"...)
			i++
		}
	}
}

func TestSmallBatchTakesNoTrains(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			a, z := listen(t, loopback4, Config{}), listen(t, loopback4, mode.cfg)
			small, big := NewSmallBatch(), NewBatch()
			for _, b := range []*Batch{small, big, small, big} {
				// Which batch comes next is known to the Conn from the first datagram on.
				if err := a.Send([]byte("hello"), z.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				receive(t, z, b, 1)
				want := datagrams(times(10, 1000)...)
				if err := a.SendBatch(want, z.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				check(t, "batch", receive(t, z, b, len(want)), want, a.LocalAddr())
			}
			// Longer than the slot: dropped, and the next one arrives.
			for _, d := range datagrams(smallSlot+1, smallSlot) {
				if err := a.Send(d, z.LocalAddr()); err != nil {
					t.Fatal(err)
				}
			}
			if all := receive(t, z, small, 1); len(all[0].data) != smallSlot {
				t.Errorf("datagram of %d bytes, want %d", len(all[0].data), smallSlot)
			}
			if s := z.Stats(); s.ReceiveInvalid != 1 {
				t.Errorf("%d datagrams dropped, want 1", s.ReceiveInvalid)
			}
		})
	}
}

func TestCloseUnblocksReceive(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			c := listen(t, loopback4, mode.cfg)
			first, done := make(chan struct{}), make(chan error)
			go func() {
				b := NewBatch()
				if err := c.Receive(b); err != nil {
					t.Error(err)
				}
				close(first)
				done <- c.Receive(b)
			}()
			if err := c.Send([]byte("x"), c.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			<-first
			for range 100 { // waiting already or not yet, it must end in the same way
				runtime.Gosched()
			}
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Receive: %v, want net.ErrClosed", err)
			}
			if err := c.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			to := netip.MustParseAddrPort("127.0.0.1:9")
			for name, err := range map[string]error{
				"Receive":      c.Receive(NewBatch()),
				"Send":         c.Send([]byte("x"), to),
				"SendTTL":      c.SendTTL([]byte("x"), to, 3),
				"SendBatch":    c.SendBatch(datagrams(1, 1), to),
				"SendSegments": c.SendSegments([]byte("xx"), 1, to),
			} {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s after Close: %v, want net.ErrClosed", name, err)
				}
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	c := listen(t, loopback4, Config{})
	_, err := Listen(Config{Addr: c.LocalAddr()})
	e, ok := errors.AsType[*InUseError](err)
	if !ok || e.Addr != c.LocalAddr() {
		t.Fatalf("Listen on a taken port: %v, want an InUseError for %v", err, c.LocalAddr())
	}
	for _, want := range []string{fmt.Sprint(c.LocalAddr().Port()), "127.0.0.1", "choose another"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	// 192.0.2.0/24 is for documentation: no host has it.
	if c, err := Listen(Config{Addr: netip.MustParseAddrPort("192.0.2.1:0")}); err == nil {
		_ = c.Close()
		t.Error("Listen on an address that is not ours succeeded")
	}
}

func TestLocalAddr(t *testing.T) {
	for _, tt := range []struct {
		name string
		addr netip.AddrPort
		want string
	}{
		{"zero", netip.AddrPort{}, "0.0.0.0"},
		{"mapped", netip.MustParseAddrPort("[::ffff:127.0.0.1]:0"), "127.0.0.1"},
		{"IPv4", loopback4, "127.0.0.1"},
		{"IPv6", loopback6, "::1"},
		{"any IPv6", netip.MustParseAddrPort("[::]:0"), "::"},
	} {
		c := listen(t, tt.addr, Config{})
		if a := c.LocalAddr(); a.Addr() != netip.MustParseAddr(tt.want) || a.Port() == 0 {
			t.Errorf("%s: local address %v, want %s with a port", tt.name, a, tt.want)
		}
	}
}

// TestBothFamiliesShareAPort shows that an IPv6 socket is for IPv6 only.
func TestBothFamiliesShareAPort(t *testing.T) {
	four := listen(t, netip.AddrPort{}, Config{})
	six := listen(t, netip.AddrPortFrom(netip.IPv6Unspecified(), four.LocalAddr().Port()), Config{})
	if six.LocalAddr().Port() != four.LocalAddr().Port() {
		t.Errorf("ports %v and %v", four.LocalAddr(), six.LocalAddr())
	}
}

func TestDestinations(t *testing.T) {
	four, z := listen(t, loopback4, Config{}), listen(t, loopback4, Config{})
	six := listen(t, loopback6, Config{})
	port := z.LocalAddr().Port()
	mapped := netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), port)
	if err := four.Send([]byte("mapped"), mapped); err != nil {
		t.Errorf("Send to %v: %v", mapped, err)
	}
	if all := receive(t, z, NewBatch(), 1); all[0].data != "mapped" || all[0].from != four.LocalAddr() {
		t.Errorf("received %+v", all[0])
	}
	for _, tt := range []struct {
		name string
		c    *Conn
		to   netip.AddrPort
	}{
		{"zero", four, netip.AddrPort{}},
		{"port 0", four, loopback4},
		{"no address", four, netip.AddrPortFrom(netip.IPv4Unspecified(), 9)},
		{"IPv6 from IPv4", four, netip.MustParseAddrPort("[::1]:9")},
		{"IPv4 from IPv6", six, netip.MustParseAddrPort("127.0.0.1:9")},
		{"mapped from IPv6", six, mapped},
	} {
		for name, err := range map[string]error{
			"Send":         tt.c.Send([]byte("x"), tt.to),
			"SendTTL":      tt.c.SendTTL([]byte("x"), tt.to, 3),
			"SendBatch":    tt.c.SendBatch(datagrams(1), tt.to),
			"SendSegments": tt.c.SendSegments([]byte("x"), 1, tt.to),
		} {
			e, ok := errors.AsType[*SendError](err)
			if !ok || !errors.Is(err, ErrDestination) || e.To != tt.to {
				t.Errorf("%s: %s: %v, want ErrDestination", tt.name, name, err)
			}
		}
	}
	if s := four.Stats(); s.SendErrors != 16 || s.SentPackets != 1 {
		t.Errorf("stats %+v, want 16 errors and 1 packet", s)
	}
}

func TestTTLRange(t *testing.T) {
	c := listen(t, loopback4, Config{})
	for _, ttl := range []int{-1, 0, 256} {
		if err := c.SendTTL([]byte("x"), c.LocalAddr(), ttl); !errors.Is(err, errTTL) {
			t.Errorf("SendTTL with %d: %v, want %v", ttl, err, errTTL)
		}
	}
}

// TestRefusedSendsGoOn sends to a port where nobody listens, whose host answers with ICMP.
func TestRefusedSendsGoOn(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			a, z, b := listen(t, loopback4, mode.cfg), listen(t, loopback4, mode.cfg), NewBatch()
			nobody := listen(t, loopback4, Config{})
			if err := nobody.Close(); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				if err := a.Send([]byte("x"), nobody.LocalAddr()); err != nil {
					t.Errorf("Send to nobody: %v", err)
				}
				if err := a.SendBatch(datagrams(5, 5), nobody.LocalAddr()); err != nil {
					t.Errorf("SendBatch to nobody: %v", err)
				}
				if err := z.Send([]byte("y"), a.LocalAddr()); err != nil {
					t.Error(err)
				}
				receive(t, a, b, 1)
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			a, z := listen(t, loopback4, mode.cfg), listen(t, loopback4, mode.cfg)
			batch := datagrams(100, MaxDatagram+1, 100)
			err := a.SendBatch(batch, z.LocalAddr())
			e, ok := errors.AsType[*SendError](err)
			if !ok || !errors.Is(err, ErrTooLarge) || e.Size != MaxDatagram+1 || e.To != z.LocalAddr() {
				t.Errorf("SendBatch with one too large: %v, want ErrTooLarge", err)
			}
			check(t, "the others", receive(t, z, NewBatch(), 2), [][]byte{batch[0], batch[2]}, a.LocalAddr())
			if err := a.Send(batch[1], z.LocalAddr()); !errors.Is(err, ErrTooLarge) {
				t.Errorf("Send: %v, want ErrTooLarge", err)
			}
			if s := a.Stats(); s.SendTooLarge != 2 || s.SentPackets != 2 {
				t.Errorf("stats %+v, want 2 too large and 2 sent", s)
			}
		})
	}
}

func TestFromIsOnePointer(t *testing.T) {
	c := listen(t, loopback4, Config{})
	a := netip.MustParseAddr("127.0.0.1")
	if c.From(a) != c.From(netip.MustParseAddr("::ffff:127.0.0.1")) {
		t.Error("two Sources for one address")
	}
	if got, want := c.From(a).LocalAddr(), c.LocalAddr(); got != want {
		t.Errorf("local address of the source %v, want %v", got, want)
	}
}

func TestFeaturesString(t *testing.T) {
	for f, want := range map[Features]string{
		0: "none", FeatureBatch: "batch", AllFeatures: "batch,segment,merge", FeatureMerge: "merge",
	} {
		if f.String() != want {
			t.Errorf("%d: %q, want %q", f, f.String(), want)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools at random")
	}
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			a, z, b := listen(t, loopback4, mode.cfg), listen(t, loopback4, mode.cfg), NewBatch()
			src := a.From(netip.MustParseAddr("127.0.0.1"))
			batch, to := datagrams(times(20, 1000, 10)...), z.LocalAddr()
			flat := datagrams(20001)[0]
			tos := slices.Repeat([]netip.AddrPort{to}, len(batch))
			take := func(n int) {
				for n > 0 {
					if err := z.Receive(b); err != nil {
						t.Fatal(err)
					}
					for i := range b.Len() {
						b.Datagram(i)
					}
					n -= b.Len()
				}
			}
			for name, f := range map[string]func(){
				"Send":         func() { _ = a.Send(batch[0], to); take(1) },
				"Source.Send":  func() { _ = src.Send(batch[0], to); take(1) },
				"SendBatch":    func() { _ = a.SendBatch(batch, to); take(len(batch)) },
				"SendSegments": func() { _ = a.SendSegments(flat, 1000, to); take(21) },
				"SendTo":       func() { _ = a.SendTo(batch, tos); take(len(batch)) },
			} {
				f()
				if n := testing.AllocsPerRun(100, f); n != 0 {
					t.Errorf("%s and Receive allocate %v times", name, n)
				}
			}
		})
	}
}
