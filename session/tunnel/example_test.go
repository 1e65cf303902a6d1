package tunnel_test

import (
	"fmt"

	"omegatun/session/tunnel"
)

// Both ends turn two offers and the outcome of a handshake into an epoch, and carry packets.
func Example() {
	var tx, rx [32]byte // of the initiator: noise.Result.Tx and Rx
	var hash [64]byte
	rx[0] = 1

	alice := tunnel.Offer{Index: 0xa11ce, Suites: tunnel.PreferredSuites()}
	bob := tunnel.Offer{Index: 0xb0b, Suites: tunnel.ChaCha20Poly1305}
	theirs, ok, err := tunnel.ParseOffer(bob.Append(nil)) // came as the trailer of a handshake payload
	if err != nil || !ok {
		fmt.Println("no tunnel", err)
		return
	}
	open := func(ours, theirs tunnel.Offer, initiator bool, tx, rx [32]byte) *tunnel.Epoch {
		params, err := tunnel.Negotiate(ours, theirs)
		if err != nil {
			panic(err)
		}
		e, err := tunnel.NewEpoch(params, initiator, tx, rx, hash)
		if err != nil {
			panic(err)
		}
		return e
	}
	atAlice := open(alice, theirs, true, tx, rx)
	atBob := open(bob, alice, false, rx, tx)

	ping := tunnel.Control{Kind: tunnel.Ping, ID: 42}
	datagram, err := atAlice.Seal(nil, ping.Append(nil))
	if err != nil {
		fmt.Println(err)
		return
	}
	index, _ := tunnel.ReceiverIndex(datagram) // finds the epoch among many
	plaintext, err := atBob.Open(nil, datagram)
	if err != nil {
		fmt.Println(err)
		return
	}
	got, err := tunnel.ParseControl(plaintext)
	fmt.Printf("%#x %v %v %v %v\n", index, atBob.Suite(), got.Kind, got.ID, err)
	_, err = atBob.Open(nil, datagram)
	fmt.Println(err)
	// Output:
	// 0xb0b chacha20-poly1305 ping 42 <nil>
	// tunnel: datagram was seen before, or is too old
}
