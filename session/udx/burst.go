package udx

import "net/netip"

// burstPackets is after how many packets for a stream those who wait for it are woken, though more are there.
const burstPackets = 64

// Burst handles datagrams that were received together: whoever reads from a stream, or writes to it, is woken once, and the
// acknowledgements go out together. It belongs to one goroutine.
type Burst struct {
	mux     *Mux
	now     instant // when the first datagram was handled; zero: none was since Flush
	stream  *Stream // of the last one; nil: none
	packets int     // of that stream, for which nobody was woken
}

// NewBurst returns a Burst.
func (m *Mux) NewBurst() *Burst { return &Burst{mux: m} }

// Receive is [Mux.Receive], except that it may leave to Flush to wake those who wait for the stream.
func (b *Burst) Receive(s Socket, d []byte, from netip.AddrPort) bool {
	h, rest, err := ParseHeader(d)
	if err != nil {
		return false
	}
	from = unmap(from)
	if b.now == 0 {
		b.now = b.mux.now()
	}
	if b.stream == nil || b.stream.id != h.ID {
		b.settle()
		stream, known := b.mux.find(s, h, from)
		if stream == nil {
			return known
		}
		b.stream = stream
	}
	if b.packets++; b.packets > burstPackets {
		b.stream.settle(b.now)
		b.packets = 1
	}
	if !b.stream.receive(b.now, s, h, rest, from) {
		b.settle() // it has ended: the next packet is answered in its place
	}
	return true
}

// Flush wakes those who wait for what was received since the last Flush. It must be called after the last datagram.
func (b *Burst) Flush() {
	b.settle()
	b.now = 0
}

func (b *Burst) settle() {
	if b.stream != nil {
		b.stream.settle(b.now)
		b.stream, b.packets = nil, 0
	}
}
