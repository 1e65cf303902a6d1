package routes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/tun/tuntest"
)

// recorder is a Session that keeps what it is given.
type recorder struct {
	runs [][][]byte
	err  error
}

func (r *recorder) SendFrom(next func(offset int, finish bool) ([]byte, bool)) error {
	const offset = 3
	var run [][]byte
	for b, _ := next(offset, false); b != nil; b, _ = next(offset, false) {
		run = append(run, bytes.Clone(b[offset:]))
	}
	r.runs = append(r.runs, run)
	return r.err
}

// wantRuns fails the test unless the session was given these runs of packets, and forgets them.
func (r *recorder) wantRuns(t *testing.T, reason string, want ...[][]byte) {
	t.Helper()
	equal := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
	if !slices.EqualFunc(r.runs, want, equal) {
		t.Errorf("%s: the session was given %x, want %x", reason, r.runs, want)
	}
	r.runs = nil
}

// bench is a forwarder with two peers between a test device and recorders.
type bench struct {
	*Forwarder
	dev          *tuntest.Device
	peer, other  *Peer
	sent, sentTo *recorder // to peer, to other
}

var other4, other6 = netip.MustParseAddr("10.64.0.3"), netip.MustParseAddr("fd6f:6d65:6761::3")

// newBench must be called in a synctest bubble. Run goes until the test ends.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{dev: tuntest.New(t, 1420), sent: new(recorder), sentTo: new(recorder)}
	b.Forwarder = NewForwarder(b.dev, Config{Local: []netip.Addr{us4, us6}})
	var err error
	if b.peer, err = b.AddPeer(PeerConfig{
		Key: testKey(1), Session: b.sent, MTU: 1300,
		Prefixes: prefixes(them4.String()+"/32", them6.String()+"/128", "192.168.5.0/24"),
	}); err != nil {
		t.Fatal(err)
	}
	if b.other, err = b.AddPeer(PeerConfig{
		Key: testKey(2), Session: b.sentTo,
		Prefixes: []netip.Prefix{netip.PrefixFrom(other4, 32), netip.PrefixFrom(other6, 128)},
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- b.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := b.dev.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run of a closed device: %v, want nil", err)
		}
	})
	return b
}

func (b *bench) inject(packets ...[]byte) {
	b.dev.Inject(packets...)
	synctest.Wait()
}

func wantDropped(t *testing.T, what string, got Stats, want map[Reason]uint64) {
	t.Helper()
	if !maps.Equal(got.Dropped, want) {
		t.Errorf("%s dropped %v, want %v", what, got.Dropped, want)
	}
}

func udp(src, dst netip.Addr, text string) []byte {
	return tuntest.UDP(port(src, 1000), port(dst, 2000), []byte(text))
}

func TestPacketsGoToTheirPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		a1, a2, a3 := udp(us4, them4, "1"), udp(us6, them6, "2"), udp(us4, netip.MustParseAddr("192.168.5.77"), "3")
		o1 := udp(us6, other6, "4")
		b.inject(a1, a2, o1, a3)
		b.sent.wantRuns(t, "packets to one peer are kept together, in order", [][]byte{a1, a2, a3})
		b.sentTo.wantRuns(t, "the other peer's", [][]byte{o1})
		b.dev.WantNothing(t, "everything had a peer")
		want := Stats{TxPackets: 3, TxBytes: uint64(len(a1) + len(a2) + len(a3))}
		if got := b.peer.Stats(); got.TxPackets != want.TxPackets || got.TxBytes != want.TxBytes {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
	})
}

