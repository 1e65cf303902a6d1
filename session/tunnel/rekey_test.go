package tunnel

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var start = time.Unix(1_800_000_000, 0)

// sessions returns both ends of a session with the keys of the vectors.
func sessions(t testing.TB, f Features) (initiator, responder *Session) {
	t.Helper()
	v := load(t)
	tx, rx, hash := [32]byte(v.InitiatorTx), [32]byte(v.ResponderTx), [64]byte(v.Hash)
	p := Params{
		Suite: ChaCha20Poly1305, Features: f, LocalIndex: v.InitiatorIndex, RemoteIndex: v.ResponderIndex,
	}
	initiator, err := NewSession(p, true, tx, rx, hash, start)
	if err != nil {
		t.Fatal(err)
	}
	p.LocalIndex, p.RemoteIndex = p.RemoteIndex, p.LocalIndex
	responder, err = NewSession(p, false, rx, tx, hash, start)
	if err != nil {
		t.Fatal(err)
	}
	return initiator, responder
}

// wantPass sends a datagram.
func wantPass(t testing.TB, from, to *Session, why string) {
	t.Helper()
	d, err := from.Seal(nil, []byte(why))
	if err != nil {
		t.Fatalf("%s: Seal: %v", why, err)
	}
	if got, err := to.Open(nil, d); err != nil || string(got) != why {
		t.Fatalf("%s: Open: %q, %v", why, got, err)
	}
}

