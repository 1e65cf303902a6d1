package dht

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

// sentDatagram is what a socket was given to send.
type sentDatagram struct {
	b  []byte
	to netip.AddrPort
}

// batchSocket is a BatchSocket that sends nothing, and keeps what it was given, call by call.
type batchSocket struct {
	plainSocket
	refuse netip.AddrPort // datagrams to here fail
}

// plainSocket is a batchSocket that is given one datagram at a time.
type plainSocket struct {
	local netip.AddrPort

	mu    sync.Mutex // guards calls
	calls [][]sentDatagram
}

func (s *plainSocket) LocalAddr() netip.AddrPort { return s.local }

func (s *plainSocket) Send(b []byte, to netip.AddrPort) error {
	s.keep([]sentDatagram{{slices.Clone(b), to}})
	return nil
}

func (s *batchSocket) SendTo(b [][]byte, to []netip.AddrPort) (err error) {
	var call []sentDatagram
	for i := range b {
		if to[i] == s.refuse {
			err = errors.New("refused")
			continue
		}
		call = append(call, sentDatagram{slices.Clone(b[i]), to[i]})
	}
	s.keep(call)
	return err
}

func (s *plainSocket) keep(call []sentDatagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

// take returns the calls since it was last called.
func (s *plainSocket) take() [][]sentDatagram {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// burstNode returns a member of a network of its own that sends from server and a client socket of the same kind.
func burstNode(t *testing.T, client, server Socket, adjust func(*Config)) *Node {
	t.Helper()
	cfg := Config{
		Client: client, Server: server, Bootstrap: []string{}, Mode: Persistent, Open: true,
		PublicAddr: server.LocalAddr(), Logger: testLogger(),
	}
	if adjust != nil {
		adjust(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

var (
	burstClient = netip.MustParseAddrPort("127.0.0.1:5000")
	burstServer = netip.MustParseAddrPort("127.0.0.1:5001")
)

// burstFrom returns the address of the i-th stranger.
func burstFrom(i int) netip.AddrPort { return netip.AddrPortFrom(burstServer.Addr(), uint16(10000+i)) }

// ask puts a request of each of count strangers into u, from the first-th on.
func (u *Burst) ask(s Socket, first, count int, q request) {
	for i := first; i < first+count; i++ {
		q.tid, q.to = uint16(i), s.LocalAddr()
		u.Receive(s, q.append(nil), burstFrom(i))
	}
}

// wantAnswers checks that d are answers to the strangers from the first-th on, all of them and in order.
func wantAnswers(t *testing.T, d []sentDatagram, first, count int) {
	t.Helper()
	if len(d) != count {
		t.Fatalf("%d answers, want %d", len(d), count)
	}
	for i, e := range d {
		r, err := parseResponse(e.b)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if want := burstFrom(first + i); r.tid != uint16(first+i) || e.to != want || r.to != want {
			t.Errorf("answer %d: tid %d to %v, who is said to be %v; want tid %d to %v", i, r.tid, e.to, r.to, first+i, want)
		}
	}
}

func TestBurstIsAnsweredByOneCall(t *testing.T) {
	client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
	u := burstNode(t, client, server, nil).NewBurst()
	u.ask(server, 0, 10, request{command: cmdPing})
	if calls := server.take(); calls != nil {
		t.Fatalf("%d datagrams were sent before Flush", len(calls))
	}
	u.Flush()
	calls := server.take()
	if len(calls) != 1 {
		t.Fatalf("%d calls, want 1", len(calls))
	}
	wantAnswers(t, calls[0], 0, 10)
	if u.Flush(); server.take() != nil {
		t.Error("an empty burst was answered")
	}
}

func TestBurstThatIsFullIsHandledAtOnce(t *testing.T) {
	client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
	u := burstNode(t, client, server, nil).NewBurst()
	u.ask(server, 0, burstSize+3, request{command: cmdPing})
	calls := server.take()
	if len(calls) != 1 {
		t.Fatalf("%d calls before Flush, want 1", len(calls))
	}
	wantAnswers(t, calls[0], 0, burstSize)
	u.Flush()
	if calls = server.take(); len(calls) != 1 {
		t.Fatalf("%d calls of Flush, want 1", len(calls))
	}
	wantAnswers(t, calls[0], burstSize, 3)
}

func TestBurstOnSocketsWithoutBatches(t *testing.T) {
	client, server := &plainSocket{local: burstClient}, &plainSocket{local: burstServer}
	u := burstNode(t, client, server, nil).NewBurst()
	u.ask(server, 0, 10, request{command: cmdPing})
	u.Flush()
	wantAnswers(t, slices.Concat(server.take()...), 0, 10)
}

func TestBurstOnBothSocketsKeepsTheOrderOfEach(t *testing.T) {
	client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
	u := burstNode(t, client, server, nil).NewBurst()
	u.ask(server, 0, 4, request{command: cmdPing})
	u.ask(client, 100, 4, request{command: cmdPing})
	u.ask(server, 4, 1, request{command: cmdPing})
	u.Flush()
	wantAnswers(t, slices.Concat(server.take()...), 0, 5)
	wantAnswers(t, slices.Concat(client.take()...), 100, 4)
}

func TestDatagramThatCannotBeSentDoesNotStopTheBurst(t *testing.T) {
	client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
	server.refuse = burstFrom(2)
	u := burstNode(t, client, server, nil).NewBurst()
	for range 2 {
		u.ask(server, 0, 5, request{command: cmdPing})
		u.Flush()
		calls := server.take()
		if len(calls) != 1 {
			t.Fatalf("%d calls, want 1", len(calls))
		}
		wantAnswers(t, calls[0][:2], 0, 2)
		wantAnswers(t, calls[0][2:], 3, 2)
	}
}

// TestBurstTakesWhatReceiveTakes compares a burst, some of it no packets at all, with the same datagrams one by one.
func TestBurstTakesWhatReceiveTakes(t *testing.T) {
	ping := request{tid: 7, to: burstServer, command: cmdPing}
	target := some(key.Hash([]byte("target")))
	rows := []struct {
		name string
		b    []byte
		from netip.AddrPort
	}{
		{"empty", nil, burstFrom(0)},
		{"one byte", []byte{requestByte}, burstFrom(1)},
		{"no packet", []byte("hello"), burstFrom(2)},
		{"cut short", ping.append(nil)[:5], burstFrom(3)},
		{"ping", ping.append(nil), burstFrom(4)},
		{"ping from port 0", ping.append(nil), netip.AddrPortFrom(burstServer.Addr(), 0)},
		{"ping from a mapped address", ping.append(nil), netip.MustParseAddrPort("[::ffff:127.0.0.1]:9")},
		{"find node", (&request{to: burstServer, command: cmdFindNode, target: target}).append(nil), burstFrom(5)},
		{"find peer", (&request{to: burstServer, command: cmdFindPeer, target: target}).append(nil), burstFrom(6)},
		{"unknown", (&request{to: burstServer, command: 200, target: target}).append(nil), burstFrom(7)},
		{"answer to nothing", (&response{to: burstServer}).append(nil), burstFrom(8)},
	}
	synctest.Test(t, func(t *testing.T) { // at one time, so that tokens are the same
		client, server := &plainSocket{local: burstClient}, &plainSocket{local: burstServer}
		n := burstNode(t, client, server, nil)
		for _, r := range rows {
			n.Receive(server, r.b, r.from)
		}
		want := slices.Concat(server.take()...)
		u := n.NewBurst()
		for _, r := range rows {
			u.Receive(server, r.b, r.from)
		}
		u.Flush()
		got := slices.Concat(server.take()...)
		if len(want) != 5 {
			t.Errorf("%d answers one by one, want 5", len(want))
		}
		if !slices.EqualFunc(got, want, func(a, b sentDatagram) bool { return slices.Equal(a.b, b.b) && a.to == b.to }) {
			t.Errorf("answers to the burst:\n%v\none by one:\n%v", got, want)
		}
	})
}

// TestBurstKeepsNothingOfTheDatagrams overwrites the memory of a burst whose requests are not answered at once.
func TestBurstKeepsNothingOfTheDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := &plainSocket{local: burstClient}, &plainSocket{local: burstServer}
		n := burstNode(t, client, server, nil)
		asked := make(chan *HandshakeRequest, 1)
		k := key.Generate()
		if _, err := n.Serve(k, serverFunc(func(r *HandshakeRequest) { asked <- r })); err != nil {
			t.Fatal(err)
		}
		server.take()
		u := n.NewBurst()
		delayed := request{tid: 1, to: burstServer, command: cmdDelayedPing, value: []byte{0xe8, 3, 0, 0}}
		handshake := request{
			tid: 2, to: burstServer, command: cmdPeerHandshake, target: some(k.Public().Target()),
			value: handshakeMessage{mode: fromClient, noise: []byte("hello")}.encode(),
		}
		a, b := delayed.append(nil), handshake.append(nil)
		u.Receive(server, a, burstFrom(1))
		u.Receive(server, b, burstFrom(2))
		u.Flush()
		clear(a)
		clear(b)
		u.ask(server, 3, 1, request{command: cmdPing}) // takes the place of what was kept wrongly
		u.Flush()
		r := <-asked
		if string(r.Noise) != "hello" || r.Client != burstFrom(2) {
			t.Errorf("handshake %q of %v", r.Noise, r.Client)
		}
		if err := r.Reply(nil, []byte("welcome")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		got := slices.Concat(server.take()...)
		slices.SortFunc(got, func(a, b sentDatagram) int { return int(a.b[2]) - int(b.b[2]) })
		wantAnswers(t, got, 1, 3)
	})
}

type serverFunc func(*HandshakeRequest)

func (f serverFunc) HandleHandshake(r *HandshakeRequest) { f(r) }
func (serverFunc) HandleHolepunch(*HolepunchRequest)     {}

func TestBurstOfANodeThatIsClosed(t *testing.T) {
	client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
	n := burstNode(t, client, server, nil)
	u := n.NewBurst()
	u.ask(server, 0, 3, request{command: cmdPing})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	u.Flush()
	if calls := server.take(); calls != nil {
		t.Errorf("%d calls after Close", len(calls))
	}
}

func TestRequestsOfAQueryLeaveTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
		n := burstNode(t, client, server, nil)
		for i := range 2 * bucketSize {
			n.do(func(time.Time) { n.addKnown(burstFrom(i)) })
		}
		server.take()
		n.do(func(now time.Time) {
			n.lookup(now, lookupSpec{target: key.Hash([]byte("target")), command: cmdFindPeer}, func(time.Time, []found, error) {})
		})
		calls := server.take()
		if len(calls) != 1 || len(calls[0]) != queryConcurrency {
			t.Fatalf("%d calls, want one with %d requests", len(calls), queryConcurrency)
		}
	})
}

