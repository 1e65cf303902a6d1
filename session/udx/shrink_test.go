package udx

import (
	"testing"
	"testing/synctest"
	"time"
)

// Packets are cut anew, under numbers that were in use, only if the peer cannot have them, nor get them later: what answers must have
// been caused by the question, and nothing must have been sent since.
func TestOnlyAnAnswerShrinksThePath(t *testing.T) {
	const window = 1 << 20
	for _, row := range []struct {
		name   string
		answer Header
		late   bool // the answer is lost, and this one comes after packets were sent again
		cut    bool
	}{
		{"an acknowledgement", Header{Window: window}, false, true},
		{"a window that opens", Header{Window: window + 5000}, false, false},
		{"data of the peer's", Header{Window: window, Flags: FlagData}, false, false},
		{"a message of the peer's", Header{Window: window, Flags: FlagMessage}, false, false},
		{"an acknowledgement after packets were sent again", Header{Window: window}, true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newTalk(t, 1, 2)
				peer := func(h Header, ack uint32) {
					h.ID, h.Ack = 1, ack
					b := h.Append(nil)
					if h.Flags != 0 {
						b = append(b, 'x')
					}
					k.feed(b)
				}
				acknowledged := uint32(0)
				for range 6 { // larger and larger packets arrive
					k.write(string(make([]byte, 5000)))
					for _, p := range k.sock.take() {
						if h, _, _ := ParseHeader(p.b); h.Flags&FlagData != 0 {
							acknowledged = max(acknowledged, h.Seq+1)
						}
					}
					time.Sleep(20 * time.Millisecond)
					peer(Header{Window: window}, acknowledged)
				}
				k.sock.take()
				k.write(string(make([]byte, 5000))) // and these do not
				// wait waits until the last packet that was sent is a question, or is none.
				wait := func(question bool) {
					for range 1000 {
						time.Sleep(10 * time.Millisecond)
						if sent := k.sock.take(); len(sent) > 0 {
							h, _, _ := ParseHeader(sent[len(sent)-1].b)
							if question == (h.Flags == FlagHeartbeat) {
								return
							}
						}
					}
					t.Fatal("it waits for ever")
				}
				wait(true)
				if row.late {
					wait(false)
				}
				time.Sleep(20 * time.Millisecond)
				peer(row.answer, acknowledged)
				if cut := k.s.Stats().BlackHoles == 1; cut != row.cut {
					t.Errorf("cut anew: %v", cut)
				}
				if row.answer.Window == window {
					return
				}
				time.Sleep(time.Millisecond)
				if sent := k.sock.take(); len(sent) != 1 {
					t.Errorf("%d packets once the window is known, want a question", len(sent))
				} else if h, _, _ := ParseHeader(sent[0].b); h.Flags != FlagHeartbeat {
					t.Errorf("a packet with the flags %v once the window is known, want a question", h.Flags)
				}
				peer(row.answer, acknowledged)
				if k.s.Stats().BlackHoles != 1 {
					t.Error("not cut anew after the second answer")
				}
			})
		})
	}
}
