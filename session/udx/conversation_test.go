package udx

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tape is a Socket that records.
type tape struct {
	mu   sync.Mutex
	name string
	sent []taped
}

type taped struct {
	at time.Time
	to netip.AddrPort
	b  []byte
}

func (s *tape) Send(b []byte, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, taped{time.Now(), to, bytes.Clone(b)})
	return nil
}

// take returns what was sent since the last time.
func (s *tape) take() (sent []taped) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	sent, s.sent = s.sent, nil
	return sent
}

// steady returns a packet as it would look without what may differ between two correct endpoints: padding, and a
// window that counts what is buffered.
func steady(b []byte) string {
	h, rest, err := ParseHeader(b)
	if err != nil {
		return "not UDX"
	}
	if h.Flags&FlagData != 0 {
		rest = rest[h.Offset:]
		h.Offset = 0
	}
	if h.Window > 4<<20-64<<10 && h.Window <= 4<<20 {
		h.Window = 4 << 20
	}
	return hex.EncodeToString(append(h.Append(nil), rest...))
}

var (
	peerAddr = netip.MustParseAddrPort("192.0.2.2:2")
	stranger = netip.MustParseAddrPort("192.0.2.3:3")
)

// talk is a stream under test and the sockets it uses.
type talk struct {
	*testing.T
	mux  *Mux
	s    *Stream
	sock *tape
}

func newTalk(t *testing.T, id, remoteID ID) *talk {
	t.Helper()
	m := NewMux(Config{})
	t.Cleanup(func() { _ = m.Close() })
	k := &talk{t, m, newTestStream(t, m, StreamConfig{ID: id}), &tape{name: "path1"}}
	connect(t, k.s, k.sock, peerAddr, remoteID)
	return k
}

func (k *talk) feed(b []byte) {
	k.Helper()
	if !k.mux.Receive(k.sock, b, peerAddr) {
		k.Errorf("Receive(%x): not taken", b)
	}
	synctest.Wait()
}

func (k *talk) write(s string) {
	k.Helper()
	if n, err := k.s.Write([]byte(s)); n != len(s) || err != nil {
		k.Fatalf("Write of %d bytes: %d, %v", len(s), n, err)
	}
}

// want checks what was sent since the last time, as steady shows it.
func (k *talk) want(reason string, packets ...string) {
	k.Helper()
	got := make([]string, 0, len(packets))
	for _, p := range k.sock.take() {
		got = append(got, steady(p.b))
	}
	if !slices.Equal(got, packets) {
		k.Errorf("%s: sent\n  %s, want\n  %s", reason, strings.Join(got, "\n  "), strings.Join(packets, "\n  "))
	}
}

func (k *talk) read(want string) {
	k.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(k.s, b); err != nil || string(b) != want {
		k.Errorf("Read: %q, %v, want %q", b, err, want)
	}
}

// TestExchange plays both sides of a recorded conversation: what comes from the other side is fed as it was
// recorded, and what goes out must be what the reference sent.
func TestExchange(t *testing.T) {
	var capture struct {
		Steps []struct {
			Step    string
			Packets []capturedPacket
		}
	}
	load(t, "exchange.json", &capture)
	zeros := strings.Repeat("\x07", 3000)
	steps := []struct {
		by  string
		act func(k *talk)
	}{
		{"A", func(k *talk) { k.write("hello") }},
		{"A", func(k *talk) { k.write("one"); k.write("two") }},
		{"B", func(k *talk) { k.write("reply") }},
		{"A", func(k *talk) { _ = k.s.SendMessage([]byte("unordered")) }},
		{"B", func(k *talk) { _ = k.s.SendMessage(nil) }},
		{"A", func(k *talk) { k.write(zeros) }},
		{"A", func(k *talk) { _ = k.s.Heartbeat(); synctest.Wait(); _ = k.s.Heartbeat() }},
		{"A", func(k *talk) { _ = k.s.CloseWrite() }},
		{"B", func(k *talk) { _ = k.s.CloseWrite() }},
	}
	if len(steps) != len(capture.Steps) {
		t.Fatalf("%d steps recorded, want %d", len(capture.Steps), len(steps))
	}
	for _, side := range []struct {
		name, out string
		id, peer  ID
	}{{"A", "A->B", 0x11223344, 0x55667788}, {"B", "B->A", 0x55667788, 0x11223344}} {
		t.Run(side.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newTalk(t, side.id, side.peer)
				for i, step := range capture.Steps {
					if steps[i].by == side.name {
						steps[i].act(k)
						synctest.Wait()
					}
					var want []string
					for _, p := range step.Packets {
						if p.Dir == side.out {
							want = append(want, steady(p.bytes(t)))
						} else {
							k.feed(p.bytes(t))
						}
					}
					time.Sleep(2 * time.Millisecond) // for acknowledgements that wait
					var got []string
					for _, p := range k.sock.take() {
						got = append(got, steady(p.b))
					}
					want, got = lastOfRuns(want), lastOfRuns(got)
					if !slices.Equal(got, want) {
						t.Errorf("%s: sent\n  %s, want\n  %s",
							step.Step, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
					}
				}
				<-k.s.Done()
				if err := k.s.Err(); err != nil {
					t.Errorf("Err() = %v, want nil", err)
				}
			})
		})
	}
}