func TestOutgoingPacketsAreChecked(t *testing.T) {
	stranger, routers := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("ff02::2")
	for _, row := range []struct {
		name   string
		packet []byte
		reason Reason
		icmp   []byte // type and code of the answer; nil: none
	}{
		{"not IP", []byte("\x20not an IP packet at all"), Malformed, nil},
		{"source of the host's own", udp(stranger, them4, ""), SourceNotOurs, nil},
		{"source of a peer", udp(other4, them4, ""), SourceNotOurs, nil},
		{"no peer, IPv4", udp(us4, netip.MustParseAddr("10.64.9.9"), ""), NoRoute, []byte{3, 1}},
		{"no peer, IPv6", udp(us6, netip.MustParseAddr("fd6f:6d65:6761::9"), ""), NoRoute, []byte{1, 0}},
		{"to ourselves", udp(us4, us4, ""), NoRoute, []byte{3, 1}},
		{"mDNS", udp(us4, netip.MustParseAddr("224.0.0.251"), ""), Chatter, nil},
		{"router solicitation", tuntest.IP(netip.MustParseAddr("fe80::1"), routers, 58, make([]byte, 8)), Chatter, nil},
		{"router solicitation from nowhere", tuntest.IP(netip.IPv6Unspecified(), routers, 58, make([]byte, 8)), Chatter, nil},
		{"multicast from a global address", udp(us6, netip.MustParseAddr("ff05::1"), ""), Chatter, nil},
		{"broadcast", udp(us4, netip.MustParseAddr("255.255.255.255"), ""), Chatter, nil},
		{"link-local destination", udp(us4, netip.MustParseAddr("169.254.1.1"), ""), Chatter, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.inject(row.packet)
				b.sent.wantRuns(t, row.name)
				wantDropped(t, "the forwarder", b.Stats(), map[Reason]uint64{row.reason: 1})
				if row.icmp == nil {
					b.dev.WantNothing(t, row.name)
					return
				}
				answer := b.dev.Next(t)
				if _, icmp, ok := transport(answer); !ok || !bytes.Equal(icmp[:2], row.icmp) || tuntest.Check(answer) != nil {
					t.Errorf("answer %x, want ICMP %v", answer, row.icmp)
				}
			})
		})
	}
}

func TestPacketsThatDoNotFitAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		fits, big := udp(us4, them4, string(make([]byte, 1300-28))), udp(us4, them4, string(make([]byte, 1300-27)))
		b.inject(big, fits)
		b.sent.wantRuns(t, "only what fits", [][]byte{fits})
		wantDropped(t, "the peer", b.peer.Stats(), map[Reason]uint64{TooBig: 1})
		if answer, want := b.dev.Next(t), AppendTooBig(nil, big, 1300); !bytes.Equal(answer, want) {
			t.Errorf("answer %x, want %x", answer, want)
		}
		b.peer.SetMTU(1400)
		b.inject(big)
		b.sent.wantRuns(t, "the MTU was raised", [][]byte{big})
		for _, row := range [][2]int{{0, MinMTU}, {-5, MinMTU}, {1279, MinMTU}, {1281, 1281}, {1 << 20, 65535}} {
			if b.peer.SetMTU(row[0]); b.peer.MTU() != row[1] {
				t.Errorf("MTU after SetMTU(%d) = %d, want %d", row[0], b.peer.MTU(), row[1])
			}
		}
	})
}

func TestSegmentSizesAreClampedBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		syn := tuntest.Segment{Flags: tuntest.SYN, MSS: 1380}
		small := tuntest.Segment{Flags: tuntest.SYN, MSS: 1260}
		b.inject(tuntest.TCP(port(us4, 1), port(them4, 2), syn))
		b.sent.wantRuns(t, "a SYN to the peer", [][]byte{tuntest.TCP(port(us4, 1), port(them4, 2), small)})
		b.Deliver(b.peer, buffers(tuntest.TCP(port(them4, 1), port(us4, 2), syn)), Headroom, nil)
		if got, want := b.dev.Next(t), tuntest.TCP(port(them4, 1), port(us4, 2), small); !bytes.Equal(got, want) {
			t.Errorf("a SYN from the peer arrives as %x, want %x", got, want)
		}

		b.peer.SetMTU(600) // less than IPv6 allows: packets may be larger, segments are not
		tiny := tuntest.Segment{Flags: tuntest.SYN, MSS: 560}
		b.inject(tuntest.TCP(port(us4, 1), port(them4, 2), syn))
		b.sent.wantRuns(t, "a SYN along a narrow path", [][]byte{tuntest.TCP(port(us4, 1), port(them4, 2), tiny)})
		large := udp(us4, them4, string(make([]byte, MinMTU-28)))
		b.inject(large)
		b.sent.wantRuns(t, "a large packet along a narrow path", [][]byte{large})
	})
}

func TestSessionsThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		packet := udp(us4, them4, "x")
		b.peer.SetSession(nil)
		b.inject(packet)
		wantDropped(t, "a peer without session", b.peer.Stats(), map[Reason]uint64{NoSession: 1})
		b.dev.WantNothing(t, "the session may come")

		b.peer.SetSession(&recorder{err: errors.New("queue is full")})
		b.inject(packet, packet)
		wantDropped(t, "a busy session", b.peer.Stats(), map[Reason]uint64{NoSession: 3})
		b.dev.WantNothing(t, "programs repeat what was lost")

		b.peer.SetSession(&recorder{err: fmt.Errorf("no path: %w", ErrUnreachable)})
		b.inject(packet)
		wantDropped(t, "an unreachable peer", b.peer.Stats(), map[Reason]uint64{NoSession: 4})
		if answer, want := b.dev.Next(t), AppendUnreachable(nil, packet); !bytes.Equal(answer, want) {
			t.Errorf("answer %x, want %x", answer, want)
		}
		if got := b.peer.Stats(); got.TxPackets != 0 {
			t.Errorf("%d packets were counted as sent, want none", got.TxPackets)
		}
	})
}

func TestAnswersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		lost := udp(us4, netip.MustParseAddr("10.64.9.9"), "")
		flood := func(packets int) {
			for range packets / 10 {
				b.inject(slices.Repeat([][]byte{lost}, 10)...)
			}
		}
		flood(1000)
		for range icmpBurst {
			b.dev.Next(t)
		}
		b.dev.WantNothing(t, "the burst is used up")
		wantDropped(t, "the forwarder", b.Stats(), map[Reason]uint64{NoRoute: 1000})
		time.Sleep(time.Second / 10)
		flood(100)
		for range icmpPerSecond / 10 {
			b.dev.Next(t)
		}
		b.dev.WantNothing(t, "a tenth of a second allows a tenth of the rate")

		big := udp(us4, them4, string(make([]byte, 1350)))
		b.inject(big)
		if answer := b.dev.Next(t); !bytes.Equal(answer, AppendTooBig(nil, big, 1300)) {
			t.Errorf("answer %x, want one to the packet that is too big", answer)
		}
	})
}

// buffers returns packets as Deliver takes them.
func buffers(packets ...[]byte) [][]byte {
	bufs := make([][]byte, len(packets))
	for i, p := range packets {
		bufs[i] = append(make([]byte, Headroom, Headroom+len(p)+32), p...)
	}
	return bufs
}

