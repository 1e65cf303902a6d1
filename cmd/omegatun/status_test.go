package main

import (
	"net/netip"
	"strings"
	"testing"

	"omegatun/cmd/omegatun/internal/control"
)

// TestStatusTellsOfMappedPorts wants a port mapping in force to be seen, and none where there is none.
func TestStatusTellsOfMappedPorts(t *testing.T) {
	at := netip.MustParseAddrPort("192.88.99.1:49737")
	s := &control.Status{Peers: []control.PeerStatus{{Path: &control.Path{Kind: "direct", Remote: at}}}}
	if got := statusText(s); strings.Contains(got, "mapped") {
		t.Errorf("without a mapping:\n%s", got)
	}
	s.Self.Mapped, s.Peers[0].Path.Mapped = at, true
	got := statusText(s)
	for _, want := range []string{
		"192.88.99.1:49737, which the router forwards to this machine\n", "direct 192.88.99.1:49737 (mapped)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing:\n%s", want, got)
		}
	}
}
