package compact

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// A vector is one value and its encoding; what Value holds depends on the type.
type vector struct {
	Type  string
	Value json.RawMessage
	Hex   string
	OK    bool
}

func (v vector) wire(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString(v.Hex)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal[T any](t *testing.T, raw json.RawMessage) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

type hostPort struct {
	Host string
	Port uint16
}

func (h hostPort) addr(t *testing.T) netip.AddrPort {
	t.Helper()
	ip, err := netip.ParseAddr(h.Host)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(ip, h.Port)
}

// number parses a number that is a decimal string or a plain number in the vectors.
func number(t *testing.T, raw json.RawMessage) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(string(bytes.Trim(raw, `"`)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// codecs has, for each type of the vectors, its encoding of a vector's value, and a decode-and-encode-again.
var codecs = map[string]struct {
	encode func(t *testing.T, raw json.RawMessage) []byte
	again  func(r *Reader) []byte
}{
	"uint": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendUint(nil, number(t, raw)) },
		func(r *Reader) []byte { return AppendUint(nil, r.Uint()) },
	},
	"uint16": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendUint16(nil, uint16(number(t, raw))) },
		func(r *Reader) []byte { return AppendUint16(nil, r.Uint16()) },
	},
	"uint32": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendUint32(nil, uint32(number(t, raw))) },
		func(r *Reader) []byte { return AppendUint32(nil, r.Uint32()) },
	},
	"uint64": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendUint64(nil, number(t, raw)) },
		func(r *Reader) []byte { return AppendUint64(nil, r.Uint64()) },
	},
	"buffer": {
		func(t *testing.T, raw json.RawMessage) []byte {
			b, err := hex.DecodeString(unmarshal[string](t, raw))
			if err != nil {
				t.Fatal(err)
			}
			return AppendBuffer(nil, b)
		},
		func(r *Reader) []byte { return AppendBuffer(nil, r.Buffer()) },
	},
	"string": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendString(nil, unmarshal[string](t, raw)) },
		func(r *Reader) []byte { return AppendString(nil, r.String()) },
	},
	"fixed32": {
		func(t *testing.T, raw json.RawMessage) []byte {
			b, err := hex.DecodeString(unmarshal[string](t, raw))
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		func(r *Reader) []byte { v := r.Fixed32(); return v[:] },
	},
	"fixed64": {
		func(t *testing.T, raw json.RawMessage) []byte {
			b, err := hex.DecodeString(unmarshal[string](t, raw))
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		func(r *Reader) []byte { v := r.Fixed64(); return v[:] },
	},
	"ipv4Address": {
		func(t *testing.T, raw json.RawMessage) []byte {
			return AppendAddr(nil, unmarshal[hostPort](t, raw).addr(t))
		},
		func(r *Reader) []byte { return AppendAddr(nil, r.Addr()) },
	},
	"ipv6Address": {
		func(t *testing.T, raw json.RawMessage) []byte {
			return AppendAddr6(nil, unmarshal[hostPort](t, raw).addr(t))
		},
		func(r *Reader) []byte { return AppendAddr6(nil, r.Addr6()) },
	},
	"ipv4Array": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendAddrs(nil, addrs(t, raw)) },
		func(r *Reader) []byte { return AppendAddrs(nil, r.Addrs()) },
	},
	"ipv6Array": {
		func(t *testing.T, raw json.RawMessage) []byte { return AppendAddrs6(nil, addrs(t, raw)) },
		func(r *Reader) []byte { return AppendAddrs6(nil, r.Addrs6()) },
	},
}

func addrs(t *testing.T, raw json.RawMessage) (a []netip.AddrPort) {
	t.Helper()
	for _, h := range unmarshal[[]hostPort](t, raw) {
		a = append(a, h.addr(t))
	}
	return a
}

func readVectors(t *testing.T) map[string]json.RawMessage {
	t.Helper()
	b, err := os.ReadFile("testdata/primitives.json")
	if err != nil {
		t.Fatal(err)
	}
	return unmarshal[map[string]json.RawMessage](t, b)
}

