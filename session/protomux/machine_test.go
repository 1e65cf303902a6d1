package protomux

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
)

// talk is a stream with a machine at either end. It keeps what was sent, as the recordings do.
type talk struct {
	t    testing.TB
	ends map[string]*machine
	wire []string // "a 0001…"
}

func newTalk(t testing.TB, protocols ...string) *talk {
	a, b := newMachine(protocols, 16), newMachine(protocols, 16)
	return &talk{t: t, ends: map[string]*machine{"a": &a, "b": &b}}
}

// pump delivers one frame from the named end, if there is one.
func (k *talk) pump(from string) bool {
	k.t.Helper()
	src, dst := k.ends[from], k.ends[map[string]string{"a": "b", "b": "a"}[from]]
	if len(src.out) == 0 {
		return false
	}
	f := src.out[0]
	src.out = src.out[1:]
	k.wire = append(k.wire, fmt.Sprintf("%s %x", from, f))
	if err := dst.receive(f); err != nil {
		k.t.Fatalf("%s refused %x: %v\nafter\n%s", from, f, err, strings.Join(k.wire, "\n"))
	}
	return true
}

// settle delivers everything.
func (k *talk) settle() {
	k.t.Helper()
	for k.pump("a") || k.pump("b") {
	}
}

func (k *talk) open(end, protocol, id, handshake string) *channel {
	k.t.Helper()
	c, err := k.ends[end].open(name{protocol, id}, []byte(handshake))
	if err != nil {
		k.t.Fatalf("%s opens %s: %v", end, protocol, err)
	}
	return c
}

func (k *talk) accept(end, protocol, handshake string) *channel {
	k.t.Helper()
	c := k.ends[end].take(protocol)
	if c == nil {
		k.t.Fatalf("nobody offers %s to %s", protocol, end)
	}
	k.ends[end].accept(c, []byte(handshake))
	return c
}

// want checks the state of a channel, and takes a message if text is not empty.
func (k *talk) want(end string, c *channel, s state, text string) {
	k.t.Helper()
	if c.state != s {
		k.t.Errorf("%s: channel %q is in state %d, want %d", end, c.name.protocol, c.state, s)
	}
	if text == "" {
		return
	}
	if msg, ok := k.ends[end].next(c); string(msg.payload) != text {
		k.t.Errorf("%s: message %q, %v, want %q", end, msg.payload, ok, text)
	}
}

