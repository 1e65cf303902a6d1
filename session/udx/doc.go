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
// Source: holepunchto/libudx (src/udx.c, src/udx_bbr.c), and the behaviour of udx-native 1.21.3.
package udx
