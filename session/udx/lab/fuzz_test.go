package lab

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"omegatun/session/udx"
)

// FuzzTransfer lets two streams live through anything: whatever the links do, and whoever else sends, what is read must
// be what was written, and once the links are good again all of it must arrive.
func FuzzTransfer(f *testing.F) {
	f.Add(uint64(1), []byte{0, 200, 1, 30, 0, 90, 2, 128, 1, 60, 3, 40, 1, 20, 0, 250, 4, 1, 1, 90})
	f.Add(uint64(2), []byte{0, 255, 1, 50, 5, 80, 1, 200, 5, 0, 1, 200, 6, 3, 0, 40, 1, 50})
	f.Add(uint64(3), []byte{3, 255, 0, 255, 1, 100, 7, 9, 0, 255, 8, 77, 1, 255, 4, 0, 9, 200, 1, 255})
	f.Add(uint64(4), []byte{0, 255, 1, 40, 5, 0, 1, 255, 1, 255, 0, 9, 1, 10, 6, 0, 1, 255})
	f.Add(uint64(82), []byte("1010002n1000zZ10y0z\xcb107A2A2\xfc\"\xdf\"\x9e\"\xba")) // outages while the window is closed
	f.Add(uint64(42), []byte("002\x7f2000zXy0702X\"\xdf\"X\"\xba"))                   // a small packet is lost before large ones vanish
	f.Fuzz(func(t *testing.T, seed uint64, ops []byte) {
		if len(ops) > 200 {
			return
		}
		w := New(seed)
		good := Link{Rate: 2e6, Delay: 10 * time.Millisecond, Queue: 100e3}
		p := w.NewPair(good, good)
		ports := []*Port{p.A, w.Port("198.51.100.1:1", p.MA, p.There)}
		known := func(_ udx.Socket, from netip.AddrPort) bool { return from == ports[0].addr || from == ports[1].addr }
		from := must(p.MA.NewStream(udx.StreamConfig{ID: 1, Accept: known}))
		to := must(p.MB.NewStream(udx.StreamConfig{ID: 2, Accept: known, ReadBuffer: 64 << 10}))
		check(from.Connect(p.A, p.B.addr, 2))
		check(to.Connect(p.B, p.A.addr, 1))
		var sent, got int64
		var buf [64 << 10]byte
		read := func(most int) {
			for n := min(to.Stats().BytesWaiting, most); n > 0; n = min(to.Stats().BytesWaiting, most) {
				m, err := to.Read(buf[:min(n, len(buf))])
				if err != nil {
					t.Fatalf("Read: %v", err)
				}
				want := make([]byte, m)
				Pattern(want, got)
				if string(buf[:m]) != string(want) {
					t.Fatalf("wrong bytes after %d", got)
				}
				got, most = got+int64(m), most-m
			}
		}
		stranger := w.Port("203.0.113.1:9", p.MA, w.NewLink(good))
		for ; len(ops) >= 2; ops = ops[2:] {
			arg := int(ops[1])
			share := float64(arg) / 1000
			switch ops[0] % 10 {
			case 0:
				n := min(from.Stats().Room, arg*300)
				Pattern(buf[:min(n, len(buf))], sent)
				m, err := from.Write(buf[:min(n, len(buf))])
				if err != nil {
					t.Fatalf("Write: %v", err)
				}
				sent += int64(m)
			case 1:
				w.Run(w.Now() + time.Duration(arg)*4*time.Millisecond)
			case 2:
				p.There.Loss, p.Back.Loss = share, share
			case 3:
				p.There.Reorder, p.Back.Reorder = share, share
			case 4:
				p.There.Down = true
				w.Run(w.Now() + time.Duration(arg)*10*time.Millisecond)
				p.There.Down = false
				there, back := p.There.Loss, p.Back.Loss
				p.There.Loss, p.Back.Loss = 0, 0
				w.Run(w.Now() + 2*time.Second) // so that nobody gives up
				p.There.Loss, p.Back.Loss = there, back
			case 5:
				p.There.MTU = 1200 + arg*2
			case 6:
				check(from.ChangeRemote(ports[arg%2], p.B.addr, 2))
				check(to.ChangeRemote(p.B, ports[arg%2].addr, 1))
			case 7:
				read(arg * 200)
			case 8:
				check(from.SendMessages([][]byte{buf[:arg], buf[:arg], buf[:arg/2]}))
			case 9: // nothing that a stranger sends to a known stream may matter
				b := udx.Header{Flags: udx.Flags(arg), ID: 2, Window: uint32(arg), Seq: uint32(got), Ack: uint32(sent)}.Append(nil)
				check(stranger.Send(append(b, binary.LittleEndian.AppendUint32(nil, uint32(arg))...), p.B.addr))
			}
		}
		for _, l := range []*Link{p.There, p.Back} {
			l.Loss, l.Reorder, l.Down, l.MTU = 0, 0, false, 0
		}
		for range 400 {
			w.Run(w.Now() + 100*time.Millisecond)
			read(1 << 30)
			if got == sent && from.Stats().BytesUnacknowledged == 0 {
				break
			}
		}
		a, b := from.Stats(), to.Stats()
		if got != sent || a.BytesUnacknowledged != 0 || a.InFlight != 0 || from.Err() != nil || to.Err() != nil {
			t.Errorf("sent %d, got %d, %v, %v\n%+v\n%+v", sent, got, from.Err(), to.Err(), a, b)
		}
		from.Reset(nil)
		to.Reset(nil)
	})
}
