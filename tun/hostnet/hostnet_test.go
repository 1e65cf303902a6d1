package hostnet

import (
	"net/netip"
	"testing"
)

func TestOnlyHostsAreAccepted(t *testing.T) {
	good := netip.MustParsePrefix("10.64.0.1/32")
	for _, row := range []struct {
		name   string
		prefix netip.Prefix
		ok     bool
	}{
		{"IPv4", good, true},
		{"IPv6", netip.MustParsePrefix("fd6f:6d65:6761::1/128"), true},
		{"default route", netip.MustParsePrefix("0.0.0.0/0"), false},
		{"IPv6 default route", netip.MustParsePrefix("::/0"), false},
		{"network", netip.MustParsePrefix("10.64.0.0/24"), false},
		{"two hosts", netip.MustParsePrefix("10.64.0.0/31"), false},
		{"mapped", netip.MustParsePrefix("::ffff:10.64.0.1/128"), false},
		{"unspecified", netip.MustParsePrefix("0.0.0.0/32"), false},
		{"multicast", netip.MustParsePrefix("ff02::1/128"), false},
		{"loopback", netip.MustParsePrefix("127.0.0.1/32"), false},
		{"none", netip.Prefix{}, false},
	} {
		for _, cfg := range []Config{
			{Interface: "x", Addrs: []netip.Prefix{row.prefix}},
			{Interface: "x", Addrs: []netip.Prefix{good}, Routes: []netip.Prefix{row.prefix}},
		} {
			if err := cfg.check(); (err == nil) != row.ok {
				t.Errorf("%s: check of %+v = %v, want ok %v", row.name, cfg, err, row.ok)
			}
		}
	}
	if err := (&Config{Interface: "x"}).check(); err == nil {
		t.Error("a configuration without addresses was accepted")
	}
}