// lastOfRuns leaves of each run of plain acknowledgements the last, since they may be gathered.
func lastOfRuns(packets []string) (kept []string) {
	for i, p := range packets {
		if i+1 < len(packets) && strings.HasPrefix(p, "ff0100") && strings.HasPrefix(packets[i+1], "ff0100") {
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// TestCapturedClose plays the recorded endings.
func TestCapturedClose(t *testing.T) {
	var capture struct {
		Cases []struct {
			Name    string
			Packets []capturedPacket
		}
	}
	load(t, "close.json", &capture)
	for _, c := range capture.Cases {
		t.Run("A/"+c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newTalk(t, 0x11223344, 0x55667788)
				destroyed := strings.Contains(c.Name, "destroy")
				if destroyed {
					k.write("x")
				} else {
					k.write("last")
					_ = k.s.CloseWrite()
				}
				for _, p := range c.Packets {
					if p.Dir == "B->A" {
						k.feed(p.bytes(t))
						continue
					}
					if strings.Contains(p.Fields.Flags, "DESTROY") {
						k.s.Reset(nil)
					}
					k.want(p.Fields.Flags, steady(p.bytes(t)))
				}
				<-k.s.Done()
				if err := k.s.Err(); destroyed == (err == nil) {
					t.Errorf("Err() = %v", err)
				}
			})
		})
		t.Run("B/"+c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newTalk(t, 0x55667788, 0x11223344)
				for _, p := range c.Packets {
					if p.Dir == "A->B" {
						k.feed(p.bytes(t))
						continue
					}
					if p.Fields.Flags == "END" {
						_ = k.s.CloseWrite()
					} else {
						time.Sleep(2 * time.Millisecond)
					}
					k.want(p.Fields.Flags, steady(p.bytes(t)))
				}
				<-k.s.Done()
				var want error
				if strings.Contains(c.Name, "destroy") {
					want = ErrReset
				}
				if err := k.s.Err(); !errors.Is(err, want) {
					t.Errorf("Err() = %v, want %v", err, want)
				}
			})
		})
	}
}

// TestCapturedLoss feeds both sides of a transfer in which three packets are lost once, one of them an MTU probe.
func TestCapturedLoss(t *testing.T) {
	var capture struct{ Packets []capturedPacket }
	load(t, "loss.json", &capture)
	t.Run("sender", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			k := newTalk(t, 0x11223344, 0x55667788)
			k.write("\x07\x07\x07\x07\x07")
			wrote := false
			resent := map[seq]int{}
			seen := map[seq]string{}
			for _, p := range capture.Packets {
				time.Sleep(time.Duration(p.T*float64(time.Millisecond)) - time.Since(start))
				if p.Dir == "B->A" {
					k.feed(p.bytes(t))
				} else if p.T > 100 && !wrote {
					wrote = true
					k.write(strings.Repeat("\x07", 22*1152))
				}
			}
			for _, p := range k.sock.take() {
				h, rest, _ := ParseHeader(p.b)
				payload := string(rest[h.Offset:])
				if before, ok := seen[seq(h.Seq)]; ok {
					resent[seq(h.Seq)]++
					if payload != before {
						t.Errorf("packet %d was sent again with another payload", h.Seq)
					}
					if h.Offset != 0 {
						t.Errorf("packet %d was sent again with padding", h.Seq)
					}
				}
				seen[seq(h.Seq)] = payload
			}
			if len(resent) != 3 || resent[12] != 1 || resent[15] != 1 || resent[16] != 1 {
				t.Errorf("sent again: %v, want 12, 15 and 16 once each", resent)
			}
			if got := k.s.Stats().BytesUnacknowledged; got != 0 || len(seen) != 23 {
				t.Errorf("%d packets, %d bytes unacknowledged, want 23, 0", len(seen), got)
			}
		})
	})
	t.Run("receiver", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newTalk(t, 0x55667788, 0x11223344)
			for i := range capture.Packets { // each answer is matched with the packet that caused it
				p := &capture.Packets[i]
				if p.Dir == "B->A" && p.Fields.Flags == "SACK" {
					fed := false
					for j := range i {
						if q := &capture.Packets[j]; q.Dir == "A->B" && !q.Dropped {
							q.Dropped = true // from now on
							k.feed(q.bytes(t))
							fed = true
							if seq(q.Fields.Seq) >= 12 {
								break
							}
							time.Sleep(2 * time.Millisecond)
							k.sock.take()
						}
					}
					if !fed {
						t.Fatal("no packet left to feed")
					}
					k.want(fmt.Sprintf("answer %d", i), steady(p.bytes(t)))
				}
			}
		})
	})
}

