package noise

import (
	"bytes"
	"errors"
	"testing"

	"filippo.io/edwards25519"

	"omegatun/dht/key"
)

type dhVectors struct {
	DH []struct {
		LocalSeed       hexBytes
		RemotePublicKey hexBytes
		DH              hexBytes
	}
	DHRejected []struct {
		Kind  string
		Point hexBytes
	}
}

func TestDHAgreesWithTheReference(t *testing.T) {
	var vectors dhVectors
	load(t, "dh.json", &vectors)
	if len(vectors.DH) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.DH {
		got, err := new(dh).DH(keyPair(v.LocalSeed).Private, v.RemotePublicKey)
		if err != nil || !bytes.Equal(got, v.DH) {
			t.Errorf("DH of seed %x and key %x: %x, %v, want %x", v.LocalSeed, v.RemotePublicKey, got, err, v.DH)
		}
	}
}

func TestDHRefusesUnusableKeys(t *testing.T) {
	type row struct {
		name  string
		point []byte
	}
	base := edwards25519.NewGeneratorPoint()
	orderTwo, err := new(edwards25519.Point).SetBytes(append(append([]byte{0xec}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f))
	if err != nil {
		t.Fatal(err)
	}
	rows := []row{
		{"mixed order: base point plus the point of order two", new(edwards25519.Point).Add(base, orderTwo).Bytes()},
		{"not canonical: one, as p+1", append(append([]byte{0xee}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f)},
		{"not canonical: identity with a sign", append(append([]byte{1}, make([]byte, 30)...), 0x80)},
		{"short", base.Bytes()[:31]},
		{"long", append(base.Bytes(), 0)},
	}
	var vectors dhVectors
	load(t, "dh.json", &vectors)
	for _, v := range vectors.DHRejected {
		rows = append(rows, row{"reference: " + v.Kind, v.Point})
	}
	local := repeated(1)
	seed := local.Seed()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if got, err := new(dh).DH(keyPair(seed[:]).Private, r.point); !errors.Is(err, ErrKey) {
				t.Errorf("DH with %x: %x, %v, want ErrKey", r.point, got, err)
			}
			if len(r.point) != keySize {
				return
			}
			if _, err := NewInitiator(local, key.Public(r.point)); !errors.Is(err, ErrKey) {
				t.Errorf("NewInitiator with %x: %v, want ErrKey", r.point, err)
			}
		})
	}
}

// An encoding of y that is not reduced modulo p = 2^255 - 19 exists for y up to 18. (No point of prime order has
// such a y, so the check of the order refuses them too.)
func TestDHRefusesEncodingsThatAreNotReduced(t *testing.T) {
	for y := range byte(19) {
		for _, sign := range []byte{0, 0x80} {
			encoded := bytes.Repeat([]byte{0xff}, keySize)
			encoded[0], encoded[31] = 0xed+y, 0x7f|sign
			if p, err := decodePoint(encoded); !errors.Is(err, ErrKey) {
				t.Errorf("decodePoint(%x): %v, %v, want ErrKey", encoded, p, err)
			}
		}
	}
}

func TestDHRemembersOnlyWhatItChecked(t *testing.T) {
	d := new(dh)
	var keys [][]byte
	for n := range byte(4) {
		k := repeated(n).Public()
		keys = append(keys, k[:])
	}
	for range 2 {
		for i, k := range keys {
			p, err := d.point(k)
			if err != nil || !bytes.Equal(p.Bytes(), k) {
				t.Errorf("point of key %d: %v", i, err)
			}
			if again, err := d.point(k); err != nil || again != p {
				t.Errorf("point of key %d again: %p, %v, want the same %p", i, again, err, p)
			}
		}
		if _, err := d.point(make([]byte, keySize)); !errors.Is(err, ErrKey) {
			t.Errorf("point of zeros: %v, want ErrKey", err)
		}
	}
}

func BenchmarkDH(b *testing.B) {
	local, remote := repeated(1).Seed(), repeated(2).Public()
	private := keyPair(local[:]).Private
	for b.Loop() {
		if _, err := new(dh).DH(private, remote[:]); err != nil {
			b.Fatal(err)
		}
	}
}
