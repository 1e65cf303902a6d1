package routes

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"omegatun/tun/tuntest"
)

// largeDevice is a LargeDevice that gives one batch, in which each packet stands for as many as it has pieces.
type largeDevice struct {
	failingDevice
	batch [][][]byte // packets and what is cut from them
	cut   []int
	left  bool

	written    [][]byte
	unfinished []bool
	refuse     int // of the packets written
}

func (d *largeDevice) ReadLarge() (int, error) {
	if !d.left {
		return 0, os.ErrClosed
	}
	d.left, d.cut = false, make([]int, len(d.batch))
	return len(d.batch), nil
}

func (d *largeDevice) Packet(i int) (packet []byte, longest int) {
	pieces := d.batch[i]
	if len(pieces) == 1 {
		return pieces[0], len(pieces[0])
	}
	// All the payload behind the headers of the first.
	packet = slices.Concat(pieces[0], make([]byte, 1000*(len(pieces)-1)))
	if packet[0]>>4 == 4 {
		packet[2], packet[3] = byte(len(packet)>>8), byte(len(packet))
	}
	return packet, len(pieces[0])
}

func (d *largeDevice) Cut(i, offset int, finish bool) ([]byte, bool) {
	if d.cut[i] == len(d.batch[i]) {
		return nil, false
	}
	d.cut[i]++
	return append(make([]byte, offset), d.batch[i][d.cut[i]-1]...), !finish && len(d.batch[i]) > 1
}

func (d *largeDevice) Write(bufs [][]byte, offset int) (int, error) {
	return d.WriteLarge(bufs, offset, nil)
}

func (d *largeDevice) WriteLarge(bufs [][]byte, offset int, unfinished []bool) (int, error) {
	for i, b := range bufs {
		d.written = append(d.written, bytes.Clone(b[offset:]))
		d.unfinished = append(d.unfinished, unfinished != nil && unfinished[i])
	}
	if d.refuse > 0 {
		return len(bufs) - d.refuse, errors.New("refused")
	}
	return len(bufs), nil
}

// pieces returns n packets of one flow.
func pieces(n, size int) (list [][]byte) {
	for i := range n {
		list = append(list, tuntest.TCP(port(us4, 1), port(them4, 2),
			tuntest.Segment{Seq: uint32(i), Flags: tuntest.ACK, Payload: make([]byte, size)}))
	}
	return list
}

