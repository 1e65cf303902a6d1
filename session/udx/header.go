package udx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The sizes of the wire format, in bytes.
const (
	HeaderSize   = 20  // of the fixed header
	maxExtension = 255 // between header and payload: the data offset is one byte
	maxDatagram  = 2048
	sackSize     = 8  // of one block
	maxSACKs     = 50 // blocks in a packet
)

// The first two bytes of every datagram of the protocol.
const (
	magic   = 0xff
	version = 1
)

// Flags is the set of things a packet carries. No flag at all makes a pure acknowledgement.
type Flags uint8

// The flags of a packet. Data and End are numbered packets, which the receiver acknowledges.
const (
	FlagData      Flags = 0x01 // a piece of the byte stream; takes a sequence number
	FlagEnd       Flags = 0x02 // the byte stream ends here; takes a sequence number, alone or with FlagData
	FlagSACK      Flags = 0x04 // the payload lists what is held beyond a hole
	FlagMessage   Flags = 0x08 // the payload is an unordered message
	FlagDestroy   Flags = 0x10 // the stream is gone
	FlagHeartbeat Flags = 0x20 // asks for an acknowledgement
)

// String lists the flags by their names in the protocol, "STATE" for none.
func (f Flags) String() string {
	if f == 0 {
		return "STATE"
	}
	var names []string
	for i, name := range []string{"DATA", "END", "SACK", "MESSAGE", "DESTROY", "HEARTBEAT"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if rest := f &^ 0x3f; rest != 0 {
		names = append(names, fmt.Sprintf("0x%02x", uint8(rest)))
	}
	return strings.Join(names, "|")
}

// ErrNotUDX reports that a datagram is not a UDX packet: it is too short, or magic or version differ.
var ErrNotUDX = errors.New("udx: not a UDX packet")

// Header is the fixed part at the start of every packet.
type Header struct {
	Flags  Flags
	Offset uint8  // bytes between header and payload: padding, or SACK blocks
	ID     ID     // the receiver's id for the stream
	Window uint32 // bytes the sender of the packet can take
	Seq    uint32 // of this packet if it is Data or End, else of the next numbered packet
	Ack    uint32 // the next sequence number expected from the receiver
}

// ParseHeader parses the header at the start of b and returns the bytes that follow it: Offset bytes of
// extension, if there are as many, and the payload. The returned slice aliases b. It returns ErrNotUDX if
// b does not start with a UDX header.
func ParseHeader(b []byte) (h Header, rest []byte, err error) {
	if len(b) < HeaderSize || b[0] != magic || b[1] != version {
		return Header{}, nil, ErrNotUDX
	}
	h.Flags = Flags(b[2])
	h.Offset = b[3]
	h.ID = ID(binary.LittleEndian.Uint32(b[4:]))
	h.Window = binary.LittleEndian.Uint32(b[8:])
	h.Seq = binary.LittleEndian.Uint32(b[12:])
	h.Ack = binary.LittleEndian.Uint32(b[16:])
	return h, b[HeaderSize:], nil
}

// Append appends the wire form of h to b.
func (h Header) Append(b []byte) []byte {
	b = append(b, magic, version, byte(h.Flags), h.Offset)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.ID))
	b = binary.LittleEndian.AppendUint32(b, h.Window)
	b = binary.LittleEndian.AppendUint32(b, h.Seq)
	return binary.LittleEndian.AppendUint32(b, h.Ack)
}

// put writes the wire form of h over the first HeaderSize bytes of b.
func (h Header) put(b []byte) {
	_ = b[HeaderSize-1]
	b[0], b[1], b[2], b[3] = magic, version, byte(h.Flags), h.Offset
	binary.LittleEndian.PutUint32(b[4:], uint32(h.ID))
	binary.LittleEndian.PutUint32(b[8:], h.Window)
	binary.LittleEndian.PutUint32(b[12:], h.Seq)
	binary.LittleEndian.PutUint32(b[16:], h.Ack)
}

// seqRange is a run of sequence numbers, from start up to and without end.
type seqRange struct{ start, end seq }

// appendSACKs appends the wire form of the ranges to b.
func appendSACKs(b []byte, ranges []seqRange) []byte {
	for _, r := range ranges {
		b = binary.LittleEndian.AppendUint32(b, uint32(r.start))
		b = binary.LittleEndian.AppendUint32(b, uint32(r.end))
	}
	return b
}

// sackBlocks returns the blocks in what follows a header. They fill the extension area if there is one
// and something behind it, else the whole rest of the packet. A block cut short at the end is left out.
func sackBlocks(h Header, rest []byte) []byte {
	if n := int(h.Offset); n > 0 && n < len(rest) {
		rest = rest[:n]
	}
	return rest[:len(rest)-len(rest)%sackSize]
}

// sackBlock returns the block at the start of b, which holds at least sackSize bytes.
func sackBlock(b []byte) seqRange {
	return seqRange{seq(binary.LittleEndian.Uint32(b)), seq(binary.LittleEndian.Uint32(b[4:]))}
}
