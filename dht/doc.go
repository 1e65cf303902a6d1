// Package dht is a node of HyperDHT: it finds peers by their public keys, announces our own, and passes on the
// first messages between peers that cannot reach each other yet. It also lends a hand to the network: it
// answers for others, and stores and forwards for them.
//
// Everything is a request or a response in one UDP datagram, little-endian ([] marks optional fields, announced
// by flags; "uint" is the variable length of package compact):
//
//	request   03 flags tid(2) to(6) [id 32] [token 32] command(uint) [target 32] [value: uint length, bytes]
//	response  13 flags tid(2) to(6) [id 32] [token 32] [closer: uint count, 6 each] [error uint] [value]
//
//	flags     1 id, 2 token, 4 command of the RPC layer / closer nodes, 8 target / error, 16 value
//	to        the receiver as the sender sees it: so nodes learn their public address
//	id        only of members, and from their server socket: BLAKE2b-256 of their address, which the receiver checks
//	token     handed out in answers, and wanted by commands that store: proof that the sender receives at its host
//
// A node has two sockets. Requests leave by the client socket as long as the node may be firewalled. Nothing
// leaves by the server socket until then, so if others can reach it, anyone can, and the node may become a
// member ("persistent"): it shows its id, others keep it in their routing tables, and it stores for them.
//
// A server announces itself to the six members whose ids are nearest to the hash of its key, and pings three of
// them every three seconds, the others every fifteen, so that its NAT lets their messages in. A client finds these members by asking ever
// nearer ones, and sends its first Noise message through one of them:
//
//	client ─FROM_CLIENT→ member ─FROM_RELAY→ server ─FROM_SERVER→ member ─response→ client
//
// The member keeps no state for this. The same way lead the messages that prepare a hole punch.
//
// Queries, the routing table, the NAT sampler, the announcer, caches and limits are plain values that take the
// time as an argument; [Node] feeds them datagrams and sends what they decide.
//
// # What a stranger can make a node send
//
// A response is at most three times as large as its request, unless the requester proved with a token, or by
// an answer to a request of ours, that it receives at its address; closer nodes are left out as needed: a third of
// those that are named then are the nearest, the others any. The wire format leaves no choice in two cases. The id of a member makes the answer to an 11-byte PING 42 bytes long. And
// the records and values asked for by LOOKUP, MUTABLE_GET and IMMUTABLE_GET cannot be sent in parts: what they
// exceed the limit by is bounded per host, to 32 KiB a second and 256 KiB at once. Forwarded messages grow by at
// most 44 bytes, two addresses and our id, and are bounded per host, too. Our own queries are padded, so that they can be answered in full.
//
// All requests are bounded per host: to 2,000 a second, of which those that store count tenfold. And in the public
// network nothing goes to an address that is not public because a stranger named it; see [Config.Private].
//
// # Crowds
//
// Whoever has many addresses has them in few networks. So a row of the routing table, an answer, and the nodes
// that a query takes for the closest, hold at most one node of a host and two of a network of 256 addresses, as
// long as others want the places; loopback and private addresses are not counted. A server announces itself to
// six nodes of different networks, and each network has one vote on what our public address is.
//
// # Limitations
//
//   - IPv4 only, as the network is.
//   - Timeouts are fixed at one second an attempt; there is no estimate of round-trip times.
//   - Plugin requests (command 10) are refused.
//   - What is stored for others is kept in memory only.
//
// Source: npm hyperdht 6.34.0, dht-rpc 6.27.0.
package dht
