package udp_test

import (
	"fmt"
	"net/netip"

	"omegatun/session/udp"
)

func Example() {
	local := udp.Config{Addr: netip.MustParseAddrPort("127.0.0.1:0")}
	a, err := udp.Listen(local)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = a.Close() }()

	if err := a.SendBatch([][]byte{[]byte("one"), []byte("two"), []byte("3")}, a.LocalAddr()); err != nil {
		fmt.Println(err)
	}
	for b, n := udp.NewBatch(), 0; n < 3; n += b.Len() {
		if err := a.Receive(b); err != nil {
			fmt.Println(err)
			return
		}
		for i := range b.Len() {
			data, from := b.Datagram(i)
			fmt.Printf("%s, from us: %v\n", data, from == a.LocalAddr())
		}
	}
	// Output:
	// one, from us: true
	// two, from us: true
	// 3, from us: true
}
