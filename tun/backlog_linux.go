package tun

import (
	"encoding/binary"
	"hash/maphash"
	"time"

	"golang.org/x/sys/unix"
)

const (
	smallSlots     = 1024
	smallSlotBytes = 2 << 10 // for a packet of the usual MTU
	largeSlots     = 128
	largeSlotBytes = virtioLen + maxPacket + 1 // 64 KiB and a little
	// Before some are sent, at most so much is read: all that the kernel keeps for us, unless the packets are large.
	backlogReads = queueLength
	backlogBytes = largeSlots / 2 * maxPacket
)

// backlog is the room for packets that wait in this process, where they are told apart by flow, and not in the kernel, where
// those that come later wait behind all others. It is used only if there are more than a batch has room for, and takes up to
// 10 MiB then.
type backlog struct {
	*fair
	arena []byte
	free  [2][]int // slots, by kind
	seed  maphash.Seed
	drop  func(slot int) // bound once, because binding it allocates
	lost  uint64         // packets dropped
}

func newBacklog() *backlog {
	b := &backlog{
		fair:  newFair(smallSlots, largeSlots),
		arena: make([]byte, smallSlots*smallSlotBytes+largeSlots*largeSlotBytes),
		seed:  maphash.MakeSeed(),
	}
	for slot := smallSlots + largeSlots - 1; slot >= 0; slot-- {
		b.release(slot)
	}
	b.drop = func(slot int) {
		b.lost++
		b.release(slot)
	}
	return b
}

// release frees a slot.
func (b *backlog) release(slot int) {
	kind := b.kind(slot)
	b.free[kind] = append(b.free[kind], slot)
}

// reserve takes a free slot, if need be from a packet.
func (b *backlog) reserve(kind int) int {
	if len(b.free[kind]) == 0 {
		b.shed(kind, b.drop)
	}
	last := len(b.free[kind]) - 1
	slot := b.free[kind][last]
	b.free[kind] = b.free[kind][:last]
	return slot
}

// bytes returns the memory of a slot.
func (b *backlog) bytes(slot int) []byte {
	if slot < smallSlots {
		return b.arena[slot*smallSlotBytes:][:smallSlotBytes:smallSlotBytes]
	}
	start := smallSlots*smallSlotBytes + (slot-smallSlots)*largeSlotBytes
	return b.arena[start:][:largeSlotBytes:largeSlotBytes]
}

// add takes the packet of n bytes that was read into slot, which is a large one.
func (b *backlog) add(slot, n int, now time.Time) {
	packet := b.bytes(slot)[:n]
	if n <= smallSlotBytes {
		b.release(slot)
		slot = b.reserve(smallSlot)
		copy(b.bytes(slot), packet)
	}
	b.push(slot, b.flow(packet), n, now)
}

// flow returns a number that is the same for all packets of a flow. packet begins with the virtio header.
func (b *backlog) flow(packet []byte) uint64 {
	var key [37]byte // addresses, protocol, ports
	n := 0
	var proto byte
	ip := packet[min(virtioLen, len(packet)):]
	transport := len(ip)
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		n, proto = copy(key[:], ip[12:20]), ip[9]
		if binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 { // fragments have no ports
			transport = int(ip[0]&0xf) * 4
		}
	case len(ip) >= 40 && ip[0]>>4 == 6:
		n, proto, transport = copy(key[:], ip[8:40]), ip[6], 40
	}
	key[n] = proto
	n++
	if (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && transport+4 <= len(ip) {
		n += copy(key[n:], ip[transport:transport+4])
	}
	return maphash.Bytes(b.seed, key[:n])
}
