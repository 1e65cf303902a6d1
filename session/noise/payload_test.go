package noise

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// referenceAddr is an address as the reference decodes it.
type referenceAddr struct {
	Host netip.Addr
	Port uint16
}

type referenceBytes struct{ Hex hexBytes }

// referencePayload is what the reference's decoder returns.
type referencePayload struct {
	Version, Error, Firewall uint64
	Holepunch                *struct {
		ID     uint64
		Relays []struct{ RelayAddress, PeerAddress referenceAddr }
	}
	Addresses4, Addresses6 []referenceAddr
	UDX                    *struct {
		Version        uint64
		ReusableSocket bool
		ID             uint32
		Seq            uint64
	}
	SecretStream *struct{ Version uint64 }
	RelayThrough *struct {
		Version          uint64
		PublicKey, Token referenceBytes
	}
	RelayAddresses *[]referenceAddr
}

func addrs(from []referenceAddr) (to []netip.AddrPort) {
	for _, a := range from {
		to = append(to, netip.AddrPortFrom(a.Host, a.Port))
	}
	return to
}

func (r referencePayload) payload() Payload {
	p := Payload{
		Version: r.Version, Error: ErrorCode(r.Error), Firewall: r.Firewall,
		Addresses4: addrs(r.Addresses4), Addresses6: addrs(r.Addresses6),
	}
	if h := r.Holepunch; h != nil {
		p.Holepunch = &HolepunchInfo{ID: h.ID}
		for _, pair := range h.Relays {
			both := addrs([]referenceAddr{pair.RelayAddress, pair.PeerAddress})
			p.Holepunch.Relays = append(p.Holepunch.Relays, RelayPair{Relay: both[0], Peer: both[1]})
		}
	}
	if u := r.UDX; u != nil {
		p.UDX = &UDXInfo{Version: u.Version, Reusable: u.ReusableSocket, ID: u.ID, Seq: u.Seq}
	}
	if s := r.SecretStream; s != nil {
		p.SecretStream = &SecretStreamInfo{Version: s.Version}
	}
	if x := r.RelayThrough; x != nil {
		p.RelayThrough = &RelayThrough{
			Version: x.Version, Relay: key.Public(x.PublicKey.Hex), Token: [32]byte(x.Token.Hex),
		}
	}
	if r.RelayAddresses != nil {
		p.RelayAddresses = append([]netip.AddrPort{}, addrs(*r.RelayAddresses)...)
	}
	return p
}

type payloadVector struct {
	Note         string
	Hex, Trailer hexBytes
	Decoded      referencePayload
}

// The vectors come in two halves: with a trailer appended, the reference decodes the same fields.
func TestPayloadIsTheReferences(t *testing.T) {
	var vectors []payloadVector
	load(t, "payload.json", &vectors)
	half := len(vectors) / 2
	if half == 0 {
		t.Fatal("no vectors")
	}
	for i, v := range vectors {
		t.Run(v.Note, func(t *testing.T) {
			if i >= half {
				plain := vectors[i-half]
				if !bytes.Equal(v.Hex, append(plain.Hex, v.Trailer...)) || len(v.Trailer) == 0 {
					t.Fatalf("%x is not %x and a trailer", v.Hex, plain.Hex)
				}
				if !reflect.DeepEqual(v.Decoded, plain.Decoded) {
					t.Errorf("the reference decodes %+v with a trailer, %+v without", v.Decoded, plain.Decoded)
				}
			}
			want := v.Decoded.payload()
			knownFlags := v.Hex[1] < 0x80
			switch {
			case want.Version != PayloadVersion: // nothing after the version is known
			case !knownFlags: // what the unknown flag announces cannot be told from a trailer
				want.Trailer = v.Hex[4:]
			case len(v.Trailer) > 0:
				want.Trailer = v.Trailer
			}
			got, err := ParsePayload(v.Hex)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("ParsePayload(%x): %+v, %v, want %+v", v.Hex, got, err, want)
			}
			if want.Version != PayloadVersion || !knownFlags {
				return // decode only
			}
			prefix := []byte("prefix")
			if wire := got.Append(prefix); !bytes.Equal(wire, append(prefix, v.Hex...)) {
				t.Errorf("Append: %x, want %x after the prefix", wire, v.Hex)
			}
		})
	}
}

func TestCapturedPayloadsAreReencoded(t *testing.T) {
	var captured []struct {
		Group     string
		Plaintext hexBytes
	}
	load(t, "captured.json", &captured)
	for _, c := range captured {
		p, err := ParsePayload(c.Plaintext)
		if err != nil || p.UDX == nil || p.SecretStream == nil || p.Trailer != nil {
			t.Errorf("%s: ParsePayload(%x): %+v, %v", c.Group, c.Plaintext, p, err)
		}
		if got := p.Append(nil); !bytes.Equal(got, c.Plaintext) {
			t.Errorf("%s: Append: %x, want %x", c.Group, got, c.Plaintext)
		}
	}
}

