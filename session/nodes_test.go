package session

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"omegatun/dht"
	"omegatun/session/udp"
)

// TestNodesMakeANetwork has nodes of one process find each other over loopback.
func TestNodesMakeANetwork(t *testing.T) {
	all, err := NewNodes()
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var nodes []*Node
	open := func(bootstrap []string) {
		t.Helper()
		cfg := NodeConfig{Addr: loopback, DHT: dht.Config{Bootstrap: bootstrap, Mode: dht.Persistent, Open: true}}
		n, err := all.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	open([]string{})
	for range 9 {
		open([]string{nodes[0].Addr().String()})
	}
	for i, n := range nodes[1:] {
		if info := n.Node().Info(); info.Nodes == 0 || !info.Persistent {
			t.Errorf("node %d: %+v", i+1, info)
		}
	}
	target, _, err := nodes[3].Node().PutImmutable(ctx, []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := nodes[7].Node().GetImmutable(ctx, target)
	if err != nil || string(got) != "value" {
		t.Errorf("got %q, %v", got, err)
	}

	_, err = all.Open(NodeConfig{Addr: loopback, Port: nodes[2].Addr().Port(), DHT: dht.Config{Bootstrap: []string{}}})
	if _, ok := errors.AsType[*udp.InUseError](err); !ok {
		t.Errorf("Open at a port in use: %v", err)
	}
	if _, err = all.Open(NodeConfig{Addr: loopback, DHT: dht.Config{Bootstrap: []string{"nonsense"}}}); err == nil {
		t.Error("a bootstrap node without a port is accepted")
	}
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := all.Close(); err != nil {
		t.Error(err)
	}
}
