package secretstream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/crypto/blake2b"
)

type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

func load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

type stateVector struct{ Subkey, Nonce hexBytes }

type messageVector struct {
	Tag                  byte
	Plaintext            hexBytes
	PlaintextNote        string `json:"plaintext_note"`
	Ciphertext           hexBytes
	CiphertextBLAKE2b256 hexBytes    `json:"ciphertext_blake2b256"`
	StateAfter           stateVector `json:"state_after"`
	ExplicitRekey        bool        `json:"explicit_rekey"`
}

func (m *messageVector) plaintext(t *testing.T) []byte {
	t.Helper()
	switch m.PlaintextNote {
	case "":
		return m.Plaintext
	case "byte i = (7*i) mod 256, length 65536":
		b := make([]byte, 65536)
		for i := range b {
			b[i] = byte(7 * i)
		}
		return b
	}
	t.Fatalf("unknown plaintext: %q", m.PlaintextNote)
	return nil
}

type primitiveVectors struct {
	Cases []struct {
		Name            string
		Key, Header     hexBytes
		StateAfterInit  stateVector `json:"state_after_init"`
		CounterOverride *uint32     `json:"counter_override"`
		Messages        []messageVector
	}
}

// sealed returns the body of a message.
func sealed(s *state, tag byte, message []byte) []byte {
	const before = 7 // bytes in front of the headroom, which must stay as they are, as must the headroom
	buf := bytes.Repeat([]byte{0xa5}, before+headroom+overhead+len(message))
	at := before + headroom
	copy(buf[at+1:], message)
	s.seal(buf, at, len(message), tag)
	if !bytes.Equal(buf[:at], bytes.Repeat([]byte{0xa5}, at)) {
		panic("seal has changed bytes in front of the body")
	}
	return buf[at:]
}

// opened returns the message of a body.
func opened(s *state, body []byte) ([]byte, bool) {
	buf := append(make([]byte, headroom), body...)
	ok := s.open(buf, headroom, len(buf))
	return buf[headroom+1 : len(buf)-macSize], ok
}

func checkState(t *testing.T, what string, s *state, want stateVector) {
	t.Helper()
	if !bytes.Equal(s.key[:], want.Subkey) || !bytes.Equal(s.nonce[:], want.Nonce) {
		t.Errorf("%s: key %x, nonce %x, want %x, %x", what, s.key, s.nonce, want.Subkey, want.Nonce)
	}
}

func TestCipherIsLibsodiums(t *testing.T) {
	var vectors primitiveVectors
	load(t, "primitive.json", &vectors)
	if len(vectors.Cases) < 4 {
		t.Fatalf("%d cases", len(vectors.Cases))
	}
	for _, c := range vectors.Cases {
		t.Run(c.Name, func(t *testing.T) {
			var push, pull state
			for _, s := range []*state{&push, &pull} {
				s.init([32]byte(c.Key), c.Header)
				checkState(t, "init", s, c.StateAfterInit)
				if c.CounterOverride != nil {
					binary.LittleEndian.PutUint32(s.nonce[:], *c.CounterOverride)
				}
			}
			for i, m := range c.Messages {
				what := fmt.Sprintf("message %d", i)
				if m.ExplicitRekey {
					push.rekey()
					pull.rekey()
					checkState(t, what, &push, m.StateAfter)
					continue
				}
				plaintext := m.plaintext(t)
				body := sealed(&push, m.Tag, plaintext)
				if m.Ciphertext != nil && !bytes.Equal(body, m.Ciphertext) {
					t.Errorf("%s: sealed as %x, want %x", what, body, m.Ciphertext)
				}
				if sum := blake2b.Sum256(body); m.Ciphertext == nil && !bytes.Equal(sum[:], m.CiphertextBLAKE2b256) {
					t.Errorf("%s: hash of the body is %x, want %x", what, sum, m.CiphertextBLAKE2b256)
				}
				checkState(t, what+" sealed", &push, m.StateAfter)

				got, ok := opened(&pull, body)
				if !ok || !bytes.Equal(got, plaintext) {
					t.Errorf("%s: opened as %x, %v, want %x", what, got, ok, plaintext)
				}
				checkState(t, what+" opened", &pull, m.StateAfter)
			}
		})
	}
}

// states returns both ends of one direction.
func states() (push, pull state) {
	header := bytes.Repeat([]byte{3}, headerSize)
	push.init([32]byte{1}, header)
	pull.init([32]byte{1}, header)
	return push, pull
}

func TestChangedBodiesAreRefused(t *testing.T) {
	for _, length := range []int{0, 1, 8, 15, 16, 21, 24} {
		push, pull := states()
		message := bytes.Repeat([]byte{9}, length)
		body := sealed(&push, tagMessage, message)
		before := pull
		refused := func(what string, body []byte) {
			t.Helper()
			if got, ok := opened(&pull, body); ok {
				t.Errorf("length %d, %s: opened as %x", length, what, got)
			}
			if pull.key != before.key || pull.nonce != before.nonce {
				t.Fatalf("length %d, %s: the state has changed", length, what)
			}
		}
		for i := range body {
			changed := slices.Clone(body)
			changed[i] ^= 0x40
			refused(fmt.Sprintf("byte %d changed", i), changed)
		}
		for n := overhead; n < len(body); n++ {
			refused(fmt.Sprintf("the first %d bytes", n), body[:n])
		}
		refused("one byte more", append(slices.Clone(body), 0))
		if got, ok := opened(&pull, body); !ok || !bytes.Equal(got, message) {
			t.Errorf("length %d: opened as %x, %v", length, got, ok)
		}
		before = pull
		refused("the message again", body)
	}
}

func FuzzOpen(f *testing.F) {
	push, _ := states()
	f.Add(sealed(&push, tagMessage, []byte("hello")))
	push, _ = states()
	f.Add(sealed(&push, tagRekey, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) < overhead {
			return
		}
		push, pull := states()
		buf := append(make([]byte, headroom), body...)
		if !pull.open(buf, headroom, len(buf)) {
			return
		}
		if again := sealed(&push, buf[0], buf[headroom+1:len(buf)-macSize]); !bytes.Equal(again, body) {
			t.Fatalf("%x opens, but is sealed as %x", body, again)
		}
		if push.key != pull.key || push.nonce != pull.nonce {
			t.Fatalf("%x leads to other states on both ends", body)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, length := range []int{0, 64, 65, 1400, 1401, writeChunk, writeChunk - 1} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			push, _ := states()
			buf := make([]byte, headroom+overhead+length)
			b.SetBytes(int64(length))
			b.ReportAllocs()
			for b.Loop() {
				push.seal(buf, headroom, length, tagMessage)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, length := range []int{0, 64, 65, 1400, 1401, writeChunk, writeChunk - 1} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			push, pull := states()
			body := sealed(&push, tagMessage, make([]byte, length))
			buf := make([]byte, headroom+len(body))
			nonce := pull.nonce
			b.SetBytes(int64(length))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf[headroom:], body)
				if !pull.open(buf, headroom, len(buf)) {
					b.Fatal("not authentic")
				}
				pull.nonce = nonce
			}
		})
	}
}
