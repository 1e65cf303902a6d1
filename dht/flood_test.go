package dht

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"omegatun/dht/key"
)

// floodSocket sends nothing, but keeps what was sent since it was last looked at.
type floodSocket struct {
	local netip.AddrPort
	sent  []floodDatagram
}

type floodDatagram struct {
	to    netip.AddrPort
	first byte
	size  int
}

func (s *floodSocket) LocalAddr() netip.AddrPort { return s.local }
func (s *floodSocket) Send(b []byte, to netip.AddrPort) error {
	s.sent = append(s.sent, floodDatagram{to, b[0], len(b)})
	return nil
}

// stoppedClock moves only when told.
type stoppedClock struct{ now time.Time }

func (c *stoppedClock) Now() time.Time                        { return c.now }
func (c *stoppedClock) AfterFunc(time.Duration, func()) Timer { return stoppedTimer{} }

type stoppedTimer struct{}

func (stoppedTimer) Stop() bool               { return true }
func (stoppedTimer) Reset(time.Duration) bool { return true }

// TestFlood hands a member a million datagrams from strangers: recorded ones, changed at random, and noise. It must
// not crash or grow, and send no more than three times what it got to the sender, and forwarded messages; larger
// answers only as far as the package comment allows.
func TestFlood(t *testing.T) {
	count := 1_000_000
	if raceEnabled || testing.Short() {
		count = 50_000
	}
	var captures [][2]string
	readVectors(t, "captures.json", &captures)
	var seeds [][]byte
	for _, e := range captures {
		b, err := hex.DecodeString(e[1])
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}

	clock := &stoppedClock{now: time.Unix(1e9, 0)}
	local := netip.MustParseAddrPort("20.0.0.1:49737")
	client, server := &floodSocket{local: netip.AddrPortFrom(local.Addr(), 1)}, &floodSocket{local: local}
	n, err := New(Config{
		Client: client, Server: server, Bootstrap: []string{}, Mode: Persistent, Open: true, PublicAddr: local,
		Clock: clock, StoreBytes: 8 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for i := range 200 {
		n.do(func(time.Time) { n.addKnown(testAddr(i)) })
	}
	if _, err := n.Serve(key.Generate(), silentServer{}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(8, 8))
	buf := make([]byte, 0, 2048)
	var before, answers, forwarded, large int
	for i := range count {
		if i == count/4 { // all that grows has grown
			before = heapInUse()
		}
		clock.now = clock.now.Add(time.Duration(r.IntN(200)) * time.Microsecond)
		b := append(buf[:0], seeds[r.IntN(len(seeds))]...)
		switch r.IntN(8) {
		case 0: // noise with the right start
			b = b[:r.IntN(min(len(b), 200)+1)]
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if len(b) > 0 {
				b[0] = []byte{requestByte, responseByte}[r.IntN(2)]
			}
		case 1: // cut off
			b = b[:r.IntN(len(b)+1)]
		case 2: // longer
			for range r.IntN(100) {
				b = append(b, byte(r.Uint32()))
			}
		case 3: // as it is
		default:
			for range 1 + r.IntN(4) {
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
		}
		from := netip.AddrPortFrom(testHost(r.IntN(1<<18)), uint16(1+r.IntN(65535)))
		if r.IntN(4) == 0 {
			from = netip.AddrPortFrom(testHost(1000+r.IntN(3)), 5) // a few that are busy
		}
		socket := server
		if r.IntN(4) == 0 {
			socket = client
		}
		client.sent, server.sent = client.sent[:0], server.sent[:0]
		n.Receive(socket, b, from)
		toSender := 0
		for _, list := range [][]floodDatagram{client.sent, server.sent} {
			for _, d := range list {
				switch {
				case d.first == responseByte && d.to.Addr() == from.Addr():
					toSender += d.size
					answers++
				case d.size > len(b)+44 && d.size > 160: // forwarded, or a ping of ours
					t.Fatalf("%x from %v made us send %d bytes to %v", b, from, d.size, d.to)
				default:
					forwarded++
				}
			}
		}
		if toSender > maxAmplification*len(b) {
			ping := len(b) >= 11 && toSender == 42
			command := Command(0)
			if q, err := parseRequest(b); err == nil {
				command = q.command
			}
			get := command == cmdLookup || command == cmdMutableGet || command == cmdImmutableGet
			if large++; !ping && !get {
				t.Fatalf("%x from %v is answered with %d bytes", b, from, toSender)
			}
		}
		if i%50_000 == 0 {
			n.do(func(now time.Time) { // what waits for a time
				for f, ok := n.alarms.due(now); ok; f, ok = n.alarms.due(now) {
					f(now)
				}
			})
		}
	}
	t.Logf("%d datagrams: %d answers, %d larger than three times, %d others", count, answers, large, forwarded)
	if answers < count/20 {
		t.Errorf("only %d answers: the datagrams do not get far", answers)
	}
	if took := heapInUse() - before; took > 24<<20 {
		t.Errorf("grew by %d bytes since a quarter of the datagrams", took)
	}
	i := n.Info()
	if i.Nodes > rows*bucketSize || i.Requests > 1000 {
		t.Errorf("%+v", i)
	}
	runtime.KeepAlive(n)
}
