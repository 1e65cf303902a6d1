package dht

import (
	"bytes"
	"errors"
	"testing"

	"omegatun/dht/key"
)

func TestAddressVectors(t *testing.T) {
	var v struct {
		HyperdhtAddress []struct {
			Note    string
			Value   *struct{}
			Hex     hexBytes
			Decoded struct {
				Key   struct{ Hex hexBytes }
				Nodes []hostPort
			}
		}
	}
	readVectors(t, "messages.json", &v)
	for _, e := range v.HyperdhtAddress {
		want := Address{Key: key.Public(e.Decoded.Key.Hex), Relays: addrPorts(e.Decoded.Nodes)}
		got, err := ParseAddress(e.Hex)
		if err != nil || !got.Equal(want) {
			t.Errorf("%x: %+v, %v, want %+v", e.Hex, got, err, want)
		}
		short := e.Value == nil || len(e.Decoded.Nodes) == 0 // we write it in another way
		if !short && !bytes.Equal(want.Append(nil), e.Hex) {
			t.Errorf("%+v: %x, want %x", want, want.Append(nil), e.Hex)
		}
		if again, err := ParseAddress(want.Append(nil)); err != nil || !again.Equal(want) {
			t.Errorf("%+v comes back as %+v, %v", want, again, err)
		}
		for n := range e.Hex {
			if _, err := ParseAddress(e.Hex[:n]); n != 32 && !errors.Is(err, ErrMalformed) {
				t.Errorf("the first %d bytes of %x: %v, want ErrMalformed", n, e.Hex, err)
			}
		}
	}
	if len(v.HyperdhtAddress) < 4 {
		t.Errorf("%d vectors", len(v.HyperdhtAddress))
	}
}

func FuzzAddress(f *testing.F) {
	f.Add(make([]byte, 32))
	f.Add(Address{Relays: addrList("1.2.3.4:5")}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAddress(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseAddress(a.Append(nil)); err != nil || !again.Equal(a) {
			t.Fatalf("%x: %+v, and again %+v, %v", b, a, again, err)
		}
	})
}
