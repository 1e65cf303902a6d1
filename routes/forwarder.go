package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"omegatun/dht/key"
)

// Device is the packet device of the host, as package tun opens it.
type Device interface {
	// Read waits for packets and puts each into bufs[i][offset:] and its length into sizes[i]. It returns how many
	// there are. A packet that does not fit is lost. Packets may be there even if there is an error. After the device
	// was closed, and by its closing, it returns an error that wraps [os.ErrClosed]. Any error is final.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	// Write gives the packets bufs[i][offset:] to the host. The offset bytes before each packet are the device's to
	// use, and so is the capacity behind it: packets may be merged there. The elements of bufs may change. All of
	// it is the caller's again when Write returns. It is safe for concurrent use, also with Read.
	Write(bufs [][]byte, offset int) (int, error)
	// BatchSize is the number of buffers Read wants, 1 or more. It does not change.
	BatchSize() int
	// MTU is the size in bytes of the largest packet that the host sends to the device.
	MTU() (int, error)
}

// LargeDevice is what a [Device] may be too: it carries large packets, each of which stands for many of one flow, and
// leaves checksums to the host's kernel. Package tun has one, and says what the methods do.
type LargeDevice interface {
	Device
	Queue
	// WriteLarge is Write, but buffers need no capacity behind the packets. Packet i has an unfinished checksum if
	// unfinished[i] is set. It returns how many packets were written.
	WriteLarge(bufs [][]byte, offset int, unfinished []bool) (int, error)
}

// Queue is where packets from the host wait. A [LargeDevice] is one, and may have others beside it, all packets of a flow being in one
// of them: see [Forwarder.RunQueue].
type Queue interface {
	// ReadLarge waits for packets and returns how many there are, valid until the next call. Errors are those of Read.
	ReadLarge() (int, error)
	// Packet returns packet i, large or not, and the length of the longest that it stands for.
	Packet(i int) (packet []byte, longest int)
	// Cut returns the next of the packets that packet i stands for, as b[offset:]; nil after the last. It is what
	// [Session] wants of next.
	Cut(i, offset int, finish bool) (b []byte, unfinished bool)
}

// Headroom is the offset in bytes at which the forwarder reads and writes packets of its own. It is enough for every
// device of package tun, and a good value for [Forwarder.Deliver].
const Headroom = 16

// ErrPeerExists is returned when a key is added twice.
var ErrPeerExists = errors.New("peer exists")

// Config configures a [Forwarder].
type Config struct {
	Local  []netip.Addr // this node's virtual addresses, of which programs send and at which peers reach it
	Logger *slog.Logger // nil: discard
}

// Forwarder carries packets between a device and the sessions of peers. All methods are safe for concurrent use. It
// starts no goroutine: [Forwarder.Run], [Forwarder.RunQueue] and [Forwarder.Deliver] work in their caller's.
type Forwarder struct {
	dev      Device
	large    LargeDevice  // dev, if it is one
	local    []netip.Addr // immutable
	log      *slog.Logger
	table    Table
	counters counters // of packets that belong to no peer

	mu    sync.Mutex // guards peers; taken before the table's
	peers map[key.Public]*Peer
}

// NewForwarder returns a forwarder without peers. It does not own dev.
func NewForwarder(dev Device, cfg Config) *Forwarder {
	f := &Forwarder{dev: dev, log: cfg.Logger, peers: make(map[key.Public]*Peer)}
	f.large, _ = dev.(LargeDevice)
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	for _, a := range cfg.Local {
		f.local = append(f.local, a.Unmap())
	}
	return f
}

