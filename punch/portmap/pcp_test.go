package portmap

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// append appends the wire form of a response.
func (r pcpResponse) append(b []byte) []byte {
	start := len(b)
	b = pcpRequest{lifetime: r.lifetime, mapping: r.mapping}.append(b)
	b[start+1] |= isResponse
	b[start+3] = r.result
	b[start+8], b[start+9], b[start+10], b[start+11] = byte(r.epoch>>24), byte(r.epoch>>16), byte(r.epoch>>8), byte(r.epoch)
	return b
}

const (
	pcpRequestHex = "02 01 0000 00000708 00000000000000000000ffffc0a8010a" +
		"0102030405060708090a0b0c 11 000000 0fa0 c249 00000000000000000000ffff00000000"
	pcpGrantHex = "02 81 00 00 00000384 00001000 000000000000000000000000" +
		"0102030405060708090a0b0c 11 000000 0fa0 0fa1 00000000000000000000ffffc0586301"
)

var testNonce = nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

func TestPCPWire(t *testing.T) {
	m := &pcpMapping{testNonce, 4000, netip.MustParseAddrPort("0.0.0.0:49737")}
	q := pcpRequest{1800, netip.MustParseAddr("192.168.1.10"), m}
	if got, want := q.append(nil), unhex(t, pcpRequestHex); string(got) != string(want) {
		t.Errorf("MAP request\n%x, want\n%x", got, want)
	}
	q = pcpRequest{local: netip.MustParseAddr("2001:db8::1")}
	if got, want := q.append(nil), unhex(t, "02 00 0000 00000000 20010db8000000000000000000000001"); string(got) != string(want) {
		t.Errorf("ANNOUNCE request\n%x, want\n%x", got, want)
	}
	wire := unhex(t, pcpGrantHex)
	r, err := parsePCP(wire)
	if err != nil {
		t.Fatal(err)
	}
	if r.result != 0 || r.lifetime != 900 || r.epoch != 4096 || r.mapping == nil ||
		*r.mapping != (pcpMapping{testNonce, 4000, netip.MustParseAddrPort("192.88.99.1:4001")}) {
		t.Errorf("response %+v, %+v", r, r.mapping)
	}
	if got := r.append(nil); string(got) != string(wire) {
		t.Errorf("response\n%x, want\n%x", got, wire)
	}
	for n := range wire {
		if _, err := parsePCP(wire[:n]); !errors.Is(err, errForeign) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := parsePCP(append(wire, 0, 0, 0, 0)); err != nil {
		t.Errorf("with an option: %v", err)
	}
}

func TestPCPRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
	}{
		{"a request", func(b []byte) []byte { b[1] = pcpMap; return b }, errForeign},
		{"another opcode", func(b []byte) []byte { b[1] = isResponse | 2; return b }, errForeign},
		{"TCP", func(b []byte) []byte { b[36] = 6; return b }, errForeign},
		{"not a multiple of four", func(b []byte) []byte { return append(b, 0) }, errForeign},
		{"too long", func(b []byte) []byte { return append(b, make([]byte, maxPCP)...) }, errForeign},
		{"another version", func(b []byte) []byte { b[0] = 1; return b }, errForeign},
		{"another version that says so", func(b []byte) []byte { b[0], b[3] = 1, 1; return b }, errVersion},
		{"NAT-PMP that says so", func([]byte) []byte { return []byte{0, 0x81, 0, 1, 0, 0, 0, 9} }, errVersion},
	} {
		if _, err := parsePCP(tt.change(unhex(t, pcpGrantHex))); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func testPCP(s server) *pcpClient { return &pcpClient{s, 4000, 30 * time.Minute, testNonce} }

// request asks for port 4000.
func request(t *testing.T, c client) (lease, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return c.request(ctx, netip.AddrPortFrom(netip.Addr{}, 4000))
}

func TestPCPMapsRenewsAndRemoves(t *testing.T) {
	for _, addr := range []netip.Addr{loopback, netip.IPv6Loopback()} {
		x := newBox(t, func(x *box) {
			x.taken[4000] = true
			if !addr.Is4() {
				x.external = netip.MustParseAddr("2001:db8::5")
			}
		})
		c := testPCP(x.serve(addr))
		if _, err := c.probe(t.Context()); err != nil {
			t.Fatalf("%v: probe: %v", addr, err)
		}
		l, err := request(t, c)
		if err != nil {
			t.Fatalf("%v: %v", addr, err)
		}
		if want := netip.AddrPortFrom(x.external, 4001); l.external != want || l.lifetime != 30*time.Minute ||
			l.epoch.seconds < 1000 || l.epoch.seconds > 1060 || l.permanent {
			t.Errorf("%v: lease %+v, want %v", addr, l, want)
		}
		again, err := c.request(t.Context(), l.external)
		if err != nil || again.external != l.external {
			t.Errorf("%v: renewal: %v, %v", addr, again.external, err)
		}
		// Another program with the same port, without the nonce.
		other := testPCP(c.server)
		other.nonce[0]++
		if _, err := request(t, other); !errors.Is(err, refused(2, pcpResults)) {
			t.Errorf("%v: with another nonce: %v, want not authorized", addr, err)
		}
		if err := c.release(t.Context(), l); err != nil {
			t.Errorf("%v: release: %v", addr, err)
		}
		if n := x.holds(); n > 0 {
			t.Errorf("%v: %d mappings left", addr, n)
		}
	}
}

// patch returns a mangle that changes a copy of each reply.
func patch(f func(b []byte)) func([]byte) [][]byte {
	return func(b []byte) [][]byte { f(b); return [][]byte{b} }
}

func TestPCPGatewayMisbehaves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		mangle func(reply []byte) [][]byte
		want   string // of the error; empty: it is granted
	}{
		{"wrong nonce", patch(func(b []byte) { b[24]++ }), errSilent.Error()},
		{"wrong port", patch(func(b []byte) { b[41]++ }), errSilent.Error()},
		{"answer to something else", patch(func(b []byte) { b[1] = isResponse }), errSilent.Error()},
		{"cut", func(b []byte) [][]byte { return [][]byte{b[:56]} }, errSilent.Error()},
		{"empty", func([]byte) [][]byte { return [][]byte{{}} }, errSilent.Error()},
		{"no lifetime", patch(func(b []byte) { clear(b[4:8]) }), "granted for only 0s"},
		{"hardly any lifetime", patch(func(b []byte) { clear(b[4:7]); b[7] = 3 }), "granted for only 3s"},
		{"port 0", patch(func(b []byte) { clear(b[42:44]) }), "granted at 192.88.99.1:0"},
		{"no address", patch(func(b []byte) { clear(b[56:60]) }), "granted at 0.0.0.0"},
		{"no IPv6 address", patch(func(b []byte) { clear(b[44:60]) }), "granted at [::]"},
		{"multicast address", patch(func(b []byte) { b[56] = 239 }), "granted at 239"},
		{"refusal", patch(func(b []byte) { b[3] = 8 }), "no resources"},
		{"refusal unheard of", patch(func(b []byte) { b[3] = 200 }), "code 200"},
		{"refusal with another's nonce", patch(func(b []byte) { b[3] = 8; b[24]++ }), errSilent.Error()},
		{"NAT-PMP", func([]byte) [][]byte { return [][]byte{{0, 0x81, 0, 1, 0, 0, 0, 0}} }, "version not supported"},
		{"flood", func([]byte) [][]byte { return make([][]byte, 100) }, "datagrams that are no answer"},
		{"noise before the answer", func(b []byte) [][]byte {
			wrong := append([]byte(nil), b...)
			wrong[30]++
			return [][]byte{{1}, {2, 0x81}, make([]byte, 1200), wrong, b}
		}, ""},
		{"twice", func(b []byte) [][]byte { return [][]byte{b, b} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := testPCP(newBox(t, func(x *box) { x.mangle = tt.mangle }).serve(loopback))
			if tt.want == errSilent.Error() {
				c.waits = quick
			}
			l, err := request(t, c)
			switch {
			case tt.want == "" && (err != nil || l.external != publicA):
				t.Errorf("%v, %v, want %v", l.external, err, publicA)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, %v, want an error with %q", l.external, err, tt.want)
			}
		})
	}
}

