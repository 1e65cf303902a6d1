package punch_test

import (
	"fmt"
	"net/netip"

	"omegatun/punch"
)

func ExampleMatchAddr() {
	ours := []netip.Addr{netip.MustParseAddr("192.168.1.23"), netip.MustParseAddr("172.17.0.1")}
	theirs := []netip.AddrPort{
		netip.MustParseAddrPort("172.17.0.1:49737"), // the other host's containers
		netip.MustParseAddrPort("192.168.1.40:49737"),
	}
	fmt.Println(punch.MatchAddr(ours, theirs))
	// Output: 192.168.1.40:49737 true
}

// A session tries the paths that an attempt finds until one answers.
func ExampleNewClient() {
	var (
		cfg   punch.ClientConfig                       // from the handshake
		works = func(punch.Path) bool { return false } // an authenticated exchange
	)
	attempt, err := punch.NewClient(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	for path := range attempt.Paths() {
		if works(path) {
			attempt.Close(path.Socket)
			return
		}
	}
	fmt.Println(attempt.Err())
	attempt.Close()
	// Output: punch: the server has no relays
}
