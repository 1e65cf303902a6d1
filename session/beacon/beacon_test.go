package beacon

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht/key"
	"omegatun/session/noise"
)

func private(name string) key.Private { return key.FromSeed(key.Hash([]byte(name))) }

// pair returns the keys that a has for b.
func pair(t testing.TB, a, b string) *Pair {
	t.Helper()
	shared, err := noise.Shared(private(a), private(b).Public())
	if err != nil {
		t.Fatal(err)
	}
	p := NewPair(shared, private(a).Public(), private(b).Public())
	return &p
}

var (
	place4 = netip.MustParseAddrPort("192.168.1.10:49737")
	now    = time.Unix(1_800_000_000, 0)
)

// beaconOf makes a beacon of a for the others, as heard from where it says that it comes from.
func beaconOf(t testing.TB, a string, at netip.AddrPort, echo Echo, others ...string) []byte {
	t.Helper()
	var list []For
	for _, o := range others {
		list = append(list, For{pair(t, a, o), echo})
	}
	b, _ := Append(nil, at, list, now)
	if len(b) != Size {
		t.Fatalf("a beacon of %d bytes, want %d", len(b), Size)
	}
	return b
}

func TestOnlyTheListedFindThemselves(t *testing.T) {
	for _, at := range []string{"192.168.1.10:49737", "[fd00::1]:1", "[fe80::1%eth0]:65535"} {
		from := netip.MustParseAddrPort(at)
		echo := Nonce{1, 2, 3, 4, 5, 6, 7, 8, 9}.Echo()
		b, err := Parse(beaconOf(t, "a", from, echo, "b", "c"), from.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if b.At != from {
			t.Errorf("from %v, want %v", b.At, from)
		}
		for _, row := range []struct {
			own, peer string
			found     bool
		}{{"b", "a", true}, {"c", "a", true}, {"d", "a", false}, {"b", "c", false}, {"a", "b", false}, {"a", "c", false}} {
			age, got, ok := b.Find(pair(t, row.own, row.peer), now.Add(5*time.Minute))
			if ok != row.found || ok && (age != 5*time.Minute || got != echo) {
				t.Errorf("%s looks for %s: %v, age %v, echo %x", row.own, row.peer, ok, age, got)
			}
		}
	}
}

func TestBeaconsTellNobodyAnything(t *testing.T) {
	seen := make(map[string]int)
	for range 200 { // the same beacon again and again, and one for nobody
		for _, others := range [][]string{{"b", "c"}, nil} {
			wire := beaconOf(t, "a", place4, Echo{}, others...)
			for i := entriesAt; i+8 <= len(wire); i++ {
				seen[string(wire[i:i+8])]++
			}
			for _, name := range []string{"a", "b", "c"} {
				k := private(name).Public()
				target := k.Target()
				if bytes.Contains(wire, k[:8]) || bytes.Contains(wire, target[:8]) {
					t.Fatalf("the key of %s is in the beacon", name)
				}
			}
		}
	}
	for b, n := range seen {
		if n > 1 {
			t.Fatalf("%x is in %d beacons", b, n)
		}
	}
}

func TestChangedBeaconsAreNotRecognised(t *testing.T) {
	wire := beaconOf(t, "a", place4, Echo{}, "b")
	p := pair(t, "b", "a")
	other := netip.MustParseAddr("192.168.1.11")
	if b, err := Parse(wire, other); err != nil {
		t.Fatal(err)
	} else if _, _, ok := b.Find(p, now); ok {
		t.Error("a beacon from another address is recognised")
	}
	changed := 0
	for i := range wire {
		bad := bytes.Clone(wire)
		bad[i] ^= 1
		b, err := Parse(bad, place4.Addr())
		if err != nil {
			if i >= entriesAt {
				t.Fatalf("byte %d: %v", i, err)
			}
			continue
		}
		if _, _, ok := b.Find(p, now); !ok {
			changed++
		}
	}
	if want := nonceSize + 2 + entrySize; changed != want {
		t.Errorf("%d changed bytes make the beacon unrecognisable, want %d: nonce, port and entry", changed, want)
	}
	for n := range wire {
		if _, err := Parse(wire[:n], place4.Addr()); !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d bytes: %v, want ErrFormat", n, err)
		}
	}
	if _, err := Parse(append(wire, 0), place4.Addr()); !errors.Is(err, ErrFormat) {
		t.Errorf("one byte too many: %v", err)
	}
}

func TestMoreThanTwelvePeers(t *testing.T) {
	var names []string
	for i := range 14 {
		names = append(names, fmt.Sprint("peer ", i))
	}
	b, err := Parse(beaconOf(t, "a", place4, Echo{}, names...), place4.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if _, _, ok := b.Find(pair(t, name, "a"), now); ok != (i < Entries) {
			t.Errorf("%s is found: %v", name, ok)
		}
	}
}

func TestHandshakeDatagrams(t *testing.T) {
	for _, row := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"first", AppendHandshake(nil, KindFirst, 7, []byte("message")), true},
		{"second", AppendHandshake(nil, KindSecond, 7, []byte("message")), true},
		{"beacon", AppendHandshake(nil, KindBeacon, 7, []byte("message")), false},
		{"unknown kind", AppendHandshake(nil, 3, 7, []byte("message")), false},
		{"empty", AppendHandshake(nil, KindFirst, 7, nil), false},
		{"too long", AppendHandshake(nil, KindFirst, 7, make([]byte, MaxHandshake+1)), false},
		{"another class", append([]byte{0xbe}, AppendHandshake(nil, KindFirst, 7, []byte("message"))[1:]...), false},
	} {
		_, id, message, err := ParseHandshake(row.b)
		if (err == nil) != row.ok || row.ok && (id != 7 || string(message) != "message") {
			t.Errorf("%s: id %d, %q, %v", row.name, id, message, err)
		}
	}
}

func TestPairsPrintNothing(t *testing.T) {
	p := pair(t, "a", "b")
	if s := fmt.Sprintf("%v %+v %x %s", p, p, p, p); s != "beacon keys beacon keys beacon keys beacon keys" {
		t.Errorf("prints %q", s)
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add(beaconOf(f, "a", place4, Echo{}, "b"))
	f.Add(AppendHandshake(nil, KindFirst, 7, []byte("message")))
	p := pair(f, "b", "a")
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := Parse(b, place4.Addr()); err == nil {
			n.Find(p, now)
			if k, err := KindOf(b); err != nil || k != KindBeacon || !Is(b) {
				t.Errorf("%x is a beacon, of kind %v, %v", b, k, err)
			}
		}
		if kind, id, message, err := ParseHandshake(b); err == nil {
			if again := AppendHandshake(nil, kind, id, message); !bytes.Equal(again, b) {
				t.Errorf("%x becomes %x", b, again)
			}
		}
	})
}
