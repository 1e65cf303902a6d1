package session

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"omegatun/dht"
	"omegatun/dht/key"
)

func TestNewRefuses(t *testing.T) {
	for _, row := range []struct {
		name, want string
		cfg        Config
	}{
		{"no identity", "Config.Identity is required", Config{}},
		{"an IPv6 address", "Config.Addr6 is for IPv6", Config{Identity: key.Generate(), Addr: netip.IPv6Loopback()}},
		{"a negative MTU", "Config.MTU is -5", Config{Identity: key.Generate(), MTU: -5}},
		{"a huge MTU", "Config.MTU is 65536", Config{Identity: key.Generate(), MTU: 65_536}},
		{"negative receivers", "Config.Receivers is -1", Config{Identity: key.Generate(), Receivers: -1}},
		{"all receivers there can be", "Config.Receivers is 1048576", Config{Identity: key.Generate(), Receivers: 1 << 20}},
		{"an unknown mode", "there is no mode 3", Config{
			Identity: key.Generate(), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), DHT: dht.Config{Bootstrap: []string{}, Mode: dht.Persistent + 1},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, err := New(row.cfg)
			if err == nil {
				h.Close()
			}
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("New: %v, want an error with %q", err, row.want)
			}
		})
	}
}

func TestNoPathErrorSaysWhatWasTried(t *testing.T) {
	for _, row := range []struct {
		tried int
		err   error
		want  string
	}{
		{0, nil, "no path: there is no address to try (our NAT: random, theirs: consistent)"},
		{1, nil, "no path: the only address that could be tried does not answer (our NAT: random, theirs: consistent)"},
		{2, errors.New("gave up"), "no path: none of 2 addresses answers (our NAT: random, theirs: consistent): gave up"},
	} {
		e := &NoPathError{Local: dht.FirewallRandom, Remote: dht.FirewallConsistent, Tried: make([]Path, row.tried), Err: row.err}
		if got := e.Error(); got != row.want {
			t.Errorf("%d tried: %q, want %q", row.tried, got, row.want)
		}
	}
}
