// Package protomux runs channels over one stream of messages, as HyperDHT programs do over their encrypted streams.
//
// Each message of the stream is one frame. Numbers are of variable length (package compact):
//
//	uint channel, uint type, rest
//
//	channel 0, for the stream's own affairs:
//	  type 0  batch    uint channel, then items: uint length > 0, and the frame without its channel;
//	                   or a length of 0 and a uint: the channel of the items that follow
//	  type 1  open     uint id, string protocol, buffer name, and the rest: handshake
//	  type 2  reject   uint id that the receiver of this frame has opened
//	  type 3  close    uint id that the sender of this frame has opened
//	channel n > 0: a message of channel n of the sender; its type is a number that the protocol gives a meaning
//
// Each side numbers its channels itself, from 1. Both sides open: a channel exists once there are two opens with the
// same protocol and name, and its opener may send without waiting for the other.
//
// A [Mux] has one goroutine that reads, and another while something is to be written. Frames that pile up behind
// a slow write leave together, as a batch.
//
//	m := protomux.New(conn, protomux.Config{})
//	c, err := m.Open("chat", nil, nil)             // tells the peer, and returns
//	err = c.Send(ctx, 0, []byte("hello"))          // need not wait for the peer to open as well
//	typ, payload, err := c.Receive(ctx)
//
// # What a peer may cause
//
// A frame that breaks the protocol ends the stream. The number of channels is bounded, and so are the bytes that
// wait to be received: beyond, the Mux reads no further until some are taken, and all channels wait.
//
// # Limitations
//
//   - A channel has one name for its protocol; the reference's aliases, which are not on the wire, are missing.
//   - One slow receiver stops all channels of the stream, as in the reference: the protocol knows no flow control.
//   - Batches within batches, which nobody sends, are an error.
//
// Source: npm protomux 3.12.1.
package protomux