func TestCapturedChangeRemote(t *testing.T) {
	var capture struct{ Rows []capturedPacket }
	load(t, "change-remote.json", &capture)
	synctest.Test(t, func(t *testing.T) {
		k := newTalk(t, 0x11223344, 0x55667788)
		path2 := &tape{name: "path2"}
		feed := func(sock *tape, p capturedPacket) {
			if !k.mux.Receive(sock, p.bytes(t), peerAddr) {
				t.Errorf("not taken: %v", p)
			}
		}
		act := map[string]func(){
			"A.changeRemote(path2) while \"two\" is in flight": func() {
				if err := k.s.ChangeRemote(path2, peerAddr, 0x55667788); err != nil {
					t.Fatal(err)
				}
				_ = k.s.SendMessage([]byte("msg"))
				k.write("three")
			},
			"A remote-changed":                 func() {},
			"B writes":                         func() {},
			"B.changeRemote(path2) while idle": func() {},
			"B remote-changed":                 func() {},
		}
		socks := map[string]*tape{"path1": k.sock, "path2": path2}
		var got, want []string
		sent := func() {
			time.Sleep(2 * time.Millisecond)
			for _, name := range []string{"path1", "path2"} {
				for _, p := range socks[name].take() {
					got = append(got, name+" "+steady(p.b))
				}
			}
		}
		k.write("one")
		sent()
		for i, p := range capture.Rows {
			switch {
			case p.Event != "":
				act[p.Event]()
				sent()
			case p.Dir == "A->B":
				want = append(want, p.Path+" "+steady(p.bytes(t)))
			default:
				feed(socks[p.Path], p)
				sent()
				if i == 1 {
					k.write("two")
					sent()
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("sent\n  %s, want\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		k.read("fromBfromB2")
	})
}

// TestCapturedZeroWindow talks to a peer that closes its window as the recorded one did.
func TestCapturedZeroWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		k := newTalk(t, 1, 2)
		answer := func(window uint32, ack seq) {
			k.feed(Header{ID: 1, Window: window, Ack: uint32(ack)}.Append(nil))
		}
		count := func(reason string, flags Flags, n int) {
			t.Helper()
			sent := k.sock.take()
			for _, p := range sent {
				if h, _, _ := ParseHeader(p.b); h.Flags != flags {
					t.Errorf("%s: sent %v, want %v only", reason, h.Flags, flags)
				}
			}
			if len(sent) != n {
				t.Errorf("%s: sent %d packets, want %d", reason, len(sent), n)
			}
		}
		k.write(strings.Repeat("a", 1000))
		count("the first packet", FlagData, 1)
		answer(0x08dc, 1)
		k.write(strings.Repeat("b", 3000))
		count("a window of less than two packets", FlagData, 1)
		answer(0x045c, 2)
		count("a window of less than one packet", FlagData, 1)
		answer(0, 3)
		count("window closed", 0, 0)
		for _, after := range []time.Duration{rtoMin, 3 * rtoMin, 5 * rtoMin, 7 * rtoMin} { // as the reference does
			time.Sleep(after - time.Since(start) - time.Microsecond)
			count("before a probe", 0, 0)
			time.Sleep(2 * time.Microsecond)
			count("probe", FlagHeartbeat, 1)
			answer(0, 3)
			start = start.Add(time.Microsecond) // the answer starts the timer
		}
		time.Sleep(500 * time.Millisecond)
		answer(4<<20, 3)
		count("window open", FlagData, 1)
		if st := k.s.Stats(); st.BytesUnacknowledged != 3000-2*1152 {
			t.Errorf("%d bytes unacknowledged, want %d", st.BytesUnacknowledged, 3000-2*1152)
		}
		answer(0, 4)
		time.Sleep(time.Second)
		k.write("more") // the stream was idle: ask at once
		count("written to a closed window", FlagHeartbeat, 1)
	})
}

// TestCapturedTimers writes into a black hole.
func TestCapturedTimers(t *testing.T) {
	var capture struct {
		Cases map[string]struct {
			Sent []struct {
				T   float64 `json:"t_ms"`
				Seq seq
			}
			Error struct {
				T float64 `json:"t_ms"`
			}
		}
	}
	load(t, "timers.json", &capture)
	c := capture.Cases["from_the_start"]
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		k := newTalk(t, 1, 2)
		k.write("a")
		time.Sleep(11 * time.Millisecond)
		k.write("b")
		_, err := k.s.Read(make([]byte, 1))
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("Read: %v, want ErrTimeout", err)
		}
		near := func(got time.Duration, ms float64) bool {
			return (got - time.Duration(ms*float64(time.Millisecond))).Abs() < 6*time.Millisecond
		}
		if got := time.Since(start); !near(got, c.Error.T) {
			t.Errorf("failed after %v, want %v ms", got, c.Error.T)
		}
		for _, p := range k.sock.take() {
			h, _, _ := ParseHeader(p.b)
			if h.Flags == FlagDestroy || seq(h.Seq) == 1 && p.at.Sub(start) >= time.Second {
				continue // the reference sends only the first one again
			}
			if len(c.Sent) == 0 || !near(p.at.Sub(start), c.Sent[0].T) || seq(h.Seq) != c.Sent[0].Seq {
				t.Errorf("sent %d after %v, want %v", h.Seq, p.at.Sub(start), c.Sent)
				break
			}
			c.Sent = c.Sent[1:]
		}
	})
}

