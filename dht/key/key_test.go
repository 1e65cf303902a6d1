package key

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// hexBytes is a byte string that is hex in the vectors.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

type keyVectors struct {
	Blake2b []struct {
		Message, Blake2b256             hexBytes
		Keyed256, Keyed256With64ByteKey struct{ Key, Digest hexBytes }
	}
	KeyPairs []struct {
		Seed, PublicKey, Target hexBytes
		Z32                     string
	}
	Sign []struct{ Seed, Message, Signature hexBytes }
}

func TestHashesMatchTheReference(t *testing.T) {
	var v keyVectors
	readVectors(t, "keys.json", &v)
	if len(v.Blake2b) == 0 {
		t.Fatal("no vectors")
	}
	for _, e := range v.Blake2b {
		if got, want := Hash(e.Message), Target(e.Blake2b256); got != want {
			t.Errorf("Hash(%x) = %v, want %v", e.Message, got, want)
		}
		half := len(e.Message) / 2
		if got, want := Hash(e.Message[:half], e.Message[half:]), Target(e.Blake2b256); got != want {
			t.Errorf("Hash(%x) in two parts = %v, want %v", e.Message, got, want)
		}
		for _, k := range []struct{ Key, Digest hexBytes }{e.Keyed256, e.Keyed256With64ByteKey} {
			if got, want := KeyedHash(k.Key, e.Message), Target(k.Digest); got != want {
				t.Errorf("KeyedHash(%x, %x) = %v, want %v", k.Key, e.Message, got, want)
			}
		}
	}
}

func TestIdentitiesMatchTheReference(t *testing.T) {
	var v keyVectors
	readVectors(t, "keys.json", &v)
	if len(v.KeyPairs) == 0 || len(v.Sign) == 0 {
		t.Fatal("no vectors")
	}
	for _, e := range v.KeyPairs {
		p := FromSeed([SeedSize]byte(e.Seed))
		if got := p.Seed(); got != [SeedSize]byte(e.Seed) {
			t.Errorf("Seed of FromSeed(%x) = %x", e.Seed, got)
		}
		k := p.Public()
		if k != Public(e.PublicKey) {
			t.Errorf("public key of seed %x = %x, want %x", e.Seed, k[:], e.PublicKey)
		}
		if got := k.Target(); got != Target(e.Target) {
			t.Errorf("target of %v = %v, want %x", k, got, e.Target)
		}
		if got := k.String(); got != e.Z32 {
			t.Errorf("%x prints as %s, want %s", k[:], got, e.Z32)
		}
	}
	for _, e := range v.Sign {
		p := FromSeed([SeedSize]byte(e.Seed))
		sig := p.Sign(e.Message)
		if sig != [64]byte(e.Signature) {
			t.Errorf("signature of %x = %x, want %x", e.Message, sig, e.Signature)
		}
		if !p.Public().Verify(e.Message, sig) {
			t.Errorf("signature of %x does not verify", e.Message)
		}
		sig[7] ^= 1
		if p.Public().Verify(e.Message, sig) {
			t.Errorf("broken signature of %x verifies", e.Message)
		}
	}
}

func TestNamespacesMatchTheReference(t *testing.T) {
	type space struct {
		Entries []struct {
			Name  string
			Index byte
			Hex   hexBytes
		}
	}
	var v struct{ HyperswarmDht, SecretStream space }
	readVectors(t, "namespaces.json", &v)
	for name, s := range map[string]space{"hyperswarm/dht": v.HyperswarmDht, "hyperswarm/secret-stream": v.SecretStream} {
		if len(s.Entries) == 0 {
			t.Fatalf("no vectors for %s", name)
		}
		for _, e := range s.Entries {
			if got := Namespace(name, e.Index); got != Target(e.Hex) {
				t.Errorf("Namespace(%q, %d), %s, = %v, want %x", name, e.Index, e.Name, got, e.Hex)
			}
		}
	}
}

