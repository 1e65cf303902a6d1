// Package punch opens a direct path between two hosts that are behind NATs, with the help of nodes of the DHT.
//
// The session has done a handshake through a relay: the client knows the server's punch socket as the relay sees it, and
// both have a key. From then on the two talk through relays in sealed payloads, and send each other probes.
//
//	C' punch socket of the client     R relay, a DHT node     S' punch socket of the server (S its main one)
//
//	C' ─probe, TTL 5─▶                                        opens the client's NAT, does not arrive
//	C' ─payload: round 0, "I opened my NAT to S'"─▶ R ─▶ S    asks for the server's NAT
//	C' ◀──────────────────────────────────probe── S'          passes, if both NATs are consistent: done
//	C' ◀─ R ◀─payload: NAT class, addresses, token── S'
//	C' ─payload: round 1, "punch", tokens─▶ R ─▶ S'           both NATs are known now
//	C' ◀─ R ◀─payload: "punching"─────────────── S'
//	C' ◀────────────── probes ─────────────────▶ S'           by the table of strategies
//
// A NAT is consistent (one public port per socket) or random (a port for each destination), as a [Client] or
// [Server] finds out by asking some nodes how they see the socket. Two consistent NATs send to each other; if one is
// random, 256 sockets there and many ports tried from the other side meet by chance; two random ones do not. A host that
// finds itself open after its peer was told otherwise asks, too: npm hyperdht gives up on an open host that names no address.
//
// Some random NATs count: each new destination gets the next port, or the one but next. A side that finds this says so with
// two more addresses, the port expected next and the one after. Then a consistent peer tries the ports around it first, and two
// counting NATs do meet: many sockets of each side send to one port that the other's NAT is about to reach.
//
// A payload, sealed with NaCl's secretbox:
//
//	nonce 24 │ tag 16 │ flags, error, firewall, round: uint │ addresses │ remote address │ token 32 │ remote token 32
//
// A probe is a datagram of one byte. It proves nothing: an address that one came from is a [Path] to be tried with
// an authenticated datagram. So an attempt goes on until the session closes it or its probes are used up.
//
// Source: npm hyperdht 6.34.0, lib/holepuncher.js, lib/connect.js, lib/server.js, lib/nat.js.
//
// # What differs from the reference
//
//   - The server does not wait a second before it punches. It first sends probes of low TTL, which open its own NAT
//     for the client's; probes of normal TTL follow at once if the client says that it has opened its NAT, and after
//     that second otherwise.
//   - The client says so not only in round 0 but in round 1 too. A reference server answers that with a probe at once.
//   - Messages are sent again through other relays, and first probes several times, before anything is known to be lost.
//     Only an invitation to guess ports is not: a reference server counts a second one as a second attempt.
//   - More nodes are asked if some do not answer, and two or one samples must do in a network that has no more nodes.
//   - A server that guesses ports for others already answers "try later" and waits, with or without a relay.
//   - NATs that count are foreseen. The reference looks at the first address of a random NAT only, which is what it was.
//
// # Limitations
//
//   - IPv4 only, as the messages are.
//   - Two random NATs are not punched, unless both count their ports up; and then not if others behind one of
//     them take hundreds of ports a second.
//   - A socket found behind a random NAT is not exchanged for a new one in the hope for better luck.
//   - Where a probe of TTL 5 reaches a router that takes note of it and then moves its own host to another port, the
//     attempt fails.
//   - Two hosts behind one carrier's NAT that does not loop packets back cannot be connected.
package punch
