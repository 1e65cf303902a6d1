package dht

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

func TestAnswersOfTheRPCLayer(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(30)[0]
		client := w.peer(true, n)
		p := w.raw("20.50.0.1:1000")
		target := key.Hash([]byte("target"))
		u16 := func(v uint16) []byte { return compact.AppendUint16(nil, v) }
		u32 := func(v uint32) []byte { return compact.AppendUint32(nil, v) }
		padding := make([]byte, 1000)
		for _, row := range []struct {
			name   string
			to     *testNode
			q      request
			silent bool
			id     bool
			token  bool
			closer bool
			code   uint64
		}{
			{name: "ping", q: request{command: cmdPing}, id: true},
			{name: "padded ping", q: request{command: cmdPing, value: padding}, id: true},
			{name: "ping of a client", to: client, q: request{command: cmdPing}},
			{name: "find node", q: request{command: cmdFindNode, target: some(target)}, id: true, closer: true},
			{name: "find node at a client", to: client, q: request{command: cmdFindNode, target: some(target)}, closer: true},
			{name: "find node without target", q: request{command: cmdFindNode}, silent: true},
			{name: "ping nat", q: request{command: cmdPingNAT, value: u16(1000)}, id: true},
			{name: "ping nat, no port", q: request{command: cmdPingNAT, value: u16(0)}, silent: true},
			{name: "ping nat, short", q: request{command: cmdPingNAT, value: []byte{1}}, silent: true},
			{name: "ping nat, nothing", q: request{command: cmdPingNAT}, silent: true},
			{name: "down hint", q: request{command: cmdDownHint, value: make([]byte, 6)}, id: true},
			{name: "down hint, short", q: request{command: cmdDownHint, value: make([]byte, 5)}, silent: true},
			{name: "delayed ping", q: request{command: cmdDelayedPing, value: u32(900)}, id: true},
			{name: "delayed ping, too long", q: request{command: cmdDelayedPing, value: u32(10001)}, silent: true},
			{name: "delayed ping, short", q: request{command: cmdDelayedPing, value: []byte{1, 2, 3}}, silent: true},
			{name: "internal command 5", q: request{command: internalCommand | 5}, code: 1},
			{name: "command 77", q: request{command: 77, target: some(target)}, id: true, closer: true, code: 1},
			{name: "plugin", q: request{command: 10, value: []byte{0}}, code: 1},
			{name: "bad token", q: request{command: cmdPing, token: some(Token{})}, id: true, token: true, code: 2},
			{
				name: "bad token and target", q: request{command: cmdAnnounce, token: some(Token{}), target: some(target)},
				id: true, token: true, closer: true, code: 2,
			},
			{name: "find peer", q: request{command: cmdFindPeer, target: some(target)}, id: true, token: true, closer: true},
			{name: "find peer at a client", to: client, q: request{command: cmdFindPeer, target: some(target)}, closer: true, code: 1},
			{name: "find peer without target", q: request{command: cmdFindPeer}, silent: true},
			{name: "lookup", q: request{command: cmdLookup, target: some(target)}, id: true, token: true, closer: true},
			{name: "mutable get", q: request{command: cmdMutableGet, target: some(target), value: []byte{0}}, id: true, token: true, closer: true},
			{name: "mutable get without seq", q: request{command: cmdMutableGet, target: some(target)}, silent: true},
			{name: "immutable get", q: request{command: cmdImmutableGet, target: some(target)}, id: true, token: true, closer: true},
			{name: "announce without token", q: request{command: cmdAnnounce, target: some(target), value: []byte{0}}, silent: true},
			{name: "handshake, no value", q: request{command: cmdPeerHandshake, target: some(target)}, silent: true},
			{name: "handshake for nobody", q: request{
				command: cmdPeerHandshake, target: some(target),
				value: handshakeMessage{mode: fromClient, noise: padding[:100]}.encode(),
			}, id: true, closer: true},
			{name: "handshake from a relay for nobody", q: request{
				command: cmdPeerHandshake, target: some(target),
				value: handshakeMessage{mode: fromRelay, noise: padding[:100], peer: p.socket.public}.encode(),
			}, silent: true},
			{name: "handshake reply", q: request{
				command: cmdPeerHandshake, target: some(target),
				value: handshakeMessage{mode: toClient, noise: padding[:100], peer: p.socket.public}.encode(),
			}, silent: true},
			{name: "hole punch for nobody", q: request{
				command: cmdPeerHolepunch, target: some(target),
				value: holepunchMessage{mode: fromClient, payload: padding[:50]}.encode(),
			}, silent: true},
		} {
			to := row.to
			if to == nil {
				to = n
			}
			row.q.tid = uint16(rand.Uint32())
			r, ok := p.ask(to, row.q)
			if ok == row.silent {
				t.Errorf("%s: answered %v", row.name, ok)
			}
			if !ok {
				continue
			}
			if r.id.set != row.id || r.id.set && r.id.v != NodeID(to.addr()) {
				t.Errorf("%s: id %v", row.name, r.id)
			}
			if r.token.set != row.token || (len(r.closer) > 0) != row.closer || r.code != row.code {
				t.Errorf("%s: answer %+v", row.name, r)
			}
			size, asked := len(r.append(nil)), len(row.q.append(nil))
			if size > maxAmplification*asked && row.name != "ping" {
				t.Errorf("%s: %d bytes answered to %d", row.name, size, asked)
			}
		}
	})
}