// AddPeer lets packets flow to and from a peer. The error wraps [ErrPeerExists] or [ErrPrefixTaken], or says which
// prefix is invalid or holds an address of this node.
func (f *Forwarder) AddPeer(cfg PeerConfig) (*Peer, error) {
	for _, prefix := range cfg.Prefixes {
		for _, a := range f.local {
			if prefix.IsValid() && prefix.IsSingleIP() && prefix.Addr().Unmap() == a {
				return nil, fmt.Errorf("routes: add peer %s: %v is this node's own address", cfg.Key.Short(), a)
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peers[cfg.Key] != nil {
		return nil, fmt.Errorf("routes: add peer %s: %w", cfg.Key.Short(), ErrPeerExists)
	}
	p := newPeer(cfg)
	if err := f.table.Insert(p, p.prefixes); err != nil {
		return nil, err
	}
	f.peers[cfg.Key] = p
	return p, nil
}

// RemovePeer undoes [Forwarder.AddPeer]; for a peer that was removed it does nothing. Packets on their way may still
// pass.
func (f *Forwarder) RemovePeer(p *Peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peers[p.key] == p {
		delete(f.peers, p.key)
		f.table.Remove(p, p.prefixes)
	}
}

// Peer returns the peer with this key, nil if there is none.
func (f *Forwarder) Peer(k key.Public) *Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.peers[k]
}

// Lookup returns the peer that packets to a go to, nil if there is none.
func (f *Forwarder) Lookup(a netip.Addr) *Peer { return f.table.Lookup(a.Unmap().WithZone("")) }

// Peers returns all peers, ordered by key.
func (f *Forwarder) Peers() []*Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	peers := make([]*Peer, 0, len(f.peers))
	for _, p := range f.peers {
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b *Peer) int { return a.key.Compare(b.key) })
	return peers
}

// Stats returns what has been counted for packets that belong to no peer.
func (f *Forwarder) Stats() Stats { return f.counters.stats() }

// Run carries packets from the device to the sessions until the device is closed, and then returns nil. Any other
// error of reading ends it too. When ctx ends, Run returns its cause after the batch that is being waited for: close
// the device to end it at once. Run must be called only once.
func (f *Forwarder) Run(ctx context.Context) error {
	if f.large != nil {
		return f.RunQueue(ctx, f.large)
	}
	s, err := newPlainSource(f.dev)
	if err != nil {
		return err
	}
	return f.RunQueue(ctx, s)
}

// RunQueue is Run for one of the queues of the device. It must be called only once for each, also at the same time for several: they
// share nothing but the table and the sessions.
func (f *Forwarder) RunQueue(ctx context.Context, q Queue) error {
	o := newOutbound(f, q)
	for ctx.Err() == nil {
		n, err := o.from.ReadLarge()
		o.forward(n)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("routes: read from the device: %w", err)
		}
	}
	return context.Cause(ctx)
}

// Deliver writes to the device those packets that p may send us. Packet i is bufs[i][offset:]; bytes that follow it
// are cut off. A packet is dropped and counted unless its header is sound, its source one of p's addresses, and its
// destination one of ours. TCP connections are held to the MTU of p. Packet i comes with an unfinished checksum, as
// [Session] explains, if unfinished[i] is set, which only a [LargeDevice] can write; nil: none does.
//
// The offset bytes before each packet are the device's to use; [Headroom] is enough. Unless the device is a LargeDevice, the
// capacity behind it is too, as [Device] says, so no two buffers may overlap there, and packets are merged into larger
// ones only if the capacity of a buffer is at least 65535 + 2·offset. The elements of bufs and unfinished change: rebuild
// them before the next call. Everything is the caller's again when Deliver returns. It may run in several goroutines
// at once, with different bufs.
func (f *Forwarder) Deliver(p *Peer, bufs [][]byte, offset int, unfinished []bool) {
	var known admission
	accepted, bytes := 0, 0
	mtu := int(p.whole.Load())
	for i, buf := range bufs {
		partial := unfinished != nil && unfinished[i]
		length, reason := f.admit(p, buf, offset, partial, &known)
		if length == 0 {
			p.counters.drop(reason, 1)
			continue
		}
		ClampMSS(buf[offset:offset+length], mtu)
		bufs[accepted] = buf[:offset+length]
		if unfinished != nil {
			unfinished[accepted] = partial
		}
		accepted++
		bytes += length
	}
	if accepted == 0 {
		return
	}
	var written int
	var err error
	if f.large != nil {
		if unfinished != nil {
			unfinished = unfinished[:accepted]
		}
		written, err = f.large.WriteLarge(bufs[:accepted], offset, unfinished)
	} else {
		written, err = f.dev.Write(bufs[:accepted], offset)
	}
	if err != nil {
		p.counters.drop(DeviceFailed, accepted-written)
		if !errors.Is(err, os.ErrClosed) {
			f.log.Debug("writing to the device failed", "peer", p.key.Short(), "packets", accepted-written, "error", err)
		}
		if written == 0 {
			return
		}
	}
	p.counters.rxPackets.Add(uint64(written))
	p.counters.rxBytes.Add(uint64(bytes)) // those of packets that the device refused too, as it does not say which
}

