package dht

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// addCaptures seeds f with the values of captured datagrams that pick accepts.
func addCaptures(f *testing.F, pick func(wire []byte) []byte) {
	f.Helper()
	var v [][2]string
	readVectors(f, "captures.json", &v)
	for _, e := range v {
		wire, err := hex.DecodeString(e[1])
		if err != nil {
			f.Fatal(err)
		}
		if b := pick(wire); b != nil {
			f.Add(b)
		}
	}
}

// checkAgain checks that what b decodes to, if it does, is encoded in no more bytes, and comes back from that.
func checkAgain(t *testing.T, b []byte, again func([]byte) ([]byte, error)) {
	t.Helper()
	once, err := again(b)
	if err != nil {
		if !errors.Is(err, ErrMalformed) {
			t.Fatalf("%x: %v, want ErrMalformed", b, err)
		}
		return
	}
	if twice, err := again(once); err != nil || !bytes.Equal(once, twice) {
		t.Fatalf("%x: %x, and again %x, %v", b, once, twice, err)
	}
}

func valueOf(c ...Command) func(wire []byte) []byte {
	return func(wire []byte) []byte {
		r, err := parseRequest(wire)
		if err != nil {
			return nil
		}
		if slices.Contains(c, r.command) {
			return r.value
		}
		return nil
	}
}

func FuzzRequest(f *testing.F) {
	addCaptures(f, func(wire []byte) []byte {
		if wire[0] == requestByte {
			return wire
		}
		return nil
	})
	f.Fuzz(func(t *testing.T, b []byte) { checkAgain(t, b, againRequest) })
}

func FuzzResponse(f *testing.F) {
	addCaptures(f, func(wire []byte) []byte {
		if wire[0] == responseByte {
			return wire
		}
		return nil
	})
	f.Fuzz(func(t *testing.T, b []byte) { checkAgain(t, b, againResponse) })
}

func FuzzHandshake(f *testing.F) {
	addCaptures(f, valueOf(cmdPeerHandshake))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseHandshake(b)
			return m.encode(), err
		})
	})
}

func FuzzHolepunch(f *testing.F) {
	addCaptures(f, valueOf(cmdPeerHolepunch))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseHolepunch(b)
			return m.encode(), err
		})
	})
}

func FuzzAnnounce(f *testing.F) {
	addCaptures(f, valueOf(cmdAnnounce, cmdUnannounce))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseAnnounce(b)
			return m.encode(), err
		})
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(Record{Relays: []netip.AddrPort{netip.MustParseAddrPort("1.2.3.4:5")}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			r, err := ParseRecord(b)
			return r.Append(nil), err
		})
	})
}

func FuzzLookupReply(f *testing.F) {
	m := lookupReply{peers: make([]Record, 2), bump: 7}
	f.Add(m.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseLookupReply(b)
			return m.append(nil), err
		})
	})
}

func FuzzMutable(f *testing.F) {
	addCaptures(f, valueOf(cmdMutablePut))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseMutablePut(b)
			return m.encode(), err
		})
		checkAgain(t, b, func(b []byte) ([]byte, error) {
			m, err := parseMutable(b)
			return m.append(nil), err
		})
	})
}

func FuzzBootstrap(f *testing.F) {
	for _, s := range append(PublicBootstrap(), "127.0.0.1:1", "host:65535", "[::1]:1", "") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hosts, err := parseBootstrap([]string{s})
		if err != nil {
			return
		}
		if h := hosts[0]; h.port == 0 || h.name == "" && !h.ip.Is4() {
			t.Fatalf("%q: %+v", s, h)
		}
	})
}

// FuzzReceive hands datagrams to a member that knows others, stores and serves.
func FuzzReceive(f *testing.F) {
	addCaptures(f, func(wire []byte) []byte { return wire })
	local := netip.MustParseAddrPort("127.0.0.1:49737")
	n, err := New(Config{
		Client: &nullSocket{}, Server: &nullSocket{local}, Bootstrap: []string{"127.0.0.1:49738"},
		Mode: Persistent, Open: true, PublicAddr: local,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = n.Close() })
	for port := range uint16(100) {
		n.do(func(now time.Time) { n.addKnown(netip.AddrPortFrom(local.Addr(), 50000+port)) })
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n.Receive(n.server, b, netip.MustParseAddrPort("127.0.0.1:50005"))
		n.Receive(n.client, b, netip.MustParseAddrPort("9.9.9.9:9"))
	})
}

// nullSocket sends nothing.
type nullSocket struct{ local netip.AddrPort }

func (s *nullSocket) Send([]byte, netip.AddrPort) error { return nil }
func (s *nullSocket) LocalAddr() netip.AddrPort         { return s.local }
