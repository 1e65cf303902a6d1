package relay

import (
	"net/netip"
	"sync"

	"omegatun/session/udx"
)

// window is what a message announces; every peer of the network announces as much.
const window = 4 << 20

// Path is the way to a peer behind a relay for datagrams that are no stream's, such as those of a tunnel. Each
// travels as a UDX message, which costs udx.HeaderSize bytes. A Path needs no udx.Stream, only an id in its name,
// and keeps no state: its packets acknowledge nothing, so no data may be sent in a stream of that id.
//
// A Path is a udx.BatchSocket whose address argument does not count, as there is one destination. Its methods are
// safe for concurrent use.
type Path struct {
	sock   udx.Socket
	relay  netip.AddrPort
	remote udx.ID
	trains sync.Pool // of *train
}

// train is the room in which a batch is put together.
type train struct {
	arena     []byte
	datagrams [][]byte
}

// NewPath returns the way through a relay: sock and relay are the socket and the address of the control connection,
// and remote is what Client.Pair has returned.
func NewPath(sock udx.Socket, relay netip.AddrPort, remote udx.ID) *Path {
	return &Path{sock: sock, relay: relay, remote: remote, trains: sync.Pool{New: func() any { return new(train) }}}
}

// Send sends a datagram to the peer. It does not keep b. The error is the socket's.
func (p *Path) Send(b []byte, _ netip.AddrPort) error {
	t := p.trains.Get().(*train)
	defer p.trains.Put(t)
	t.reset()
	t.add(p.header(udx.FlagMessage), b)
	return p.sock.Send(t.datagrams[0], p.relay)
}

// SendBatch sends datagrams to the peer, which are equally long except that the last may be shorter. It keeps
// neither b nor what is in it. The error is the socket's.
func (p *Path) SendBatch(b [][]byte, _ netip.AddrPort) error {
	t := p.trains.Get().(*train)
	defer p.trains.Put(t)
	t.reset()
	h := p.header(udx.FlagMessage)
	for _, d := range b {
		t.add(h, d)
	}
	if s, ok := p.sock.(udx.BatchSocket); ok {
		return s.SendBatch(t.datagrams, p.relay)
	}
	var first error
	for _, d := range t.datagrams {
		if err := p.sock.Send(d, p.relay); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Heartbeat shows the relay where we are; see [Knock].
func (p *Path) Heartbeat() error {
	t := p.trains.Get().(*train)
	defer p.trains.Put(t)
	t.reset()
	t.add(p.header(udx.FlagHeartbeat), nil)
	return p.sock.Send(t.datagrams[0], p.relay)
}

func (p *Path) header(f udx.Flags) udx.Header {
	return udx.Header{Flags: f, ID: p.remote, Window: window}
}

func (t *train) reset() { t.arena, t.datagrams = t.arena[:0], t.datagrams[:0] }

func (t *train) add(h udx.Header, b []byte) {
	if n := udx.HeaderSize + len(b); cap(t.arena)-len(t.arena) < n { // what is in the old one stays there
		t.arena = make([]byte, 0, max(2*cap(t.arena), n))
	}
	start := len(t.arena)
	t.arena = append(h.Append(t.arena), b...)
	t.datagrams = append(t.datagrams, t.arena[start:])
}

// Unwrap returns the datagram in a packet that has come over a Path, and the id of the stream that the packet is
// for, which is one that we have sent in Client.Pair. The datagram aliases b. It reports false for all other
// packets.
func Unwrap(b []byte) (id udx.ID, datagram []byte, ok bool) {
	h, rest, err := udx.ParseHeader(b)
	if err != nil || h.Flags&udx.FlagMessage == 0 || int(h.Offset) > len(rest) {
		return 0, nil, false
	}
	return h.ID, rest[h.Offset:], true
}