// admission remembers the addresses that were let through last: most packets come in runs of one flow.
type admission struct{ src, dst netip.Addr }

// admit returns the length of the packet buf[offset:] from p, or zero and why it is dropped.
func (f *Forwarder) admit(p *Peer, buf []byte, offset int, unfinished bool, known *admission) (int, Reason) {
	if len(buf) < offset {
		return 0, Malformed
	}
	packet := buf[offset:]
	src, dst, length, ok := parsePacket(packet)
	if !ok || !headerSumOK(packet) || unfinished && (f.large == nil || !canBeUnfinished(packet[:length])) {
		return 0, Malformed
	}
	if src == known.src && dst == known.dst {
		return length, 0
	}
	switch {
	case f.table.Lookup(src) != p || f.isLocal(src):
		return 0, SourceNotAllowed
	case !f.isLocal(dst):
		return 0, DestinationNotOurs
	}
	known.src, known.dst = src, dst
	return length, 0
}

func (f *Forwarder) isLocal(a netip.Addr) bool { return slices.Contains(f.local, a) }

// usualMTU is that of most interfaces, in bytes. The device's may be raised to it while Run goes on; larger packets
// are lost then.
const usualMTU = 1500

// outbound is the state of [Forwarder.RunQueue], owned by its goroutine.
type outbound struct {
	f     *Forwarder
	from  Queue
	batch []routed // the packets of one ReadLarge
	spare []byte   // the headroom of reply, with the capacity for a message
	reply [1][]byte

	// The run in progress: the packets of batch that go to one peer. next is cut, bound once, because binding it allocates.
	run            []int // by index
	turn           int   // of run, the one being cut
	packets, bytes int   // cut so far
	next           func(offset int, finish bool) (b []byte, unfinished bool)

	tooBig, unreachable bucket // apart, so that a flood to nowhere does not hide the size that fits
}

// routed is a packet of the host.
type routed struct {
	to     *Peer // nil: nobody, or it is sent
	length int   // without the bytes that follow it; zero: it is a large packet, and none do
}

// plainSource makes a Queue of a Device.
type plainSource struct {
	dev   Device
	bufs  [][]byte // the device reads into these
	sizes []int
	taken []bool // by Cut
}

func newPlainSource(dev Device) (*plainSource, error) {
	mtu, err := dev.MTU()
	if err != nil {
		return nil, fmt.Errorf("routes: MTU of the device: %w", err)
	}
	n := max(1, dev.BatchSize())
	s := &plainSource{dev: dev, bufs: make([][]byte, n), sizes: make([]int, n), taken: make([]bool, n)}
	// One arena, close together, because it should stay in the processor's cache.
	const slack = 64 // to a line of it
	size := (Headroom + max(mtu, usualMTU) + slack) &^ (slack - 1)
	arena := make([]byte, n*size)
	for i := range s.bufs {
		s.bufs[i], arena = arena[:size:size], arena[size:]
	}
	return s, nil
}

func (s *plainSource) ReadLarge() (int, error) {
	clear(s.taken)
	return s.dev.Read(s.bufs, s.sizes, Headroom)
}

func (s *plainSource) Packet(i int) (packet []byte, longest int) {
	return s.bufs[i][Headroom : Headroom+s.sizes[i]], s.sizes[i]
}

func (s *plainSource) Cut(i, offset int, _ bool) (b []byte, unfinished bool) {
	if s.taken[i] {
		return nil, false
	}
	s.taken[i] = true
	return s.bufs[i][Headroom-offset : Headroom+s.sizes[i]], false
}

func newOutbound(f *Forwarder, from Queue) *outbound {
	o := &outbound{f: f, from: from, spare: make([]byte, Headroom, Headroom+MinMTU)}
	o.next = o.cut
	return o
}