// agree takes both sides to the next epoch, up to the initiator's first datagram.
func agree(t testing.TB, initiator, responder *Session, index uint32, now time.Time) {
	t.Helper()
	request, err := initiator.Ask(index)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := responder.Answer(request, index+1, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := initiator.Finish(answer, now); err != nil {
		t.Fatal(err)
	}
}

func TestRekeyingIsFrozen(t *testing.T) {
	v := load(t)
	c := newChain([32]byte(v.InitiatorTx), [32]byte(v.ResponderTx), [64]byte(v.Hash))
	if !bytes.Equal(c[:], v.Rekeys[0].Chain) {
		t.Errorf("chain of the handshake: %x, want %x", c[:], []byte(v.Rekeys[0].Chain))
	}
	for _, row := range v.Rekeys[1:] {
		private, err := ecdh.X25519().NewPrivateKey(row.Private)
		if err != nil {
			t.Fatal(err)
		}
		m, err := parseRekey(row.Request, len(row.Request)-kemOffset(row.PostQuantum))
		if err != nil {
			t.Fatal(err)
		}
		a := &asking{number: row.Number, index: m.index, private: private}
		if row.PostQuantum {
			if a.kem, err = mlkem.NewDecapsulationKey768(v.KemSeed); err != nil {
				t.Fatal(err)
			}
		}
		if a.write(); !bytes.Equal(a.request, row.Request) {
			t.Errorf("request %d: %x, want %x", row.Number, a.request, []byte(row.Request))
		}
		_, next, tx, rx, err := a.finish(&c, row.Answer)
		if err != nil || !bytes.Equal(next[:], row.Chain) || !bytes.Equal(tx[:], row.InitiatorKey) ||
			!bytes.Equal(rx[:], row.ResponderKey) {
			t.Errorf("epoch %d: chain %x, keys %x and %x, %v, want %+v", row.Number, next[:], tx[:], rx[:], err, row)
		}
		c = next
	}
}

// kemOffset is where the ML-KEM part of a request begins.
func kemOffset(postQuantum bool) int {
	if postQuantum {
		return 1 + 4 + 32 + 3
	}
	return 1 + 4 + 32 + 1
}

func TestBothSidesMoveToTheNextEpoch(t *testing.T) {
	for _, f := range []Features{0, FeaturePostQuantum} {
		initiator, responder := sessions(t, f)
		wantPass(t, initiator, responder, "epoch 0")
		if !initiator.Due(start) || responder.Due(start) {
			t.Error("the first epoch is followed at once, and the initiator asks")
		}
		for n := range uint64(5) {
			now := start.Add(time.Duration(n) * RekeyAfter)
			index := uint32(100 + 2*n)
			old, err := responder.Seal(nil, []byte("late"))
			if err != nil {
				t.Fatal(err)
			}
			request, err := initiator.Ask(index)
			if err != nil {
				t.Fatal(err)
			}
			if initiator.Due(now) {
				t.Error("due while it is being asked")
			}
			answer, err := responder.Answer(request, index+1, now)
			if err != nil {
				t.Fatal(err)
			}
			wantPass(t, responder, initiator, "the responder keeps the old keys until it hears of the new ones")
			wantPass(t, initiator, responder, "and so does the initiator, until it has the answer")
			if err := initiator.Finish(answer, now); err != nil {
				t.Fatal(err)
			}
			wantPass(t, responder, initiator, "old keys still open")
			d, err := initiator.Seal(nil, []byte("new"))
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := ReceiverIndex(d); got != index+1 {
				t.Errorf("the initiator sends to %d, want %d", got, index+1)
			}
			if _, err := responder.Open(nil, d); err != nil {
				t.Fatal(err)
			}
			if d, err = responder.Seal(nil, []byte("new")); err != nil {
				t.Fatal(err)
			}
			if got, _ := ReceiverIndex(d); got != index {
				t.Errorf("the responder sends to %d, want %d", got, index)
			}
			if _, err := initiator.Open(nil, d); err != nil {
				t.Fatal(err)
			}
			if _, err := initiator.Open(nil, old); err != nil {
				t.Errorf("a late datagram of the old epoch: %v", err)
			}
			if got, _ := responder.Number(now); got != n+1 {
				t.Errorf("epoch %d, want %d", got, n+1)
			}
			if initiator.Due(now.Add(RekeyAfter-1)) || !initiator.Due(now.Add(RekeyAfter)) {
				t.Error("another epoch is due after RekeyAfter, and not before")
			}
			for _, s := range []*Session{initiator, responder} {
				if gone, alive := s.Expire(now.Add(time.Second)); len(gone) != 0 || !alive {
					t.Errorf("gone %v, alive %v after a second", gone, alive)
				}
				if gone, alive := s.Expire(now.Add(time.Second + OldKeyLife)); len(gone) != 1 || !alive {
					t.Errorf("gone %v, alive %v after OldKeyLife, want one epoch less", gone, alive)
				}
			}
			if _, err := initiator.Open(nil, old); !errors.Is(err, ErrIndex) {
				t.Errorf("a datagram of an epoch that is gone: %v, want ErrIndex", err)
			}
		}
		if a, b := initiator.chain, responder.chain; a != b || a == (chain{}) {
			t.Error("the chains differ, or are empty")
		}
	}
}

func TestNoKeyLivesLonger(t *testing.T) {
	initiator, responder := sessions(t, 0)
	wantPass(t, initiator, responder, "at first")
	if _, alive := initiator.Expire(start.Add(KeyLife - 1)); !alive {
		t.Error("dead before KeyLife")
	}
	if gone, alive := initiator.Expire(start.Add(KeyLife)); alive || len(gone) != 1 {
		t.Errorf("gone %v, alive %v after KeyLife", gone, alive)
	}
	if _, err := initiator.Seal(nil, []byte("data")); !errors.Is(err, ErrClosed) {
		t.Errorf("Seal: %v, want ErrClosed", err)
	}
	// An epoch that the initiator never used does not save the responder either.
	request, err := initiatorAgain(t).Ask(7)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := responder.Answer(request, 8, start.Add(KeyLife-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, alive := responder.Expire(start.Add(KeyLife)); alive {
		t.Error("alive without an epoch that the peer is known to have")
	}
}

func initiatorAgain(t testing.TB) *Session {
	s, _ := sessions(t, 0)
	return s
}

func TestTheSecondEpochIsNotAskedForBeforeTheFirstIsUsed(t *testing.T) {
	initiator, responder := sessions(t, 0)
	wantPass(t, initiator, responder, "at first")
	agree(t, initiator, responder, 10, start)
	request, err := initiator.Ask(20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := responder.Answer(request, 21, start); !errors.Is(err, ErrRekey) {
		t.Errorf("Answer: %v, want ErrRekey", err)
	}
	wantPass(t, initiator, responder, "used")
	if _, err := responder.Answer(request, 21, start); err != nil {
		t.Errorf("Answer: %v", err)
	}
}

func TestKeysAreNotAskedForTooOften(t *testing.T) {
	initiator, responder := sessions(t, 0)
	wantPass(t, initiator, responder, "at first")
	for i := range uint32(maxEpochs - 1) {
		agree(t, initiator, responder, 100+2*i, start)
		wantPass(t, initiator, responder, "used")
	}
	request, err := initiator.Ask(10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := responder.Answer(request, 11, start); !errors.Is(err, ErrRekey) {
		t.Errorf("Answer to the %dth request at once: %v, want ErrRekey", maxEpochs, err)
	}
	responder.Expire(start)
	responder.Expire(start.Add(OldKeyLife))
	if _, err := responder.Answer(request, 11, start.Add(OldKeyLife)); err != nil {
		t.Errorf("Answer once the old keys are gone: %v", err)
	}
}

func TestBadRekeyingMessagesChangeNothing(t *testing.T) {
	for _, f := range []Features{0, FeaturePostQuantum} {
		initiator, responder := sessions(t, f)
		wantPass(t, initiator, responder, "at first")
		request, err := initiator.Ask(10)
		if err != nil {
			t.Fatal(err)
		}
		with := func(m []byte, change func([]byte) []byte) []byte { return change(bytes.Clone(m)) }
		bad := map[string]func([]byte) []byte{
			"another number":     func(b []byte) []byte { b[0]++; return b },
			"no index":           func(b []byte) []byte { binary.LittleEndian.PutUint32(b[1:], 0); return b },
			"share of low order": func(b []byte) []byte { clear(b[5:37]); return b },
			"empty":              func([]byte) []byte { return nil },
		}
		for n := range request {
			bad[fmt.Sprintf("the first %d bytes", n)] = func(b []byte) []byte { return b[:min(n, len(b)-1)] }
		}
		for name, change := range bad {
			if _, err := responder.Answer(with(request, change), 11, start); !errors.Is(err, ErrRekey) {
				t.Errorf("request, %s: %v, want ErrRekey", name, err)
			}
		}
		answer, err := responder.Answer(request, 11, start)
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range bad {
			if err := initiator.Finish(with(answer, change), start); !errors.Is(err, ErrRekey) {
				t.Errorf("answer, %s: %v, want ErrRekey", name, err)
			}
		}
		if err := initiator.Finish(answer, start); err != nil {
			t.Fatal(err)
		}
		wantPass(t, initiator, responder, "in the new epoch")
		wantPass(t, responder, initiator, "and back")
		if err := initiator.Finish(answer, start); !errors.Is(err, ErrRekey) {
			t.Errorf("the answer again: %v, want ErrRekey", err)
		}
		if _, err := initiator.Answer(request, 12, start); !errors.Is(err, ErrRekey) {
			t.Errorf("a request at the initiator: %v, want ErrRekey", err)
		}
		if _, err := responder.Ask(12); err == nil {
			t.Error("a responder asks")
		}
	}
}

func TestTheTranscriptIsPartOfTheKeys(t *testing.T) {
	initiator, responder := sessions(t, 0)
	wantPass(t, initiator, responder, "at first")
	request, err := initiator.Ask(10)
	if err != nil {
		t.Fatal(err)
	}
	changed := append(bytes.Clone(request), 0) // a later version's field, which the initiator has not sent
	answer, err := responder.Answer(changed, 11, start)
	if err != nil {
		t.Fatal(err)
	}
	if err := initiator.Finish(answer, start); err != nil {
		t.Fatal(err)
	}
	d, err := initiator.Seal(nil, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := responder.Open(nil, d); !errors.Is(err, ErrAuth) {
		t.Errorf("Open: %v, want ErrAuth", err)
	}
}

func TestClosedSessionsKeepNothing(t *testing.T) {
	initiator, responder := sessions(t, FeaturePostQuantum)
	wantPass(t, initiator, responder, "at first")
	agree(t, initiator, responder, 10, start)
	if got := initiator.Indexes(); len(got) != 2 || got[0] != 10 {
		t.Errorf("indexes %v, want the new one and the old one", got)
	}
	initiator.Close()
	initiator.Close()
	if initiator.chain != (chain{}) {
		t.Error("the chain is still there")
	}
	for _, e := range initiator.epochs {
		if e.send.aead != nil || e.receive.aead != nil {
			t.Error("keys are still there")
		}
	}
	if _, err := initiator.Seal(nil, []byte("data")); !errors.Is(err, ErrClosed) {
		t.Errorf("Seal: %v, want ErrClosed", err)
	}
	if _, err := initiator.Ask(30); !errors.Is(err, ErrClosed) {
		t.Errorf("Ask: %v, want ErrClosed", err)
	}
	if err := initiator.Finish(nil, start); !errors.Is(err, ErrClosed) {
		t.Errorf("Finish: %v, want ErrClosed", err)
	}
	if _, alive := initiator.Expire(start); alive {
		t.Error("alive after Close")
	}
}

func TestSessionsPrintWithoutTheirKeys(t *testing.T) {
	s, _ := sessions(t, 0)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, s); !strings.HasPrefix(got, "tunnel epoch ") {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func FuzzRekey(f *testing.F) {
	for _, row := range load(f).Rekeys[1:] {
		f.Add([]byte(row.Request))
		f.Add([]byte(row.Answer))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, size := range []int{0, mlkem.EncapsulationKeySize768, mlkem.CiphertextSize768} {
			m, err := parseRekey(b, size)
			if err != nil {
				continue
			}
			again, err := parseRekey(m.append(nil), size)
			if err != nil || again.number != m.number || again.index != m.index || again.share != m.share ||
				!bytes.Equal(again.kem, m.kem) {
				t.Fatalf("%+v is read back as %+v, %v", m, again, err)
			}
		}
		_, responder := sessions(t, FeaturePostQuantum)
		_, _ = responder.Answer(b, 1, start) // must not panic
	})
}
