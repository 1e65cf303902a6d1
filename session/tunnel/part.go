package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

const (
	contentPart = 0x03

	// PartHeader is the length of what precedes the bytes of a part in [ContentPart], in bytes.
	PartHeader = 8
	// MaxParts is into how many parts a plaintext can be divided.
	MaxParts = 16
	// MaxJoined is the longest plaintext that is put together from parts, in bytes: a jumbo frame.
	MaxJoined = 9216

	joinSlots = 64 // plaintexts of which parts are missing
)

// ErrPart is wrapped by errors about parts.
var ErrPart = errors.New("tunnel: malformed part")

// Part is a piece of a plaintext that is too long for the path, which [FeatureParts] lets travel in several datagrams.
//
//	0x03, u8: number of parts less 1 in the high half, index of this one in the low half
//	u16 LE: length of the whole, 2 to 9216 bytes
//	u32 LE: names the whole; the sender counts
//	bytes
//
// All parts have the same length, the whole's divided by their number and rounded up, but for the last, which has what is left.
// The whole is an IP packet, [ContentUnfinished], or a UDX packet of the control stream (first byte ff).
type Part struct {
	ID    uint32
	Index int // from 0
	Count int // 2 to MaxParts
	Total int // bytes of the whole
}

// Parts returns how many parts a plaintext of size bytes needs if datagrams of at most limit bytes pass. It returns 0 if it
// cannot be divided so.
func Parts(size, limit int) int {
	room := limit - Overhead - PartHeader
	if room <= 0 || size > MaxJoined {
		return 0
	}
	count := max(2, (size+room-1)/room)
	if count > MaxParts || !(Part{Count: count, Total: size}).valid() {
		return 0
	}
	return count
}

// step is the length of every part but the last.
func (p Part) step() int { return (p.Total + p.Count - 1) / p.Count }

func (p Part) valid() bool {
	return p.Count >= 2 && p.Count <= MaxParts && p.Index >= 0 && p.Index < p.Count && p.Total <= MaxJoined &&
		(p.Count-1)*p.step() < p.Total
}

// Range returns where in the whole the bytes of the part are.
func (p Part) Range() (from, to int) {
	from = p.Index * p.step()
	return from, min(from+p.step(), p.Total)
}

// Put writes the header to the first PartHeader bytes of b. p has to be valid.
func (p Part) Put(b []byte) {
	b[0], b[1] = contentPart, byte((p.Count-1)<<4|p.Index)
	binary.LittleEndian.PutUint16(b[2:], uint16(p.Total))
	binary.LittleEndian.PutUint32(b[4:], p.ID)
}

// ParsePart decodes a plaintext of [ContentPart] and returns the bytes of the part, which alias b. The error wraps [ErrPart].
func ParsePart(b []byte) (p Part, bytes []byte, err error) {
	if len(b) < PartHeader || b[0] != contentPart {
		return Part{}, nil, fmt.Errorf("%w: header", ErrPart)
	}
	p = Part{
		ID: binary.LittleEndian.Uint32(b[4:]), Index: int(b[1] & 0xf), Count: int(b[1]>>4) + 1,
		Total: int(binary.LittleEndian.Uint16(b[2:])),
	}
	if !p.valid() {
		return Part{}, nil, fmt.Errorf("%w: part %d of %d of %d bytes", ErrPart, p.Index, p.Count, p.Total)
	}
	from, to := p.Range()
	if bytes = b[PartHeader:]; len(bytes) != to-from {
		return Part{}, nil, fmt.Errorf("%w: %d bytes, want %d", ErrPart, len(bytes), to-from)
	}
	return p, bytes, nil
}

// Joiner puts parts together. It keeps what it has of 64 plaintexts and forgets those that later ones push out, so
// that nobody has to wait for what is lost. The zero value is ready to use; its methods are safe for concurrent use.
type Joiner struct {
	mu    sync.Mutex // guards slots
	slots *[joinSlots]joining
}

// joining is a plaintext of which parts are missing.
type joining struct {
	part Part   // Index means nothing
	got  uint16 // bit per part
	buf  []byte // nil: nothing is missing, or nothing is there
}

// Add takes a plaintext of [ContentPart]. It returns the whole once its last part has come, as b[headroom:], in memory
// that is the caller's; nil: not yet. headroom is to be the same in all calls. Add keeps nothing of plaintext. The error wraps [ErrPart].
func (j *Joiner) Add(plaintext []byte, headroom int) (b []byte, err error) {
	p, bytes, err := ParsePart(plaintext)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.slots == nil {
		j.slots = new([joinSlots]joining)
	}
	s := &j.slots[p.ID%joinSlots]
	if s.buf == nil || s.part.ID != p.ID || s.part.Count != p.Count || s.part.Total != p.Total {
		*s = joining{part: p, buf: make([]byte, headroom+p.Total)}
	}
	from, _ := p.Range()
	copy(s.buf[headroom+from:], bytes)
	if s.got |= 1 << p.Index; s.got != 1<<p.Count-1 {
		return nil, nil
	}
	b = s.buf
	*s = joining{}
	return b, nil
}
