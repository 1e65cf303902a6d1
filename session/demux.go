package session

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"omegatun/dht"
	"omegatun/session/beacon"
	"omegatun/session/relay"
	"omegatun/session/tunnel"
	"omegatun/session/udx"
)

const (
	// headroom is the free space before each packet handed to Config.Inbound: the header of the datagram that the packet came
	// in, which is opened where it lies. A TUN device writes its own header there.
	headroom = tunnel.HeaderSize
	// inboundBatch is how many packets are handed over at once.
	inboundBatch = 128
)

// serve receives what comes in at s by way of r until it is closed, and hands each datagram to the part it belongs to. Of a socket that
// all peers use there may be several receivers, and whoever uses s does not see which one it was.
func (h *Host) serve(s Socket, r Receiver) {
	burst := h.node.NewBurst()
	in := inbound{host: h, burst: &burst, streams: h.mux.NewBurst()}
	for {
		batch, err := r.Receive()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				h.log.Error("socket failed", "local", s.LocalAddr(), "error", err)
			}
			return
		}
		now := time.Now()
		in.relay(h.relayServer.Load())
		for i := range batch.Len() {
			b, from := batch.Datagram(i)
			h.dispatch(s, b, from, &in, now)
		}
		in.end()
		in.streams.Flush()
		burst.Flush()
		if in.relayed != nil {
			in.relayed.Flush()
		}
	}
}

// dispatch tells the classes of datagrams apart by their first bytes.
//
// Source: dht.md 1, udx.md 15; 0xbe is ours (package tunnel).
func (h *Host) dispatch(s Socket, b []byte, from netip.AddrPort, in *inbound, now time.Time) {
	switch {
	case from.Port() == 0:
	case len(b) <= 1:
		h.mu.Lock()
		sink := h.sinks[s]
		h.mu.Unlock()
		if sink != nil { // on the main sockets probes mean nothing
			sink.handle(s, from)
		}
	case beacon.Is(b):
		h.lan.handshake(s, b, from)
	case tunnel.IsDatagram(b):
		h.tunnelled(s, b, from, in, now)
	case b[0] == 0xff && b[1] == 1:
		if (in.relayed == nil || !in.relayed.Add(s, b, from)) && !h.cameOverRelay(s, b, from, in, now) {
			if in.streams != nil {
				in.streams.Receive(s, b, from)
			} else {
				h.mux.Receive(s, b, from)
			}
		}
	case (b[0] == 0x03 || b[0] == 0x13) && from.Addr().Is4():
		if in.burst != nil {
			in.burst.Receive(s, b, from)
		} else {
			h.node.Receive(s, b, from)
		}
	default:
		h.dropped.Add(1)
	}
}

// cameOverRelay takes a tunnel datagram that a relay has passed on, without the detour through the stream that it
// belongs to, so that those received together stay together. It reports false for everything else.
func (h *Host) cameOverRelay(s Socket, b []byte, from netip.AddrPort, in *inbound, now time.Time) bool {
	if h.relaySockets.Load() == 0 {
		return false
	}
	id, datagram, ok := relay.Unwrap(b)
	if !ok || udx.Flags(b[2]) != udx.FlagMessage || !tunnel.IsDatagram(datagram) {
		return false
	}
	v, _ := h.relayed.Load(id)
	r, _ := v.(*relaySocket)
	if r == nil || r.under != s || r.remote != from {
		return false
	}
	h.tunnelled(r, datagram, from, in, now)
	return true
}

