// Package udx implements UDX, the transport that HyperDHT peers speak over UDP: reliable streams, and unordered
// messages beside them, with many streams on a few sockets.
//
// Every packet starts with a 20-byte header, little-endian:
//
//	|     0xff      |   version 1   |     flags     |    offset     |  offset: bytes between header and payload
//	|                           stream id                           |  the receiver's id for the stream
//	|                        receive window                         |  bytes
//	|                              seq                              |  counts packets, not bytes
//	|                              ack                              |  the next seq expected from the peer
//
// Both sides learn the other's stream id and address by other means, before: there is no handshake, and nothing
// is authenticated. What runs above must not trust a single byte of it.
//
// A [Mux] owns the table of stream ids of one host. It opens no socket: whoever does hands it the datagrams
// that start with ff 01, and gives it a [Socket] to send with.
//
// # How it works
//
// A [Stream] is three values under one lock: a sender (loss recovery, congestion control, pacing, MTU search), an
// assembly of what arrives, and a policy for acknowledgements. They are told the time and never look at a clock or a
// socket. Whoever changes something that makes a packet due (Receive, Write, a timer) starts a goroutine that sends
// until nothing is due any more and ends. Nothing is sent and no callback is made with a lock held. An idle stream has
// neither goroutine nor timer, unless our direction has ended and the peer's has not: nothing would show then that the peer
// is gone, so if it is silent it is asked for a sign of life.
//
// What goes out is the reference implementation's protocol to the letter. How it is timed is not prescribed and differs:
// acknowledgements are gathered for up to a millisecond, timeouts start at 300 ms, sizes are probed in larger steps,
// congestion control also tells overrun queues from loss by chance, and makes room for other streams that give way as
// well, the end of a flight is probed three times before a timeout, and a closed stream answers for 30 s more. A peer
// whose packets come twice again and again is told which, in blocks below what is acknowledged, over which the
// reference passes: so the sender learns how far packets overtake each other.
//
// # Paths that change
//
// Nothing in a packet is authentic, so a stream does not follow a peer that changes its address: its packets are shown
// to Accept, and whoever can authenticate it (a secret stream's next message, a sealed datagram) calls ChangeRemote. The
// round trip and the size of packets are then measured anew; what the path delivers is assumed to be the same
// until it shows otherwise, and what was lost on the old path is sent on the new one. The peer needs to be told by
// nobody: it takes packets from the old and the new address once its own layer above has called ChangeRemote.
//
// A path may come to carry less than before and not say so. After two timeouts a heartbeat tells whether only large
// packets vanish. Then packets are cut anew if the peer has received none of those in flight; else their numbers are
// settled, and the network is asked to cut them up (FragmentSocket).
//
// # Limitations
//
//   - Nothing in a packet is authentic. Whoever sees a stream's packets and forges their source can end it (DESTROY; END, which cuts
//     it short), have data taken for delivered (acknowledgements), or spoil it, which the layer above notices; from any other
//     source, too, while Accept still lets in whoever knows the id, as it must until the peer has been heard.
//   - Messages are not paced, and not held back by congestion.
//   - Relaying between two streams is not done here, but in package relay, without a stream.
//   - Paths above 1,500 bytes are not searched for.
//   - Two streams that overrun a queue of a quarter of a millisecond take that loss for chance, and lose up to 40 %.
//   - Where a fifth of all packets is lost and a quarter overtakes others, on paths of 1 ms, a stream may come down to a few
//     packets in flight and stay there.
//
// Source: holepunchto/libudx (src/udx.c, src/udx_bbr.c), and the behaviour of udx-native 1.21.3.
package udx