// TestDemultiplexing feeds the recorded datagrams in order. A row in differ is one where this endpoint is stricter.
func TestDemultiplexing(t *testing.T) {
	var capture struct {
		Rows []struct {
			Name, From, Datagram, Header string
			Socket                       int `json:"to_socket"`
			Len                          int `json:"datagram_len"`
			Outcome                      []string
		}
	}
	load(t, "demux.json", &capture)
	differ := map[string][]string{
		"right socket, wrong source address": {
			"firewall hook(socket1, from stranger)", "stream data \"evil\"",
			"peer receives ff01000063000000000040000000000003000000",
		},
		"HEARTBEAT from a stranger": {
			"firewall hook(socket1, from stranger)",
			"peer receives ff01040063000000000040000000000005000000ed030000ee030000",
		},
		"DESTROY with an old seq":      {"firewall hook(socket1, from stranger)"},
		"DESTROY with a seq far ahead": {"firewall hook(socket1, from stranger)"}, // not believed
		"DATA after close": {
			"stream data \"late\"",
			"peer receives ff01040063000000000040000000000006000000ed030000ee030000",
		},
		"MESSAGE, datagram of 3000 bytes (truncated to 2048)": {"stream message, 2980 bytes"}, // the socket's matter
	}
	synctest.Test(t, func(t *testing.T) {
		m := NewMux(Config{})
		defer m.Close()
		sock := map[int]*tape{1: {name: "socket1"}, 2: {name: "socket2"}}
		from := map[string]netip.AddrPort{"peer": peerAddr, "stranger": stranger}
		names := map[netip.AddrPort]string{peerAddr: "peer", stranger: "stranger"}
		var got []string
		s := newTestStream(t, m, StreamConfig{
			ID: 77,
			Accept: func(s Socket, from netip.AddrPort) bool {
				got = append(got, fmt.Sprintf("firewall hook(%s, from %s)", s.(*tape).name, names[from]))
				return true
			},
			OnMessage: func(_ Socket, _ netip.AddrPort, b []byte) {
				got = append(got, fmt.Sprintf("stream message, %d bytes", len(b)))
			},
		})
		for _, row := range capture.Rows {
			got = nil
			if row.Datagram == "" && row.Header == "" {
				connect(t, s, sock[1], peerAddr, 99)
			} else {
				b := unhex(t, row.Datagram+row.Header)
				b = append(b, make([]byte, max(row.Len-len(b), 0))...)
				if !m.Receive(sock[row.Socket], b, from[row.From]) {
					got = append(got, fmt.Sprintf("socket%d message event, %d bytes", row.Socket, len(b)))
				}
			}
			var data []string
			buf := make([]byte, 100)
			_ = s.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
			if n, err := s.Read(buf); n > 0 {
				data = append(data, fmt.Sprintf("stream data %q", buf[:n]))
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				data = append(data, err.Error())
			}
			time.Sleep(2 * time.Millisecond)
			hooks := 0
			for hooks < len(got) && strings.HasPrefix(got[hooks], "firewall") {
				hooks++
			}
			got = slices.Insert(got, hooks, data...)
			for _, p := range sock[1].take() {
				got = append(got, fmt.Sprintf("%s receives %s", names[p.to], steady(p.b)))
			}
			want := row.Outcome
			if w, ok := differ[row.Name]; ok {
				want = w
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", row.Name, got, want)
			}
		}
	})
}