func TestPCPLifetimeIsBounded(t *testing.T) {
	x := newBox(t, func(x *box) {
		x.mangle = patch(func(b []byte) { copy(b[4:], []byte{255, 255, 255, 255}) })
	})
	c := testPCP(x.serve(loopback))
	if l, err := request(t, c); err != nil || l.lifetime != maxLifetime {
		t.Errorf("lifetime %v, %v, want %v", l.lifetime, err, maxLifetime)
	}
}

func TestExchangeAsksAgain(t *testing.T) {
	t.Parallel()
	lost := 2
	x := newBox(t, func(x *box) {
		x.mangle = func(b []byte) [][]byte {
			if lost--; lost >= 0 {
				return nil
			}
			return [][]byte{b}
		}
	})
	if _, err := request(t, testPCP(x.serve(loopback))); err != nil {
		t.Errorf("with two replies lost: %v", err)
	}
}

func TestExchangeHearsNobodyElse(t *testing.T) {
	t.Parallel()
	stranger, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	x := newBox(t, nil)
	s := server{route{loopback, loopback}, portOf(serveUDP(t, loopback, func(b []byte, from netip.AddrPort) [][]byte {
		for _, reply := range x.handle(b, from) { // the right answer, from another port
			stranger.WriteToUDPAddrPort(reply, from)
		}
		return nil
	})), quick}
	if l, err := request(t, testPCP(s)); !errors.Is(err, errSilent) {
		t.Errorf("%v, %v, want %v", l.external, err, errSilent)
	}
}

func TestExchangeEnds(t *testing.T) {
	// Nobody listens: known at once.
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	closed := portOf(c)
	c.Close()
	waits := []time.Duration{time.Minute}
	start := time.Now()
	if _, err := request(t, testPCP(server{route{loopback, loopback}, closed, waits})); err == nil {
		t.Error("a closed port answered")
	}
	// The context ends.
	silent := server{route{loopback, loopback}, portOf(serveUDP(t, loopback, func([]byte, netip.AddrPort) [][]byte { return nil })), waits}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(enough) })
	if _, err := testPCP(silent).probe(ctx); !errors.Is(err, enough) {
		t.Errorf("probe: %v, want %v", err, enough)
	}
	if d := time.Since(start); d >= time.Minute {
		t.Errorf("both took %v", d)
	}
}

func FuzzPCP(f *testing.F) {
	for _, s := range []string{pcpGrantHex, "02 80 00 00 00000000 00000001 000000000000000000000000", "00 81 0001 00000000"} {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parsePCP(b)
		if err != nil {
			return
		}
		again, err := parsePCP(r.append(nil))
		if err != nil {
			t.Fatalf("%+v does not parse: %v", r, err)
		}
		if (r.mapping == nil) != (again.mapping == nil) || r.mapping != nil && *r.mapping != *again.mapping {
			t.Errorf("mapping %+v became %+v", r.mapping, again.mapping)
		}
		if r.mapping, again.mapping = nil, nil; r != again {
			t.Errorf("%+v became %+v", r, again)
		}
	})
}
