package tunnel

import (
	"bytes"
	"errors"
	"testing"
)

func TestRunsAreSealedAndOpenedAsSingleDatagrams(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := ends(t, suite)
		again, _ := ends(t, suite)
		var s Sealer
		var o Opener
		if err := s.Begin(responder); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Seal(nil, []byte{0x45}); !errors.Is(err, ErrUnconfirmed) {
			t.Errorf("%v: Seal at the responder: %v, want ErrUnconfirmed", suite, err)
		}
		if _, err := s.Seal(nil, Control{Kind: Ping}.Append(nil)); err != nil {
			t.Errorf("%v: Seal of a ping at the responder: %v", suite, err)
		}
		s.End()
		for run := range 3 {
			if err := s.Begin(initiator); err != nil {
				t.Fatal(err)
			}
			var train []byte
			var ends []int
			for i := range 5 {
				var err error
				if train, err = s.Seal(train, bytes.Repeat([]byte{0x45}, 10*i+run)); err != nil {
					t.Fatal(err)
				}
				ends = append(ends, len(train))
			}
			s.End()
			start := 0
			for i, end := range ends {
				want := bytes.Repeat([]byte{0x45}, 10*i+run)
				d := train[start:end:end]
				if single, err := again.Seal(nil, want); err != nil || !bytes.Equal(single, d) {
					t.Errorf("%v: run %d: datagram %d is %x, want %x, %v", suite, run, i, d, single, err)
				}
				got, err := o.Open(responder, d[:HeaderSize], d) // where it lies
				if err != nil || !bytes.Equal(got[HeaderSize:], want) {
					t.Errorf("%v: run %d: datagram %d opens as %x, %v, want %x", suite, run, i, got[HeaderSize:], err, want)
				}
				start = end
			}
			if _, err := o.Open(responder, nil, train[:ends[0]]); err == nil {
				t.Errorf("%v: a datagram that was opened where it lies opens again", suite)
			}
		}
		initiator.counter.Store(initiator.limit)
		if err := s.Begin(initiator); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Seal([]byte("kept"), []byte{0x45}); !errors.Is(err, ErrExhausted) || string(b) != "kept" {
			t.Errorf("%v: Seal with a used-up key = %q, %v, want ErrExhausted and dst", suite, b, err)
		}
		s.End()
		initiator.Close()
		if err := s.Begin(initiator); !errors.Is(err, ErrClosed) {
			t.Errorf("%v: Begin after Close: %v, want ErrClosed", suite, err)
		}
	}
}

func TestRunsAllocateNothing(t *testing.T) {
	for _, suite := range suites {
		initiator, responder := confirmed(t, suite)
		s, o := new(Sealer), new(Opener)
		plaintext, train := bytes.Repeat([]byte{0x45}, 1420), make([]byte, 0, 16<<10)
		n := testing.AllocsPerRun(100, func() {
			if err := s.Begin(initiator); err != nil {
				t.Fatal(err)
			}
			b := train
			for range 10 {
				start := len(b)
				var err error
				if b, err = s.Seal(b, plaintext); err != nil {
					t.Fatal(err)
				}
				if _, err := o.Open(responder, b[start:start+HeaderSize], b[start:]); err != nil {
					t.Fatal(err)
				}
			}
			s.End()
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", suite, n)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	for _, suite := range suites {
		b.Run(suite.String(), func(b *testing.B) {
			initiator, responder := confirmed(b, suite)
			s, o := new(Sealer), new(Opener)
			plaintext, train := bytes.Repeat([]byte{0x45}, 1280), make([]byte, 0, 2048)
			b.SetBytes(1280)
			for b.Loop() {
				if err := s.Begin(initiator); err != nil {
					b.Fatal(err)
				}
				d, err := s.Seal(train, plaintext)
				s.End()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := o.Open(responder, d[:HeaderSize], d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
