package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// end is one side of a connection under test: a Host that lists the other side.
type end struct {
	*Host
	name string
	got  chan string // packets that arrived, as "from: text"

	mu     sync.Mutex
	events []PeerEvent
}

// packet makes something that looks like an IPv4 packet and carries text.
func packet(text string) []byte { return append([]byte{0x45}, text...) }

// end starts a Host at a place in the world, that listens and lists the given keys.
func (w *world) end(at *lab.Host, listed ...key.Public) *end {
	w.t.Helper()
	return w.endAs(at, key.FromSeed(key.Hash([]byte(at.Name()))), listed...)
}

func (w *world) endAs(at *lab.Host, id key.Private, listed ...key.Public) *end {
	w.t.Helper()
	e := &end{name: at.Name(), got: make(chan string, 10000)}
	e.Host = w.host(at, Config{
		Identity: id,
		Inbound: func(p *Peer, bufs [][]byte, offset int, _ []bool) {
			for _, b := range bufs {
				e.got <- fmt.Sprintf("%s: %s", p.Key().Short(), b[offset+1:])
			}
		},
		OnPeer: func(ev PeerEvent) {
			e.mu.Lock()
			e.events = append(e.events, ev)
			e.mu.Unlock()
		},
	})
	for _, k := range listed {
		if _, err := e.AddPeer(k); err != nil {
			w.t.Fatal(err)
		}
	}
	return e
}

// listen makes the end reachable by those it lists.
func (e *end) listen(t *testing.T) *Listener {
	t.Helper()
	return e.listenWith(t, ListenConfig{Tunnels: true, Admit: func(c Caller) error {
		if e.Peer(c.Key) == nil {
			return errors.New("not listed")
		}
		return nil
	}})
}

// listenWith listens for the end's key, and waits until it can be found.
func (e *end) listenWith(t *testing.T, cfg ListenConfig) *Listener {
	t.Helper()
	l, err := e.Listen(e.cfg.Identity, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Announced(ctx); err != nil {
		t.Fatalf("%s is not announced: %v", e.name, err)
	}
	return l
}

func (e *end) public() key.Public { return e.cfg.Identity.Public() }

// wantPacket waits for one packet.
func (e *end) wantPacket(t *testing.T, from key.Public, text string) {
	t.Helper()
	want := from.Short() + ": " + text
	select {
	case got := <-e.got:
		if got != want {
			t.Errorf("%s received %q, want %q", e.name, got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: packet %q did not arrive", e.name, text)
	}
}

func (p *Peer) linkCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// connected waits until e has a tunnel to k and returns how long that took.
func (e *end) connected(t *testing.T, k key.Public) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := e.Peer(k).Wait(ctx); err != nil {
		t.Fatalf("%s does not connect: %v", e.name, err)
	}
	return time.Since(began)
}

// exchange sends a packet each way and waits for both.
func exchange(t *testing.T, a, b *end) {
	t.Helper()
	for _, s := range [][2]*end{{a, b}, {b, a}} {
		text := fmt.Sprintf("hello from %s %d", s[0].name, rand.Uint32())
		if err := s[0].Peer(s[1].public()).Send([][]byte{packet(text)}); err != nil {
			t.Fatalf("%s sends: %v", s[0].name, err)
		}
		s[1].wantPacket(t, s[0].public(), text)
	}
}

func keyOf(name string) key.Public { return key.FromSeed(key.Hash([]byte(name))).Public() }

var (
	pubA = netip.MustParseAddr("192.88.99.101")
	pubB = netip.MustParseAddr("192.88.99.102")
	inA  = netip.MustParseAddr("192.168.1.10")
	inB  = netip.MustParseAddr("192.168.2.10")
)

// homes puts two hosts behind a home router each.
func (w *world) homes() (a, b *lab.Host, natA, natB *lab.NAT) {
	natA, natB = w.net.NAT("home-a", lab.Linux(pubA)), w.net.NAT("home-b", lab.Linux(pubB))
	return natA.Host("a", inA), natB.Host("b", inB), natA, natB
}

// twoEnds starts a Host in each of two homes. They list each other; none listens yet.
func (w *world) twoEnds() (a, b *end) {
	w.t.Helper()
	ha, hb, _, _ := w.homes()
	return w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
}

func TestTunnelBetweenTwoHomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		a.Peer(b.public()).Connect()
		took := a.connected(t, b.public())
		if took > 300*time.Millisecond { // ten trips of 30 ms there and back
			t.Errorf("connected after %v, want less than 300 ms", took)
		}
		exchange(t, a, b)
		s := a.Peer(b.public()).Status()
		if s.State != PeerConnected || s.Path.Kind != PathDirect || s.Path.Remote.Addr() != pubB {
			t.Errorf("status %+v, want a direct path to %v", s, pubB)
		}
		if s.RTT < 30*time.Millisecond || s.RTT > 40*time.Millisecond {
			t.Errorf("round trip %v, want 30 ms", s.RTT)
		}
		if pong, err := a.Peer(b.public()).Ping(t.Context()); err != nil || pong.RTT != 30*time.Millisecond {
			t.Errorf("ping: %v, %v; want 30 ms", pong.RTT, err)
		}
	})
}

func TestStrangerMeetsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("somebody else"))
		b.listen(t)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var silences []time.Duration
		began := time.Now()
		_, err := a.dial(ctx, dialing{local: a.cfg.Identity, remote: b.public(), tunnel: true, silence: func() {
			silences = append(silences, time.Since(began))
		}})
		if !errors.Is(err, ErrNoAnswer) {
			t.Errorf("a stranger's dial: %v, want ErrNoAnswer", err)
		}
		if len(silences) != 1 || silences[0] < silentAfter || silences[0] > silentAfter+time.Second {
			t.Errorf("the silence was told after %v, want once after %v", silences, silentAfter)
		}
		if b.Refused() == 0 {
			t.Error("no refused handshake was counted: did it arrive at all?")
		}
		if d, ok := errors.AsType[*DialError](err); !ok || d.Stage != StageHandshake {
			t.Errorf("the error says %v, want stage %q", err, StageHandshake)
		}
	})
}

func TestUnknownKeyIsNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		ha, _, _, _ := w.homes()
		a := w.end(ha)
		_, err := a.Dial(t.Context(), keyOf("nobody"), DialConfig{OnSilence: func() {
			t.Error("told that somebody who is not announced does not answer")
		}})
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("dial: %v, want ErrNotFound", err)
		}
	})
}

func TestPacketsWaitForTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		for i := range 3 {
			if err := a.Peer(b.public()).Send([][]byte{packet(fmt.Sprint(i))}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			b.wantPacket(t, a.public(), fmt.Sprint(i))
		}
	})
}

func TestRestartedPeerIsBackAtOnce(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond, time.Second, 5 * time.Second, 40 * time.Second} {
		for _, lower := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, lower key %v", after, lower), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testRestart(t, after, lower) })
			})
		}
	}
}

// testRestart restarts the side whose key is the lower one, or the other.
func testRestart(t *testing.T, after time.Duration, lower bool) {
	w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
	ha, hb, _, _ := w.homes()
	id := key.FromSeed(key.Hash([]byte("a")))
	for i := byte(0); (id.Public().Compare(keyOf("b")) < 0) != lower; i++ {
		id = key.FromSeed(key.Hash([]byte{i}))
	}
	a, b := w.endAs(ha, id, keyOf("b")), w.end(hb, id.Public())
	a.listen(t)
	b.listen(t)
	b.Peer(a.public()).Connect() // the other way than after the restart
	b.connected(t, a.public())
	time.Sleep(100 * time.Millisecond) // up on the other side, too
	exchange(t, a, b)
	if n := b.Peer(a.public()).linkCount(); n != 1 {
		t.Fatalf("%d links, want the one that b dialled", n)
	}
	time.Sleep(after)
	a.Host.Close() // as after kill -9: nobody is told
	a = w.endAs(ha, id, keyOf("b"))
	began := time.Now()
	a.listen(t)
	a.Peer(b.public()).Connect()
	a.connected(t, b.public())
	for { // until b, too, knows which link is the right one
		if err := b.Peer(a.public()).Send([][]byte{packet("are you back?")}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-a.got:
		case <-time.After(20 * time.Millisecond):
			if time.Since(began) < 10*time.Second {
				continue
			}
		}
		break
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("packets flow %v after the restart", took)
	}
}

func TestTunnelSurvivesRebinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		ha, hb, natA, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		a.listen(t)
		b.listen(t)
		a.Peer(b.public()).Connect()
		b.Peer(a.public()).Connect()
		a.connected(t, b.public())
		b.connected(t, a.public())
		exchange(t, a, b)
		for round := range 3 {
			natA.SetPublic(netip.AddrFrom4([4]byte{192, 88, 99, byte(120 + round)}))
			began := time.Now()
			for {
				if err := a.Peer(b.public()).Send([][]byte{packet("probe")}); err != nil {
					t.Fatal(err)
				}
				select {
				case <-b.got:
				case <-time.After(100 * time.Millisecond):
					if time.Since(began) > 30*time.Second {
						t.Fatal("no packet arrives after the change of address")
					}
					continue
				}
				break
			}
			time.Sleep(3 * time.Second)
			for len(b.got) > 0 {
				<-b.got
			}
			exchange(t, a, b)
			if got := b.Peer(a.public()).Status().Path.Remote.Addr(); got != natA.Public() {
				t.Errorf("round %d: b sends to %v, want %v", round, got, natA.Public())
			}
		}
	})
}