// full has every field, none of them zero.
func full() Payload {
	a4, b4 := netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("6.7.8.9:10")
	return Payload{
		Version: 1, Error: ErrorTryLater, Firewall: 2,
		Holepunch:  &HolepunchInfo{ID: 300, Relays: []RelayPair{{Relay: a4, Peer: b4}, {Relay: b4, Peer: a4}}},
		Addresses4: []netip.AddrPort{a4}, Addresses6: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:11")},
		UDX:            &UDXInfo{Version: 1, Reusable: true, ID: 1<<32 - 1, Seq: 7},
		SecretStream:   &SecretStreamInfo{Version: 1},
		RelayThrough:   &RelayThrough{Version: 1, Relay: key.Public{9}, Token: [32]byte{8}},
		RelayAddresses: []netip.AddrPort{b4, a4},
	}
}

func TestPayloadTruncationsAreRefused(t *testing.T) {
	p := full()
	wire := p.Append(nil)
	if got, err := ParsePayload(wire); err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("ParsePayload of its own: %+v, %v, want %+v", got, err, p)
	}
	for n := range wire {
		if got, err := ParsePayload(wire[:n]); !errors.Is(err, ErrPayload) {
			t.Errorf("ParsePayload of the first %d bytes: %+v, %v, want ErrPayload", n, got, err)
		}
	}
}

func TestPayloadRefusesBadFields(t *testing.T) {
	huge := binary.LittleEndian.AppendUint64([]byte{0xff}, 1<<53) // one more than the reference can count
	wide := compact.AppendUint(nil, 1<<32)
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, row := range []struct {
		name string
		wire []byte
	}{
		{"version", huge},
		{"flags", cat([]byte{1}, huge, []byte{0, 0})},
		{"error", cat([]byte{1, 0}, huge, []byte{0})},
		{"firewall", cat([]byte{1, 0, 0}, huge)},
		{"holepunch id", cat([]byte{1, flagHolepunch, 0, 0}, huge, []byte{0})},
		{"holepunch relays, more than there are", cat([]byte{1, flagHolepunch, 0, 0, 0, 2}, make([]byte, 23))},
		{"addresses4, more than there are", cat([]byte{1, flagAddresses4, 0, 0, 2}, make([]byte, 11))},
		{"addresses4, a million", cat([]byte{1, flagAddresses4, 0, 0}, compact.AppendUint(nil, 1<<20))},
		{"addresses6, more than there are", cat([]byte{1, flagAddresses6, 0, 0, 2}, make([]byte, 35))},
		{"udx stream id above 32 bits", cat([]byte{1, flagUDX, 0, 0, 1, 0}, wide, []byte{0})},
		{"udx seq", cat([]byte{1, flagUDX, 0, 0, 1, 0, 5}, huge)},
		{"relay token", cat([]byte{1, flagRelayThrough, 0, 0, 1, 0}, make([]byte, 63))},
		{"relayAddresses, more than there are", cat([]byte{1, flagRelayAddresses, 0, 0, 1}, make([]byte, 5))},
	} {
		if p, err := ParsePayload(row.wire); !errors.Is(err, ErrPayload) {
			t.Errorf("%s: ParsePayload(%x): %+v, %v, want ErrPayload", row.name, row.wire, p, err)
		}
	}
}

func TestPayloadVersionsMayBeLeftOut(t *testing.T) {
	want, p := full(), full()
	p.Version, p.UDX.Version, p.SecretStream.Version, p.RelayThrough.Version = 0, 0, 0, 0
	if got := p.Append(nil); !bytes.Equal(got, want.Append(nil)) {
		t.Errorf("Append: %x, want %x", got, want.Append(nil))
	}
}

func TestErrorCodesHaveWords(t *testing.T) {
	for code, want := range map[ErrorCode]string{
		ErrorNone: "no error", ErrorAborted: "aborted", ErrorVersionMismatch: "version mismatch",
		ErrorTryLater: "try later", 99: "error 99",
	} {
		if got := code.String(); got != want {
			t.Errorf("code %d: %q, want %q", uint64(code), got, want)
		}
	}
}

func FuzzParsePayload(f *testing.F) {
	var vectors []payloadVector
	load(f, "payload.json", &vectors)
	for _, v := range vectors {
		f.Add([]byte(v.Hex))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		p, err := ParsePayload(wire)
		if err != nil {
			return
		}
		again, err := ParsePayload(p.Append(nil))
		if err != nil {
			t.Fatalf("ParsePayload refuses what Append made of %+v: %v", p, err)
		}
		// Versions of zero are written as one.
		for _, q := range []*Payload{&p, &again} {
			if q.Version == 0 {
				return
			}
			if q.UDX != nil {
				q.UDX.Version = max(q.UDX.Version, 1)
			}
			if q.SecretStream != nil {
				q.SecretStream.Version = max(q.SecretStream.Version, 1)
			}
			if q.RelayThrough != nil {
				q.RelayThrough.Version = max(q.RelayThrough.Version, 1)
			}
		}
		if !reflect.DeepEqual(p, again) {
			t.Fatalf("%x decodes to %+v, which encodes to %+v", wire, p, again)
		}
	})
}
