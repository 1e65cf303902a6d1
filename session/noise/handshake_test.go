package noise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"omegatun/dht/key"
)

type handshakeVector struct {
	InitiatorStaticSeed    hexBytes
	InitiatorEphemeralSeed hexBytes
	ResponderStaticSeed    hexBytes
	ResponderEphemeralSeed hexBytes
	Payload1, Message1     hexBytes
	Payload2, Message2     hexBytes
	HandshakeHash          hexBytes
	InitiatorTx            hexBytes
	InitiatorRx            hexBytes
	HolepunchSecret        hexBytes
}

func TestHandshakeIsTheReferences(t *testing.T) {
	var v handshakeVector
	load(t, "handshake.json", &v)
	alice := key.FromSeed([32]byte(v.InitiatorStaticSeed))
	bob := key.FromSeed([32]byte(v.ResponderStaticSeed))

	initiator, err := newInitiator(alice, bob.Public(), bytes.NewReader(v.InitiatorEphemeralSeed))
	if err != nil {
		t.Fatal(err)
	}
	message1, err := initiator.Write(v.Payload1)
	if err != nil || !bytes.Equal(message1, v.Message1) {
		t.Fatalf("message 1: %x, %v, want %x", message1, err, v.Message1)
	}
	responder, err := respond(bob, message1, bytes.NewReader(v.ResponderEphemeralSeed))
	if err != nil {
		t.Fatal(err)
	}
	if responder.Remote() != alice.Public() || !bytes.Equal(responder.Payload(), v.Payload1) {
		t.Errorf("responder read %x from %v, want %x from %v",
			responder.Payload(), responder.Remote(), v.Payload1, alice.Public())
	}
	message2, atBob, err := responder.Write(v.Payload2)
	if err != nil || !bytes.Equal(message2, v.Message2) {
		t.Fatalf("message 2: %x, %v, want %x", message2, err, v.Message2)
	}
	payload2, atAlice, err := initiator.Read(message2)
	if err != nil || !bytes.Equal(payload2, v.Payload2) {
		t.Fatalf("payload 2: %x, %v, want %x", payload2, err, v.Payload2)
	}

	want := Result{
		Remote: bob.Public(), Hash: [64]byte(v.HandshakeHash),
		Tx: [32]byte(v.InitiatorTx), Rx: [32]byte(v.InitiatorRx), Initiator: true,
	}
	if atAlice != want {
		t.Errorf("initiator: hash %x, tx %x, rx %x, want %x, %x, %x",
			atAlice.Hash, atAlice.Tx, atAlice.Rx, want.Hash, want.Tx, want.Rx)
	}
	want = Result{Remote: alice.Public(), Hash: want.Hash, Tx: want.Rx, Rx: want.Tx}
	if atBob != want {
		t.Errorf("responder: hash %x, tx %x, rx %x, want %x, %x, %x",
			atBob.Hash, atBob.Tx, atBob.Rx, want.Hash, want.Tx, want.Rx)
	}
	for _, r := range []Result{atAlice, atBob} {
		if got := r.HolepunchSecret(); !bytes.Equal(got[:], v.HolepunchSecret) {
			t.Errorf("hole punch secret of %v: %x, want %x", r, got, v.HolepunchSecret)
		}
	}
}

func TestCapturedMessagesAreRead(t *testing.T) {
	var captured []struct {
		Group, Role        string
		Message, Plaintext hexBytes
	}
	load(t, "captured.json", &captured)
	read := 0
	for _, c := range captured {
		if c.Role != "initiator" {
			continue // message 2 needs the ephemeral key of its reader
		}
		server := repeated(3)
		if c.Group == "direct-handshake" {
			server = repeated(4)
		}
		r, err := Respond(server, c.Message)
		if err != nil {
			t.Errorf("%s: %v", c.Group, err)
			continue
		}
		if r.Remote() != repeated(1).Public() || !bytes.Equal(r.Payload(), c.Plaintext) {
			t.Errorf("%s: %x from %v, want %x from the client", c.Group, r.Payload(), r.Remote(), c.Plaintext)
		}
		read++
	}
	if read < 5 {
		t.Errorf("read %d messages, want all of them", read)
	}
}

