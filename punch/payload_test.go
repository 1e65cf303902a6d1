package punch

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"omegatun/dht"
)

// readVectors decodes a file of testdata into v.
func readVectors(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// hexBytes is a byte string that vectors write in hex.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vectorToken is hex, alone or as the only member of an object.
type vectorToken token

func (v *vectorToken) UnmarshalJSON(b []byte) error {
	var object struct{ Hex hexBytes }
	var plain hexBytes
	if json.Unmarshal(b, &plain) == nil {
		copy(v[:], plain)
		return nil
	}
	err := json.Unmarshal(b, &object)
	copy(v[:], object.Hex)
	return err
}

type vectorAddr struct {
	Host netip.Addr
	Port uint16
}

func (v *vectorAddr) addr() netip.AddrPort {
	if v == nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(v.Host, v.Port)
}

func addrs(v []vectorAddr) []netip.AddrPort {
	if v == nil {
		return nil
	}
	list := []netip.AddrPort{}
	for _, a := range v {
		list = append(list, a.addr())
	}
	return list
}

type vectorPayload struct {
	Error, Firewall, Round uint64
	Connected, Punching    bool
	Addresses              []vectorAddr
	RemoteAddress          *vectorAddr
	Token, RemoteToken     *vectorToken
}

func (v *vectorPayload) payload() payload {
	p := payload{
		refusal: refusal(v.Error), firewall: dht.Firewall(v.Firewall), round: v.Round, connected: v.Connected,
		punching: v.Punching, addresses: addrs(v.Addresses), remoteAddress: v.RemoteAddress.addr(),
	}
	if v.Token != nil {
		p.token = token(*v.Token)
	}
	if v.RemoteToken != nil {
		p.remoteToken = token(*v.RemoteToken)
	}
	return p
}

func TestPayloadVectors(t *testing.T) {
	var vectors struct {
		Payloads []struct {
			Note  string
			Value vectorPayload
			Hex   hexBytes
		}
	}
	readVectors(t, "payloads.json", &vectors)
	if len(vectors.Payloads) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Payloads {
		t.Run(v.Note, func(t *testing.T) {
			p := v.Value.payload()
			if got := p.encode(); !bytes.Equal(got, v.Hex) {
				t.Errorf("encode(%+v) = %x, want %x", p, got, v.Hex)
			}
			got, err := parsePayload(v.Hex)
			if err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("parsePayload(%x) = %+v, %v, want %+v", v.Hex, got, err, p)
			}
			for n := range v.Hex {
				if _, err := parsePayload(v.Hex[:n]); !errors.Is(err, errPayload) {
					t.Errorf("parsePayload of the first %d bytes: %v, want errPayload", n, err)
				}
			}
			if got, err := parsePayload(append(v.Hex, 1, 2, 3)); err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("parsePayload with bytes left over = %+v, %v", got, err)
			}
		})
	}
}

func TestPayloadBad(t *testing.T) {
	tests := []struct {
		name string
		in   string
	}{
		{"flags beyond the reference's integers", "ffffffffffffffffff000000"},
		{"more addresses than bytes", "04000000ff0000000000000001"},
		{"one address too many", "0400000002010203040500"},
	}
	for _, tt := range tests {
		in, err := hex.DecodeString(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := parsePayload(in); !errors.Is(err, errPayload) {
			t.Errorf("%s: parsePayload = %+v, %v, want errPayload", tt.name, p, err)
		}
	}
}

func TestFirewallKindsOfLaterVersionsCountAsRandom(t *testing.T) {
	p, err := parsePayload([]byte{0, 0, 200, 0})
	if err != nil || p.firewall != dht.FirewallRandom {
		t.Errorf("kind 200 is %v, %v, want random", p.firewall, err)
	}
}

func TestSealVectors(t *testing.T) {
	var vectors struct {
		Entries []struct {
			Secret, Nonce, Plaintext, Payload hexBytes
			Value                             vectorPayload
		}
		Tokens []struct {
			LocalSecret, Token hexBytes
			Host               netip.Addr
		}
	}
	readVectors(t, "holepunch.json", &vectors)
	for _, v := range vectors.Entries {
		secret, nonce := [32]byte(v.Secret), [nonceSize]byte(v.Nonce)
		p := v.Value.payload()
		if got := p.encode(); !bytes.Equal(got, v.Plaintext) {
			t.Errorf("encode(%+v) = %x, want %x", p, got, v.Plaintext)
		}
		if got := sealPayload(&secret, &nonce, &p); !bytes.Equal(got, v.Payload) {
			t.Errorf("sealPayload(%+v) = %x, want %x", p, got, v.Payload)
		}
		if got, err := openPayload(&secret, v.Payload); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("openPayload(%x) = %+v, %v, want %+v", v.Payload, got, err, p)
		}
		for n := range v.Payload {
			if _, err := openPayload(&secret, v.Payload[:n]); !errors.Is(err, errPayload) {
				t.Errorf("openPayload of the first %d bytes: %v, want errPayload", n, err)
			}
			bad := bytes.Clone(v.Payload)
			bad[n] ^= 1
			if _, err := openPayload(&secret, bad); !errors.Is(err, errPayload) {
				t.Errorf("openPayload with byte %d changed: %v, want errPayload", n, err)
			}
		}
	}
	for _, v := range vectors.Tokens {
		secret := [32]byte(v.LocalSecret)
		if got := makeToken(&secret, v.Host); !bytes.Equal(got[:], v.Token) {
			t.Errorf("token of %v = %x, want %x", v.Host, got, v.Token)
		}
	}
}

func TestCapturedPayloads(t *testing.T) {
	var vectors []struct {
		Group, From, To            string
		Secret, Payload, Plaintext hexBytes
	}
	readVectors(t, "captured.json", &vectors)
	for _, v := range vectors {
		secret := [32]byte(v.Secret)
		p, err := openPayload(&secret, v.Payload)
		if err != nil {
			t.Errorf("%s, %s to %s: %v", v.Group, v.From, v.To, err)
			continue
		}
		if got := p.encode(); !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%s, %s to %s: encoded again %x, want %x", v.Group, v.From, v.To, got, v.Plaintext)
		}
		if got := sealPayload(&secret, (*[nonceSize]byte)(v.Payload), &p); !bytes.Equal(got, v.Payload) {
			t.Errorf("%s, %s to %s: sealed again %x, want %x", v.Group, v.From, v.To, got, v.Payload)
		}
	}
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0x0c, 0, 2, 0, 1, 1, 2, 3, 4, 0x91, 5, 4, 0x38, 2, 1, 0x94, 0x10})
	f.Add(append([]byte{0x37, 3, 3, 2, 0}, make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parsePayload(in)
		if err != nil {
			return
		}
		again, err := parsePayload(p.encode())
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%+v encoded and decoded: %+v, %v", p, again, err)
		}
	})
}
