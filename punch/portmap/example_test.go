package portmap_test

import (
	"context"
	"fmt"
	"net/netip"

	"omegatun/punch/portmap"
)

func Example() {
	m := portmap.New(portmap.Config{
		Port: 49737,
		Gateway: func() (gateway, local netip.Addr, ok bool) {
			return netip.Addr{}, netip.Addr{}, false // this host has none
		},
	})
	for {
		changed := m.Changes()
		if addr, ok := m.External(); ok {
			fmt.Println("reachable at", addr)
			break
		}
		if m.Report().Rounds > 0 {
			fmt.Println("not reachable for now")
			break
		}
		<-changed
	}
	if err := m.Close(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output: not reachable for now
}
