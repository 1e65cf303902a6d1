package routes_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/tun"
	"omegatun/tun/hostnet"
)

// Anyone can compute the addresses of a key.
func Example() {
	k, err := key.ParsePublic("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(routes.Addr6(k))
	fmt.Println(routes.Addr4(k))
	// Output:
	// fd6f:6d65:6761:5261:e1fa:c1c2:34b0:f0e4
	// 10.123.224.108
}

// From an interface of the host to the sessions of peers, until the context ends.
func ExampleForwarder() {
	up := func(ctx context.Context, self, peer key.Public, session routes.Session) (err error) {
		dev, err := tun.Open(tun.Config{MTU: 1420})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dev.Close()) }()

		plan := routes.Plan4(routes.Listed{Key: self}, []routes.Listed{{Key: peer}}, nil) // and hostnet.Networks
		ours := []netip.Addr{routes.Addr6(self), plan.Self}
		theirs := []netip.Addr{routes.Addr6(peer), plan.Peers[peer]}
		host, err := hostnet.Configure(hostnet.Config{
			Interface: dev.Name(), Addrs: hosts(ours), Routes: hosts(theirs), MaxSegments: dev.BatchSize(),
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, host.Close()) }()

		f := routes.NewForwarder(dev, routes.Config{Local: ours})
		if _, err := f.AddPeer(routes.PeerConfig{Key: peer, Prefixes: hosts(theirs), Session: session}); err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = dev.Close() })() // ends Run
		return f.Run(ctx)
	}
	_ = up
}

// hosts returns the prefixes that hold one address each, without the addresses that are not set.
func hosts(addrs []netip.Addr) (list []netip.Prefix) {
	for _, a := range addrs {
		if a.IsValid() {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list
}