func TestIncomingPacketsAreChecked(t *testing.T) {
	good4, good6 := udp(them4, us4, "data"), udp(them6, us6, "data")
	stranger4, stranger6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::1")
	const accepted = numReasons
	for _, row := range []struct {
		name   string
		packet []byte
		reason Reason
	}{
		{"IPv4", good4, accepted},
		{"IPv6", good6, accepted},
		{"a network behind the peer", udp(netip.MustParseAddr("192.168.5.200"), us4, ""), accepted},
		{"bytes behind the packet", append(bytes.Clone(good4), 0, 0, 0), accepted},
		{"nothing", nil, Malformed},
		{"one byte", good4[:1], Malformed},
		{"cut", good4[:len(good4)-1], Malformed},
		{"cut IPv6", good6[:len(good6)-1], Malformed},
		{"version 5", edit(good4, 0, 0x55), Malformed},
		{"header checksum", edit(good4, 8, 63), Malformed},
		{"mapped source", tuntest.IP(netip.AddrFrom16(them4.As16()), us6, 17, nil), Malformed},
		{"source of another peer", udp(other4, us4, ""), SourceNotAllowed},
		{"IPv6 source of another peer", udp(other6, us6, ""), SourceNotAllowed},
		{"source of a stranger", udp(stranger4, us4, ""), SourceNotAllowed},
		{"IPv6 source of a stranger", udp(stranger6, us6, ""), SourceNotAllowed},
		{"our own source", udp(us4, us4, ""), SourceNotAllowed},
		{"loopback source", udp(netip.MustParseAddr("127.0.0.1"), us4, ""), SourceNotAllowed},
		{"link-local source", udp(netip.MustParseAddr("fe80::1"), us6, ""), SourceNotAllowed},
		{"unspecified source", udp(netip.IPv6Unspecified(), us6, ""), SourceNotAllowed},
		{"next to the network behind it", udp(netip.MustParseAddr("192.168.6.1"), us4, ""), SourceNotAllowed},
		{"to another peer", udp(them4, other4, ""), DestinationNotOurs},
		{"to itself", udp(them6, them6, ""), DestinationNotOurs},
		{"to the Internet", udp(them4, stranger4, ""), DestinationNotOurs},
		{"to the host's loopback", udp(them4, netip.MustParseAddr("127.0.0.1"), ""), DestinationNotOurs},
		{"to a multicast group", udp(them6, netip.MustParseAddr("ff02::1"), ""), DestinationNotOurs},
		{"to everyone", udp(them4, netip.MustParseAddr("255.255.255.255"), ""), DestinationNotOurs},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.Deliver(b.peer, buffers(good6, row.packet, good4), Headroom, nil)
				if got := b.dev.Next(t); !bytes.Equal(got, good6) {
					t.Errorf("the packet before arrives as %x, want %x", got, good6)
				}
				if row.reason == accepted {
					_, _, length, _ := parsePacket(row.packet)
					if got := b.dev.Next(t); !bytes.Equal(got, row.packet[:length]) {
						t.Errorf("arrives as %x, want %x", got, row.packet[:length])
					}
					wantDropped(t, "the peer", b.peer.Stats(), nil)
				} else {
					wantDropped(t, "the peer", b.peer.Stats(), map[Reason]uint64{row.reason: 1})
				}
				if got := b.dev.Next(t); !bytes.Equal(got, good4) {
					t.Errorf("the packet behind arrives as %x, want %x", got, good4)
				}
				b.dev.WantNothing(t, "that was all")
				wantDropped(t, "the other peer", b.other.Stats(), nil)
			})
		})
	}
}

func TestIncomingPacketsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		packet := udp(them4, us4, "data")
		b.Deliver(b.peer, buffers(packet, packet), Headroom, nil)
		if got := b.peer.Stats(); got.RxPackets != 2 || got.RxBytes != uint64(2*len(packet)) {
			t.Errorf("Stats = %+v, want 2 packets of %d bytes", got, len(packet))
		}
		b.Deliver(b.peer, buffers(packet)[:0], Headroom, nil)
		if err := b.dev.Close(); err != nil {
			t.Fatal(err)
		}
		b.Deliver(b.peer, buffers(packet, packet, packet), Headroom, nil)
		wantDropped(t, "with the device closed, the peer", b.peer.Stats(), map[Reason]uint64{DeviceFailed: 3})
	})
}

func TestPeersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for _, row := range []struct {
			name string
			cfg  PeerConfig
			want error // nil: any
		}{
			{"the same key", PeerConfig{Key: testKey(1)}, ErrPeerExists},
			{"another's prefix", PeerConfig{Key: testKey(3), Prefixes: prefixes(other4.String() + "/32")}, ErrPrefixTaken},
			{"our address", PeerConfig{Key: testKey(3), Prefixes: prefixes(us4.String() + "/32")}, nil},
			{"no prefix", PeerConfig{Key: testKey(3), Prefixes: []netip.Prefix{{}}}, nil},
		} {
			if _, err := b.AddPeer(row.cfg); err == nil || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("AddPeer with %s: %v, want %v", row.name, err, row.want)
			}
		}
		if got := b.Peers(); !slices.Equal(got, []*Peer{b.peer, b.other}) && !slices.Equal(got, []*Peer{b.other, b.peer}) {
			t.Errorf("Peers = %v, want the two that were added", got)
		}
		if b.Peer(testKey(2)) != b.other || b.Peer(testKey(3)) != nil || b.Lookup(netip.AddrFrom16(other4.As16())) != b.other {
			t.Error("Peer and Lookup do not find who was added, or find who was not")
		}

		b.RemovePeer(b.peer)
		b.RemovePeer(b.peer)
		b.inject(udp(us4, them4, ""))
		b.sent.wantRuns(t, "the peer was removed")
		wantDropped(t, "the forwarder", b.Stats(), map[Reason]uint64{NoRoute: 1})
		b.Deliver(b.peer, buffers(udp(them4, us4, "")), Headroom, nil)
		wantDropped(t, "the removed peer", b.peer.Stats(), map[Reason]uint64{SourceNotAllowed: 1})

		again, err := b.AddPeer(PeerConfig{Key: testKey(1), Prefixes: b.peer.Prefixes(), Session: b.sent})
		if err != nil {
			t.Fatal(err)
		}
		b.RemovePeer(b.peer) // the one before: must not take the new one out
		packet := udp(us4, them4, "back")
		b.inject(packet)
		b.sent.wantRuns(t, "the peer is back", [][]byte{packet})
		if again.Stats().TxPackets != 1 {
			t.Error("the packet was not counted for the peer that was added last")
		}
	})
}

// A peer with a default route may send from anywhere, but not from addresses of this node or of other peers.
func TestWidePrefixesDoNotCoverOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		exit, err := b.AddPeer(PeerConfig{Key: testKey(3), Prefixes: prefixes("0.0.0.0/0", "::/0")})
		if err != nil {
			t.Fatal(err)
		}
		anywhere := udp(netip.MustParseAddr("192.0.2.9"), us4, "")
		b.Deliver(exit, buffers(udp(us4, us4, ""), udp(them4, us4, ""), udp(us6, us6, ""), anywhere), Headroom, nil)
		if got := b.dev.Next(t); !bytes.Equal(got, anywhere) {
			t.Errorf("got %x, want %x", got, anywhere)
		}
		wantDropped(t, "the exit", exit.Stats(), map[Reason]uint64{SourceNotAllowed: 3})

		b.inject(udp(us4, us4, ""))
		wantDropped(t, "the forwarder", b.Stats(), map[Reason]uint64{NoRoute: 1})
	})
}

