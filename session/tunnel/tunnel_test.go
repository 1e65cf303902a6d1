package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/vectors.json; its README says where that comes from.
type vectors struct {
	InitiatorTx, ResponderTx       hexBytes
	Hash                           hexBytes
	InitiatorIndex, ResponderIndex uint32
	InitiatorKey, ResponderKey     hexBytes
	Offers                         []struct {
		Index    uint32
		Suites   Suites
		Features Features
		Wire     hexBytes
	}
	Datagrams []struct {
		Suite           Suites
		From            string
		Counter         uint64
		Plaintext, Wire hexBytes
	}
	Controls []struct {
		Note string
		Wire hexBytes
	}
	KemSeed hexBytes
	Rekeys  []struct { // the first has only the chain of the handshake
		Number                            uint64
		PostQuantum                       bool
		Private, Request, Answer          hexBytes
		Chain, InitiatorKey, ResponderKey hexBytes
	}
}

var loadOnce = sync.OnceValues(func() (v vectors, err error) {
	b, err := os.ReadFile("testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	return v, err
})

func load(t testing.TB) vectors {
	t.Helper()
	v, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var suites = []Suites{ChaCha20Poly1305, AES256GCM}

// ends returns both ends of a session with the keys of the vectors.
func ends(t testing.TB, suite Suites) (initiator, responder *Epoch) {
	t.Helper()
	v := load(t)
	tx, rx, hash := [32]byte(v.InitiatorTx), [32]byte(v.ResponderTx), [64]byte(v.Hash)
	p := Params{Suite: suite, LocalIndex: v.InitiatorIndex, RemoteIndex: v.ResponderIndex}
	initiator, err := NewEpoch(p, true, tx, rx, hash)
	if err != nil {
		t.Fatal(err)
	}
	p.LocalIndex, p.RemoteIndex = p.RemoteIndex, p.LocalIndex
	responder, err = NewEpoch(p, false, rx, tx, hash)
	if err != nil {
		t.Fatal(err)
	}
	return initiator, responder
}

// confirmed is ends after the initiator's first datagram.
func confirmed(t testing.TB, suite Suites) (initiator, responder *Epoch) {
	t.Helper()
	initiator, responder = ends(t, suite)
	if _, err := responder.Open(nil, seal(t, initiator, "first")); err != nil {
		t.Fatal(err)
	}
	return initiator, responder
}

func seal(t testing.TB, e *Epoch, plaintext string) []byte {
	t.Helper()
	b, err := e.Seal(nil, []byte(plaintext))
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return b
}

// wantOpen checks what Open makes of a datagram.
func wantOpen(t testing.TB, e *Epoch, datagram []byte, want string, wantErr error) {
	t.Helper()
	got, err := e.Open(nil, datagram)
	if !errors.Is(err, wantErr) || string(got) != want {
		t.Errorf("Open of counter %d: %q, %v, want %q, %v",
			binary.LittleEndian.Uint64(datagram[8:]), got, err, want, wantErr)
	}
}

func TestFormatIsFrozen(t *testing.T) {
	v := load(t)
	for _, d := range v.Datagrams {
		name := fmt.Sprintf("%v/%s/%d", d.Suite, d.From, d.Counter)
		t.Run(name, func(t *testing.T) {
			from, to := confirmed(t, d.Suite)
			if d.From == "responder" {
				from, to = to, from
			}
			from.counter.Store(d.Counter)
			got, err := from.Seal([]byte("before"), d.Plaintext)
			if want := append([]byte("before"), d.Wire...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("Seal: %x, %v, want %x", got, err, want)
			}
			to.window = window{} // counter 0 of the initiator has served to confirm
			got, err = to.Open([]byte("before"), d.Wire)
			if want := append([]byte("before"), d.Plaintext...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("Open: %x, %v, want %x", got, err, want)
			}
		})
	}
	hash := [64]byte(v.Hash)
	if got := epochKey([32]byte(v.InitiatorTx), hash); !bytes.Equal(got[:], v.InitiatorKey) {
		t.Errorf("the initiator's key: %x, want %x", got[:], []byte(v.InitiatorKey))
	}
	if got := epochKey([32]byte(v.ResponderTx), hash); !bytes.Equal(got[:], v.ResponderKey) {
		t.Errorf("the responder's key: %x, want %x", got[:], []byte(v.ResponderKey))
	}
}

func TestTheResponderWaitsForTheInitiator(t *testing.T) {
	initiator, responder := ends(t, ChaCha20Poly1305)
	refuses := func(why string) {
		t.Helper()
		if _, err := responder.Seal(nil, []byte("data")); !errors.Is(err, ErrUnconfirmed) || responder.Confirmed() {
			t.Errorf("%s: Seal: %v, Confirmed %v, want ErrUnconfirmed", why, err, responder.Confirmed())
		}
	}
	refuses("nothing has come")
	ping := string(Control{Kind: Ping, ID: 1}.Append(nil)) // opens the responder's NAT, and confirms nothing
	wantOpen(t, initiator, seal(t, responder, ping), ping, nil)
	refuses("only we have sent")
	first := seal(t, initiator, "hello")
	forged := slices.Clone(first)
	forged[len(forged)-1] ^= 1
	wantOpen(t, responder, forged, "", ErrAuth)
	refuses("a forged datagram came")
	wantOpen(t, responder, first, "hello", nil)
	if !responder.Confirmed() || !initiator.Confirmed() {
		t.Error("not confirmed after a datagram was opened")
	}
	wantOpen(t, initiator, seal(t, responder, "welcome"), "welcome", nil)
}

func TestDirectionsHaveKeysOfTheirOwn(t *testing.T) {
	for _, suite := range suites {
		initiator, _ := confirmed(t, suite)
		d := seal(t, initiator, "echoed")
		binary.LittleEndian.PutUint32(d[4:], initiator.params.LocalIndex)
		wantOpen(t, initiator, d, "", ErrAuth)
	}
}

func TestEveryByteIsProtected(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		d := seal(t, initiator, "a plaintext of no particular length")
		for i := range d {
			for _, bit := range []byte{1, 0x80} {
				changed := slices.Clone(d)
				changed[i] ^= bit
				got, err := responder.Open(nil, changed)
				if err == nil {
					t.Errorf("%v: byte %d xor %#x: opened as %q", suite, i, bit, got)
				}
			}
		}
		for n := range d {
			if got, err := responder.Open(nil, d[:n]); err == nil {
				t.Errorf("%v: the first %d bytes: opened as %q", suite, n, got)
			}
		}
		if got, err := responder.Open(nil, append(slices.Clone(d), 0)); err == nil {
			t.Errorf("%v: one byte more: opened as %q", suite, got)
		}
		wantOpen(t, responder, d, "a plaintext of no particular length", nil)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	initiator, responder := confirmed(t, ChaCha20Poly1305)
	good := seal(t, initiator, "data")
	with := func(at int, b ...byte) []byte {
		d := slices.Clone(good)
		copy(d[at:], b)
		return d
	}
	for _, row := range []struct {
		name string
		d    []byte
		want error
	}{
		{"empty", nil, ErrFormat},
		{"header only", good[:HeaderSize], ErrFormat},
		{"one byte short of a tag", good[:Overhead-1], ErrFormat},
		{"class", with(0, 0xff), ErrFormat},
		{"version", with(1, 2), ErrFormat},
		{"third byte", with(2, 1), ErrFormat},
		{"fourth byte", with(3, 1), ErrFormat},
		{"index", with(4, good[4]+1), ErrIndex},
		{"counter beyond the limit", with(8, 0, 0, 0, 0, 0, 0, 0, 0x10), ErrReplay},
		{"counter of all ones", with(8, bytes.Repeat([]byte{0xff}, 8)...), ErrReplay},
		{"another counter", with(8, 77), ErrAuth},
		{"counter seen", with(8, 0), ErrReplay},
		{"tag cut off", good[:len(good)-1], ErrAuth},
	} {
		got, err := responder.Open(nil, row.d)
		if !errors.Is(err, row.want) || got != nil {
			t.Errorf("%s: Open: %q, %v, want %v", row.name, got, err, row.want)
		}
		index, ok := ReceiverIndex(row.d)
		if ok == errors.Is(row.want, ErrFormat) {
			t.Errorf("%s: ReceiverIndex: %x, %v", row.name, index, ok)
		}
	}
	wantOpen(t, responder, good, "data", nil)
}

func TestAForgeryDoesNotMoveTheWindow(t *testing.T) {
	initiator, responder := confirmed(t, ChaCha20Poly1305)
	d := seal(t, initiator, "data")
	far := slices.Clone(d)
	binary.LittleEndian.PutUint64(far[8:], 1<<40)
	wantOpen(t, responder, far, "", ErrAuth)
	wantOpen(t, responder, d, "data", nil)
}

func TestReplaysAreRefused(t *testing.T) {
	initiator, responder := ends(t, ChaCha20Poly1305)
	at := func(counter uint64) []byte {
		initiator.counter.Store(counter)
		return seal(t, initiator, "data")
	}
	for _, row := range []struct {
		name    string
		counter uint64
		want    error
	}{
		{"first", 0, nil},
		{"first again", 0, ErrReplay},
		{"in order", 1, nil},
		{"a gap", 5, nil},
		{"into the gap", 3, nil},
		{"into the gap again", 3, ErrReplay},
		{"the window's width ahead", 5 + windowSize, nil},
		{"the window's far edge, seen", 5, ErrReplay},
		{"inside the far edge", 6, nil},
		{"behind the window, never seen", 4, ErrReplay},
		{"a whole ring ahead", 5 + windowSize + 64*windowBlocks, nil},
		{"the one before it", 5 + windowSize, ErrReplay},
		{"between the two", 5 + 64*windowBlocks, nil},
		{"a far jump", 1 << 50, nil},
		{"back within the window", 1<<50 - windowSize, nil},
		{"back behind the window", 1<<50 - windowSize - 1, ErrReplay},
		{"the last counter there is", maxChaCha - 1, nil},
		{"the last counter again", maxChaCha - 1, ErrReplay},
	} {
		d := at(row.counter)
		if _, err := responder.Open(nil, d); !errors.Is(err, row.want) {
			t.Errorf("%s, counter %d: %v, want %v", row.name, row.counter, err, row.want)
		}
	}
	if windowSize < 8128 {
		t.Errorf("the window is %d wide, want at least 8128", windowSize)
	}
}

// TestWindowAgreesWithASet compares the window with a set of every counter ever seen.
func TestWindowAgreesWithASet(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var w window
		seen := map[uint64]bool{}
		var last uint64
		for range 20_000 {
			var counter uint64
			switch rng.IntN(10) {
			case 0: // anywhere around the window's edge
				counter = last - min(last, windowSize-64+rng.Uint64N(128))
			case 1:
				counter = last + rng.Uint64N(3*windowSize)
			case 2, 3:
				counter = last - min(last, rng.Uint64N(windowSize+10))
			default:
				counter = last + rng.Uint64N(4) - min(last, 1)
			}
			want := !seen[counter] && (counter > last || last-counter <= windowSize)
			if got := w.fresh(counter); got != want {
				t.Fatalf("seed %d: fresh(%d) with %d newest: %v, want %v", seed, counter, last, got, want)
			}
			if rng.IntN(8) == 0 { // asked, then not authentic
				continue
			}
			if got := w.mark(counter); got != want {
				t.Fatalf("seed %d: mark(%d) with %d newest: %v, want %v", seed, counter, last, got, want)
			}
			if want {
				seen[counter] = true
				last = max(last, counter)
			}
		}
	}
}

func TestKeysHaveALimit(t *testing.T) {
	for suite, limit := range map[Suites]uint64{ChaCha20Poly1305: 1 << 60, AES256GCM: 1 << 32} {
		initiator, responder := ends(t, suite)
		initiator.counter.Store(limit - 1)
		wantOpen(t, responder, seal(t, initiator, "last"), "last", nil)
		for range 3 {
			if _, err := initiator.Seal(nil, []byte("one more")); !errors.Is(err, ErrExhausted) {
				t.Errorf("%v: Seal number %d: %v, want ErrExhausted", suite, limit, err)
			}
		}
		if got := initiator.counter.Load(); got != limit {
			t.Errorf("%v: the counter went on to %d", suite, got)
		}
	}
}

func TestSealAndOpenInPlace(t *testing.T) {
	const plaintext = "carried without a copy"
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		buf := make([]byte, HeaderSize+len(plaintext)+TagSize)
		copy(buf[HeaderSize:], plaintext)
		d, err := initiator.Seal(buf[:0], buf[HeaderSize:HeaderSize+len(plaintext)])
		if err != nil || &d[0] != &buf[0] {
			t.Fatalf("%v: Seal in place: %v", suite, err)
		}
		got, err := responder.Open(d[:HeaderSize], d)
		if err != nil || &got[0] != &buf[0] || string(got[HeaderSize:]) != plaintext {
			t.Errorf("%v: Open in place: %q, %v", suite, got, err)
		}
	}
}

