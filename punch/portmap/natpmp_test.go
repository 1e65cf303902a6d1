package portmap

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// append appends the wire form of a response.
func (r pmpResponse) append(b []byte) []byte {
	b = append(b, 0, r.op|isResponse, byte(r.result>>8), byte(r.result))
	b = binary.BigEndian.AppendUint32(b, r.epoch)
	switch {
	case r.result != 0:
	case r.mapping != nil:
		b = binary.BigEndian.AppendUint16(b, r.mapping.internal)
		b = binary.BigEndian.AppendUint16(b, r.mapping.external)
		b = binary.BigEndian.AppendUint32(b, r.mapping.lifetime)
	default:
		b = append(b, r.address.AsSlice()...)
	}
	return b
}

func TestPMPWire(t *testing.T) {
	want := unhex(t, "00 01 0000 0fa0 c249 00000708")
	if got := appendPMPMap(nil, pmpMapping{4000, 49737, 1800}); string(got) != string(want) {
		t.Errorf("request %x, want %x", got, want)
	}
	for _, tt := range []struct {
		name, wire string
		want       pmpResponse
	}{
		{"address", "00 80 0000 00001000 c0586301", pmpResponse{op: 0, epoch: 4096, address: publicA.Addr()}},
		{"mapping", "00 81 0000 00001000 0fa0 0fa1 00000384", pmpResponse{op: 1, epoch: 4096, mapping: &pmpMapping{4000, 4001, 900}}},
		{"failure", "00 81 0004 00001000", pmpResponse{op: 1, epoch: 4096, result: 4}},
	} {
		wire := unhex(t, tt.wire)
		got, err := parsePMP(wire)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if (got.mapping == nil) != (tt.want.mapping == nil) || got.mapping != nil && *got.mapping != *tt.want.mapping {
			t.Errorf("%s: mapping %+v, want %+v", tt.name, got.mapping, tt.want.mapping)
		}
		if again := got.append(nil); string(again) != string(wire) {
			t.Errorf("%s: %x became %x", tt.name, wire, again)
		}
		if got.mapping, tt.want.mapping = nil, nil; got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		for n := range wire {
			if _, err := parsePMP(wire[:n]); !errors.Is(err, errForeign) {
				t.Errorf("%s: the first %d bytes: %v", tt.name, n, err)
			}
		}
	}
	for name, wire := range map[string]string{
		"a request":       "00 01 0000 00001000 0fa0 0fa1 00000384",
		"another version": "01 81 0000 00001000 0fa0 0fa1 00000384",
		"a TCP mapping":   "00 82 0000 00001000 0fa0 0fa1 00000384",
		"too long":        "00 81 0000 00001000 0fa0 0fa1 00000384 00",
		"wrong length":    "00 80 0000 00001000 0fa0 0fa1 00000384",
	} {
		if r, err := parsePMP(unhex(t, wire)); !errors.Is(err, errForeign) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestPMPMapsRenewsAndRemoves(t *testing.T) {
	x := newBox(t, func(x *box) { x.pcp, x.taken[4000] = false, true })
	s := x.serve(loopback)
	if _, err := testPCP(s).probe(t.Context()); !errors.Is(err, errVersion) {
		t.Errorf("PCP: %v, want %v", err, errVersion)
	}
	c := &pmpClient{s, 4000, 30 * time.Minute}
	if a, err := c.probe(t.Context()); err != nil || a != publicA.Addr() {
		t.Errorf("probe: %v, %v", a, err)
	}
	l, err := request(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.AddrPortFrom(publicA.Addr(), 4001); l.external != want || l.lifetime != 30*time.Minute || l.epoch.seconds < 1000 {
		t.Errorf("lease %+v, want %v", l, want)
	}
	if again, err := c.request(t.Context(), l.external); err != nil || again.external != l.external {
		t.Errorf("renewal: %v, %v", again.external, err)
	}
	if err := c.release(t.Context(), l); err != nil || x.holds() > 0 {
		t.Errorf("release: %v; %d mappings left", err, x.holds())
	}
}

func TestPMPGatewayMisbehaves(t *testing.T) {
	t.Parallel()
	// Replies of 12 bytes are to the question for the address.
	mapping := func(f func(b []byte) []byte) func([]byte) [][]byte {
		return func(b []byte) [][]byte {
			if len(b) == pmpMapLen {
				b = f(b)
			}
			return [][]byte{b}
		}
	}
	for _, tt := range []struct {
		name   string
		mangle func([]byte) [][]byte
		want   string
	}{
		{"wrong port", mapping(func(b []byte) []byte { b[9]++; return b }), errSilent.Error()},
		{"cut", mapping(func(b []byte) []byte { return b[:12] }), errSilent.Error()},
		{"no lifetime", mapping(func(b []byte) []byte { clear(b[12:]); return b }), "granted for only 0s"},
		{"port 0", mapping(func(b []byte) []byte { clear(b[10:12]); return b }), "at port 0"},
		{"refusal", mapping(func(b []byte) []byte { b[3] = 2; return b[:8] }), "not authorized"},
		{"refusal unheard of", mapping(func(b []byte) []byte { b[2] = 1; return b }), "code 256"},
		{"no network", patch(func(b []byte) { b[3] = 3 }), "network failure"},
		{"no address", patch(func(b []byte) { clear(b[8:12]) }), "external address 0.0.0.0"},
		{"multicast address", patch(func(b []byte) { b[8] = 224 }), "external address 224"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			x := newBox(t, func(x *box) { x.mangle = tt.mangle })
			c := &pmpClient{x.serve(loopback), 4000, 30 * time.Minute}
			if tt.want == errSilent.Error() {
				c.waits = quick
			}
			l, err := request(t, c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, %v, want an error with %q", l.external, err, tt.want)
			}
		})
	}
}

func FuzzNATPMP(f *testing.F) {
	f.Add([]byte{0, 0x80, 0, 0, 0, 0, 16, 0, 192, 88, 99, 1})
	f.Add([]byte{0, 0x81, 0, 0, 0, 0, 16, 0, 15, 160, 15, 161, 0, 0, 3, 132})
	f.Add([]byte{0, 0x81, 0, 4, 0, 0, 16, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parsePMP(b)
		if err != nil {
			return
		}
		if got := r.append(nil); string(got) != string(b[:len(got)]) || r.result == 0 && len(got) != len(b) {
			t.Errorf("%x became %x", b, got)
		}
	})
}

func FuzzAnnouncement(f *testing.F) {
	f.Add([]byte{0, 0x80, 0, 0, 0, 0, 16, 0, 192, 88, 99, 1})
	f.Add(pcpResponse{epoch: 7}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parseAnnouncement(b)
		if !ok {
			return
		}
		again := pcpResponse{epoch: a.seconds}.append(nil)
		if a.protocol == NATPMP {
			again = pmpResponse{epoch: a.seconds, address: a.external}.append(nil)
		}
		if got, ok := parseAnnouncement(again); !ok || got != a {
			t.Errorf("%+v became %+v, %t", a, got, ok)
		}
	})
}
