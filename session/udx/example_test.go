package udx_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"omegatun/session/udx"
)

// socket lets a Mux use a UDP port.
type socket struct{ *net.UDPConn }

func (s *socket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

// serve hands a Mux what arrives until the port is closed.
func (s *socket) serve(m *udx.Mux) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		m.Receive(s, b[:n], from)
	}
}

func Example() {
	var wg sync.WaitGroup
	defer wg.Wait()
	loopback := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0"))
	open := func() (*udx.Mux, *socket, netip.AddrPort) {
		conn, err := net.ListenUDP("udp4", loopback)
		if err != nil {
			panic(err)
		}
		m, s := udx.NewMux(udx.Config{}), &socket{conn}
		wg.Go(func() { s.serve(m) })
		return m, s, conn.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	alice, aliceSocket, aliceAddr := open()
	defer aliceSocket.Close()
	defer alice.Close()
	bob, bobSocket, bobAddr := open()
	defer bobSocket.Close()
	defer bob.Close()

	a, _ := alice.NewStream(udx.StreamConfig{})
	b, _ := bob.NewStream(udx.StreamConfig{})
	// By some other way, they tell each other a.ID() and b.ID(), and where they are.
	_ = a.Connect(aliceSocket, bobAddr, b.ID())
	_ = b.Connect(bobSocket, aliceAddr, a.ID())

	fmt.Fprint(a, "hello")
	_ = a.CloseWrite()
	text, err := io.ReadAll(b)
	fmt.Println(string(text), err)
	// Output: hello <nil>
}
