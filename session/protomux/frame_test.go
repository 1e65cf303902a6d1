package protomux

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"omegatun/dht/compact"
)

// recording is one conversation of testdata/protomux.json.
type recording struct {
	Name   string
	Frames []struct {
		From    string
		Frame   string
		Decoded struct {
			Control      string
			LocalChannel uint64 `json:"local_channel"`
			Protocol     string
			ID           string
			Handshake    string
			Channel      uint64
			MessageType  uint64 `json:"message_type"`
			Payload      string
			Items        []struct {
				Channel     uint64
				MessageType uint64 `json:"message_type"`
				Payload     string
			}
		}
	}
}

func recordings(tb testing.TB) []recording {
	tb.Helper()
	b, err := os.ReadFile("testdata/protomux.json")
	if err != nil {
		tb.Fatal(err)
	}
	var v struct{ Protomux []recording }
	if err := json.Unmarshal(b, &v); err != nil {
		tb.Fatal(err)
	}
	return v.Protomux
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// dataFrame is the frame of a message.
func dataFrame(channel, typ uint64, payload []byte) []byte {
	return append(appendHeader(nil, channel, typ), payload...)
}

func TestFramesAreThoseOfTheReference(t *testing.T) {
	seen := 0
	for _, rec := range recordings(t) {
		for i, f := range rec.Frames {
			wire := unhex(t, f.Frame)
			d := f.Decoded
			channel, typ, rest, err := parseHeader(wire)
			if err != nil {
				t.Fatalf("%s, frame %d: %v", rec.Name, i, err)
			}
			var again []byte
			switch d.Control {
			case "open":
				want := opening{d.LocalChannel, name{d.Protocol, string(unhex(t, d.ID))}, unhex(t, d.Handshake)}
				got, err := parseOpening(rest)
				if err != nil || got.channel != want.channel || got.name != want.name || !bytes.Equal(got.handshake, want.handshake) {
					t.Errorf("%s, frame %d: %+v, %v, want %+v", rec.Name, i, got, err, want)
				}
				again = want.append(nil)
			case "reject", "close":
				var m machine
				m.emitID(map[string]uint64{"reject": typeReject, "close": typeClose}[d.Control], d.Channel)
				again = m.out[0]
				if id, err := parseID(rest); err != nil || id != d.Channel {
					t.Errorf("%s, frame %d: channel %d, %v, want %d", rec.Name, i, id, err, d.Channel)
				}
			case "batch":
				var items, got [][]byte
				for _, item := range d.Items {
					items = append(items, dataFrame(item.Channel, item.MessageType, unhex(t, item.Payload)))
				}
				if err := eachItem(rest, func(channel uint64, item []byte) error {
					got = append(got, append(compact.AppendUint(nil, channel), item...))
					return nil
				}); err != nil || !slices.EqualFunc(got, items, bytes.Equal) {
					t.Errorf("%s, frame %d: items %x, %v, want %x", rec.Name, i, got, err, items)
				}
				again = appendBatch(nil, items)
			case "":
				if channel != d.Channel || typ != d.MessageType || !bytes.Equal(rest, unhex(t, d.Payload)) {
					t.Errorf("%s, frame %d: message %d %d %x", rec.Name, i, channel, typ, rest)
				}
				again = dataFrame(d.Channel, d.MessageType, unhex(t, d.Payload))
			default:
				t.Fatalf("%s, frame %d: control %q", rec.Name, i, d.Control)
			}
			if !bytes.Equal(again, wire) {
				t.Errorf("%s, frame %d: encoded\n%x, recorded\n%x", rec.Name, i, again, wire)
			}
			seen++
		}
	}
	if seen < 25 {
		t.Errorf("%d frames compared, want all that were recorded", seen)
	}
}

func TestTruncatedFramesAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name, wire string
		fixed      int // bytes without which the frame is broken; the rest may have any length
	}{
		{"open", "00 01 fd0100 03 666f6f 02 aabb 0102", 12},
		{"open, no id", "00 01 01 03 666f6f 00", 8},
		{"reject", "00 02 fe01000000", 7},
		{"close", "00 03 fd0001", 5},
		{"message", "fd0100 fd0001", 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wire := unhex(t, tc.wire)
			for n := 1; n < len(wire); n++ {
				m := newMachine(nil, 4)
				err := m.receive(wire[:n])
				if refused := errors.Is(err, ErrProtocol); refused != (n < tc.fixed) {
					t.Errorf("first %d of %d bytes: %v", n, len(wire), err)
				}
			}
		})
	}
}

