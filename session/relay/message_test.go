package relay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"omegatun/session/udx"
)

func load(tb testing.TB, file string, v any) {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

type recordedMessage struct {
	Value struct {
		IsInitiator bool
		Token       string
		ID          uint32
		Seq         uint64
	}
	Hex string
}

func TestMessagesAreThoseOfTheReference(t *testing.T) {
	var v struct{ Pair, Unpair []recordedMessage }
	load(t, "messages.json", &v)
	if len(v.Pair) < 6 || len(v.Unpair) < 2 {
		t.Fatalf("%d and %d messages", len(v.Pair), len(v.Unpair))
	}
	for _, r := range v.Pair {
		wire := unhex(t, r.Hex)
		want := pair{r.Value.IsInitiator, Token(unhex(t, r.Value.Token)), udx.ID(r.Value.ID), r.Value.Seq}
		if got, err := parsePair(wire); err != nil || got != want {
			t.Errorf("pair %s: %+v, %v, want %+v", r.Hex, got, err, want)
		}
		if got := want.append(nil); !bytes.Equal(got, wire) {
			t.Errorf("pair %+v: %x, want %s", want, got, r.Hex)
		}
	}
	for _, r := range v.Unpair {
		wire, want := unhex(t, r.Hex), Token(unhex(t, r.Value.Token))
		if got, err := parseUnpair(wire); err != nil || got != want {
			t.Errorf("unpair %s: %v, %v", r.Hex, got, err)
		}
		if got := appendUnpair(nil, want); !bytes.Equal(got, wire) {
			t.Errorf("unpair: %x, want %s", got, r.Hex)
		}
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	token := strings.Repeat("77", 32)
	wire := unhex(t, "01"+token+"fef5010000 00")
	for n := range wire {
		if _, err := parsePair(wire[:n]); !errors.Is(err, ErrMessage) {
			t.Errorf("first %d of %d bytes of a pair: %v, want ErrMessage", n, len(wire), err)
		}
		if n > 32 {
			continue
		}
		if _, err := parseUnpair(wire[:n]); !errors.Is(err, ErrMessage) {
			t.Errorf("first %d bytes of an unpair: %v, want ErrMessage", n, err)
		}
	}
	for _, tc := range []struct{ name, wire string }{
		{"stream id of 33 bits", "01" + token + "ff0000000001000000 00"},
		{"stream id beyond what the reference can read", "01" + token + "ffffffffffffffffff 00"},
		{"seq beyond it", "01" + token + "01 ffffffffffffffffff"},
	} {
		if p, err := parsePair(unhex(t, tc.wire)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %+v, %v, want ErrMessage", tc.name, p, err)
		}
	}
	if p, err := parsePair(unhex(t, "ff"+token+"05 00 aabb")); err != nil || !p.initiator || p.stream != 5 {
		t.Errorf("unknown flags and fields: %+v, %v, want them ignored", p, err)
	}
}

func TestTokensAreNotPrinted(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a == b {
		t.Error("two tokens are the same")
	}
	for _, s := range []string{fmt.Sprint(a), fmt.Sprintf("%s %v %#v", a, a, a)} {
		if strings.Contains(s, hex.EncodeToString(a[4:8])) {
			t.Errorf("token printed as %q", s)
		}
	}
}

func FuzzMessage(f *testing.F) {
	var v struct{ Pair, Unpair []recordedMessage }
	load(f, "messages.json", &v)
	for _, r := range append(v.Pair, v.Unpair...) {
		f.Add(unhex(f, r.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parsePair(b); err == nil {
			if again, err := parsePair(p.append(nil)); err != nil || again != p {
				t.Errorf("pair again: %+v, %v, want %+v", again, err, p)
			}
		}
		if u, err := parseUnpair(b); err == nil {
			if again, err := parseUnpair(appendUnpair(nil, u)); err != nil || again != u {
				t.Errorf("unpair again: %x, %v, want %x", again, err, u)
			}
		}
	})
}
