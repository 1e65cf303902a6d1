package udx

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHeader(t *testing.T) {
	for _, c := range []struct {
		name, wire string
		h          Header
		rest       string
	}{
		{
			"first packet of an idle stream", "ff010100887766550000400000000000000000006" + "8656c6c6f",
			Header{FlagData, 0, 0x55667788, 4194304, 0, 0},
			"hello",
		},
		{"state", "ff01000044332211000040000000000001000000", Header{0, 0, 0x11223344, 4194304, 0, 1}, ""},
		{
			"all fields", "ff01ff20010203041112131421222324313233340a",
			Header{0xff, 0x20, 0x04030201, 0x14131211, 0x24232221, 0x34333231},
			"\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := unhex(t, c.wire)
			h, rest, err := ParseHeader(wire)
			if err != nil || h != c.h || string(rest) != c.rest {
				t.Errorf("ParseHeader: %+v, %q, %v, want %+v, %q", h, rest, err, c.h, c.rest)
			}
			if got := append(c.h.Append(nil), c.rest...); !bytes.Equal(got, wire) {
				t.Errorf("Append: %x, want %x", got, wire)
			}
			for n := range HeaderSize {
				if _, _, err := ParseHeader(wire[:n]); !errors.Is(err, ErrNotUDX) {
					t.Errorf("ParseHeader of the first %d bytes: %v, want ErrNotUDX", n, err)
				}
			}
			for i := range 2 {
				bad := slices.Clone(wire)
				bad[i]++
				if _, _, err := ParseHeader(bad); !errors.Is(err, ErrNotUDX) {
					t.Errorf("ParseHeader with byte %d changed: %v, want ErrNotUDX", i, err)
				}
			}
		})
	}
}

func TestFlagsString(t *testing.T) {
	for f, want := range map[Flags]string{
		0: "STATE", FlagData | FlagEnd: "DATA|END", FlagSACK: "SACK", FlagMessage | 0x40: "MESSAGE|0x40",
		FlagDestroy: "DESTROY", FlagHeartbeat: "HEARTBEAT",
	} {
		if got := f.String(); got != want {
			t.Errorf("Flags(%#x).String() = %q, want %q", uint8(f), got, want)
		}
	}
}

// capturedPacket is a packet of a capture.
type capturedPacket struct {
	T        float64 `json:"t_ms"`
	Dir      string
	Path     string
	Event    string
	Datagram string
	Header   string // and extension, of a long one
	Len      int    `json:"datagram_len"`
	Fill     byte   `json:"payload_all_bytes"`
	Dropped  bool   `json:"dropped_by_test"`
	Fields   *struct {
		Type       uint8
		Flags      string
		Offset     uint8       `json:"data_offset"`
		ID         uint32      `json:"remote_id"`
		Window     uint32      `json:"receive_window"`
		Seq, Ack   uint32      //
		Blocks     [][2]uint32 `json:"sacks"`
		PayloadLen int         `json:"payload_len"`
	}
}

func (p capturedPacket) bytes(t testing.TB) []byte {
	t.Helper()
	if p.Datagram != "" {
		return unhex(t, p.Datagram)
	}
	b := unhex(t, p.Header)
	return append(b, bytes.Repeat([]byte{p.Fill}, p.Len-len(b))...)
}

func load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// packetsIn returns all packets with fields anywhere in a capture.
func packetsIn(t testing.TB, name string) (found []capturedPacket) {
	var walk func(raw json.RawMessage)
	walk = func(raw json.RawMessage) {
		var list []json.RawMessage
		var object map[string]json.RawMessage
		switch {
		case json.Unmarshal(raw, &list) == nil:
			for _, v := range list {
				walk(v)
			}
		case json.Unmarshal(raw, &object) == nil:
			if _, ok := object["fields"]; ok {
				var p capturedPacket
				if err := json.Unmarshal(raw, &p); err != nil {
					t.Fatal(err)
				}
				found = append(found, p)
				return
			}
			for _, v := range object {
				walk(v)
			}
		}
	}
	var raw json.RawMessage
	load(t, name, &raw)
	walk(raw)
	return found
}

func TestCapturedHeaders(t *testing.T) {
	for _, name := range []string{
		"exchange.json", "close.json", "loss.json", "mtu.json", "change-remote.json", "relay.json",
	} {
		packets := packetsIn(t, name)
		if len(packets) < 5 {
			t.Errorf("%s: %d packets found", name, len(packets))
		}
		for _, p := range packets {
			wire := p.bytes(t)
			h, rest, err := ParseHeader(wire)
			f := p.Fields
			want := Header{Flags(f.Type), f.Offset, ID(f.ID), f.Window, f.Seq, f.Ack}
			if err != nil || h != want || h.Flags.String() != f.Flags || len(rest)-int(h.Offset) != f.PayloadLen {
				t.Errorf("%s: ParseHeader(%x): %+v and %d bytes, %v, want %+v and %d bytes",
					name, wire[:20], h, len(rest), err, want, f.PayloadLen)
			}
			if got := append(h.Append(nil), rest...); !bytes.Equal(got, wire) {
				t.Errorf("%s: Append: %x, want %x", name, got, wire)
			}
			if f.Blocks == nil {
				continue
			}
			var blocks []seqRange
			for b := sackBlocks(h, rest); len(b) > 0; b = b[sackSize:] {
				blocks = append(blocks, sackBlock(b))
			}
			wantBlocks := make([]seqRange, 0, len(f.Blocks))
			for _, b := range f.Blocks {
				wantBlocks = append(wantBlocks, seqRange{seq(b[0]), seq(b[1])})
			}
			if !slices.Equal(blocks, wantBlocks) {
				t.Errorf("%s: blocks %v, want %v", name, blocks, wantBlocks)
			}
			if got := appendSACKs(nil, blocks); !bytes.Equal(got, rest) {
				t.Errorf("%s: appendSACKs: %x, want %x", name, got, rest)
			}
		}
	}
}

func TestSACKBlocksInExtension(t *testing.T) {
	blocks := appendSACKs(nil, []seqRange{{1, 2}, {5, 9}})
	for _, c := range []struct {
		name   string
		offset uint8
		rest   []byte
		want   []byte
	}{
		{"after the header", 0, blocks, blocks},
		{"in the extension", 8, blocks, blocks[:8]},
		{"extension fills the packet", 16, blocks, blocks},
		{"partial block left out", 0, blocks[:13], blocks[:8]},
		{"partial block in the extension", 5, blocks, nil},
		{"nothing", 0, nil, nil},
	} {
		if got := sackBlocks(Header{Offset: c.offset}, c.rest); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", c.name, got, c.want)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("\xff\x01\x04\x00aaaabbbbccccddddeeeeffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := ParseHeader(b)
		if err != nil {
			return
		}
		if got := append(h.Append(nil), rest...); !bytes.Equal(got, b) {
			t.Errorf("parsed and appended: %x, want %x", got, b)
		}
		var ranges []seqRange
		blocks := sackBlocks(h, rest)
		for p := blocks; len(p) > 0; p = p[sackSize:] {
			ranges = append(ranges, sackBlock(p))
		}
		if got := appendSACKs(nil, ranges); !bytes.Equal(got, blocks) {
			t.Errorf("blocks parsed and appended: %x, want %x", got, blocks)
		}
	})
}
