package udx

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

// FuzzAssembly numbers the bytes of a message, hands them over in any order and number, and expects the message.
func FuzzAssembly(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4}, uint32(0))
	f.Add([]byte{4, 3, 200, 2, 2, 1, 0, 9}, ^uint32(2))
	f.Fuzz(func(t *testing.T, order []byte, first uint32) {
		a := assembly{expected: seq(first), limit: 4096}
		got := map[byte]bool{}
		var out []byte
		for i, n := range order {
			flags := FlagData
			if n == 255 {
				flags |= FlagEnd
			}
			what := a.add(seq(first)+seq(n), flags, bytes.Repeat([]byte{n}, int(n)))
			if what != refused {
				got[n] = true
			}
			if i%3 == 0 {
				out = append(out, a.buf.take()...)
			}
			if free := a.most() - a.buf.len - a.heldBytes; free < 0 {
				t.Fatalf("%d bytes too many", -free)
			}
			for _, r := range a.ranges {
				for q := r.start; q != r.end; q++ {
					if _, ok := a.held[q]; !ok || !got[byte(q-seq(first))] {
						t.Fatalf("reported %d, which is not held", q)
					}
				}
			}
		}
		for b := a.buf.take(); b != nil; b = a.buf.take() {
			out = append(out, b...)
		}
		var want []byte
		n := 0
		for ; n < 256 && got[byte(n)]; n++ {
			want = append(want, bytes.Repeat([]byte{byte(n)}, n)...)
		}
		if a.expected != seq(first)+seq(n) || a.ended != (n == 256) || !bytes.Equal(out, want) {
			t.Errorf("expected %d, ended %v, %d bytes, want %d, %d bytes",
				a.expected-seq(first), a.ended, len(out), n, len(want))
		}
	})
}

// FuzzStream feeds a stream that sends any packets that claim to come from its peer, while an honest peer talks to
// it as well. It must not fail but by a reset, keep its books, and acknowledge only what it was sent.
func FuzzStream(f *testing.F) {
	packet := func(flags Flags, q, ack uint32, rest string) []byte {
		b := Header{Flags: flags, Window: 1 << 16, Seq: q, Ack: ack}.Append(nil)
		b = append(b, rest...)
		return append([]byte{byte(len(b))}, b...)
	}
	f.Add(packet(FlagData, 0, 0, "hello"))
	f.Add(append(packet(FlagSACK, 0, 1, "\x02\x00\x00\x00\x04\x00\x00\x00"), packet(FlagEnd, 0, 3, "")...))
	f.Add(append(packet(FlagData, 5, 9, "x"), packet(FlagDestroy, 6, 1, "")...))
	f.Add(append(packet(FlagHeartbeat, 0, 0, ""), packet(FlagMessage, 1, 1<<31, "m")...))
	f.Add(packet(FlagSACK, 0, 0, "\x01\x00\x00\x00\x00\x00\x00\x80\x05\x00\x00\x00\x03\x00\x00\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		synctest.Test(t, func(t *testing.T) {
			k := newTalk(t, 1, 2)
			_ = k.s.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = k.s.Write(make([]byte, 20000))
			for len(b) > 0 {
				n := min(int(b[0]), len(b)-1)
				p := append([]byte(nil), b[1:1+n]...)
				b = b[1+n:]
				if len(p) >= 8 {
					p[0], p[1] = magic, version
					binary.LittleEndian.PutUint32(p[4:], 1)
					k.mux.Receive(k.sock, p, peerAddr)
				}
				time.Sleep(time.Duration(n%7) * time.Millisecond)
				checkBooks(t, k.s)
			}
			_ = k.s.CloseWrite()
			time.Sleep(time.Minute)
			checkBooks(t, k.s)
			for _, p := range k.sock.take() {
				if _, _, err := ParseHeader(p.b); err != nil || len(p.b) > maxMTU-overhead4 {
					t.Errorf("sent %x", p.b)
				}
			}
		})
	})
}

// checkBooks counts again what a stream keeps count of.
func checkBooks(t *testing.T, s *Stream) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.sender
	var flightCost, flightData, held, flight, lost int
	for q := d.una; q != d.next && len(d.ring.slots) > 0; q++ {
		p := *d.ring.at(q)
		if p == nil {
			continue
		}
		held += p.n
		switch p.state {
		case packetInFlight:
			flight++
			flightCost += p.cost()
			flightData += p.n
		case packetLost:
			lost++
		case packetQueued, packetDelivered:
			t.Errorf("packet %d is in state %d", q, p.state)
		}
		if d.sacked.contains(q) {
			t.Errorf("packet %d is kept although it was acknowledged", q)
		}
	}
	for p := d.queue.first; p != nil; p = p.next {
		held += p.n
	}
	if flightCost != d.flightCost || flightData != d.flightData || held != d.held ||
		flight != d.flight.len || lost != d.missing.len {
		t.Errorf("in flight %d, %d, %d, lost %d, held %d, but counted %d, %d, %d, %d, %d",
			flight, flightCost, flightData, lost, held, d.flight.len, d.flightCost, d.flightData, d.missing.len, d.held)
	}
	if (d.flight.len > 0) && d.timerAt == 0 {
		t.Errorf("%d packets in flight without a timer", d.flight.len)
	}
	if s.assembly.buf.len+s.assembly.heldBytes > s.assembly.most() {
		t.Errorf("%d and %d bytes received are kept", s.assembly.buf.len, s.assembly.heldBytes)
	}
}
