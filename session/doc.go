// Package session connects machines by public key: it owns the UDP sockets, runs the DHT node on them,
// finds a peer, shakes hands, opens a path, and carries IP packets and streams over it.
//
//	  Dial, Listen               AddPeer, Peer.Send, Config.Inbound
//	       │                                  │
//	secretstream.Conn                       Peer   one per remote key
//	       │                                  │
//	  udx.Stream ◀──────── link ────────▶ tunnel.Epoch   one per handshake
//	       │                │                 │
//	       │        dht.Node, punch           │
//	       └───────────── Socket ─────────────┘   server, client, one per punching attempt
//
// A datagram that arrives on any socket is told apart by its first bytes:
//
//	length 0 or 1   a probe, for the punching attempt that owns the socket
//	be              a tunnel datagram: receiver index → link → open → Config.Inbound
//	ff 01           UDX: stream id → stream
//	03, 13          a request or response of the DHT
//	else            dropped and counted
//
// # Links
//
// A handshake that both sides completed makes a link. Every address that might lead to the peer is offered to it:
// the relay's word, the local network, hole punching, the source of an authentic datagram. With a tunnel, a
// candidate counts only once an authenticated ping along it has been answered; the first that is, is
// used, and a better one takes over. The responder sends no data before the initiator's first valid datagram.
//
// Two links to one peer may exist at once. [Peer] sends on one of them and receives on all: the newest, or,
// if both sides dialled at the same time, the one whose initiator has the lower key.
//
// # Goroutines
//
// One a socket receives, and runs everything that an arriving datagram causes up to and including
// Config.Inbound. One a Host looks after the links twice a second. An attempt to connect and a handshake being
// answered have one each, while they last; so has a stream that is open. A peer that is idle or connected has none.
// Close waits for all of them.
//
// # Limitations
//
//   - Tunnel keys are those of the handshake (epoch 0). They are not replaced while a link lives.
//   - Paths are IPv4. Relays for data, port mapping and IPv6 candidates do not exist yet.
//   - The MTU of a path is not probed: see package tunnel for the overhead that the inner MTU must leave.
package session