func TestATrainIsSealedAndMerged(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		train := make([]byte, 0, 3*(4+Overhead))
		var err error
		for _, segment := range []string{"one ", "two ", "last"} {
			if train, err = initiator.Seal(train, []byte(segment)); err != nil {
				t.Fatal(err)
			}
		}
		merged := make([]byte, 0, 12)
		for d := range slices.Chunk(train, 4+Overhead) {
			if merged, err = responder.Open(merged, d); err != nil {
				t.Fatal(err)
			}
		}
		if string(merged) != "one two last" {
			t.Errorf("%v: merged %q", suite, merged)
		}
	}
}

func TestCloseDestroysTheKeys(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		d := seal(t, initiator, "late")
		send, receive := reflect.ValueOf(responder.send.aead).Elem(), reflect.ValueOf(responder.receive.aead).Elem()
		if send.IsZero() || receive.IsZero() {
			t.Fatalf("%v: keys are zero before Close", suite)
		}
		responder.Close()
		responder.Close()
		if !send.IsZero() || !receive.IsZero() {
			t.Errorf("%v: keys are left after Close", suite)
		}
		wantOpen(t, responder, d, "", ErrClosed)
		if _, err := responder.Seal(nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%v: Seal after Close: %v", suite, err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	const senders, each = 4, 500
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		datagrams := make(chan []byte, senders*each)
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				for range each {
					d, err := initiator.Seal(nil, []byte("data"))
					if err != nil {
						t.Error(err)
						return
					}
					datagrams <- d
				}
			})
		}
		wg.Wait()
		close(datagrams)
		all := make([][]byte, 0, senders*each)
		for d := range datagrams {
			all = append(all, d)
		}
		opened := make([]int, senders)
		for i := range senders { // each opens everything: only one may get each datagram
			wg.Go(func() {
				for _, d := range all {
					switch _, err := responder.Open(nil, d); {
					case err == nil:
						opened[i]++
					case !errors.Is(err, ErrReplay):
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		sum := 0
		for _, n := range opened {
			sum += n
		}
		if sum != senders*each {
			t.Errorf("%v: %d of %d datagrams were opened: %v", suite, sum, senders*each, opened)
		}
	}
}

func TestCloseWaitsForCallsInProgress(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					d, err := initiator.Seal(nil, make([]byte, 1000))
					if err == nil {
						// A datagram that a wiped key had sealed would not open.
						if _, err = responder.Open(nil, d); err == nil {
							continue
						}
					}
					if !errors.Is(err, ErrClosed) {
						t.Errorf("%v: %v, want ErrClosed", suite, err)
					}
					return
				}
			})
		}
		wg.Go(initiator.Close)
		wg.Wait()
	}
}

