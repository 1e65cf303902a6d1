// Package session connects machines by public key: it owns the UDP sockets, runs the DHT node on them,
// finds a peer, shakes hands, opens a path, and carries IP packets and streams over it.
//
//	  Dial, Listen               AddPeer, Peer.Send, Config.Inbound
//	       │                                  │
//	secretstream.Conn ◀── control ───────── Peer   one per remote key
//	       │                                  │
//	  udx.Stream ◀──────── link ────────▶ tunnel.Session   one per handshake
//	       │                │                 │
//	       │        dht.Node, punch           │
//	       └───────────── Socket ─────────────┘   server, client, one per punching attempt
//
// A datagram that arrives on any socket is told apart by its first bytes:
//
//	length 0 or 1   a probe, for the punching attempt that owns the socket
//	bf              a beacon's handshake (package beacon)
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
// if both sides dialled at the same time, the one whose initiator has the lower key. The other one then ends as soon as both sides have
// said that they send nothing more over it.
//
// # The next time
//
// The socket of a punched path is shared by all links that use it, and kept for 25 s after the last. Whoever connects to a peer again
// asks it there first, in one round trip and without the DHT; then the nodes that led to it before, and last the DHT. In a network of fewer
// than 20 nodes each of them keeps every announcement, so that the nearest can be asked without looking for them.
//
// # Streams that move
//
// The stream of a tunnel session follows the tunnel's path. A plain one follows its peer to another address once the peer has proved
// itself there with a MAC under the keys of the handshake; packets from elsewhere are dropped until then. npm hyperdht has no such
// thing, and ignores it.
//
// # IPv6 and mapped ports
//
// Both sides of a tunnel name their IPv6 addresses, and the port that their router forwards (package portmap), in the handshake and
// again in the control channel whenever they change. They are candidates like any other. Of two direct paths, one of each family, the one with
// the shorter round trip is used, if it is shorter by an eighth and 2 ms; the other stands by.
//
// # Relays
//
// Either side may name a relay in the handshake: one of [Config].RelayThrough, or a listed peer that is connected and offers to relay.
// Both meet there (package relay) while they look for a direct path; a moment later if one of them is open to everybody, as it mostly is for
// the other, too. For a plain stream this is what every HyperDHT program does. A
// tunnel gets a UDX stream of its own at the relay, whose messages carry what is sent along a path elsewhere: tunnel datagrams,
// and the packets of the control stream. So a relayed path is one candidate more, the least of all: it is probed like the others, data flows
// on it if it is the first that answers, and whatever is better takes over. It is kept while there is traffic, in case the
// direct path fails; that one may then come back after 40 s.
//
// A link that stays relayed looks for a direct path again with another handshake, after 10 s, 30 s and then every 45 s; more rarely
// if it is idle, if ports must be guessed, or if the NATs are hopeless; and soon after the network has changed on either side.
//
// # The control channel
//
// Where the two sides agree on a tunnel, the stream of the same handshake carries a protomux channel named "omegatun/1". It is started
// over the first path that works and follows the path in use. Its messages:
//
//	0 hello      what the sender announces about itself: see [Announced]; first, and once
//	1 change     the fields of it that have changed
//	2 goodbye    uint code: the sender drops the link
//	3 rekey      initiator to responder: a request for new keys (package tunnel)
//	4 rekeyed    responder to initiator: the answer
//
// An announcement is a sequence of fields, each uint tag and buffer:
//
//	1 version of the program, 2 name: text
//	3 virtual addresses: each u8 family (4, 6), octets
//	4 mtu: uint
//	5 endpoints: each u8 kind (0 local, 1 public, 2 mapped), u8 family, octets, u16 port
//	6 relays: each public key 32
//	7 flags: uint; 1 relays for the receiver
//
// Messages and tags that are not known are ignored. What a peer announces is shown and never applied; its endpoints are probed.
// Keys are replaced at once after connecting and then every two minutes. If the stream fails the tunnel goes on, until another
// handshake has taken its place or its keys are three minutes old. An idle stream sends nothing.
//
// # Path MTU
//
// The largest datagram that passes is found for each path that is used, with padded probes (RFC 8899) and without ICMP, and
// kept while another path is in use. While large datagrams are sent it is confirmed twice a second; if small probes are answered
// and large ones are not, the search begins anew at once. Ten minutes later larger sizes are tried again. Packets that are too long,
// among them those of the control stream, travel in parts meanwhile; what a path carries whole is [Peer.MTU].
//
// # Local networks
//
// While a listed peer has no connection over a local network, beacons go to a multicast group on every interface, by which only
// that peer recognises us: see package beacon. Who hears one shakes hands straight with the sender's address: no DHT is
// needed. A connection that exists tries the address instead. A peer that is connected costs no beacons, one that is missed about two
// a minute.
//
// # Explanation
//
// Each attempt to connect keeps an account of its stages, NAT classes, outcome and remedy: see [Peer.Attempts].
//
// # Goroutines
//
// One a socket receives, and runs everything that an arriving datagram causes up to and including
// Config.Inbound. One hears each multicast group, and one sends beacons. One a Host looks after the links twice a second. An attempt to connect and a handshake being
// answered have one each, while they last; so has the control channel of a connected peer. A
// peer that is not connected has none.
// Close waits for all of them.
//
// # Limitations
//
//   - Peers are found over IPv4 only, as HyperDHT has it: see [Host.IPv6Only]. Plain streams are IPv4 altogether.
//   - A relayed path does not survive a change of our own address: another handshake takes its place.
//   - Datagrams of a relayed path are received one by one.
package session
