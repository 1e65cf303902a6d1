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
// neither goroutine nor timer.
//
// What goes out is the reference implementation's protocol to the letter. How it is timed is not prescribed and differs:
// acknowledgements are gathered for up to a millisecond, timeouts start at 300 ms, sizes are probed in larger steps,
// congestion control also tells overrun queues from loss by chance, and a closed stream answers for 30 s more.
//
// # Limitations
//
//   - A packet cut for one path size keeps it: if a path shrinks below what was found to pass, packets in flight are
//     lost for good and the stream times out, unless ChangeRemote brings a path that carries them.
//   - The stream does not follow a peer that changes its address. Its packets are shown to Accept, and whoever can
//     authenticate it calls ChangeRemote.
//   - Messages are not paced, and not held back by congestion.
//   - Relaying between two streams is not done here.
//   - Paths above 1,500 bytes are not searched for.
//
// Source: holepunchto/libudx (src/udx.c, src/udx_bbr.c), and the behaviour of udx-native 1.21.3.
package udx
