package noise_test

import (
	"fmt"

	"omegatun/dht/key"
	"omegatun/session/noise"
)

// A handshake takes two messages. Here they are handed over directly; HyperDHT carries them through its nodes.
func Example() {
	alice, bob := key.Generate(), key.Generate()
	ours := noise.Payload{UDX: &noise.UDXInfo{ID: 7}, SecretStream: &noise.SecretStreamInfo{}}

	initiator, err := noise.NewInitiator(alice, bob.Public())
	if err != nil {
		fmt.Println(err)
		return
	}
	message1, err := initiator.Write(ours.Append(nil))
	if err != nil {
		fmt.Println(err)
		return
	}

	responder, err := noise.Respond(bob, message1)
	if err != nil || responder.Remote() != alice.Public() { // who may connect is decided here
		fmt.Println("refused", err)
		return
	}
	theirs, err := noise.ParsePayload(responder.Payload())
	if err != nil {
		fmt.Println(err)
		return
	}
	message2, atBob, err := responder.Write(nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	_, atAlice, err := initiator.Read(message2)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("stream id", theirs.UDX.ID)
	fmt.Println("same keys", atAlice.Tx == atBob.Rx && atAlice.Rx == atBob.Tx)
	// Output:
	// stream id 7
	// same keys true
}