func TestRunReportsWhyItEnded(t *testing.T) {
	broken := errors.New("device is on fire")
	for _, row := range []struct {
		name string
		err  error
		want error
	}{
		{"closed", fmt.Errorf("read: %w", os.ErrClosed), nil},
		{"broken", broken, broken},
	} {
		f := NewForwarder(&failingDevice{err: row.err}, Config{})
		if err := f.Run(t.Context()); !errors.Is(err, row.want) {
			t.Errorf("%s: Run = %v, want %v", row.name, err, row.want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if err := NewForwarder(&failingDevice{}, Config{}).Run(ctx); !errors.Is(err, broken) {
		t.Errorf("Run with an ended context = %v, want its cause", err)
	}
	if err := NewForwarder(&failingDevice{mtuErr: broken}, Config{}).Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Run without MTU = %v, want why", err)
	}
}

// failingDevice is a Device whose Read and MTU fail.
type failingDevice struct{ err, mtuErr error }

func (d *failingDevice) Read([][]byte, []int, int) (int, error)  { return 0, d.err }
func (d *failingDevice) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (d *failingDevice) BatchSize() int                          { return 4 }
func (d *failingDevice) MTU() (int, error)                       { return 1280, d.mtuErr }

func TestReasonsAreNamed(t *testing.T) {
	seen := make(map[string]bool)
	for r := range numReasons {
		if text := r.String(); text == "" || seen[text] {
			t.Errorf("reason %d is called %q", r, text)
		}
		seen[r.String()] = true
	}
	got, err := json.Marshal(map[Reason]uint64{SourceNotAllowed: 2})
	if want := `{"source not allowed":2}`; string(got) != want || err != nil {
		t.Errorf("json = %s, %v, want %s", got, err, want)
	}
}

func FuzzDeliver(f *testing.F) {
	for _, seed := range [][]byte{
		udp(them4, us4, "data"), udp(them6, us6, "data"),
		tuntest.TCP(port(them4, 1), port(us4, 2), tuntest.Segment{Flags: tuntest.SYN, MSS: 1460}),
		tuntest.TCP(port(them6, 1), port(us6, 2), tuntest.Segment{Flags: tuntest.SYN, MSS: 1460}),
		AppendTooBig(nil, udp(us4, them4, "data"), 1280),
		{},
		{0x45},
		{0x60},
	} {
		f.Add(seed)
	}
	sink := &sinkDevice{}
	fwd := NewForwarder(sink, Config{Local: []netip.Addr{us4, us6}})
	p, err := fwd.AddPeer(PeerConfig{Key: testKey(1), Prefixes: prefixes(them4.String()+"/32", them6.String()+"/128")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		sink.got = nil
		before := p.Stats()
		fwd.Deliver(p, buffers(packet), Headroom, nil)
		after := p.Stats()
		if sink.got == nil {
			if after.RxPackets != before.RxPackets {
				t.Errorf("%x was counted and not written", packet)
			}
			return
		}
		// What gets through is sound, from p and for us, and no longer than what came.
		src, dst, length, ok := parsePacket(sink.got)
		if !ok || length != len(sink.got) || length > len(packet) ||
			(src != them4 && src != them6) || (dst != us4 && dst != us6) {
			t.Errorf("%x became %x", packet, sink.got)
		}
		for i, c := range sink.got[:headerLen4] {
			if c != packet[i] {
				t.Errorf("%x became %x: its IP header changed", packet, sink.got)
			}
		}
	})
}

func FuzzAnswers(f *testing.F) {
	f.Add(udp(us4, them4, "data"), 1280)
	f.Add(udp(us6, them6, "data"), 0)
	f.Add(tuntest.Echo(us4, them4, 1, 1, nil), 1<<20)
	f.Add(tuntest.TCP(port(us6, 1), port(them6, 2), tuntest.Segment{Flags: tuntest.SYN, MSS: 1460}), -1)
	f.Fuzz(func(t *testing.T, packet []byte, mtu int) {
		for _, answer := range [][]byte{
			AppendTooBig(nil, packet, mtu), AppendNoRoute(nil, packet), AppendUnreachable(nil, packet),
		} {
			if len(answer) == 0 {
				continue
			}
			if err := tuntest.Check(answer); err != nil {
				t.Errorf("answer to %x: %v", packet, err)
			}
			if again := AppendNoRoute(nil, answer); len(again) != 0 {
				t.Errorf("the answer to %x is itself answered", packet)
			}
			if len(answer) > 3*max(len(packet), 20) {
				t.Errorf("the answer to %d bytes has %d", len(packet), len(answer))
			}
		}
		clamped := bytes.Clone(packet)
		if ClampMSS(clamped, mtu) && tuntest.Check(packet) == nil && tuntest.Check(clamped) != nil {
			t.Errorf("clamping %x to %d made %x: %v", packet, mtu, clamped, tuntest.Check(clamped))
		}
	})
}

// sinkDevice keeps the last packet written.
type sinkDevice struct {
	failingDevice
	got []byte
}

func (d *sinkDevice) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		d.got = b[offset:]
	}
	return len(bufs), nil
}