// pair returns both sides of a handshake after message 1.
func pair(t testing.TB) (*Initiator, *Responder) {
	t.Helper()
	alice, bob := repeated(1), repeated(2)
	i, err := NewInitiator(alice, bob.Public())
	if err != nil {
		t.Fatal(err)
	}
	message, err := i.Write([]byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Respond(bob, message)
	if err != nil {
		t.Fatal(err)
	}
	return i, r
}

func TestEveryHandshakeIsNew(t *testing.T) {
	seen := map[[32]byte]bool{}
	for range 4 {
		i, r := pair(t)
		message, atBob, err := r.Write(nil)
		if err != nil {
			t.Fatal(err)
		}
		_, atAlice, err := i.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		if atAlice.Hash != atBob.Hash || atAlice.Tx != atBob.Rx || atAlice.Rx != atBob.Tx || atAlice.Tx == atAlice.Rx {
			t.Fatal("both sides do not hold the same two keys")
		}
		if seen[atAlice.Tx] || seen[atAlice.Rx] {
			t.Fatal("a key came up twice")
		}
		seen[atAlice.Tx], seen[atAlice.Rx] = true, true
	}
}

func TestMessage1IsRefused(t *testing.T) {
	alice, bob := repeated(1), repeated(2)
	i, err := NewInitiator(alice, bob.Public())
	if err != nil {
		t.Fatal(err)
	}
	good, err := i.Write([]byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, to key.Private, message []byte) {
		t.Helper()
		if _, err := Respond(to, message); !errors.Is(err, ErrMessage) {
			t.Errorf("Respond to %s: %v, want ErrMessage", what, err)
		}
	}
	refused("a message for someone else", repeated(3), good)
	refused("a longer message", bob, append(slices.Clone(good), 0))
	for n := range good {
		refused(fmt.Sprintf("the first %d bytes", n), bob, good[:n])
		changed := slices.Clone(good)
		changed[n] ^= 1
		refused(fmt.Sprintf("a message with byte %d changed", n), bob, changed)
	}
	refused("an ephemeral key of low order", bob, append(make([]byte, keySize), good[keySize:]...))
	if _, err := Respond(bob, good); err != nil {
		t.Errorf("Respond to the message itself: %v", err)
	}
}

func TestForgedMessage2DoesNotEndTheHandshake(t *testing.T) {
	i, r := pair(t)
	good, want, err := r.Write([]byte("welcome"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, message []byte) {
		t.Helper()
		if _, _, err := i.Read(message); !errors.Is(err, ErrMessage) {
			t.Errorf("Read of %s: %v, want ErrMessage", what, err)
		}
	}
	refused("a longer message", append(slices.Clone(good), 0))
	for n := range good {
		refused(fmt.Sprintf("the first %d bytes", n), good[:n])
		changed := slices.Clone(good)
		changed[n] ^= 0x80
		refused(fmt.Sprintf("a message with byte %d changed", n), changed)
	}
	refused("an ephemeral key of low order", append(make([]byte, keySize), good[keySize:]...))
	_, other := pair(t)
	foreign, _, err := other.Write([]byte("welcome"))
	if err != nil {
		t.Fatal(err)
	}
	refused("another handshake's message", foreign)

	payload, got, err := i.Read(good)
	if err != nil || string(payload) != "welcome" || got.Tx != want.Rx || got.Rx != want.Tx || got.Hash != want.Hash {
		t.Errorf("Read of the message itself: %q, %v", payload, err)
	}
	if _, _, err := i.Read(good); err == nil {
		t.Error("Read succeeded twice")
	}
}

func TestMessagesAreWrittenOnce(t *testing.T) {
	i, r := pair(t)
	if _, err := i.Write(nil); err == nil {
		t.Error("Initiator.Write succeeded twice")
	}
	if _, _, err := r.Write(nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Write(nil); err == nil {
		t.Error("Responder.Write succeeded twice")
	}
	early, err := NewInitiator(repeated(1), repeated(2).Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := early.Read(make([]byte, Message2Overhead)); err == nil {
		t.Error("Read succeeded before Write")
	}
}

func TestAHandshakeNeedsAPrivateKey(t *testing.T) {
	if _, err := NewInitiator(key.Private{}, repeated(2).Public()); err == nil {
		t.Error("NewInitiator without a key succeeded")
	}
	if _, err := Respond(key.Private{}, make([]byte, 200)); err == nil {
		t.Error("Respond without a key succeeded")
	}
	if _, err := newInitiatorWrite(bytes.NewReader(nil)); !errors.Is(err, io.EOF) {
		t.Errorf("Write without randomness: %v, want EOF", err)
	}
}

func newInitiatorWrite(random io.Reader) ([]byte, error) {
	i, err := newInitiator(repeated(1), repeated(2).Public(), random)
	if err != nil {
		return nil, err
	}
	return i.Write(nil)
}

func TestSecretsDoNotPrint(t *testing.T) {
	i, r := pair(t)
	message, result, err := r.Write(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := i.Read(message); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("session", "result", result, "pointer", &result)
	texts := []string{log.String()}
	for _, v := range []any{result, &result, i, *i, r, *r, struct{ R Result }{result}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
	}
	seed := repeated(2).Seed()
	for _, secret := range [][]byte{result.Tx[:], result.Rx[:], seed[:]} {
		for _, form := range []string{
			fmt.Sprintf("%x", secret[:8]), strings.Trim(fmt.Sprint(secret[:8]), "[]"),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret[:8]), "[]byte{"), "}"),
		} {
			for _, text := range texts {
				if strings.Contains(text, form) {
					t.Errorf("%q shows a secret", text)
				}
			}
		}
	}
	if got := fmt.Sprint(result); !strings.Contains(got, repeated(1).Public().String()) {
		t.Errorf("result prints as %q, want its remote key in it", got)
	}
}

func BenchmarkRespond(b *testing.B) {
	bob := repeated(2)
	i, err := NewInitiator(repeated(1), bob.Public())
	if err != nil {
		b.Fatal(err)
	}
	message, err := i.Write(make([]byte, 64))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Respond(bob, message); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	payload := make([]byte, 64)
	for b.Loop() {
		i, r := pair(b)
		message, _, err := r.Write(payload)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := i.Read(message); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzRespond(f *testing.F) {
	var v handshakeVector
	load(f, "handshake.json", &v)
	bob := key.FromSeed([32]byte(v.ResponderStaticSeed))
	f.Add([]byte(v.Message1))
	f.Add([]byte(v.Message1[:40]))
	f.Fuzz(func(t *testing.T, message []byte) {
		r, err := Respond(bob, message)
		if (err == nil) != bytes.Equal(message, v.Message1) {
			t.Fatalf("Respond to %x: %v", message, err)
		}
		if err == nil && !bytes.Equal(r.Payload(), v.Payload1) {
			t.Fatalf("payload %x, want %x", r.Payload(), v.Payload1)
		}
	})
}