func TestParsePublic(t *testing.T) {
	const z = "8pinxxgqs41n4aididenw5apqp1urfmzdztr8jt4abrkdn435ewo"
	const x = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
	want := FromSeed([SeedSize]byte{}).Public()
	for _, s := range []string{
		z, x, strings.ToUpper(z), strings.ToUpper(x), " " + z + "\n", "pear://" + z, "pear://" + z + "/path?x=/", x + "/a",
		"hs://0000" + z, "hs://0000" + x, "HS://0000" + strings.ToUpper(z),
	} {
		if got, err := ParsePublic(s); err != nil || got != want {
			t.Errorf("ParsePublic(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for name, s := range map[string]string{
		"empty":                    "",
		"short":                    z[1:],
		"long":                     z + "y",
		"letter outside z-base-32": "l" + z[1:],
		"letter outside hex":       "g" + x[1:],
		"unused bits set":          z[:51] + "b",
		"other scheme":             "https://" + z,
		"52 bytes, not 52 letters": strings.Repeat("é", 26),
		"holesail's of nothing":    "hs://0000",
		"holesail's cut":           "hs://0000" + z[1:],
		"holesail's in another":    "pear://hs://0000" + z,
		"another of holesail's":    "hs://000" + z,
	} {
		if k, err := ParsePublic(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: ParsePublic(%q) = %v, %v, want ErrInvalid", name, s, k, err)
		}
	}
}

func TestParsePublicKeepsSecrets(t *testing.T) {
	const secret = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
	for _, s := range []string{"hs://s000" + secret, " HS://S000" + secret + "\n", "hs://s"} {
		k, err := ParsePublic(s)
		if !errors.Is(err, ErrInvalid) || !errors.Is(err, ErrSecret) {
			t.Errorf("ParsePublic(%q) = %v, %v, want ErrInvalid and ErrSecret", s, k, err)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("ParsePublic(%q): %v, want nothing of the secret", s, err)
		}
	}
	if _, err := ParsePublic("hs://0000"); errors.Is(err, ErrSecret) {
		t.Errorf("what is no secret: %v", err)
	}
}

func TestPublicAsText(t *testing.T) {
	k := Generate().Public()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	var got Public
	if err := json.Unmarshal(b, &got); err != nil || got != k {
		t.Errorf("%v through JSON %s: %v, %v", k, b, got, err)
	}
	if got, err := ParsePublic(k.Hex()); err != nil || got != k {
		t.Errorf("%v through hex: %v, %v", k, got, err)
	}
	if !strings.HasPrefix(k.String(), k.Short()) || len(k.Short()) != 8 {
		t.Errorf("Short of %v = %s", k, k.Short())
	}
	if k.IsZero() || !(Public{}).IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestCompareOrdersByBytes(t *testing.T) {
	a, b := Public{0, 0xff}, Public{1, 0}
	if a.Compare(b) >= 0 || b.Compare(a) <= 0 || a.Compare(a) != 0 {
		t.Errorf("Compare: %d %d %d", a.Compare(b), b.Compare(a), a.Compare(a))
	}
}

func TestPrivateNeverPrintsItsSecret(t *testing.T) {
	p := Generate()
	seed := p.Seed()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d", "%T%v"} {
		for _, v := range []any{p, struct{ K Private }{p}} {
			got := strings.ToLower(fmt.Sprintf(verb, v))
			if strings.Contains(got, hex.EncodeToString(seed[:8])) || strings.Contains(got, fmt.Sprintf("%d %d %d", seed[0], seed[1], seed[2])) {
				t.Errorf("%s prints the secret: %s", verb, got)
			}
		}
	}
	if got := (Private{}).String(); got != "no private key" {
		t.Errorf("zero Private prints %q", got)
	}
}

func TestZeroPrivate(t *testing.T) {
	var p Private
	if !p.IsZero() || !p.Public().IsZero() {
		t.Error("the zero Private is not zero")
	}
	if Generate().IsZero() {
		t.Error("a generated Private is zero")
	}
}

func TestParseTarget(t *testing.T) {
	want := Hash([]byte("topic"))
	if got, err := ParseTarget(want.String()); err != nil || got != want {
		t.Errorf("ParseTarget(%v) = %v, %v", want, got, err)
	}
	for _, s := range []string{"", want.String()[1:], want.String() + "0", "g" + want.String()[1:]} {
		if got, err := ParseTarget(s); err == nil {
			t.Errorf("ParseTarget(%q) = %v, want an error", s, got)
		}
	}
}

func FuzzParsePublic(f *testing.F) {
	f.Add("8pinxxgqs41n4aididenw5apqp1urfmzdztr8jt4abrkdn435ewo")
	f.Add("pear://3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29/x")
	f.Add("hs://00008pinxxgqs41n4aididenw5apqp1urfmzdztr8jt4abrkdn435ewo")
	f.Add("hs://s0003b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParsePublic(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("ParsePublic(%q): %v, want ErrInvalid", s, err)
			}
			return
		}
		for _, text := range []string{k.String(), k.Hex()} {
			if again, err := ParsePublic(text); err != nil || again != k {
				t.Fatalf("ParsePublic(%q) = %v, and of its text %q = %v, %v", s, k, text, again, err)
			}
		}
	})
}
