package secretstream_test

import (
	"fmt"
	"io"
	"net"

	"omegatun/session/secretstream"
)

// The stream runs over anything that delivers bytes in order: here TCP, otherwise UDX.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	client := secretstream.Config{Initiator: true, Tx: [32]byte{1}, Rx: [32]byte{2}} // of a finished handshake
	server := secretstream.Config{Tx: client.Rx, Rx: client.Tx}
	go func() {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		c := secretstream.New(raw.(*net.TCPConn), server)
		defer c.Close()
		fmt.Fprint(c, "hello")
		c.CloseWrite()
		io.Copy(io.Discard, c) // TCP drops what is on its way if it is closed before everything was read
	}()

	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	c := secretstream.New(raw.(*net.TCPConn), client)
	defer c.Close()
	b, err := io.ReadAll(c)
	fmt.Printf("%s %v\n", b, err)
	// Output: hello <nil>
}