// TestAnswersTakeNoMemory asks for everything that is asked for often.
func TestAnswersTakeNoMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what is put into it")
	}
	target := some(key.Hash([]byte("target")))
	handshake := handshakeMessage{mode: fromServer, noise: make([]byte, 200), peer: burstFrom(1)}.encode()
	for _, r := range []struct {
		name string
		request
	}{
		{"ping", request{command: cmdPing}},
		{"find node", request{command: cmdFindNode, target: target}},
		{"find peer", request{command: cmdFindPeer, target: target}},
		{"lookup", request{command: cmdLookup, target: target}},
		{"handshake to be passed on", request{command: cmdPeerHandshake, target: target, value: handshake}},
	} {
		t.Run(r.name, func(t *testing.T) {
			client, server := &nullSocket{burstClient}, &nullSocket{burstServer}
			n := burstNode(t, client, server, nil)
			for i := range 100 {
				n.do(func(time.Time) { n.addKnown(netip.AddrPortFrom(testHost(i), 1)) })
			}
			r.to = burstServer
			b := r.append(nil)
			u := n.NewBurst()
			from := burstFrom(1)
			allocs := testing.AllocsPerRun(200, func() {
				for range 10 {
					u.Receive(server, b, from)
				}
				u.Flush()
			})
			if allocs != 0 {
				t.Errorf("%v allocations for ten requests, want none", allocs)
			}
		})
	}
}