func TestTunnelUnderLoss(t *testing.T) {
	for _, loss := range []float64{0.05, 0.2} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lab.Config{Seed: 3, Latency: 15 * time.Millisecond, Loss: loss, Duplicate: 0.01, Reorder: 0.05})
				a, b := w.twoEnds()
				b.listen(t)
				a.Peer(b.public()).Connect()
				a.connected(t, b.public())
				const n = 2000
				for i := range n {
					if err := a.Peer(b.public()).Send([][]byte{packet(fmt.Sprint(i))}); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				seen := map[string]int{}
				for len(b.got) > 0 {
					seen[<-b.got]++
				}
				for p, times := range seen {
					if times > 1 {
						t.Errorf("packet %q was delivered %d times", p, times)
					}
				}
				if got, want := float64(len(seen)), n*(1-loss); got < 0.9*want || got > 1.1*want {
					t.Errorf("%v of %d packets arrived, want about %v", got, n, want)
				}
			})
		})
	}
}

func TestSameLAN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond})
		nat := w.net.NAT("home", lab.Linux(pubA))
		a := w.end(nat.Host("a", inA), keyOf("b"))
		b := w.end(nat.Host("b", netip.MustParseAddr("192.168.1.11")), keyOf("a"))
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		exchange(t, a, b)
		if s := a.Peer(b.public()).Status(); s.Path.Kind != PathLAN {
			t.Errorf("path %+v, want one on the local network", s.Path)
		}
	})
}

func TestStreamBetweenTwoHomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond, Loss: 0.01})
		a, b := w.twoEnds()
		l := b.listen(t)
		served := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = io.Copy(c, c)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}
			served <- err
		}()
		c, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("%d bytes came back (%v), want the %d that were sent", len(got), err, len(data))
		}
		if err := <-served; err != nil {
			t.Errorf("the server's side: %v", err)
		}
		if c.RemoteKey() != b.public() {
			t.Errorf("remote key %v, want %v", c.RemoteKey(), b.public())
		}
		c.Close()
	})
}

func TestShutdownDeliversWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 15 * time.Millisecond, Loss: 0.02})
		ha, hb, _, _ := w.homes()
		a, b := w.end(ha, keyOf("b")), w.end(hb, keyOf("a"))
		l := b.listen(t)
		hb.SetLink(lab.Link{Rate: 200 << 10}) // what is buffered takes longer than all the rest of a shutdown
		data := make([]byte, 2<<20)
		rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = c.Write(data)
				c.Close()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := errors.Join(err, b.Shutdown(ctx)); err != nil {
				t.Errorf("the server's side: %v", err)
			}
		}()
		c, err := a.Dial(t.Context(), b.public(), DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("%d bytes arrived (%v), want the %d that were sent", len(got), err, len(data))
		}
		c.Close()
		synctest.Wait()
	})
}

func TestListenerCloseUnblocksAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1})
		ha, _, _, _ := w.homes()
		a := w.end(ha)
		l := a.listen(t)
		go func() {
			time.Sleep(time.Second)
			l.Close()
		}()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v, want net.ErrClosed", err)
		}
	})
}

func TestForgedAndReplayedDatagramsChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lab.Config{Seed: 1, Latency: 5 * time.Millisecond})
		a, b := w.twoEnds()
		b.listen(t)
		a.Peer(b.public()).Connect()
		a.connected(t, b.public())
		exchange(t, a, b)

		link := a.Peer(b.public()).cur.Load()
		good, err := link.epoch.Seal(nil, packet("again"))
		if err != nil {
			t.Fatal(err)
		}
		remote := link.cur.Load()
		send := func(d []byte) {
			t.Helper()
			if err := remote.sock.Send(d, remote.remote); err != nil {
				t.Fatal(err)
			}
		}
		bad := bytes.Clone(good)
		for i := range bad {
			bad[i] ^= 1
			if i != 0 { // another class of datagram
				send(bad)
			}
			bad[i] ^= 1
		}
		time.Sleep(time.Second)
		forged := b.Peer(a.public()).Status()
		if forged.Rejected+forged.Replayed < uint64(len(bad)-8) { // all but those with another class, version or index
			t.Errorf("%d and %d of %d forged datagrams were counted", forged.Rejected, forged.Replayed, len(bad))
		}
		send(good)
		b.wantPacket(t, a.public(), "again")
		for range 5 {
			send(good)
		}
		time.Sleep(time.Second)
		if len(b.got) != 0 {
			t.Errorf("a forged or replayed packet was delivered: %s", <-b.got)
		}
		if n := b.Peer(a.public()).Status().Replayed - forged.Replayed; n != 5 {
			t.Errorf("%d replayed datagrams were counted, want 5", n)
		}
		exchange(t, a, b)
	})
}