func TestTruncatedBatchesAreRefused(t *testing.T) {
	wire := unhex(t, "00 00 01 03 00 0178 03 00 0179 00 02 03 00 017a")
	whole := map[int]bool{3: true, 7: true, 11: true, 13: true, 17: true} // ends between items
	for n := 2; n <= len(wire); n++ {
		m := newMachine(nil, 4)
		if err := m.receive(wire[:n]); (err == nil) != whole[n] {
			t.Errorf("first %d of %d bytes: %v", n, len(wire), err)
		}
	}
}

func TestPeerThatBreaksTheProtocol(t *testing.T) {
	long := strings.Repeat("00", maxHandshake+1)
	for _, tc := range []struct{ name, wire string }{
		{"open beyond the next number", "00 01 02 01 70 00"},
		{"open of a huge number", "00 01 ffffffffffffff1f00 01 70 00"},
		{"open of a number in use", "00 00 00 05 01 01 01 70 00 05 01 01 01 70 00"},
		{"reject of a channel that is not waiting", "00 02 01"},
		{"reject of channel 0", "00 02 00"},
		{"number beyond what the reference can read", "ffffffffffffffffff 00"},
		{"batch within a batch", "00 00 00 06 00 00 03 00 00 00"},
		{"item without a type", "00 00 01 01 fd"},
		{"item longer than the batch", "00 00 01 05 00 01"},
		{"protocol name longer than the frame", "00 01 01 20 70"},
		{"handshake too long", "00 01 01 01 70 00" + long},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine([]string{"p"}, 4)
			if err := m.receive(unhex(t, tc.wire)); !errors.Is(err, ErrProtocol) {
				t.Errorf("receive: %v, want ErrProtocol", err)
			}
		})
	}
}

func TestFramesThatAreIgnored(t *testing.T) {
	for _, tc := range []struct{ name, wire string }{
		{"empty", ""},
		{"unknown control frame", "00 04 01"},
		{"message of an unknown channel", "07 00 aa"},
		{"close of an unknown channel", "00 03 07"},
		{"close of channel 0", "00 03 00"},
		{"batch without items", "00 00 01"},
		{"batch that only names another channel", "00 00 01 00 02"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine([]string{"p"}, 4)
			if err := m.receive(unhex(t, tc.wire)); err != nil || len(m.out) != 0 || m.live != 0 || m.kept != 0 {
				t.Errorf("receive: %v, sends %x, %d channels, %d bytes kept", err, m.out, m.live, m.kept)
			}
		})
	}
}

func TestBatchSwitchesChannelsOnlyWhereNeeded(t *testing.T) {
	frames := [][]byte{{1, 0, 'x'}, {1, 0, 'y'}, {2, 0, 'z'}, {0, 3, 1}}
	got := appendBatch(nil, frames)
	want := unhex(t, "0000 01 02 0078 02 0079 00 02 02 007a 00 00 02 0301")
	if !bytes.Equal(got, want) {
		t.Errorf("batch %x, want %x", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, rec := range recordings(f) {
		for _, fr := range rec.Frames {
			f.Add(unhex(f, fr.Frame))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		channel, typ, rest, err := parseHeader(b)
		if err != nil {
			return
		}
		if c, y, r, err := parseHeader(dataFrame(channel, typ, rest)); err != nil || c != channel || y != typ || !bytes.Equal(r, rest) {
			t.Fatalf("header again: %d %d %x, %v", c, y, r, err)
		}
		if o, err := parseOpening(rest); err == nil {
			_, _, rest, _ := parseHeader(o.append(nil))
			again, err := parseOpening(rest)
			if err != nil || again.channel != o.channel || again.name != o.name || !bytes.Equal(again.handshake, o.handshake) {
				t.Fatalf("open again: %+v, %v, want %+v", again, err, o)
			}
		}
		var items [][]byte
		if err := eachItem(rest, func(channel uint64, item []byte) error {
			items = append(items, append(compact.AppendUint(nil, channel), item...))
			return nil
		}); err != nil || len(items) == 0 {
			return
		}
		var again [][]byte
		if err := eachItem(appendBatch(nil, items)[2:], func(channel uint64, item []byte) error {
			again = append(again, append(compact.AppendUint(nil, channel), item...))
			return nil
		}); err != nil || !slices.EqualFunc(items, again, bytes.Equal) {
			t.Fatalf("batch again: %x, %v, want %x", again, err, items)
		}
	})
}