// TestNoiseChangesNothing throws junk at an epoch: random bytes, random bytes with a header that fits, and
// replays. The million is what the format promises to withstand.
func TestNoiseChangesNothing(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 20_000
	}
	initiator, responder := ends(t, ChaCha20Poly1305)
	replayed := seal(t, initiator, "replayed")
	wantOpen(t, responder, replayed, "replayed", nil)
	before := snapshot(responder)
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 256)
	out := make([]byte, 0, 256)
	for i := range n {
		d := buf[:rng.IntN(len(buf))]
		for j := range d {
			d[j] = byte(rng.Uint32())
		}
		switch {
		case i%3 == 1 && len(d) >= HeaderSize:
			copy(d, replayed[:8])
			binary.LittleEndian.PutUint64(d[8:], rng.Uint64N(1<<14))
		case i%3 == 2:
			d = d[:copy(buf, replayed)]
			if rng.IntN(2) == 0 {
				d = d[:rng.IntN(len(d))]
			}
		}
		if got, err := responder.Open(out, d); err == nil {
			t.Fatalf("datagram %d, %x, was opened: %x", i, d, got)
		}
	}
	if after := snapshot(responder); after != before {
		t.Errorf("the epoch has changed: %+v, was %+v", after, before)
	}
	wantOpen(t, responder, seal(t, initiator, "still here"), "still here", nil)
}

