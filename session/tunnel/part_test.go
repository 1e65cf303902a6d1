package tunnel

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// split divides whole as a sender does.
func split(t testing.TB, id uint32, whole []byte, limit int) [][]byte {
	t.Helper()
	var parts [][]byte
	count := Parts(len(whole), limit)
	for i := range count {
		p := Part{ID: id, Index: i, Count: count, Total: len(whole)}
		from, to := p.Range()
		b := make([]byte, PartHeader)
		p.Put(b)
		b = append(b, whole[from:to]...)
		if len(b)+Overhead > limit {
			t.Fatalf("part %d of %d bytes in %d parts is %d bytes long", i, len(whole), count, len(b))
		}
		parts = append(parts, b)
	}
	return parts
}

func TestPartsAreJoined(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, row := range []struct{ size, limit, parts int }{
		{1280, 1200, 2},
		{1420, 1200, 2},
		{1420, 572, 3},
		{1282, 548, 3},
		{2, 1200, 2},
		{3, 1200, 2},
		{MaxJoined, 1454, 7},
		{MaxJoined, 700, 14},
		{2041, 168, 16},
		{MaxJoined, 548, 0},
		{MaxJoined + 1, 1454, 0},
		{100, Overhead + PartHeader, 0},
		{1, 1200, 0},
	} {
		whole := make([]byte, row.size)
		for i := range whole {
			whole[i] = byte(r.Uint32())
		}
		parts := split(t, 7, whole, row.limit)
		if len(parts) != row.parts {
			t.Errorf("%d bytes in datagrams of %d: %d parts, want %d", row.size, row.limit, len(parts), row.parts)
		}
		var j Joiner
		for n, i := range r.Perm(len(parts)) {
			got, err := j.Add(parts[i], 5)
			switch {
			case err != nil:
				t.Fatalf("%d bytes, part %d: %v", row.size, i, err)
			case n < len(parts)-1 && got != nil:
				t.Fatalf("%d bytes are whole after %d of %d parts", row.size, n+1, len(parts))
			case n == len(parts)-1 && (len(got) < 5 || !bytes.Equal(got[5:], whole)):
				t.Fatalf("%d bytes came out different", row.size)
			}
			if again, _ := j.Add(parts[i], 5); again != nil && n < len(parts)-1 {
				t.Fatal("a part that came twice counts twice")
			}
			if n == len(parts)-1 && len(parts) > 1 {
				break
			}
		}
	}
}

func TestMissingPartsArePushedOut(t *testing.T) {
	var j Joiner
	whole := bytes.Repeat([]byte{0x45}, 1000)
	for id := range uint32(10 * joinSlots) {
		parts := split(t, id, whole, 700)
		if got, err := j.Add(parts[0], 0); got != nil || err != nil {
			t.Fatalf("half of packet %d: %v, %v", id, got, err)
		}
		if id < joinSlots {
			continue
		}
		late := split(t, id-joinSlots, whole, 700)
		if got, _ := j.Add(late[1], 0); got != nil {
			t.Fatalf("packet %d was kept while %d others came", id-joinSlots, joinSlots)
		}
		if got, _ := j.Add(parts[0], 0); got != nil {
			t.Fatal("the first part counts for the second")
		}
		if got, _ := j.Add(parts[1], 0); !bytes.Equal(got, whole) {
			t.Fatalf("packet %d is not whole", id)
		}
	}
}

func TestMalformedParts(t *testing.T) {
	good := split(t, 3, bytes.Repeat([]byte{0x45}, 1000), 700)[0]
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for _, row := range []struct {
		name string
		b    []byte
	}{
		{"another kind", change(0, 1)},
		{"one part only", change(1, 0x00)},
		{"index beyond the number", change(1, 0x12)},
		{"other length of the whole", change(2, good[2]+2)},
		{"whole longer than any", change(3, 0xff)},
		{"one byte too many", append(bytes.Clone(good), 0)},
		{"more parts than bytes", []byte{contentPart, 0xf0, 3, 0, 1, 0, 0, 0, 9}},
	} {
		if _, _, err := ParsePart(row.b); !errors.Is(err, ErrPart) {
			t.Errorf("%s: %v, want ErrPart", row.name, err)
		}
	}
	for n := range good {
		if _, _, err := ParsePart(good[:n]); !errors.Is(err, ErrPart) {
			t.Errorf("the first %d bytes: %v, want ErrPart", n, err)
		}
	}
}

func FuzzPart(f *testing.F) {
	for _, b := range split(f, 3, bytes.Repeat([]byte{0x45}, 40), 70) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var j Joiner
		whole, joinErr := j.Add(b, 3)
		p, data, err := ParsePart(b)
		if (err == nil) != (joinErr == nil) || whole != nil {
			t.Fatalf("parse: %v; join: %v, whole %v", err, joinErr, whole != nil)
		}
		if err != nil {
			return
		}
		again := make([]byte, PartHeader)
		p.Put(again)
		if again = append(again, data...); !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x", b, again)
		}
	})
}
