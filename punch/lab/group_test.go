package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"omegatun/punch/lab"
)

var group = netip.MustParseAddrPort("239.255.1.2:77")

func join(t *testing.T, h *lab.Host) *lab.Conn {
	t.Helper()
	c, err := h.ListenGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestGroupsReachTheirLANOnly(t *testing.T) {
	bubble(t, lab.Config{Seed: 1, Trace: true}, func(t *testing.T, n *lab.Network) {
		home, other := n.NAT("home", lab.Linux(homeA)), n.NAT("other", lab.Linux(homeB))
		ha := home.Host("a", insideA)
		a := join(t, ha)
		b := join(t, home.Host("b", netip.MustParseAddr("192.168.1.11")))
		c := join(t, other.Host("c", insideB))
		open := join(t, n.Host("open", serverA))
		home.Host("deaf", netip.MustParseAddr("192.168.1.12"))
		if err := a.WriteFrom([]byte("hello"), insideA); err != nil {
			t.Fatal(err)
		}
		if from := want(t, b, "hello"); from != at(insideA, group.Port()) {
			t.Errorf("heard from %v", from)
		}
		wantNothing(t, a, "it sent that itself")
		wantNothing(t, c, "another LAN")
		wantNothing(t, open, "the Internet")
		if err := a.WriteFrom([]byte("x"), insideB); err == nil {
			t.Error("a host sends from an address that it does not have")
		}
		ha.Attach(other, netip.MustParseAddr("192.168.2.77"))
		if err := a.WriteFrom([]byte("both"), netip.MustParseAddr("192.168.2.77")); err != nil {
			t.Fatal(err)
		}
		want(t, c, "both")
		wantNothing(t, b, "that was the other LAN")
		ha.SetLink(lab.Link{Loss: 1})
		_ = a.WriteFrom([]byte("lost"), insideA)
		time.Sleep(time.Second)
		wantNothing(t, b, "the cable loses all")
		if _, err := ha.ListenGroup(group); err == nil {
			t.Error("a host hears a group twice")
		}
	})
}