type state struct {
	confirmed     bool
	counter, last uint64
	ring          [windowBlocks]uint64
}

func snapshot(e *Epoch) state {
	s := state{confirmed: e.confirmed.Load(), counter: e.counter.Load(), last: e.window.last.Load()}
	for i := range e.window.ring {
		s.ring[i] = e.window.ring[i].Load()
	}
	return s
}

func TestNewEpochRefusesAnUnclearSuite(t *testing.T) {
	for _, suite := range []Suites{0, 3, 4} {
		if e, err := NewEpoch(Params{Suite: suite}, true, [32]byte{}, [32]byte{}, [64]byte{}); err == nil {
			t.Errorf("NewEpoch with %v: %v, want an error", suite, e)
		}
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	e, _ := ends(t, ChaCha20Poly1305)
	k := load(t).InitiatorKey
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		got := fmt.Sprintf(verb, e)
		if got != "tunnel epoch 01020304 to a1a2a3a4, chacha20-poly1305" || strings.Contains(got, hex.EncodeToString(k[:4])) {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func TestContentOf(t *testing.T) {
	for _, row := range []struct {
		plaintext []byte
		want      Content
	}{
		{nil, ContentUnknown},
		{[]byte{0}, ContentUnknown},
		{[]byte{0x01}, ContentControl},
		{[]byte{0x02}, ContentUnfinished},
		{AppendUnfinished(nil), ContentUnfinished},
		{[]byte{0x03}, ContentPart},
		{[]byte{0x04}, ContentUnknown},
		{[]byte{0x45}, ContentIP},
		{[]byte{0x60}, ContentIP},
		{[]byte{0x50}, ContentUnknown},
		{[]byte{0xfe}, ContentUnknown},
		{[]byte{0xff}, ContentStream},
	} {
		if got := ContentOf(row.plaintext); got != row.want {
			t.Errorf("ContentOf(%x): %v, want %v", row.plaintext, got, row.want)
		}
	}
	if n := len(AppendUnfinished(nil)); n != UnfinishedHeader {
		t.Errorf("AppendUnfinished appends %d bytes, want %d", n, UnfinishedHeader)
	}
}

func TestIsDatagram(t *testing.T) {
	for _, row := range []struct {
		b    []byte
		want bool
	}{{nil, false}, {[]byte{class}, false}, {[]byte{class, 0}, true}, {[]byte{0xff, 1}, false}} {
		if got := IsDatagram(row.b); got != row.want {
			t.Errorf("IsDatagram(%x): %v, want %v", row.b, got, row.want)
		}
	}
}

func TestNothingIsAllocatedPerDatagram(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what is put into it")
	}
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		plaintext, datagram, out := make([]byte, 1420), make([]byte, 0, 1500), make([]byte, 0, 1500)
		n := testing.AllocsPerRun(1000, func() {
			d, err := initiator.Seal(datagram, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := responder.Open(out, d); err != nil {
				t.Fatal(err)
			}
			if _, err := responder.Open(out, d); !errors.Is(err, ErrReplay) {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", suite, n)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, suite := range suites {
		for _, size := range []int{64, 1420} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				e, _ := ends(b, suite)
				plaintext, dst := make([]byte, size), make([]byte, 0, size+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := e.Seal(dst, plaintext); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, suite := range suites {
		for _, size := range []int{64, 1420} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				initiator, responder := ends(b, suite)
				const batch = 1024
				datagrams := make([][]byte, batch)
				for i := range datagrams {
					datagrams[i] = seal(b, initiator, string(make([]byte, size)))
				}
				dst := make([]byte, 0, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if _, err := responder.Open(dst, datagrams[i]); err != nil {
						b.Fatal(err)
					}
					if i++; i == batch { // forget them, so that they open again
						i = 0
						responder.window.last.Store(0)
						for j := range responder.window.ring {
							responder.window.ring[j].Store(0)
						}
					}
				}
			})
		}
	}
}

func FuzzOpen(f *testing.F) {
	v := load(f)
	for _, d := range v.Datagrams {
		f.Add([]byte(d.Wire))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, suite := range suites {
			initiator, responder := ends(t, suite)
			for _, e := range []*Epoch{initiator, responder} {
				plaintext, err := e.Open(nil, wire)
				if err != nil {
					continue
				}
				from := initiator // whatever opens is what its peer seals
				if e == initiator {
					from = responder
				}
				from.confirmed.Store(true)
				from.counter.Store(binary.LittleEndian.Uint64(wire[8:]))
				if again, err := from.Seal(nil, plaintext); err != nil || !bytes.Equal(again, wire) {
					t.Fatalf("%x opens, but its plaintext is sealed as %x, %v", wire, again, err)
				}
			}
		}
	})
}
