package dht

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/dht/key"
)

// rawPeer sends hand-made packets, and keeps what comes back.
type rawPeer struct {
	t      testing.TB
	socket *testSocket

	mu  sync.Mutex // guards got
	got [][]byte
}

func (w *testNet) raw(addr string) *rawPeer {
	w.t.Helper()
	p := &rawPeer{t: w.t, socket: w.socket(netip.MustParseAddrPort(addr), false)}
	p.socket.receive = func(_ *testSocket, b []byte, _ netip.AddrPort) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.got = append(p.got, b)
	}
	return p
}

// take returns what came back since the last call.
func (p *rawPeer) take() [][]byte {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

// send sends q to n and returns what came back within a second.
func (p *rawPeer) send(n *testNode, q request) [][]byte {
	p.t.Helper()
	q.to = n.addr()
	return p.sendBytes(n, q.append(nil))
}

func (p *rawPeer) sendBytes(n *testNode, b []byte) [][]byte {
	p.t.Helper()
	p.take()
	if err := p.socket.Send(b, n.addr()); err != nil {
		p.t.Fatal(err)
	}
	time.Sleep(time.Second)
	return p.take()
}

// ask sends q to n and returns the one response; ok is false if there was none.
func (p *rawPeer) ask(n *testNode, q request) (r response, ok bool) {
	p.t.Helper()
	got := p.send(n, q)
	switch len(got) {
	case 0:
		return response{}, false
	case 1:
	default:
		p.t.Fatalf("%v: %d answers", q.command, len(got))
	}
	r, err := parseResponse(got[0])
	if err != nil {
		p.t.Fatalf("%v: %x: %v", q.command, got[0], err)
	}
	if r.tid != q.tid || r.to != p.socket.public {
		p.t.Errorf("%v: answer %+v to %v, want tid %d", q.command, r, p.socket.public, q.tid)
	}
	return r, true
}

// token returns a token of n.
func (p *rawPeer) token(n *testNode, target key.Target) optional[Token] {
	p.t.Helper()
	r, ok := p.ask(n, request{command: cmdFindPeer, target: some(target)})
	if !ok || !r.token.set {
		p.t.Fatalf("no token from %v", n.addr())
	}
	return r.token
}