// forward sends the first n packets that were read, those to one peer together.
func (o *outbound) forward(n int) {
	o.batch = o.batch[:0]
	for i := range n {
		packet, longest := o.from.Packet(i)
		o.batch = append(o.batch, o.route(packet, longest))
	}
	for i := range o.batch {
		to := o.batch[i].to
		if to == nil {
			continue // dropped, or sent already
		}
		o.run = o.run[:0]
		for j := i; j < n; j++ {
			if o.batch[j].to == to {
				o.run = append(o.run, j)
				o.batch[j].to = nil
			}
		}
		o.send(to)
	}
}

// cut returns the next packet of the run, as [Session] wants it.
func (o *outbound) cut(offset int, finish bool) (b []byte, unfinished bool) {
	for o.turn < len(o.run) {
		i := o.run[o.turn]
		if b, unfinished = o.from.Cut(i, offset, finish); b != nil {
			if length := o.batch[i].length; length != 0 {
				b = b[:offset+length]
			}
			o.packets++
			o.bytes += len(b) - offset
			return b, unfinished
		}
		o.turn++
	}
	return nil, false
}

// send gives the run to the session of p, and counts.
func (o *outbound) send(p *Peer) {
	o.turn, o.packets, o.bytes = 0, 0, 0
	s := p.session.Load()
	var err error
	if s != nil {
		err = (*s).SendFrom(o.next)
	}
	if s != nil && err == nil {
		p.counters.txPackets.Add(uint64(o.packets))
		p.counters.txBytes.Add(uint64(o.bytes))
		return
	}
	answer := errors.Is(err, ErrUnreachable)
	for _, i := range o.run {
		if packet, _ := o.from.Packet(i); answer && packet != nil {
			answer = o.answer(&o.unreachable, AppendUnreachable, packet)
		}
	}
	for b, _ := o.cut(0, false); b != nil; b, _ = o.cut(0, false) { // only to count them
	}
	p.counters.drop(NoSession, o.packets)
}

// route returns where a packet of the host goes: nowhere if it was dropped. longest is the length of the longest that it
// stands for.
func (o *outbound) route(b []byte, longest int) routed {
	f := o.f
	src, dst, length, ok := parsePacket(b)
	if !ok {
		f.counters.drop(Malformed, 1)
		return routed{}
	}
	packet := b[:length:length]
	if !f.isLocal(src) {
		if isChatter(src, dst) {
			f.counters.drop(Chatter, 1)
		} else {
			f.counters.drop(SourceNotOurs, 1)
		}
		return routed{}
	}
	p := f.table.Lookup(dst)
	if p == nil || f.isLocal(dst) {
		if isChatter(src, dst) {
			f.counters.drop(Chatter, 1)
			return routed{}
		}
		f.counters.drop(NoRoute, 1)
		o.answer(&o.unreachable, AppendNoRoute, packet)
		return routed{}
	}
	mtu := p.MTU()
	if min(length, longest) > mtu {
		p.counters.drop(TooBig, 1)
		o.answer(&o.tooBig, func(b, packet []byte) []byte { return AppendTooBig(b, packet, mtu) }, packet)
		return routed{}
	}
	if longest < len(b) {
		return routed{to: p}
	}
	ClampMSS(packet, int(p.whole.Load()))
	return routed{to: p, length: length}
}

// answer writes to the device what build makes of packet, if limit allows. It reports whether it may be called again
// at once.
func (o *outbound) answer(limit *bucket, build func(b, packet []byte) []byte, packet []byte) bool {
	if !limit.take(time.Now()) {
		return false
	}
	message := build(o.spare, packet)
	if len(message) == len(o.spare) {
		return true
	}
	o.reply[0] = message
	if _, err := o.f.dev.Write(o.reply[:], Headroom); err != nil {
		o.f.log.Debug("writing an ICMP message to the device failed", "error", err)
	}
	return true
}

// isChatter reports whether a packet between these addresses is what systems send on every interface: router
// solicitations, neighbour discovery, mDNS and the like.
func isChatter(src, dst netip.Addr) bool {
	return dst.IsMulticast() || dst.IsLinkLocalUnicast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		src.IsLinkLocalUnicast() || src.IsUnspecified()
}