func TestCloserNodesAreTheNearest(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(50)[0]
		p := w.raw("20.50.0.1:1000")
		target := key.Hash([]byte("target"))
		token := p.token(n, target)
		r, ok := p.ask(n, request{command: cmdFindNode, target: some(target), token: token})
		if !ok || len(r.closer) != bucketSize { // the token proves us: all of them
			t.Fatalf("%d closer nodes, want %d", len(r.closer), bucketSize)
		}
		for i := range r.closer[1:] {
			if !closerTo(target, NodeID(r.closer[i]), NodeID(r.closer[i+1])) {
				t.Errorf("closer node %d is not nearer than the next", i)
			}
		}
		r, _ = p.ask(n, request{command: cmdFindNode, target: some(target)})
		if len(r.closer) < 10 || len(r.closer) >= bucketSize {
			t.Errorf("%d closer nodes for a stranger", len(r.closer))
		}
	})
}

func TestWrongIDIsNoID(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		before := n.Info().Nodes
		if _, ok := p.ask(n, request{command: cmdPing, id: some(key.Target{1})}); !ok {
			t.Error("no answer to a request with a wrong id")
		}
		if got := n.Info().Nodes; got != before {
			t.Errorf("a node with a wrong id is in the table: %d nodes", got)
		}
		if _, ok := p.ask(n, request{command: cmdPing, id: some(NodeID(p.socket.public))}); !ok {
			t.Error("no answer to a request with an id")
		}
		if got := n.Info().Nodes; got != before+1 {
			t.Errorf("a node with an id is not in the table: %d nodes", got)
		}
	})
}

func TestPingNATGoesToTheOtherPort(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p, other := w.raw("20.50.0.1:1000"), w.raw("20.50.0.1:2000")
		if got := p.send(n, request{command: cmdPingNAT, value: compact.AppendUint16(nil, 2000)}); len(got) != 0 {
			t.Errorf("answered to the port that asked: %x", got)
		}
		got := other.take()
		if len(got) != 1 {
			t.Fatalf("%d answers to the other port", len(got))
		}
		if r, err := parseResponse(got[0]); err != nil || r.to != other.socket.public {
			t.Errorf("answer %+v, %v, want to %v", r, err, other.socket.public)
		}
	})
}

func TestTokensOfANodeExpire(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p, neighbour, stranger := w.raw("20.50.0.1:1000"), w.raw("20.50.0.1:2000"), w.raw("20.50.0.2:1000")
		value := []byte("value")
		target := key.Hash(value)
		put := func(p *rawPeer, token optional[Token]) uint64 {
			r, ok := p.ask(n, request{command: cmdImmutablePut, target: some(target), token: token, value: value})
			if !ok {
				t.Fatal("no answer")
			}
			return r.code
		}
		token := p.token(n, target)
		if code := put(p, token); code != 0 {
			t.Errorf("fresh token: code %d", code)
		}
		if code := put(neighbour, token); code != 0 {
			t.Errorf("token from another port of the host: code %d", code)
		}
		if code := put(stranger, token); code != CodeInvalidToken {
			t.Errorf("token of another host: code %d", code)
		}
		time.Sleep(15 * time.Second)
		if code := put(p, token); code != CodeInvalidToken {
			t.Errorf("old token: code %d", code)
		}
	})
}

