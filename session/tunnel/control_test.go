package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
)

// controls are the rows of the vectors, in their order.
var controls = []Control{
	{Kind: Keepalive},
	{Kind: Ping, ID: 0xf0f1f2f3f4f5f6f7, Time: 0x0102030405060708},
	{Kind: Pong, ID: 5, Time: 6},
	{Kind: Pong, ID: 5, Time: 6, Observed: netip.MustParseAddrPort("192.168.1.10:49737")},
	{Kind: Pong, ID: 5, Time: 6, Observed: netip.MustParseAddrPort("[2001:db8::1]:49737")},
	{Kind: PathProbe, ID: 7, Time: 8},
	{Kind: MTUProbe, ID: 9, Size: 100},
	{Kind: MTUReply, ID: 9, Size: 100},
	{Kind: Close, Code: CloseReplaced},
	{Kind: Retire},
	{Kind: 200},
}

func TestControlIsFrozen(t *testing.T) {
	v := load(t).Controls
	if len(v) != len(controls) {
		t.Fatalf("%d vectors for %d rows", len(v), len(controls))
	}
	for i, c := range controls {
		wire := v[i].Wire
		if got := c.Append([]byte("before")); !bytes.Equal(got, append([]byte("before"), wire...)) {
			t.Errorf("%s: Append: %x, want %x", v[i].Note, got, []byte(wire))
		}
		if got, err := ParseControl(wire); err != nil || got != c {
			t.Errorf("%s: ParseControl(%x): %+v, %v, want %+v", v[i].Note, []byte(wire), got, err, c)
		}
		for n := range wire {
			if got, err := ParseControl(wire[:n]); !errors.Is(err, ErrControl) {
				t.Errorf("%s: the first %d bytes: %+v, %v, want ErrControl", v[i].Note, n, got, err)
			}
		}
		longer := append(bytes.Clone(wire), 1, 2, 3)
		if got, err := ParseControl(longer); c.Kind == MTUProbe {
			if !errors.Is(err, ErrControl) {
				t.Errorf("an mtu probe longer than it says: %+v, %v, want ErrControl", got, err)
			}
		} else if err != nil || got != c {
			t.Errorf("%s with more behind it: %+v, %v, want %+v", v[i].Note, got, err, c)
		}
	}
}

func TestControlRefusesBadFields(t *testing.T) {
	for _, row := range []struct {
		name string
		wire []byte
	}{
		{"empty", nil},
		{"an ip packet", []byte{0x45, 2}},
		{"an unknown address family", append([]byte{1, byte(Pong), 16: 0, 17: 0}, 5, 1, 2, 3, 4, 5, 6)},
		{"an mtu probe of no size", []byte{1, byte(MTUProbe), 11: 0}},
	} {
		if got, err := ParseControl(row.wire); !errors.Is(err, ErrControl) {
			t.Errorf("%s: ParseControl(%x): %+v, %v, want ErrControl", row.name, row.wire, got, err)
		}
	}
}

func TestObservedAddressesAreUnmapped(t *testing.T) {
	c := Control{Kind: Pong, Observed: netip.MustParseAddrPort("[::ffff:1.2.3.4]:5")}
	want := netip.MustParseAddrPort("1.2.3.4:5")
	if got, err := ParseControl(c.Append(nil)); err != nil || got.Observed != want {
		t.Errorf("%v is read as %v, %v, want %v", c.Observed, got.Observed, err, want)
	}
	as16 := want.Addr().As16()
	wire := append([]byte{1, byte(Pong), 17: 0}, familyIPv6)
	wire = append(append(wire, as16[:]...), 5, 0)
	if got, err := ParseControl(wire); err != nil || got.Observed != want {
		t.Errorf("ParseControl(%x): %v, %v, want %v", wire, got.Observed, err, want)
	}
}

func TestMTUProbesHaveTheirSize(t *testing.T) {
	initiator, responder := ends(t, ChaCha20Poly1305)
	for _, row := range []struct{ ask, want int }{
		{0, minMTUProbe}, {minMTUProbe, minMTUProbe}, {1280, 1280}, {65507, 65507},
	} {
		d, err := initiator.Seal(nil, Control{Kind: MTUProbe, ID: 1, Size: uint16(row.ask)}.Append(nil))
		if err != nil || len(d) != row.want {
			t.Errorf("size %d: datagram of %d bytes, %v, want %d", row.ask, len(d), err, row.want)
		}
		plaintext, err := responder.Open(nil, d)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := ParseControl(plaintext); err != nil || int(c.Size) != row.want {
			t.Errorf("size %d: %+v, %v", row.ask, c, err)
		}
	}
}

func TestAnswersAreNotMuchLongerThanQuestions(t *testing.T) {
	observed := netip.MustParseAddrPort("[2001:db8::1]:1")
	for question, answer := range map[Kind]Kind{Ping: Pong, PathProbe: Pong, MTUProbe: MTUReply} {
		q := len(Control{Kind: question}.Append(nil)) + Overhead
		a := len(Control{Kind: answer, Observed: observed}.Append(nil)) + Overhead
		if 2*a > 3*q {
			t.Errorf("%v of %d bytes is answered with %d", question, q, a)
		}
	}
}

func TestWordsForControls(t *testing.T) {
	for k := range Kind(9) {
		if k.String() == "" {
			t.Errorf("kind %d has no words", uint8(k))
		}
	}
	for c := range CloseCode(7) {
		if c.String() == "" {
			t.Errorf("code %d has no words", uint16(c))
		}
	}
	if got := Kind(99).String() + ", " + CloseCode(99).String(); got != "control kind 99, reason 99" {
		t.Errorf("unknown kind and code: %q", got)
	}
}

func FuzzParseControl(f *testing.F) {
	for _, v := range load(f).Controls {
		f.Add([]byte(v.Wire))
	}
	f.Fuzz(func(t *testing.T, plaintext []byte) {
		c, err := ParseControl(plaintext)
		if err != nil {
			return
		}
		if again, err := ParseControl(c.Append(nil)); err != nil || again != c {
			t.Fatalf("%+v is read back as %+v, %v", c, again, err)
		}
	})
}
