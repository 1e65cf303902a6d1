package dht

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
)

func TestPingBackTellsWhetherAPortIsOpen(t *testing.T) {
	for _, row := range []struct {
		name     string
		filtered bool
		known    bool // the port has sent to the node's host
		want     error
	}{
		{"open", false, false, nil},
		{"filtered", true, false, ErrTimeout},
		{"filtered, but it was sent to", true, true, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTestNet(t)
				a, b := w.node(true, nil), w.node(true, nil)
				other := w.socket(netip.AddrPortFrom(a.host, 4000), row.filtered)
				arrived := 0
				other.receive = func(s *testSocket, b []byte, from netip.AddrPort) {
					arrived++
					a.Receive(s, b, from)
				}
				other.known[b.host] = row.known
				pong, err := a.PingBack(t.Context(), a.client, b.addr(), 4000, 1)
				if !errors.Is(err, row.want) || err == nil && (pong.To != other.public || arrived != 1) {
					t.Errorf("PingBack: %+v, %v with %d answers, want %v", pong, err, arrived, row.want)
				}
			})
		})
	}
}

func TestPingSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestNet(t)
		a, b := w.node(true, nil), w.node(true, nil)
		for _, size := range []int{64, 252, 1252, 1472, 9000} {
			got := 0
			w.tap = func(_, to netip.AddrPort, b2 []byte) {
				if to == b.addr() {
					got = len(b2)
				}
			}
			if _, err := a.PingSize(t.Context(), nil, b.addr(), size, 0); err != nil || got != size {
				t.Errorf("PingSize of %d bytes: %d were sent, %v", size, got, err)
			}
		}
		if _, err := a.PingSize(t.Context(), nil, b.addr(), 65508, 0); err == nil {
			t.Error("PingSize sent what no datagram can hold")
		}
	})
}
