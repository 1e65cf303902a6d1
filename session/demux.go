package session

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"omegatun/session/relay"
	"omegatun/session/tunnel"
)

const (
	// headroom is the free space before each packet handed to Config.Inbound. A TUN device writes its own
	// header there.
	headroom = 16
	// inboundSize is the capacity behind it: a device may merge packets of one flow into the first one's
	// buffer, up to the largest IP packet.
	inboundSize = headroom + 65535 + headroom
	// inboundBatch is how many packets are handed over at once.
	inboundBatch = 128
)

// serve receives from a socket until it is closed, and hands each datagram to the part it belongs to.
func (h *Host) serve(s Socket) {
	in := inbound{host: h}
	if h.relayServer != nil {
		in.relayed = h.relayServer.NewBatch()
	}
	for {
		batch, err := s.Receive()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				h.log.Error("socket failed", "local", s.LocalAddr(), "error", err)
			}
			return
		}
		now := time.Now()
		for i := range batch.Len() {
			b, from := batch.Datagram(i)
			h.dispatch(s, b, from, &in, now)
		}
		in.flush()
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
	case tunnel.IsDatagram(b):
		h.tunnelled(s, b, from, in, now)
	case b[0] == 0xff && b[1] == 1:
		if in.relayed == nil || !in.relayed.Add(s, b, from) {
			h.mux.Receive(s, b, from)
		}
	case b[0] == 0x03 || b[0] == 0x13:
		h.node.Receive(s, b, from)
	default:
		h.dropped.Add(1)
	}
}

// tunnelled opens a tunnel datagram. Whatever fails to authenticate changes nothing but a counter.
func (h *Host) tunnelled(s Socket, b []byte, from netip.AddrPort, in *inbound, now time.Time) {
	index, ok := tunnel.ReceiverIndex(b)
	if !ok {
		h.dropped.Add(1)
		return
	}
	v, _ := h.links.Load(index)
	l, _ := v.(*link)
	if l == nil {
		h.dropped.Add(1)
		return
	}
	buf := in.next()
	out, err := l.epoch.Open(buf[:headroom], b)
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
	l.authentic(s, from, now)
	plain := out[headroom:]
	if len(plain) == 0 {
		return
	}
	switch tunnel.ContentOf(plain) {
	case tunnel.ContentIP:
		if p := l.peer.Load(); p != nil {
			l.received.Store(now.UnixNano())
			in.add(p, out)
		}
	case tunnel.ContentControl:
		l.handleControl(s, from, plain, now)
	default:
		h.dropped.Add(1)
	}
}

// inbound gathers the packets of one Receive, and hands runs of one peer to Config.Inbound. It belongs to
// one goroutine.
type inbound struct {
	host *Host
	peer *Peer
	bufs [][]byte // room for packets, reused
	run  [][]byte // bufs[:len(run)], as filled
	n    uint64   // bytes of packets in run

	relayed *relay.Batch // packets that are relayed; nil: the Host is no relay
}

// next returns a buffer for one packet.
func (in *inbound) next() []byte {
	if len(in.run) == len(in.bufs) {
		in.bufs = append(in.bufs, make([]byte, inboundSize))
	}
	return in.bufs[len(in.run)]
}

// add keeps a packet that was opened into the buffer of next.
func (in *inbound) add(p *Peer, packet []byte) {
	if in.peer != p && len(in.run) > 0 { // the packet is in the buffer behind the run: take it along
		i := len(in.run)
		in.flush()
		in.bufs[0], in.bufs[i] = in.bufs[i], in.bufs[0]
	}
	in.peer = p
	in.run = append(in.run, packet)
	in.n += uint64(len(packet) - headroom)
	if len(in.run) == inboundBatch {
		in.flush()
	}
}

// flush hands the packets over.
func (in *inbound) flush() {
	if len(in.run) == 0 {
		return
	}
	in.peer.rxPackets.Add(uint64(len(in.run)))
	in.peer.rxBytes.Add(in.n)
	if f := in.host.cfg.Inbound; f != nil {
		f(in.peer, in.run, headroom)
	}
	clear(in.run)
	in.run, in.n = in.run[:0], 0
}
