//go:build linux

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"omegatun/dht"
	"omegatun/dht/compact"
	"omegatun/dht/key"
	"omegatun/session/noise"
)

// raiseLoopback: these tests need no namespaces: everything is on loopback, which may be down in a sandbox of our own.
var raiseLoopback = sync.OnceValue(func() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil || lo.Flags&net.FlagUp != 0 {
		return err
	}
	return exec.Command("ip", "link", "set", "lo", "up").Run()
})

// compatSocket is a UDP socket on loopback.
type compatSocket struct {
	*net.UDPConn
	addr netip.AddrPort
}

func (s *compatSocket) LocalAddr() netip.AddrPort { return s.addr }
func (s *compatSocket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func newCompatSocket(t *testing.T) *compatSocket {
	t.Helper()
	if err := raiseLoopback(); err != nil {
		t.Fatalf("loopback: %v", err)
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &compatSocket{c, c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// goNode starts a node of ours on loopback and waits until it is ready.
func goNode(t *testing.T, mode dht.Mode, open bool, clock dht.Clock, bootstrap ...string) (*dht.Node, netip.AddrPort) {
	t.Helper()
	client, server := newCompatSocket(t), newCompatSocket(t)
	if bootstrap == nil {
		bootstrap = []string{}
	}
	n, err := dht.New(dht.Config{
		Client: client, Server: server, Bootstrap: bootstrap, Mode: mode, Open: open, Clock: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	for _, s := range []*compatSocket{client, server} {
		go func() {
			b := make([]byte, 4096)
			for {
				size, from, err := s.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				n.Receive(s, b[:size], from)
			}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := n.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return n, server.addr
}

// jsDHT is js/compat.js, running.
type jsDHT struct {
	t      *testing.T
	orders *json.Encoder
	lines  chan jsResult
	nodes  []string
}

type jsResult struct {
	Event, Message, Value string
	Values                []string
	Seq                   uint64
	Count                 int
	Code                  int
	Closer, Token         bool
}

func newJSDHT(t *testing.T, args ...string) *jsDHT {
	t.Helper()
	if reason := noJavaScript(); reason != "" {
		t.Skip(reason)
	}
	if err := raiseLoopback(); err != nil {
		t.Fatalf("loopback: %v", err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("node", append([]string{"js/compat.js"}, args...)...)
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	js := &jsDHT{t: t, orders: json.NewEncoder(in), lines: make(chan jsResult, 10)}
	go func() {
		defer close(js.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var r jsResult
			if err := json.Unmarshal(s.Bytes(), &r); err != nil {
				r = jsResult{Event: "malformed", Message: s.Text()}
			}
			js.lines <- r
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("compat.js: %s", &stderr)
		}
	})
	r := js.result()
	if r.Event != "ready" {
		t.Fatalf("compat.js: %+v\n%s", r, &stderr)
	}
	js.nodes = r.Values
	return js
}

func (js *jsDHT) result() jsResult {
	js.t.Helper()
	select {
	case r, ok := <-js.lines:
		if !ok {
			js.t.Fatal("compat.js ended")
		}
		return r
	case <-time.After(time.Minute):
		js.t.Fatal("compat.js is silent")
	}
	panic("unreachable")
}

type order map[string]any

// do has an order done; the result is an error if it says so.
func (js *jsDHT) do(what string, o order) (jsResult, error) {
	js.t.Helper()
	o["do"] = what
	if err := js.orders.Encode(o); err != nil {
		js.t.Fatal(err)
	}
	r := js.result()
	if r.Event != "done" {
		return r, errors.New(r.Message)
	}
	return r, nil
}

// mixed are networks with the same commands in them.
var mixed = []struct {
	name  string
	start func(t *testing.T) (js *jsDHT, members []string)
}{
	{"JavaScript members", func(t *testing.T) (*jsDHT, []string) {
		js := newJSDHT(t, "--nodes=5")
		return js, js.nodes
	}},
	{"Go members", func(t *testing.T) (*jsDHT, []string) {
		members := goMembers(t, 5)
		return newJSDHT(t, "--bootstrap="+members[0]), members
	}},
	{"members of both kinds", func(t *testing.T) (*jsDHT, []string) {
		members := goMembers(t, 3)
		js := newJSDHT(t, "--bootstrap="+members[0], "--members=3")
		return js, append(members, js.nodes...)
	}},
}

func goMembers(t *testing.T, count int) (members []string) {
	t.Helper()
	for range count {
		_, a := goNode(t, dht.Persistent, true, nil, members[:min(1, len(members))]...)
		members = append(members, a.String())
	}
	return members
}

// TestDHTCompatibility has a client of each kind write what the other reads, in each kind of network.
func TestDHTCompatibility(t *testing.T) {
	for _, network := range mixed {
		t.Run(network.name, func(t *testing.T) {
			js, members := network.start(t)
			n, _ := goNode(t, dht.Ephemeral, true, nil, members[0])
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			t.Run("ping", func(t *testing.T) {
				for _, m := range members {
					if _, err := n.Ping(ctx, nil, netip.MustParseAddrPort(m), 3); err != nil {
						t.Errorf("%s: %v", m, err)
					}
					if r, err := js.do("ping", order{"to": m}); err != nil {
						t.Errorf("%s: %+v", m, r)
					}
				}
			})
			t.Run("find node", func(t *testing.T) {
				target := key.Hash([]byte("find me"))
				q := n.StartFindNode(ctx, target)
				if err := q.Wait(); err != nil {
					t.Fatal(err)
				}
				var ours []string
				for _, c := range q.Closest() {
					ours = append(ours, c.Addr.String())
				}
				theirs, err := js.do("findNode", order{"target": hex.EncodeToString(target[:])})
				if err != nil || !slices.Equal(ours, theirs.Values) || len(ours) != len(members) {
					t.Errorf("closest for us %v, for JavaScript %v, %v", ours, theirs.Values, err)
				}
			})
			t.Run("immutable", func(t *testing.T) { compatImmutable(ctx, t, n, js) })
			t.Run("mutable", func(t *testing.T) { compatMutable(ctx, t, n, js) })
			t.Run("topic", func(t *testing.T) { compatTopic(ctx, t, n, js) })
			t.Run("server", func(t *testing.T) { compatServer(ctx, t, n, js, members) })
		})
	}
}

func compatImmutable(ctx context.Context, t *testing.T, n *dht.Node, js *jsDHT) {
	for _, value := range [][]byte{[]byte("x"), bytes.Repeat([]byte{7}, 1000)} {
		ours := append([]byte("go "), value[:min(len(value), 997)]...)
		target, stored, err := n.PutImmutable(ctx, ours)
		if err != nil || len(stored.Nodes) != stored.Closest {
			t.Errorf("put: %+v, %v", stored, err)
		}
		if r, err := js.do("immutableGet", order{"target": hex.EncodeToString(target[:])}); err != nil ||
			r.Value != hex.EncodeToString(ours) {
			t.Errorf("JavaScript got %+v, %v", r, err)
		}
		theirs := append([]byte("js "), value[:min(len(value), 997)]...)
		r, err := js.do("immutablePut", order{"value": hex.EncodeToString(theirs)})
		if err != nil {
			t.Fatalf("JavaScript put: %+v, %v", r, err)
		}
		got, err := n.GetImmutable(ctx, key.Hash(theirs))
		if err != nil || !bytes.Equal(got, theirs) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	// JavaScript stores what fits a datagram; we store no more than fits one on any path, and read all.
	for _, size := range []int{dht.MaxValue + 1, 1200, 1500} {
		large := bytes.Repeat([]byte{byte(size)}, size)
		if _, _, err := n.PutImmutable(ctx, large); !errors.Is(err, dht.ErrTooLarge) {
			t.Errorf("put of %d bytes: %v, want ErrTooLarge", size, err)
		}
		if r, err := js.do("immutablePut", order{"value": hex.EncodeToString(large)}); err != nil {
			t.Errorf("JavaScript put of %d bytes: %+v, %v", size, r, err)
			continue
		}
		if got, err := n.GetImmutable(ctx, key.Hash(large)); err != nil || !bytes.Equal(got, large) {
			t.Errorf("get of %d bytes: %d, %v", size, len(got), err)
		}
	}
	if r, err := js.do("immutableGet", order{"target": hex.EncodeToString(make([]byte, 32))}); err != nil || r.Value != "" {
		t.Errorf("JavaScript got %+v, %v for what nobody has", r, err)
	}
	if _, err := n.GetImmutable(ctx, key.Target{}); !errors.Is(err, dht.ErrNotFound) {
		t.Errorf("got %v for what nobody has", err)
	}
}

func compatMutable(ctx context.Context, t *testing.T, n *dht.Node, js *jsDHT) {
	const seed = 77
	owner := key.FromSeed([32]byte(bytes.Repeat([]byte{seed}, 32)))
	public := owner.Public()
	target := hex.EncodeToString(public[:])
	put := func(seq int, value string) error {
		_, err := js.do("mutablePut", order{"key": seed, "seq": seq, "value": hex.EncodeToString([]byte(value))})
		return err
	}
	if _, err := n.PutMutable(ctx, owner, 1, []byte("go 1")); err != nil {
		t.Fatal(err)
	}
	if r, err := js.do("mutableGet", order{"target": target, "seq": 0}); err != nil || r.Value != hex.EncodeToString([]byte("go 1")) || r.Seq != 1 {
		t.Errorf("JavaScript got %+v, %v", r, err)
	}
	if err := put(5, "js 5"); err != nil {
		t.Errorf("JavaScript put: %v", err)
	}
	if m, err := n.GetMutable(ctx, public, 2); err != nil || string(m.Value) != "js 5" || m.Seq != 5 {
		t.Errorf("got %+v, %v", m, err)
	}
	if m, err := n.FirstMutable(ctx, public, 5); err != nil || string(m.Value) != "js 5" {
		t.Errorf("first: %+v, %v", m, err)
	}
	if _, err := n.GetMutable(ctx, public, 6); !errors.Is(err, dht.ErrNotFound) {
		t.Errorf("at least 6: %v", err)
	}
	// Both are refused in the same way.
	for _, row := range []struct {
		seq  int
		code uint64
	}{{5, dht.CodeSeqReused}, {3, dht.CodeSeqTooLow}} {
		_, err := n.PutMutable(ctx, owner, uint64(row.seq), []byte("other"))
		if e, ok := errors.AsType[*dht.ReplyError](err); !ok || e.Code != row.code {
			t.Errorf("put with number %d: %v, want error %d", row.seq, err, row.code)
		}
		_ = put(row.seq, "other") // the JavaScript client takes a refusal for success
		if m, err := n.GetMutable(ctx, public, 0); err != nil || string(m.Value) != "js 5" || m.Seq != 5 {
			t.Errorf("after JavaScript put with number %d: %+v, %v", row.seq, m, err)
		}
	}
	if _, err := n.PutMutable(ctx, owner, 5, []byte("js 5")); err != nil {
		t.Errorf("the same value again: %v", err)
	}
	if _, err := n.PutMutable(ctx, owner, 6, make([]byte, dht.MaxValue+1)); !errors.Is(err, dht.ErrTooLarge) {
		t.Errorf("put of too much: %v, want ErrTooLarge", err)
	}
	large := strings.Repeat("z", 1200)
	if err := put(7, large); err != nil {
		t.Errorf("JavaScript put of 1200 bytes: %v", err)
	}
	if m, err := n.GetMutable(ctx, public, 0); err != nil || string(m.Value) != large || m.Seq != 7 {
		t.Errorf("get of 1200 bytes: %d bytes, number %d, %v", len(m.Value), m.Seq, err)
	}
}

func compatTopic(ctx context.Context, t *testing.T, n *dht.Node, js *jsDHT) {
	topic := key.Hash([]byte("compat"))
	target := hex.EncodeToString(topic[:])
	ours, theirs := key.FromSeed([32]byte{1}), key.FromSeed([32]byte(bytes.Repeat([]byte{2}, 32)))
	relays := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1234")}
	if s, err := n.Announce(ctx, topic, ours, relays); err != nil || len(s.Nodes) != s.Closest {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := js.do("announce", order{"target": target, "key": 2, "relays": []string{"127.0.0.1:4321"}}); err != nil {
		t.Fatal(err)
	}
	want := func(what string, keys ...key.Public) {
		t.Helper()
		var list []string
		for _, k := range keys {
			list = append(list, hex.EncodeToString(k[:]))
		}
		slices.Sort(list)
		var got []string
		for r, err := range n.Lookup(ctx, topic) {
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range r.Peers {
				if s := hex.EncodeToString(p.Key[:]); !slices.Contains(got, s) {
					got = append(got, s)
				}
				if len(p.Relays) != 1 {
					t.Errorf("relays %v", p.Relays)
				}
			}
		}
		slices.Sort(got)
		r, err := js.do("lookup", order{"target": target})
		if err != nil || !slices.Equal(got, list) || !slices.Equal(r.Values, list) {
			t.Errorf("%s: found %v, JavaScript %v, %v; want %v", what, got, r.Values, err, list)
		}
	}
	want("both", ours.Public(), theirs.Public())
	if _, err := n.Unannounce(ctx, topic, ours); err != nil {
		t.Error(err)
	}
	want("after ours is gone", theirs.Public())
	if _, err := js.do("unannounce", order{"target": target, "key": 2}); err != nil {
		t.Error(err)
	}
	want("after both are gone")
}

// compatServer announces a server of each kind and finds it with the other; messages reach ours through any two
// members.
func compatServer(ctx context.Context, t *testing.T, n *dht.Node, js *jsDHT, members []string) {
	theirs := key.FromSeed([32]byte(bytes.Repeat([]byte{9}, 32))).Public()
	if _, err := js.do("listen", order{"key": 9}); err != nil {
		t.Fatal(err)
	}
	var found []netip.AddrPort
	for r, err := range n.FindPeer(ctx, theirs.Target(), nil) {
		if err != nil || r.Peer.Key != theirs {
			t.Errorf("%+v, %v", r, err)
		}
		found = append(found, r.From)
	}
	if len(found) == 0 {
		t.Error("the JavaScript server was not found")
	}
	// Three hops: to a member that does not know the server, on to one that does, and to the server.
	p := newRawPeer(t)
	for _, first := range members {
		for _, second := range found {
			if second.String() != first {
				p.shake(first, second, theirs)
			}
		}
	}

	identity := key.Generate()
	a, err := n.Serve(identity, compatServerEcho{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Announced(ctx); err != nil {
		t.Fatal(err)
	}
	defer a.Close(ctx)
	target := identity.Public().Target()
	public := identity.Public()
	if r, err := js.do("findPeer", order{"target": hex.EncodeToString(public[:])}); err != nil || len(r.Values) == 0 {
		t.Errorf("JavaScript found %+v, %v", r, err)
	}
	for _, first := range members {
		for _, second := range a.Relays() {
			// FROM_CLIENT to first, which passes it on to second, which knows the server.
			v := append([]byte{2, 0, 5}, "hello"...)
			v = append(v, addrBytes(second.Relay)...)
			r, ok := p.ask(first, rawRequest{command: 0, target: &target, value: v})
			if second.Relay.String() == first {
				continue // it asks itself
			}
			if !ok || !bytes.Contains(r.value, []byte("echo hello")) {
				t.Errorf("through %s and %v: %+v, %v", first, second.Relay, r, ok)
			}
		}
	}
}

// shake shakes hands with a server by way of first, and second, which knows the server.
func (p *rawPeer) shake(first string, second netip.AddrPort, server key.Public) {
	p.t.Helper()
	initiator, err := noise.NewInitiator(key.Generate(), server)
	if err != nil {
		p.t.Fatal(err)
	}
	payload := noise.Payload{
		Version: noise.PayloadVersion, UDX: &noise.UDXInfo{Version: 1, ID: 7}, SecretStream: &noise.SecretStreamInfo{Version: 1},
	}
	msg, err := initiator.Write(payload.Append(nil))
	if err != nil {
		p.t.Fatal(err)
	}
	target := server.Target()
	v := append(compact.AppendBuffer([]byte{2, 0}, msg), addrBytes(second)...) // FROM_CLIENT
	r, ok := p.ask(first, rawRequest{command: 0, target: &target, value: v})
	if !ok || len(r.value) < 3 || r.value[1] != 4 { // TO_CLIENT
		p.t.Errorf("handshake through %s and %v: %+v, %v", first, second, r, ok)
		return
	}
	reply := compact.NewReader(r.value[2:])
	if _, _, err := initiator.Read(reply.Buffer()); err != nil || reply.Err() != nil {
		p.t.Errorf("handshake through %s and %v: %v, %v", first, second, err, reply.Err())
	}
}

type compatServerEcho struct{}

func (compatServerEcho) HandleHandshake(r *dht.HandshakeRequest) {
	_ = r.Reply(nil, append([]byte("echo "), r.Noise...))
}
func (compatServerEcho) HandleHolepunch(*dht.HolepunchRequest) {}

// rawPeer sends hand-made requests.
type rawPeer struct {
	t *testing.T
	s *compatSocket
	n uint16
}

func newRawPeer(t *testing.T) *rawPeer { return &rawPeer{t: t, s: newCompatSocket(t)} }

type rawRequest struct {
	rpc     bool // of the RPC layer
	command byte
	token   []byte
	target  *key.Target
	value   []byte // nil: none
}

type rawResponse struct {
	token, value []byte
	closer, id   bool
	code         int
}

func addrBytes(a netip.AddrPort) []byte {
	ip := a.Addr().As4()
	return binary.LittleEndian.AppendUint16(ip[:], a.Port())
}

func (p *rawPeer) ask(to string, q rawRequest) (r rawResponse, ok bool) {
	p.t.Helper()
	addr := netip.MustParseAddrPort(to)
	p.n++
	b := append(binary.LittleEndian.AppendUint16([]byte{3, 0}, p.n), addrBytes(addr)...)
	if q.token != nil {
		b[1] |= 2
		b = append(b, q.token...)
	}
	if q.rpc {
		b[1] |= 4
	}
	b = append(b, q.command)
	if q.target != nil {
		b[1] |= 8
		b = append(b, q.target[:]...)
	}
	if q.value != nil {
		b[1] |= 16
		if len(q.value) < 0xfd {
			b = append(b, byte(len(q.value)))
		} else {
			b = binary.LittleEndian.AppendUint16(append(b, 0xfd), uint16(len(q.value)))
		}
		b = append(b, q.value...)
	}
	if err := p.s.Send(b, addr); err != nil {
		p.t.Fatal(err)
	}
	in := make([]byte, 4096)
	_ = p.s.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	for {
		n, _, err := p.s.ReadFromUDPAddrPort(in)
		if err != nil {
			return r, false
		}
		if n >= 10 && in[0] == 0x13 && binary.LittleEndian.Uint16(in[2:]) == p.n {
			return parseRaw(p.t, in[:n]), true
		}
	}
}

func parseRaw(t *testing.T, b []byte) (r rawResponse) {
	t.Helper()
	flags, rest := b[1], b[10:]
	take := func(n int) []byte {
		if len(rest) < n {
			t.Fatalf("response %x is cut off", b)
		}
		v := rest[:n]
		rest = rest[n:]
		return v
	}
	if r.id = flags&1 != 0; r.id {
		take(32)
	}
	if flags&2 != 0 {
		r.token = bytes.Clone(take(32))
	}
	if flags&4 != 0 {
		r.closer = true
		take(6 * int(take(1)[0]))
	}
	if flags&8 != 0 {
		r.code = int(take(1)[0])
	}
	if flags&16 != 0 {
		n := int(take(1)[0])
		if n == 0xfd {
			n = int(binary.LittleEndian.Uint16(take(2)))
		}
		r.value = bytes.Clone(take(n))
	}
	return r
}

// TestDHTAnswersAlike sends the same requests, good, bad and malformed, to a member of each kind. They must answer
// alike, or both not at all.
func TestDHTAnswersAlike(t *testing.T) {
	t.Parallel()
	js := newJSDHT(t, "--nodes=3")
	ours, theirs := goMembers(t, 3)[1], js.nodes[1]
	target := key.Hash([]byte("alike"))
	value := []byte("a value that is kept under its hash")
	hash := key.Hash(value)
	large := bytes.Repeat([]byte{9}, 1000)
	largeHash := key.Hash(large)
	huge := bytes.Repeat([]byte{8}, 1200)
	hugeHash, emptyHash := key.Hash(huge), key.Hash(nil)
	port := func(a *compatSocket) []byte { return binary.LittleEndian.AppendUint16(nil, a.addr.Port()) }
	pad := make([]byte, 40)
	badToken := bytes.Repeat([]byte{1}, 32)
	refusal := &rawResponse{code: 1, closer: true}
	rows := []struct {
		name    string
		request rawRequest
		token   bool // with a good token
		silent  bool // no answer
		want    rawResponse
		ours    *rawResponse // of our members, where it differs: one that has no plugins says so
	}{
		{name: "ping", request: rawRequest{rpc: true, command: 0}},
		{name: "ping with a value", request: rawRequest{rpc: true, command: 0, value: pad}},
		{name: "ping NAT without a port", request: rawRequest{rpc: true, command: 1}, silent: true},
		{name: "ping NAT with half a port", request: rawRequest{rpc: true, command: 1, value: []byte{1}}, silent: true},
		{name: "ping NAT to port 0", request: rawRequest{rpc: true, command: 1, value: []byte{0, 0}}, silent: true},
		{name: "find node", request: rawRequest{rpc: true, command: 2, target: &target, value: pad}, want: rawResponse{closer: true}},
		{name: "find node without a target", request: rawRequest{rpc: true, command: 2, value: pad}, silent: true},
		{name: "down hint", request: rawRequest{rpc: true, command: 3, value: []byte{127, 0, 0, 1, 1, 0}}},
		{name: "down hint cut off", request: rawRequest{rpc: true, command: 3, value: []byte{127, 0, 0}}, silent: true},
		{name: "delayed ping", request: rawRequest{rpc: true, command: 4, value: []byte{50, 0, 0, 0}}},
		{name: "delayed ping cut off", request: rawRequest{rpc: true, command: 4, value: []byte{50}}, silent: true},
		{name: "delayed ping of a minute", request: rawRequest{rpc: true, command: 4, value: []byte{0x60, 0xea, 0, 0}}, silent: true},
		{name: "unknown command of the RPC layer", request: rawRequest{rpc: true, command: 9, target: &target, value: pad}, want: rawResponse{code: 1, closer: true}},
		{name: "unknown command", request: rawRequest{command: 99, target: &target, value: pad}, want: rawResponse{code: 1, closer: true}},
		{name: "find peer", request: rawRequest{command: 2, target: &target, value: pad}, want: rawResponse{closer: true, token: pad}},
		{name: "find peer without a target", request: rawRequest{command: 2, value: pad}, silent: true},
		{name: "lookup", request: rawRequest{command: 3, target: &target, value: pad}, want: rawResponse{closer: true, token: pad}},
		{name: "announce without a token", request: rawRequest{command: 4, target: &target, value: pad}, silent: true},
		{name: "announce with a bad token", request: rawRequest{command: 4, target: &target, value: pad, token: badToken}, want: rawResponse{code: 2, closer: true, token: pad}},
		{name: "announce that is malformed", request: rawRequest{command: 4, target: &target, value: []byte{0xff, 1}}, token: true, silent: true},
		{name: "announce without a signature", request: rawRequest{command: 4, target: &target, value: append([]byte{1}, make([]byte, 33)...)}, token: true, silent: true},
		{name: "announce with a wrong signature", request: rawRequest{command: 4, target: &target, value: append([]byte{5}, make([]byte, 97)...)}, token: true, silent: true},
		{name: "unannounce with a wrong signature", request: rawRequest{command: 5, target: &target, value: append([]byte{5}, make([]byte, 97)...)}, token: true, silent: true},
		{name: "mutable get", request: rawRequest{command: 7, target: &target, value: append([]byte{0}, pad...)}, want: rawResponse{closer: true, token: pad}},
		{name: "mutable get without a number", request: rawRequest{command: 7, target: &target}, silent: true},
		{name: "mutable put with a wrong signature", request: rawRequest{command: 6, target: &target, value: make([]byte, 110)}, token: true, silent: true},
		{name: "mutable put that is cut off", request: rawRequest{command: 6, target: &target, value: make([]byte, 40)}, token: true, silent: true},
		{name: "immutable get", request: rawRequest{command: 9, target: &hash, value: pad}, want: rawResponse{closer: true, token: pad}},
		{name: "immutable put without a token", request: rawRequest{command: 8, target: &hash, value: value}, silent: true},
		{name: "immutable put of something else", request: rawRequest{command: 8, target: &target, value: value}, token: true, silent: true},
		{name: "immutable put", request: rawRequest{command: 8, target: &hash, value: value}, token: true, want: rawResponse{closer: true, token: pad}},
		{name: "immutable get again", request: rawRequest{command: 9, target: &hash, value: pad}, want: rawResponse{closer: true, token: pad, value: value}},
		{name: "immutable put of 1000 bytes", request: rawRequest{command: 8, target: &largeHash, value: large}, token: true, want: rawResponse{closer: true, token: pad}},
		// Without a token we leave out the closer nodes: the value alone is more than three times the request.
		{name: "immutable get of 1000 bytes", request: rawRequest{command: 9, target: &largeHash, value: pad}, token: true, want: rawResponse{closer: true, token: pad, value: large}},
		{name: "immutable put of nothing", request: rawRequest{command: 8, target: &emptyHash, value: []byte{}}, token: true, want: rawResponse{closer: true, token: pad}},
		{name: "immutable put of 1200 bytes", request: rawRequest{command: 8, target: &hugeHash, value: huge}, token: true, want: rawResponse{closer: true, token: pad}},
		{name: "immutable get of 1200 bytes", request: rawRequest{command: 9, target: &hugeHash, value: pad}, token: true, want: rawResponse{closer: true, token: pad, value: huge}},
		{name: "immutable put with a bad token", request: rawRequest{command: 8, target: &hash, value: value, token: badToken}, want: rawResponse{code: 2, closer: true, token: pad}},
		{name: "mutable put with a bad token", request: rawRequest{command: 6, target: &target, value: make([]byte, 110), token: badToken}, want: rawResponse{code: 2, closer: true, token: pad}},
		{name: "unannounce with a bad token", request: rawRequest{command: 5, target: &target, value: pad, token: badToken}, want: rawResponse{code: 2, closer: true, token: pad}},
		{name: "unannounce without a token", request: rawRequest{command: 5, target: &target, value: pad}, silent: true},
		{name: "unannounce that is malformed", request: rawRequest{command: 5, target: &target, value: []byte{0xff, 1}}, token: true, silent: true},
		{name: "mutable put without a token", request: rawRequest{command: 6, target: &target, value: make([]byte, 110)}, silent: true},
		{name: "plugin request without a value", request: rawRequest{command: 10, target: &target}, silent: true, ours: refusal},
		{name: "plugin request", request: rawRequest{command: 10, target: &target, value: append([]byte{1, 'x', 1, 1, 40}, pad...)}, silent: true, ours: refusal},
		{name: "handshake for nobody", request: rawRequest{command: 0, target: &target, value: append([]byte{0, 0, 40}, pad...)}, want: rawResponse{closer: true}},
		{name: "handshake that is cut off", request: rawRequest{command: 0, target: &target, value: []byte{0, 0, 40, 1}}, silent: true},
		{name: "handshake from a server to nobody", request: rawRequest{command: 0, target: &target, value: append([]byte{0, 4, 40}, pad...)}, silent: true},
		{name: "hole punch for nobody", request: rawRequest{command: 1, target: &target, value: append([]byte{0, 0, 0, 40}, pad...)}, silent: true},
		{name: "hole punch that is cut off", request: rawRequest{command: 1, target: &target, value: []byte{0}}, silent: true},
	}
	raw := func(t *testing.T, to string, q rawRequest, token bool) (rawResponse, bool) {
		p := newRawPeer(t)
		if token {
			r, _ := p.ask(to, rawRequest{command: 2, target: q.target, value: pad})
			if q.token = r.token; r.token == nil {
				t.Fatalf("%s gave no token", to)
			}
		}
		return p.ask(to, q)
	}
	byJavaScript := func(_ *testing.T, to string, q rawRequest, token bool) (rawResponse, bool) {
		o := order{"to": to, "internal": q.rpc, "command": q.command, "token": token, "badToken": q.token != nil}
		if q.target != nil {
			o["target"] = hex.EncodeToString(q.target[:])
		}
		if q.value != nil {
			o["value"] = hex.EncodeToString(q.value)
		}
		r, err := js.do("request", o)
		if err != nil {
			return rawResponse{}, false // it waits for a second
		}
		got := rawResponse{code: r.Code, closer: r.Closer}
		if r.Token {
			got.token = pad
		}
		got.value, err = hex.DecodeString(r.Value)
		return got, err == nil
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			for _, way := range []struct {
				name, to string
				ask      func(*testing.T, string, rawRequest, bool) (rawResponse, bool)
			}{{"to Go", ours, raw}, {"to JavaScript", theirs, raw}, {"from JavaScript to Go", ours, byJavaScript}} {
				want, silent := row.want, row.silent
				if row.ours != nil && way.to == ours {
					want, silent = *row.ours, false
				}
				got, ok := way.ask(t, way.to, row.request, row.token)
				if ok == silent {
					t.Errorf("%s: answered %v, want %v: %+v", way.name, ok, !silent, got)
					continue
				}
				if got.code != want.code || got.closer != want.closer && !silent ||
					(got.token != nil) != (want.token != nil) || !bytes.Equal(got.value, want.value) {
					t.Errorf("%s: error %d, closer %v, token %v, value %x", way.name, got.code, got.closer, got.token != nil, got.value)
				}
			}
		})
	}
	t.Run("mutable put", func(t *testing.T) { // from JavaScript: those of ours are in TestDHTCompatibility
		for _, row := range []struct {
			name  string
			seq   int
			value string
			bad   bool // the token
			code  int
		}{
			{"the first", 3, "three", false, 0},
			{"the same again", 3, "three", false, 0},
			{"another with the same number", 3, "other", false, dht.CodeSeqReused},
			{"a lower number", 2, "two", false, dht.CodeSeqTooLow},
			{"a bad token", 4, "four", true, dht.CodeInvalidToken},
			{"a higher number", 4, "four", false, 0},
			{"900 bytes", 5, strings.Repeat("x", 900), false, 0},
		} {
			t.Run(row.name, func(t *testing.T) {
				for _, to := range []string{ours, theirs} {
					r, err := js.do("mutablePutTo", order{
						"to": to, "key": 50, "seq": row.seq, "value": hex.EncodeToString([]byte(row.value)), "badToken": row.bad,
					})
					if err != nil || r.Code != row.code {
						t.Errorf("%s: %+v, %v; want error %d", to, r, err, row.code)
					}
				}
			})
		}
	})
	t.Run("delayed ping from JavaScript", func(t *testing.T) {
		for _, to := range []string{ours, theirs} {
			if r, err := js.do("delayedPing", order{"to": to, "ms": 300}); err != nil || r.Count < 299 {
				t.Errorf("%s: %+v, %v; want an answer after 300 ms", to, r, err)
			}
		}
	})
	t.Run("ping NAT", func(t *testing.T) {
		for _, member := range []string{ours, theirs} {
			p, other := newRawPeer(t), newCompatSocket(t)
			p.ask(member, rawRequest{rpc: true, command: 1, value: port(other)})
			_ = other.SetReadDeadline(time.Now().Add(time.Second))
			if _, from, err := other.ReadFromUDPAddrPort(make([]byte, 100)); err != nil || from.String() != member {
				t.Errorf("%s answered to the other port: %v, %v", member, from, err)
			}
		}
	})
	t.Run("token expiry", func(t *testing.T) {
		peers, tokens := map[string]*rawPeer{}, map[string][]byte{}
		find := rawRequest{command: 2, target: &target, value: pad}
		for _, member := range []string{ours, theirs} {
			peers[member] = newRawPeer(t)
			r, _ := peers[member].ask(member, find)
			tokens[member] = r.token
		}
		use := func(member string) int {
			q := find
			q.token = tokens[member]
			r, _ := peers[member].ask(member, q)
			return r.code
		}
		wait := time.NewTimer(16 * time.Second)
		for _, member := range []string{ours, theirs} {
			if code := use(member); code != 0 {
				t.Errorf("%s refused its token at once: %d", member, code)
			}
		}
		<-wait.C
		for _, member := range []string{ours, theirs} {
			if code := use(member); code != dht.CodeInvalidToken {
				t.Errorf("%s: error %d for a token of 16 s ago, want %d", member, code, dht.CodeInvalidToken)
			}
		}
	})
}

// fastClock runs faster than time does.
type fastClock struct{ start time.Time }

const fast = 20 // a hiccup of the machine of 0.75 s looks like sleep

func (c fastClock) Now() time.Time { return c.start.Add(fast * time.Since(c.start)) }
func (fastClock) AfterFunc(d time.Duration, f func()) dht.Timer {
	return fastTimer{time.AfterFunc(d/fast, f)}
}

type fastTimer struct{ *time.Timer }

func (t fastTimer) Reset(d time.Duration) bool { return t.Timer.Reset(d / fast) }

// An adaptive node becomes a member of a JavaScript network after twenty minutes, which take one minute here.
func TestDHTPromotionByJavaScriptNodes(t *testing.T) {
	t.Parallel()
	js := newJSDHT(t, "--nodes=5")
	began := time.Now()
	n, addr := goNode(t, dht.Adaptive, false, fastClock{began}, js.nodes[0])
	if n.Info().Persistent {
		t.Fatal("a member at once")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for i := range n.Events(ctx) {
		if i.Persistent {
			break
		}
	}
	i := n.Info()
	if took := fast * time.Since(began); !i.Persistent || i.ID != dht.NodeID(addr) || took < 19*time.Minute {
		t.Fatalf("after %v: %+v", took, i)
	}
	r, ok := newRawPeer(t).ask(addr.String(), rawRequest{rpc: true})
	if !ok || !r.id {
		t.Errorf("answers %+v, %v: want an id", r, ok)
	}
	target := hex.EncodeToString(i.ID[:])
	for range 20 { // the others learn of it
		r, err := js.do("findNode", order{"target": target})
		if err == nil && slices.Contains(r.Values, addr.String()) {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Errorf("JavaScript does not find %v in the network", addr)
}
