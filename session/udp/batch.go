package udp

import "net/netip"

const (
	trainSlots = 16
	trainSlot  = 64 << 10 // no merged train is longer: an IP packet's length has 16 bits
	smallSlots = 4
	smallSlot  = 2048
)

// Batch holds the datagrams of one call of Receive, and the memory they lie in. It belongs to one receiving goroutine;
// it may serve several Conns in turn.
type Batch struct {
	arena     []byte
	slot      int // bytes of the arena for each message
	messages  []message
	datagrams []datagram
	system    batchSystem
}

// message is what the datagrams of one train have in common.
type message struct {
	from  netip.AddrPort
	local netip.Addr
}

// datagram is one datagram's place in the arena.
type datagram struct{ start, end, message uint32 }

// NewBatch returns a batch of 16 slots of 64 KiB, each for one train or datagram of any size. Slots are filled from
// the first one on, so that the memory in use, and in the processor's cache, is no more than what arrives at a time.
func NewBatch() *Batch { return newBatch(trainSlots, trainSlot) }

// NewSmallBatch returns a batch of 8 KiB in all, for the many sockets that see only a few short datagrams, as those
// of a punching attempt do. Received with it, datagrams longer than 2048 bytes are dropped (Stats.ReceiveInvalid), and
// none are merged: a Conn turns FeatureMerge off and on to suit the batch it is given.
func NewSmallBatch() *Batch { return newBatch(smallSlots, smallSlot) }

func newBatch(slots, slot int) *Batch {
	b := &Batch{
		arena:     make([]byte, slots*slot),
		slot:      slot,
		messages:  make([]message, slots),
		datagrams: make([]datagram, 0, slots*2),
	}
	b.system.init(b)
	return b
}

// Len returns how many datagrams the last Receive brought.
func (b *Batch) Len() int { return len(b.datagrams) }

// Datagram returns datagram i, 0 ≤ i < Len(), and where it came from, unmapped. Datagrams of one sender keep the order
// in which they arrived. The data may be empty, may be modified, and is valid until the next Receive; its capacity
// ends where it does.
func (b *Batch) Datagram(i int) (data []byte, from netip.AddrPort) {
	d := b.datagrams[i]
	return b.arena[d.start:d.end:d.end], b.messages[d.message].from
}

// Local returns the address of this host that datagram i was sent to, if Config.PacketInfo asked for it, else the
// zero Addr.
func (b *Batch) Local(i int) netip.Addr { return b.messages[b.datagrams[i].message].local }

// reset forgets the datagrams.
func (b *Batch) reset() { b.datagrams = b.datagrams[:0] }

// slotBytes returns the memory of message m.
func (b *Batch) slotBytes(m int) []byte {
	return b.arena[m*b.slot : (m+1)*b.slot : (m+1)*b.slot]
}

// add records message m of n bytes: one datagram or, if segment is neither 0 nor beyond n, a train of datagrams of
// segment bytes, the last of which may be shorter. It returns how many datagrams they are.
func (b *Batch) add(m, n, segment int, from netip.AddrPort, local netip.Addr) int {
	b.messages[m] = message{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), local}
	if segment <= 0 || segment > n {
		segment = n
	}
	at, end := m*b.slot, m*b.slot+n
	if n == 0 {
		b.datagrams = append(b.datagrams, datagram{uint32(at), uint32(at), uint32(m)})
		return 1
	}
	count := 0
	for ; at < end; at += segment {
		b.datagrams = append(b.datagrams, datagram{uint32(at), uint32(min(at+segment, end)), uint32(m)})
		count++
	}
	return count
}