func TestConversationsAreThoseOfTheReference(t *testing.T) {
	// Each function plays the programs of one recording, and settle the network where the recording shows that
	// the frames of one side were seen before the other acted.
	plays := map[string]func(k *talk){
		"open both sides, one message each way, close by a": func(k *talk) {
			a, b := k.open("a", "foo", "", ""), k.open("b", "foo", "", "")
			k.settle()
			k.ends["a"].send(a, 0, []byte("\x05hello"))
			k.ends["a"].send(a, 1, []byte("\xfd\x2c\x01"))
			k.settle()
			k.want("b", b, stateOpen, "\x05hello")
			k.want("b", b, stateOpen, "\xfd\x2c\x01")
			k.ends["b"].send(b, 0, []byte("\x05world"))
			k.settle()
			k.want("a", a, stateOpen, "\x05world")
			k.ends["a"].close(a)
			k.settle()
			k.want("b", b, stateClosed, "")
			if !errors.Is(a.err, net.ErrClosed) || b.err != io.EOF {
				k.t.Errorf("errors %v and %v, want ErrClosed and EOF", a.err, b.err)
			}
		},
		"open with id and handshake, message sent before the remote opened": func(k *talk) {
			for _, m := range k.ends {
				m.protocols = nil
			}
			a := k.open("a", "foo", "\xaa\xbb", "\x03hsA")
			k.ends["a"].send(a, 0, []byte("\x05early"))
			k.settle()
			b := k.open("b", "foo", "\xaa\xbb", "\x03hsB")
			k.settle()
			k.want("a", a, stateClosed, "")
			k.want("b", b, stateClosed, "")
			if a.err != ErrRejected || b.err != ErrRejected {
				k.t.Errorf("errors %v and %v, want ErrRejected", a.err, b.err)
			}
		},
		"same, with a pair handler on b": func(k *talk) {
			a := k.open("a", "foo", "\xaa\xbb", "\x03hsA")
			k.ends["a"].send(a, 0, []byte("\x05early"))
			k.settle()
			b := k.accept("b", "foo", "\x03hsB")
			k.settle()
			k.want("a", a, stateOpen, "")
			k.want("b", b, stateOpen, "\x05early")
			if string(a.handshake) != "\x03hsB" || string(b.handshake) != "\x03hsA" {
				k.t.Errorf("handshakes %q and %q", a.handshake, b.handshake)
			}
		},
		"reject of an unknown protocol": func(k *talk) {
			a := k.open("a", "nobody", "", "")
			k.settle()
			k.want("a", a, stateClosed, "")
		},
		"corked batch over two channels": func(k *talk) {
			one, two := k.open("a", "one", "", ""), k.open("a", "two", "", "")
			k.pump("a")
			k.pump("a")
			bOne, bTwo := k.accept("b", "one", ""), k.accept("b", "two", "")
			k.settle()
			m := k.ends["a"]
			for _, s := range []struct {
				c *channel
				p string
			}{{one, "\x01x"}, {one, "\x01y"}, {two, "\x01z"}, {one, "\x01w"}} {
				m.send(s.c, 0, []byte(s.p))
			}
			m.out = [][]byte{appendBatch(nil, m.out)}
			k.settle()
			for _, want := range []string{"\x01x", "\x01y", "\x01w"} {
				k.want("b", bOne, stateOpen, want)
			}
			k.want("b", bTwo, stateOpen, "\x01z")
		},
		"local id reuse after close": func(k *talk) {
			a := k.open("a", "one", "", "")
			k.settle()
			b := k.accept("b", "one", "")
			k.settle()
			k.ends["a"].close(a)
			a2 := k.open("a", "two", "", "")
			k.settle()
			k.want("b", b, stateClosed, "")
			b2 := k.accept("b", "two", "")
			k.settle()
			k.want("a", a2, stateOpen, "")
			k.want("b", b2, stateOpen, "")
		},
	}
	for _, rec := range recordings(t) {
		t.Run(rec.Name, func(t *testing.T) {
			play := plays[rec.Name]
			if play == nil {
				t.Fatal("nobody plays it")
			}
			k := newTalk(t, "foo", "one", "two")
			play(k)
			var want []string
			for _, f := range rec.Frames {
				want = append(want, f.From+" "+f.Frame)
			}
			if !slices.Equal(k.wire, want) {
				t.Errorf("sent\n%s\nrecorded\n%s", strings.Join(k.wire, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestCloseBeforeThePeerOpens(t *testing.T) {
	t.Run("the peer has not taken the offer", func(t *testing.T) {
		k := newTalk(t, "p")
		a := k.open("a", "p", "", "")
		k.ends["a"].close(a)
		if c, _ := k.ends["a"].open(name{"p", ""}, nil); c.local != 2 {
			t.Errorf("the number %d is used while the peer may still answer, want 2", c.local)
		}
		k.pump("a")
		k.pump("a") // open, close
		k.pump("b")
		k.want("a", a, stateClosed, "")
		if c := k.open("a", "other", "", ""); c.local != 1 {
			t.Errorf("number %d, want 1 again, which was rejected", c.local)
		}
	})
	t.Run("the opens cross", func(t *testing.T) {
		k := newTalk(t, "p")
		a, b := k.open("a", "p", "", ""), k.open("b", "p", "", "")
		k.ends["a"].close(a)
		k.settle()
		k.want("a", a, stateClosed, "")
		k.want("b", b, stateClosed, "")
		for end, m := range k.ends {
			if m.live != 0 || len(m.opening) != 0 || len(m.remote) != 0 {
				t.Errorf("%s: %d channels, %d opening, %d of the peer, want none", end, m.live, len(m.opening), len(m.remote))
			}
		}
	})
	t.Run("the peer forgets the close, as the reference may", func(t *testing.T) {
		k := newTalk(t, "p")
		a := k.open("a", "p", "", "")
		k.pump("a")
		b := k.accept("b", "p", "")
		k.ends["a"].close(a)
		k.ends["a"].out = nil // as good as forgotten
		k.settle()
		k.want("b", b, stateClosed, "")
	})
}

func TestOfferThatIsClosedIsAnswered(t *testing.T) {
	k := newTalk(t, "p")
	a := k.open("a", "p", "", "")
	k.ends["a"].send(a, 0, []byte("early"))
	k.pump("a")
	k.pump("a")
	offer := k.ends["b"].take("p")
	k.ends["a"].close(a)
	k.settle()
	k.want("b", offer, stateClosed, "")
	if offer.err != io.EOF || k.ends["b"].kept != 0 {
		t.Errorf("offer: %v, %d bytes kept, want EOF, 0", offer.err, k.ends["b"].kept)
	}
	if m := k.ends["a"]; m.live != 0 || len(m.free) != 1 {
		t.Errorf("a: %d channels, %d free numbers, want 0, 1", m.live, len(m.free))
	}
}

func TestOpensArePairedInOrder(t *testing.T) {
	k := newTalk(t)
	a1, a2 := k.open("a", "p", "", "one"), k.open("a", "p", "", "two")
	b1, b2 := k.open("b", "p", "", "one"), k.open("b", "p", "", "two")
	k.settle()
	for _, c := range []*channel{a1, b1, a2, b2} {
		k.want("", c, stateOpen, "")
	}
	if string(a1.handshake)+string(b1.handshake)+string(a2.handshake)+string(b2.handshake) != "oneonetwotwo" {
		t.Errorf("handshakes %q %q %q %q", a1.handshake, b1.handshake, a2.handshake, b2.handshake)
	}
}

func TestChannelsAreLimited(t *testing.T) {
	m := newMachine([]string{"p"}, 3)
	for i := range 5 {
		if err := m.receive(opening{uint64(i + 1), name{"p", ""}, nil}.append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.offers) != 3 || len(m.out) != 2 || string(m.out[0]) != "\x00\x02\x04" || string(m.out[1]) != "\x00\x02\x05" {
		t.Errorf("%d offers, answers %x, want 3, and rejects of 4 and 5", len(m.offers), m.out)
	}
	if _, err := m.open(name{"q", ""}, nil); !errors.Is(err, ErrTooMany) {
		t.Errorf("open beyond the limit: %v, want ErrTooMany", err)
	}
	if _, err := m.open(name{"p", ""}, nil); err != nil {
		t.Errorf("open of what is offered, at the limit: %v", err)
	}
	// A rejected number may be used again, and numbers still grow one by one.
	if err := m.receive(opening{6, name{"q", ""}, nil}.append(nil)); err != nil {
		t.Error(err)
	}
	if err := m.receive(opening{4, name{"q", ""}, nil}.append(nil)); err != nil {
		t.Error(err)
	}
}

// FuzzTalk lets two machines talk, as the input says: what the programs do, and when the network delivers. Neither
// may ever refuse the other's frames, and in the end both must agree.
func FuzzTalk(f *testing.F) {
	f.Add([]byte("\x00\x01\x08\x09\x02\x03\x04\x05"))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		k := newTalk(t, "p", "q")
		mine := map[string][]*channel{}
		for _, op := range script {
			end := "ab"[op&1:][:1]
			m := k.ends[end]
			pick := func() *channel {
				if n := len(mine[end]); n > 0 {
					return mine[end][int(op>>4)%n]
				}
				return nil
			}
			switch op >> 1 & 7 {
			case 0, 1:
				n := name{"pqr"[int(op>>4)%3:][:1], "xy"[int(op>>6)%2:][:1]}
				if c, err := m.open(n, []byte{op}); err == nil {
					mine[end] = append(mine[end], c)
				}
			case 2:
				if c := m.take("p"); c != nil {
					if op&0x80 == 0 {
						m.accept(c, nil)
						mine[end] = append(mine[end], c)
					} else {
						m.close(c)
					}
				}
			case 3:
				if c := pick(); c != nil && (c.state == stateOpen || c.state == stateOpening) {
					m.send(c, uint64(op>>4), []byte{op})
				}
			case 4:
				if c := pick(); c != nil {
					m.close(c)
				}
			case 5:
				if c := pick(); c != nil {
					m.next(c)
				}
			case 6, 7:
				k.pump(end)
			}
		}
		k.settle()
		for end, m := range k.ends {
			for c := m.take("p"); c != nil; c = m.take("p") {
				m.close(c)
			}
			for c := m.take("q"); c != nil; c = m.take("q") {
				m.close(c)
			}
			k.settle()
			live, kept := 0, 0
			for _, c := range mine[end] {
				if c.state == stateOpen || c.state == stateOpening {
					live++
				}
				if c.state == stateAbandoned {
					t.Errorf("%s: a channel waits for an answer that was given", end)
				}
				for _, msg := range c.queue {
					kept += msg.cost()
				}
			}
			if m.live != live || m.kept != kept || len(m.local)-len(m.free) != live {
				t.Errorf("%s: counts %d channels, %d bytes, %d numbers; there are %d, %d, %d",
					end, m.live, m.kept, len(m.local)-len(m.free), live, kept, live)
			}
		}
		a, b := k.ends["a"], k.ends["b"]
		for id, c := range a.remote {
			if p := b.local[id-1]; p == nil || p.state != stateOpen || p.name != c.name || p.remote != c.local {
				t.Errorf("a's channel %d is not b's", id)
			}
		}
		if len(a.remote) != len(b.remote) {
			t.Errorf("%d and %d channels are open", len(a.remote), len(b.remote))
		}
		for _, m := range k.ends {
			m.shut(io.EOF)
			if m.live != 0 || len(m.local) != len(m.free) || len(m.remote) != 0 {
				t.Errorf("%d channels outlive the stream", m.live)
			}
		}
	})
}

// FuzzReceive gives arbitrary frames to a machine that has channels in every state.
func FuzzReceive(f *testing.F) {
	for _, rec := range recordings(f) {
		for _, fr := range rec.Frames {
			f.Add(unhex(f, fr.Frame))
		}
	}
	f.Add(unhex(f, "00 00 00 05 01 03 01 70 00 02 02 01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := newTalk(t, "p", "foo")
		k.open("a", "p", "", "")
		k.pump("a")
		k.accept("b", "p", "")
		k.settle()
		k.open("a", "p", "offered", "")
		k.open("a", "x", "opening", "")
		m := k.ends["a"]
		m.out = nil
		err := m.receive(b)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("error %v, want one that wraps ErrProtocol", err)
		}
		if m.kept > 2*len(b)+messageCost*(len(b)/2+1) || m.live > 3+len(b)/5 {
			t.Errorf("%d bytes and %d channels from a frame of %d bytes", m.kept, m.live, len(b))
		}
		for _, out := range m.out {
			if _, _, _, err := parseHeader(out); err != nil {
				t.Errorf("sends %x: %v", out, err)
			}
		}
	})
}