func TestBurstAnswersToOneAddressLeaveTogether(t *testing.T) {
	for _, row := range []struct {
		name      string
		strangers int // who ask in turn
		rounds    int
	}{
		{"one", 1, 10},
		{"two", 2, 10},
		{"many", 20, 3},
		{"two bursts' worth", 13, 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			client, server := &batchSocket{plainSocket: plainSocket{local: burstClient}}, &batchSocket{plainSocket: plainSocket{local: burstServer}}
			u := burstNode(t, client, server, nil).NewBurst()
			for round := range row.rounds {
				for i := range row.strangers {
					q := request{command: cmdPing, tid: uint16(round), to: server.local}
					u.Receive(server, q.append(nil), burstFrom(i))
				}
			}
			u.Flush()
			answers := make(map[netip.AddrPort]int)
			for _, call := range server.take() {
				var last netip.AddrPort
				begun := make(map[netip.AddrPort]bool)
				for _, d := range call {
					r, err := parseResponse(d.b)
					if err != nil || int(r.tid) != answers[d.to] || r.to != d.to {
						t.Fatalf("answer %d to %v: tid %d to %v, error %v", answers[d.to], d.to, r.tid, r.to, err)
					}
					answers[d.to]++
					if d.to != last && begun[d.to] {
						t.Errorf("datagrams to %v lie apart", d.to)
					}
					last, begun[d.to] = d.to, true
				}
			}
			for i := range row.strangers {
				if n := answers[burstFrom(i)]; n != row.rounds {
					t.Errorf("%d answers to %v, want %d", n, burstFrom(i), row.rounds)
				}
			}
		})
	}
}
