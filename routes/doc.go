// Package routes knows which virtual address belongs to which public key, and carries packets accordingly.
//
// A key has two addresses that anyone can compute from it without talking to anyone:
//
//	h = BLAKE2b-256( "omegatun address 1" || public key )
//
//	IPv6  fd6f:6d65:6761 | h[0:10]                     in Block6, fd6f:6d65:6761::/48
//	IPv4  10.64.0.0      + low 22 bits of h[10:13]     in Block4, 10.64.0.0/10; big-endian
//
// The low 22 bits are never all zero, which names the block itself, and never all one, which is its broadcast
// address: the first is replaced by 1, the second by 2^22-2.
//
// 80 bits of a hash do not collide by accident. 22 bits do, so IPv4 is a convenience: [Plan4] finds the addresses
// that cannot be used here and says why.
//
// [Table] maps prefixes to peers. [Forwarder] moves packets between a [Device] and the [Session] of each peer:
//
//	           Run                                      Deliver
//	Device ──▶ whose destination? ──▶ Session    Device ◀── whose source? ◀── Session
//	           source ours?                                 destination ours?
//
// A packet is sent to a peer only if its destination is one of that peer's prefixes, and accepted from a peer only
// if its source is. Everything else is dropped and counted by [Reason].
//
// Limitations: an IPv4 packet's options and IPv6 extension headers are carried, not looked at. A peer can reach only
// this host's own addresses, not networks behind it. Path MTU messages are made for packets from this host; fragments
// are carried like any other packet.
package routes
