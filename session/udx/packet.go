package udx

import "sync"

// The sizes of packets. An "IP size" counts the whole IP packet.
const (
	minMTU     = 1200 // IP size every path is taken to carry
	maxMTU     = 1500 // largest IP size tried
	overhead4  = 20 + 8
	overhead6  = 40 + 8
	maxPayload = maxMTU - overhead4 - HeaderSize

	// packetCost is what a packet is charged for besides its payload where rates and windows of the network are
	// counted in bytes: UDX, UDP and IPv4 headers. Empty and tiny packets must not be free.
	packetCost = HeaderSize + overhead4
)

type packetState uint8

// The states of a numbered packet of the sending side.
//
//	queued ──sent──▶ in flight ──acknowledged──▶ delivered
//	                  │     ▲                        ▲
//	             found lost └──sent again── lost ────┘ (it was late, not lost)
const (
	packetQueued packetState = iota
	packetInFlight
	packetLost
	packetDelivered
)

// packet is a numbered packet from when its first byte is written until it is acknowledged. Its datagram lies ready
// in buf; only the header is written anew each time it is sent.
type packet struct {
	packetBooks
	buf [HeaderSize + maxPayload]byte
}

// packetBooks is what is known of a packet besides its bytes.
type packetBooks struct {
	seq   seq
	flags Flags // FlagData, FlagEnd
	n     int   // bytes of payload
	state packetState

	// The last time it was sent.
	sends  int     // how often it was sent
	sentAt instant // zero: never
	probe  int     // IP size it was padded to, to find out whether the path carries that; zero: not padded

	// What sampler remembers about the last time it was sent.
	delivered   int64
	deliveredAt instant
	firstSentAt instant
	appLimited  bool

	// A packet is in one packetList at a time.
	prev, next *packet

	// sending is set while a batch that is being sent outside the lock refers to buf. Then whoever is done with the
	// packet sets done, and the batch recycles it.
	sending, done bool
}

// packets recycles packets.
var packets = sync.Pool{New: func() any { return new(packet) }} //nolint:gochecknoglobals // a cache

func newPacket() *packet {
	p := packets.Get().(*packet)
	p.packetBooks = packetBooks{} // buf keeps its old bytes on purpose: n says how many count
	return p
}

// free gives p back, now or when it has been sent.
func (p *packet) free() {
	if p.sending {
		p.done = true
		return
	}
	p.prev, p.next = nil, nil
	packets.Put(p)
}

// fill appends the start of b to the payload, up to size bytes of payload, and returns how many bytes it took.
func (p *packet) fill(b []byte, size int) int {
	n := copy(p.buf[HeaderSize+p.n:HeaderSize+max(size, p.n)], b)
	p.n += n
	p.flags |= FlagData
	return n
}

func (p *packet) payload() []byte { return p.buf[HeaderSize : HeaderSize+p.n] }

// cost is what the packet counts for in the network.
func (p *packet) cost() int { return p.n + packetCost }

// sentBefore reports whether p was last sent before another packet was, given by time and number.
func (p *packet) sentBefore(at instant, q seq) bool {
	return p.sentAt < at || p.sentAt == at && p.seq.before(q)
}

// packetList is a doubly linked list of packets.
type packetList struct {
	first, last *packet
	len         int
}

func (l *packetList) push(p *packet) {
	p.prev, p.next = l.last, nil
	if l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	l.len++
}

func (l *packetList) remove(p *packet) {
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.prev, p.next = nil, nil
	l.len--
}

// packetRing finds packets by sequence number, from the oldest unacknowledged one on. It has room for a power of two
// of them and grows.
type packetRing struct{ slots []*packet }

func (r *packetRing) at(q seq) **packet { return &r.slots[int(q)&(len(r.slots)-1)] }

// grow makes room for the numbers from first up to and with last.
func (r *packetRing) grow(first, last seq) {
	need := int(last-first) + 1
	if need <= len(r.slots) {
		return
	}
	size := max(16, len(r.slots))
	for size < need {
		size *= 2
	}
	old := *r
	r.slots = make([]*packet, size)
	if len(old.slots) > 0 {
		for q := first; q.before(last); q++ {
			*r.at(q) = *old.at(q)
		}
	}
}
