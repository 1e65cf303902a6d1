package tunnel

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"omegatun/dht/compact"
)

func TestOfferIsFrozen(t *testing.T) {
	for _, v := range load(t).Offers {
		o := Offer{Index: v.Index, Suites: v.Suites, Features: v.Features}
		if got := o.Append([]byte("before")); !bytes.Equal(got, append([]byte("before"), v.Wire...)) {
			t.Errorf("%+v: Append: %x, want %x", o, got, []byte(v.Wire))
		}
		if got, ok, err := ParseOffer(v.Wire); got != o || !ok || err != nil {
			t.Errorf("ParseOffer(%x): %+v, %v, %v, want %+v", []byte(v.Wire), got, ok, err, o)
		}
	}
}

func TestParseOffer(t *testing.T) {
	want := Offer{Index: 0x04030201, Suites: 3, Features: 1}
	body := []byte{1, 2, 3, 4, 3, 1}
	block := func(version uint64, body []byte) []byte {
		b := compact.AppendUint([]byte(offerMagic), version)
		return compact.AppendBuffer(b, body)
	}
	cat := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for _, row := range []struct {
		name    string
		trailer []byte
		ok      bool
		err     error
	}{
		{"nothing", nil, false, nil},
		{"something else", []byte("hello"), false, nil},
		{"part of the marker", []byte("omt"), false, nil},
		{"not at the front", cat([]byte{0}, block(1, body)), false, nil},
		{"the offer", block(1, body), true, nil},
		{"bytes behind it", cat(block(1, body), []byte("more")), true, nil},
		{"a longer body", block(1, cat(body, make([]byte, 300))), true, nil},
		{"long forms of integers", cat([]byte(offerMagic), []byte{0xfd, 1, 0, 0xfe, 6, 0, 0, 0}, body), true, nil},
		{"another version", block(2, body), false, nil},
		{"version zero", block(0, body), false, nil},
		{"another version first", cat(block(2, []byte("what it says")), block(1, body)), true, nil},
		{"another version, cut", block(2, body)[:8], false, ErrOffer},
		{"two offers: the first counts", cat(block(1, body), block(1, make([]byte, 6))), true, nil},
		{"the marker only", []byte(offerMagic), false, ErrOffer},
		{"a length beyond the end", cat([]byte(offerMagic), []byte{1, 7}, body), false, ErrOffer},
		{"a length beyond counting", cat([]byte(offerMagic), []byte{1, 0xff}, bytes.Repeat([]byte{0xff}, 8)), false, ErrOffer},
		{"an empty body", block(1, nil), false, ErrOffer},
		{"a body without features", block(1, body[:5]), false, ErrOffer},
		{"features cut", block(1, cat(body[:5], []byte{0xfd, 0})), false, ErrOffer},
		{"features beyond counting", block(1, cat(body[:5], []byte{0xff}, bytes.Repeat([]byte{0xff}, 8))), false, ErrOffer},
		{"no ChaCha20-Poly1305", block(1, cat(body[:4], []byte{2, 1})), false, ErrOffer},
	} {
		got, ok, err := ParseOffer(row.trailer)
		if ok != row.ok || !errors.Is(err, row.err) || (err != nil) != (row.err != nil) {
			t.Errorf("%s: ParseOffer(%x): %v, %v, want %v, %v", row.name, row.trailer, ok, err, row.ok, row.err)
		}
		if ok && got != want || !ok && got != (Offer{}) {
			t.Errorf("%s: ParseOffer(%x): %+v", row.name, row.trailer, got)
		}
	}
}

func TestOfferTruncationsAreRefused(t *testing.T) {
	wire := Offer{Index: 1, Suites: 3, Features: 0x1234}.Append(nil)
	for n := range wire {
		if got, ok, err := ParseOffer(wire[:n]); ok || (err == nil) != (n < len(offerMagic)) {
			t.Errorf("the first %d bytes: %+v, %v, %v", n, got, ok, err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	const chacha, both = ChaCha20Poly1305, ChaCha20Poly1305 | AES256GCM
	for _, row := range []struct {
		name          string
		local, remote Offer
		suite         Suites
		features      Features
	}{
		{"both have AES", Offer{Suites: both}, Offer{Suites: both}, AES256GCM, 0},
		{"we lack AES", Offer{Suites: chacha}, Offer{Suites: both}, chacha, 0},
		{"the peer lacks AES", Offer{Suites: both}, Offer{Suites: chacha}, chacha, 0},
		{"suites of a later version", Offer{Suites: both}, Offer{Suites: 0xfd}, chacha, 0},
		{"nothing said here", Offer{}, Offer{Suites: both}, chacha, 0},
		{
			"features both have",
			Offer{Suites: both, Features: 3},
			Offer{Suites: both, Features: FeaturePostQuantum | 1<<20},
			AES256GCM, FeaturePostQuantum,
		},
	} {
		row.local.Index, row.remote.Index = 11, 22
		got, err := Negotiate(row.local, row.remote)
		want := Params{
			Suite: row.suite, Features: row.features, RemoteFeatures: row.remote.Features, LocalIndex: 11, RemoteIndex: 22,
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", row.name, got, err, want)
		}
	}
	if got, err := Negotiate(Offer{Suites: both}, Offer{}); !errors.Is(err, ErrOffer) {
		t.Errorf("Negotiate with an empty offer: %+v, %v, want ErrOffer", got, err)
	}
}

func TestSuitesHaveNames(t *testing.T) {
	for s, want := range map[Suites]string{
		0: "suites 0x0", 1: "chacha20-poly1305", 2: "aes-256-gcm", 3: "chacha20-poly1305,aes-256-gcm",
		5: "chacha20-poly1305,suites 0x4",
	} {
		if got := s.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint8(s), got, want)
		}
	}
	if PreferredSuites()&ChaCha20Poly1305 == 0 {
		t.Errorf("PreferredSuites: %v, want ChaCha20-Poly1305 in it", PreferredSuites())
	}
}

func FuzzParseOffer(f *testing.F) {
	for _, v := range load(f).Offers {
		f.Add([]byte(v.Wire))
	}
	f.Fuzz(func(t *testing.T, trailer []byte) {
		o, ok, err := ParseOffer(trailer)
		if ok && err != nil {
			t.Fatalf("both an offer and an error: %v", err)
		}
		if !ok {
			return
		}
		if again, ok, err := ParseOffer(o.Append(nil)); again != o || !ok || err != nil {
			t.Fatalf("%+v is read back as %+v, %v, %v", o, again, ok, err)
		}
	})
}