func largeBench(t *testing.T, session Session, batch ...[][]byte) (*Forwarder, *largeDevice, *Peer) {
	t.Helper()
	dev := &largeDevice{batch: batch, left: true}
	f := NewForwarder(dev, Config{Local: []netip.Addr{us4, us6}})
	p, err := f.AddPeer(PeerConfig{
		Key: testKey(1), Session: session, MTU: 1300, Prefixes: prefixes(them4.String()+"/32", them6.String()+"/128"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f, dev, p
}

func TestLargePacketsAreCutOnTheirWay(t *testing.T) {
	sent := new(recorder)
	large, small, more := pieces(40, 1000), udp(us4, them4, "x"), pieces(3, 1000)
	_, dev, p := largeBench(t, sent, large, [][]byte{small}, more)
	sent.wantRuns(t, "everything to one peer", slices.Concat(large, [][]byte{small}, more))
	bytes := uint64(43*1040 + len(small))
	if s := p.Stats(); s.TxPackets != 44 || s.TxBytes != bytes || len(s.Dropped) != 0 {
		t.Errorf("Stats = %+v, want 44 packets and %d bytes", s, bytes)
	}
	if len(dev.written) != 0 {
		t.Errorf("%x was written", dev.written)
	}
}

func TestLargePacketsThatDoNotFitAreAnswered(t *testing.T) {
	sent := new(recorder)
	fits, doesNot := pieces(3, 1260), pieces(3, 1261)
	_, dev, p := largeBench(t, sent, doesNot, fits)
	sent.wantRuns(t, "what fits", fits)
	first, _ := dev.Packet(0)
	if want := AppendTooBig(nil, first, 1300); len(dev.written) != 1 || !bytes.Equal(dev.written[0], want) {
		t.Errorf("answers %x, want %x", dev.written, want)
	}
	wantDropped(t, "the peer", p.Stats(), map[Reason]uint64{TooBig: 1})
}

func TestSessionsThatFailWithLargePackets(t *testing.T) {
	_, _, p := largeBench(t, &recorder{err: errors.New("busy")}, pieces(5, 1000))
	wantDropped(t, "a busy session", p.Stats(), map[Reason]uint64{NoSession: 5})
	_, _, p = largeBench(t, nil, pieces(5, 1000), pieces(1, 10))
	wantDropped(t, "no session", p.Stats(), map[Reason]uint64{NoSession: 6})
	_, dev, p := largeBench(t, &recorder{err: fmt.Errorf("gone: %w", ErrUnreachable)}, pieces(5, 1000))
	wantDropped(t, "an unreachable peer", p.Stats(), map[Reason]uint64{NoSession: 5})
	first, _ := dev.Packet(0)
	if want := AppendUnreachable(nil, first); len(dev.written) != 1 || !bytes.Equal(dev.written[0], want) {
		t.Errorf("answers %x, want %x", dev.written, want)
	}
}

func TestUnfinishedPacketsFromPeers(t *testing.T) {
	tcp := func(n byte) []byte {
		return tuntest.TCP(port(them4, 1), port(us4, 2), tuntest.Segment{Flags: tuntest.ACK, Payload: []byte{n}})
	}
	fragment := tcp(0)
	fragment = with(fragment, 6, 0x20)
	short := tcp(1)[:30]
	short = with(short, 3, 30)
	foreign := tuntest.TCP(port(other4, 1), port(us4, 2), tuntest.Segment{Flags: tuntest.ACK})
	bad := udp(them6, us6, "length")
	bad[45]++
	rows := []struct {
		name       string
		packet     []byte
		unfinished bool
		written    bool
	}{
		{"TCP", tcp(2), true, true},
		{"from somebody else", foreign, true, false},
		{"finished", tcp(3), false, true},
		{"a ping", tuntest.Echo(them4, us4, 1, 1, nil), true, false},
		{"a fragment", fragment, true, false},
		{"half a header", short, true, false},
		{"UDP", udp(them6, us6, "data"), true, true},
		{"UDP with a wrong length", bad, true, false},
		{"a fragment that is finished", fragment, false, true},
		{"no packet", []byte{1}, true, false},
		{"the last", tcp(4), true, true},
	}
	var packets [][]byte
	var unfinished []bool
	var want [][]byte
	var wantUnfinished []bool
	for _, row := range rows {
		packets, unfinished = append(packets, row.packet), append(unfinished, row.unfinished)
		if row.written {
			want, wantUnfinished = append(want, row.packet), append(wantUnfinished, row.unfinished)
		}
	}
	f, dev, p := largeBench(t, nil)
	f.Deliver(p, buffers(packets...), Headroom, slices.Clone(unfinished))
	if !slices.EqualFunc(dev.written, want, bytes.Equal) || !slices.Equal(dev.unfinished, wantUnfinished) {
		t.Errorf("written %x %v, want %x %v", dev.written, dev.unfinished, want, wantUnfinished)
	}
	wantDropped(t, "the peer", p.Stats(), map[Reason]uint64{Malformed: 5, SourceNotAllowed: 1})

	dev.refuse = 2
	before := p.Stats().RxPackets
	f.Deliver(p, buffers(packets...), Headroom, slices.Clone(unfinished))
	if s := p.Stats(); s.RxPackets-before != uint64(len(want)-2) || s.Dropped[DeviceFailed] != 2 {
		t.Errorf("with two refused, Stats = %+v", s)
	}

	// A device that cannot finish them gets none.
	sink := &sinkDevice{}
	plain := NewForwarder(sink, Config{Local: []netip.Addr{us4}})
	p, err := plain.AddPeer(PeerConfig{Key: testKey(1), Prefixes: prefixes(them4.String() + "/32")})
	if err != nil {
		t.Fatal(err)
	}
	plain.Deliver(p, buffers(tcp(1)), Headroom, []bool{true})
	wantDropped(t, "a plain device", p.Stats(), map[Reason]uint64{Malformed: 1})
}

// with sets a byte of an IPv4 header and corrects its checksum.
func with(packet []byte, at int, value byte) []byte {
	packet = bytes.Clone(packet)
	packet[at] = value
	packet[10], packet[11] = 0, 0
	sum := checksum(0, packet[:headerLen4])
	packet[10], packet[11] = byte(sum>>8), byte(sum)
	return packet
}
