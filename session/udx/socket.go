package udx

import "net/netip"

// Socket sends datagrams from one UDP port. Values are compared with ==, so it should be a pointer. Its methods are
// safe for concurrent use.
type Socket interface {
	// Send sends b to an address and does not keep b. It may block while the socket's buffer is full. Streams
	// take a failed send for a lost packet.
	Send(b []byte, to netip.AddrPort) error
}

// BatchSocket is a Socket that can send many datagrams at once.
type BatchSocket interface {
	Socket

	// SendBatch sends the datagrams, which are equally long except that the last may be shorter. It keeps
	// neither b nor what is in it.
	SendBatch(b [][]byte, to netip.AddrPort) error
}

// FragmentSocket is a Socket that can let the network cut up a datagram which is too large for the path. A stream asks for
// that only if a packet was cut for a larger path than there is now, and its place in the stream cannot change any more.
type FragmentSocket interface {
	Socket

	// SendFragments sends b without forbidding fragments, and does not keep it.
	SendFragments(b []byte, to netip.AddrPort) error
}

// local is what a Socket may implement so that Stream.LocalAddr knows its address.
type local interface{ LocalAddr() netip.AddrPort }