func TestVectors(t *testing.T) {
	all := readVectors(t)
	for name, codec := range codecs {
		vectors := unmarshal[[]vector](t, all[name])
		if len(vectors) == 0 {
			t.Errorf("no vectors for %s", name)
		}
		for _, v := range vectors {
			wire := v.wire(t)
			if got := codec.encode(t, v.Value); !bytes.Equal(got, wire) {
				t.Errorf("%s %s encodes as %x, want %x", name, v.Value, got, wire)
			}
			r := NewReader(append(bytes.Clone(wire), 0xaa))
			if got := codec.again(&r); r.Err() != nil || r.Len() != 1 || !bytes.Equal(got, wire) {
				t.Errorf("%s %x decodes and encodes as %x, %d bytes left, %v", name, wire, got, r.Len(), r.Err())
			}
			for n := range wire {
				r := NewReader(wire[:n])
				if codec.again(&r); !errors.Is(r.Err(), ErrShort) {
					t.Errorf("%s: the first %d bytes of %x: %v, want ErrShort", name, n, wire, r.Err())
				}
			}
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	vectors := unmarshal[[]vector](t, readVectors(t)["decodeErrors"])
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		r := NewReader(v.wire(t))
		codecs[v.Type].again(&r)
		if ok := r.Err() == nil; ok != v.OK {
			t.Errorf("%s %s: error %v, want success %v", v.Type, v.Hex, r.Err(), v.OK)
		}
	}
}

func TestReaderStopsAtTheFirstError(t *testing.T) {
	r := NewReader([]byte{5, 1, 2})
	if b := r.Buffer(); b != nil || !errors.Is(r.Err(), ErrShort) {
		t.Fatalf("Buffer past the end: %x, %v", b, r.Err())
	}
	if got := r.Uint8(); got != 0 || r.Len() != 0 || !errors.Is(r.Err(), ErrShort) {
		t.Errorf("after an error: Uint8 %d, %d bytes left, %v", got, r.Len(), r.Err())
	}
	other := errors.New("other")
	if r.Fail(other); !errors.Is(r.Err(), ErrShort) {
		t.Errorf("a later error replaced the first: %v", r.Err())
	}
	if a := r.Addrs(); a != nil {
		t.Errorf("Addrs after an error: %v", a)
	}
}

func TestAppendAddrOfOtherFamilies(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"[::ffff:1.2.3.4]:5", "010203040500"},
		{"[2001:db8::1]:5", "000000000500"},
	} {
		if got := hex.EncodeToString(AppendAddr(nil, netip.MustParseAddrPort(row.in))); got != row.want {
			t.Errorf("AppendAddr(%s) = %s, want %s", row.in, got, row.want)
		}
	}
	if got := hex.EncodeToString(AppendAddr(nil, netip.AddrPort{})); got != "000000000000" {
		t.Errorf("AppendAddr of the zero address = %s", got)
	}
	if got := AppendAddr6(nil, netip.AddrPort{}); !bytes.Equal(got, make([]byte, Addr6Size)) {
		t.Errorf("AppendAddr6 of the zero address = %x", got)
	}
}

func TestArrayCountDoesNotAllocate(t *testing.T) {
	wire := AppendUint(nil, MaxCount) // announces a million addresses, holds none
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewReader(wire)
	if a := r.Addrs(); a != nil || !errors.Is(r.Err(), ErrShort) {
		t.Errorf("Addrs: %v, %v, want ErrShort", a, r.Err())
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated for an array that is not there", n)
	}
}

// FuzzReader decodes the same bytes as every type and encodes the result again.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{"", "00", "fd0100", "ffffffffffffff1f00", "0301020304", "017f00000149c2"} {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, codec := range codecs {
			r := NewReader(b)
			once := codec.again(&r)
			if r.Err() != nil {
				if r.Len() != 0 {
					t.Fatalf("%s: %d bytes left after %v", name, r.Len(), r.Err())
				}
				continue
			}
			if len(once) > len(b)-r.Len() {
				t.Fatalf("%s: %x was read from %d bytes and takes %d", name, once, len(b)-r.Len(), len(once))
			}
			r = NewReader(once)
			if twice := codec.again(&r); r.Err() != nil || r.Len() != 0 || !bytes.Equal(once, twice) {
				t.Fatalf("%s: %x, and again %x, %v", name, once, twice, r.Err())
			}
		}
	})
}