// TestStrangersGetNoMoreThanThreeTimesTheirRequest asks for all that could be large.
func TestStrangersGetNoMoreThanThreeTimesTheirRequest(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(60)[0]
		p := w.raw("20.50.0.1:1000")
		r := rand.New(rand.NewPCG(5, 6))
		for range 500 {
			q := request{tid: uint16(r.Uint32()), command: Command(r.IntN(12)), value: make([]byte, r.IntN(8))}
			if r.IntN(4) == 0 {
				q.command |= internalCommand
			}
			if r.IntN(4) > 0 {
				q.target = some(randomID(r))
			}
			if r.IntN(4) == 0 {
				q.value = nil
			}
			q.to = n.addr()
			asked := len(q.append(nil))
			for _, b := range p.send(n, q) {
				if len(b) > maxAmplification*asked && (q.command != cmdPing || len(b) != 42) {
					t.Errorf("%v: %d bytes answered to %d", q.command, len(b), asked)
				}
			}
		}
	})
}

func TestLargeAnswersToStrangersAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		value := make([]byte, 1000)
		target := key.Hash(value)
		token := p.token(n, target)
		if r, ok := p.ask(n, request{command: cmdImmutablePut, target: some(target), token: token, value: value}); !ok || r.code != 0 {
			t.Fatalf("put: %+v", r)
		}
		get := request{command: cmdImmutableGet, target: some(target), to: n.addr()}
		p.take()
		for range 1000 {
			if err := p.socket.Send(get.append(nil), n.addr()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		bytes := 0
		for _, b := range p.take() {
			bytes += len(b)
		}
		if bytes < excessBurst/2 || bytes > 2*excessBurst {
			t.Errorf("%d bytes answered to 1000 requests at once", bytes)
		}
		// Another host is not affected, and neither is who shows a token.
		if _, ok := w.raw("20.50.0.2:1000").ask(n, get); !ok {
			t.Error("another host got no answer")
		}
		get.token = p.token(n, target)
		if _, ok := p.ask(n, get); !ok {
			t.Error("no answer to a request with a token")
		}
	})
}

func TestGarbageIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(5)[0]
		p := w.raw("20.50.0.1:1000")
		var v [][2]string
		readVectors(t, "captures.json", &v)
		r := rand.New(rand.NewPCG(7, 8))
		for range 20000 {
			b, err := hex.DecodeString(v[r.IntN(len(v))][1])
			if err != nil {
				t.Fatal(err)
			}
			b = b[:r.IntN(len(b)+1)]
			for range r.IntN(4) {
				if len(b) > 0 {
					b[r.IntN(len(b))] = byte(r.Uint32())
				}
			}
			n.Receive(n.server, b, p.socket.public)
			n.Receive(n.client, b, netip.AddrPortFrom(testHost(r.IntN(1<<20)), uint16(r.Uint32())))
		}
		synctest.Wait()
		time.Sleep(time.Minute)
		if i := n.Info(); !i.Persistent || i.Nodes < 4 || i.Nodes > 10 || i.Requests > 10 {
			t.Errorf("after a lot of garbage: %+v", i)
		}
	})
}

func TestDelayedPingsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		q := request{command: cmdDelayedPing, to: n.addr(), value: compact.AppendUint32(nil, 5000)}
		start := time.Now()
		for range 2 * maxDelayed {
			if err := p.socket.Send(q.append(nil), n.addr()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(4 * time.Second)
		if got := p.take(); len(got) != 0 {
			t.Errorf("%d answers after %v", len(got), time.Since(start))
		}
		time.Sleep(2 * time.Second)
		if got := p.take(); len(got) != maxDelayed {
			t.Errorf("%d answers, want %d", len(got), maxDelayed)
		}
		if _, ok := p.ask(n, request{command: cmdDelayedPing, value: compact.AppendUint32(nil, 0)}); !ok {
			t.Error("no answer once the others are through")
		}
	})
}