// tunnelled opens a tunnel datagram where it lies. Whatever fails to authenticate changes nothing but a counter.
func (h *Host) tunnelled(s Socket, b []byte, from netip.AddrPort, in *inbound, now time.Time) {
	index, ok := tunnel.ReceiverIndex(b)
	if !ok {
		h.dropped.Add(1)
		return
	}
	if l := in.link; l == nil || in.index != index || isClosed(l.done) {
		v, _ := h.links.Load(index)
		if l, _ = v.(*link); l == nil {
			h.dropped.Add(1)
			return
		}
		in.link, in.index, in.heard = l, index, false
	}
	l := in.link
	out, err := l.epoch.OpenWith(&in.opener, b[:headroom], b)
	if err != nil {
		if p := l.peer.Load(); p != nil {
			if errors.Is(err, tunnel.ErrReplay) {
				p.replayed.Add(1)
			} else {
				p.rejected.Add(1)
			}
		}
		return
	}
	plain := out[headroom:]
	if !in.heard || in.from != from { // once for a run of datagrams that came together
		credit := mayAnswer * len(b)
		if len(plain) > 0 && tunnel.ContentOf(plain) == tunnel.ContentControl {
			credit = max(credit-answerSize, 0)
		}
		l.authentic(s, from, credit, now)
		in.heard, in.from = true, from
	}
	if len(plain) == 0 {
		return
	}
	switch tunnel.ContentOf(plain) {
	case tunnel.ContentControl:
		l.handleControl(s, from, plain, now)
	case tunnel.ContentPart:
		whole, err := l.joiner.Add(plain, headroom)
		switch {
		case err != nil:
			h.dropped.Add(1)
		case whole == nil: // parts are missing
		case tunnel.ContentOf(whole[headroom:]) == tunnel.ContentStream:
			h.mux.Receive(s, whole[headroom:], from)
		default:
			in.addContent(l, whole, now)
		}
	default:
		in.addContent(l, out, now)
	}
}

// addContent keeps the packet in an authentic plaintext, which lies behind its headroom.
func (in *inbound) addContent(l *link, b []byte, now time.Time) {
	switch plain := b[headroom:]; tunnel.ContentOf(plain) {
	case tunnel.ContentIP:
		in.add(l, b, false, now)
		return
	case tunnel.ContentUnfinished:
		if l.epoch.Params().Features&tunnel.FeatureUnfinished != 0 && len(plain) > tunnel.UnfinishedHeader && plain[1] == 0 {
			in.add(l, b[tunnel.UnfinishedHeader:], true, now)
			return
		}
	default:
	}
	in.host.dropped.Add(1)
}

// inbound gathers the packets of one Receive, and hands runs of one peer to Config.Inbound. It belongs to
// one goroutine.
type inbound struct {
	host       *Host
	opener     tunnel.Opener
	peer       *Peer
	run        [][]byte // packets, behind their headroom, in the memory that they were received into
	unfinished []bool   // of each packet of run
	partial    bool     // one of them is
	n          uint64   // bytes of packets in run

	link  *link // of the last datagram of this Receive; nil: none
	heard bool  // link knows that something authentic came from the address from
	from  netip.AddrPort
	index uint32 // that named the link

	burst   *dht.Burst    // messages of the DHT; nil: they are handled one by one
	streams *udx.Burst    // packets of streams; nil: they are handled one by one
	relayed *relay.Batch  // packets that are relayed; nil: the Host is no relay
	passing *relay.Server // whose packets these are; nil: as above
}

// relay takes packets for s from now on; nil: for none.
func (in *inbound) relay(s *relay.Server) {
	if in.passing == s {
		return
	}
	in.passing, in.relayed = s, nil
	if s != nil {
		in.relayed = s.NewBatch()
	}
}

// add keeps an authentic packet, behind its headroom.
func (in *inbound) add(l *link, packet []byte, unfinished bool, now time.Time) {
	p := l.peer.Load()
	if p == nil {
		return
	}
	if in.peer != p || len(in.run) == 0 {
		in.flush()
		in.peer = p
		l.received.Store(now.UnixNano())
	}
	in.run = append(in.run, packet)
	in.unfinished = append(in.unfinished, unfinished)
	in.partial = in.partial || unfinished
	in.n += uint64(len(packet) - headroom)
	if len(in.run) == inboundBatch {
		in.flush()
	}
}

// end hands over what is left of a Receive.
func (in *inbound) end() {
	in.flush()
	in.link = nil
}

// flush hands the packets over.
func (in *inbound) flush() {
	if len(in.run) == 0 {
		return
	}
	in.peer.rxPackets.Add(uint64(len(in.run)))
	in.peer.rxBytes.Add(in.n)
	if f := in.host.cfg.Inbound; f != nil {
		unfinished := in.unfinished
		if !in.partial {
			unfinished = nil
		}
		f(in.peer, in.run, headroom, unfinished)
	}
	clear(in.run)
	in.run, in.unfinished, in.partial, in.n = in.run[:0], in.unfinished[:0], false, 0
}