// loopDevice gives the same batch again and again, and takes everything.
type loopDevice struct {
	batch [][]byte
	left  int
}

func (d *loopDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if d.left <= 0 {
		return 0, os.ErrClosed
	}
	d.left -= len(d.batch)
	for i, p := range d.batch {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(d.batch), nil
}
func (d *loopDevice) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (d *loopDevice) BatchSize() int                          { return 128 }
func (d *loopDevice) MTU() (int, error)                       { return 1420, nil }

type nullSession struct{}

func (nullSession) SendFrom(next func(offset int, finish bool) ([]byte, bool)) error {
	for b, _ := next(2, false); b != nil; b, _ = next(2, false) {
	}
	return nil
}

func benchForwarder(tb testing.TB, dev Device) (*Forwarder, *Peer) {
	tb.Helper()
	f := NewForwarder(dev, Config{Local: []netip.Addr{us4, us6}})
	var p *Peer
	for i := range 1000 { // a table as large as tables get
		k := testKey(byte(i))
		k[0], k[1] = byte(i), byte(i>>8)
		cfg := PeerConfig{Key: k, Session: nullSession{}, MTU: 1420, Prefixes: []netip.Prefix{netip.PrefixFrom(Addr6(k), 128)}}
		if i == 0 {
			cfg.Prefixes = []netip.Prefix{netip.PrefixFrom(them4, 32), netip.PrefixFrom(them6, 128)}
		}
		added, err := f.AddPeer(cfg)
		if err != nil {
			tb.Fatal(err)
		}
		if i == 0 {
			p = added
		}
	}
	return f, p
}

func TestNothingIsAllocatedPerPacket(t *testing.T) {
	out := tuntest.TCP(port(us4, 1), port(them4, 2), tuntest.Segment{Flags: tuntest.ACK, Payload: make([]byte, 1380)})
	dev := &loopDevice{batch: slices.Repeat([][]byte{out}, 40)}
	f, p := benchForwarder(t, dev)
	source, err := newPlainSource(dev)
	if err != nil {
		t.Fatal(err)
	}
	o := newOutbound(f, source)
	n := testing.AllocsPerRun(100, func() {
		dev.left = 40
		n, err := o.from.ReadLarge()
		if err != nil {
			t.Error(err)
		}
		o.forward(n)
	})
	if n != 0 {
		t.Errorf("a batch to a peer allocates %v times, want 0", n)
	}
	made := buffers(slices.Repeat([][]byte{udp(them6, us6, "data")}, 40)...)
	bufs := make([][]byte, len(made))
	n = testing.AllocsPerRun(100, func() {
		copy(bufs, made)
		f.Deliver(p, bufs, Headroom, nil)
	})
	if n != 0 {
		t.Errorf("a batch from a peer allocates %v times, want 0", n)
	}
}

func BenchmarkRun(b *testing.B) {
	packet := tuntest.TCP(port(us6, 1), port(them6, 2), tuntest.Segment{Flags: tuntest.ACK, Payload: make([]byte, 1360)})
	dev := &loopDevice{batch: slices.Repeat([][]byte{packet}, 40)}
	f, _ := benchForwarder(b, dev)
	source, err := newPlainSource(dev)
	if err != nil {
		b.Fatal(err)
	}
	o := newOutbound(f, source)
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%40 == 0 {
			dev.left = 40
			if _, err := o.from.ReadLarge(); err != nil {
				b.Fatal(err)
			}
			o.forward(40)
		}
	}
}

func BenchmarkDeliver(b *testing.B) {
	f, p := benchForwarder(b, &loopDevice{})
	packet := tuntest.TCP(port(them6, 1), port(us6, 2), tuntest.Segment{Flags: tuntest.ACK, Payload: make([]byte, 1360)})
	made := buffers(slices.Repeat([][]byte{packet}, 40)...)
	bufs := make([][]byte, len(made))
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%40 == 0 {
			copy(bufs, made)
			f.Deliver(p, bufs, Headroom, nil)
		}
	}
}
