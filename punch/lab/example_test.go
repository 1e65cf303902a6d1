package lab_test

import (
	"fmt"
	"net/netip"

	"omegatun/punch/lab"
)

func Example() {
	n := lab.New(lab.Config{Seed: 1, Trace: true})
	defer n.Close()
	server := n.Host("server", netip.MustParseAddr("192.88.99.10"))
	home := n.NAT("home", lab.Linux(netip.MustParseAddr("192.88.99.101")))
	laptop := home.Host("laptop", netip.MustParseAddr("192.168.1.10"))

	s, err := server.Listen(netip.MustParseAddrPort("0.0.0.0:7"))
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := laptop.Listen(netip.MustParseAddrPort("0.0.0.0:5000"))
	if err != nil {
		fmt.Println(err)
		return
	}
	c.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort("192.88.99.10:7"))
	b := make([]byte, 100)
	size, from, err := s.ReadFromUDPAddrPort(b)
	fmt.Printf("%s from %v, %v\n", b[:size], from, err)
	// Output: hello from 192.88.99.101:5000, <nil>
}
