package dht

import "net/netip"

// burstSize is how many datagrams a Burst holds at most.
const burstSize = 64

// Burst hands a node datagrams that arrived together, as one system call brings them: they are handled under one
// lock, at one time, and what is sent in consequence leaves together, see [BatchSocket]. It belongs to one
// goroutine, and may be used again after Flush. The zero value is not usable: see [Node.NewBurst].
type Burst struct {
	n   *Node
	out *outbox // holds the datagrams; nil: there are none
}

// datagram is one that came in.
type datagram struct {
	sock Socket
	b    []byte
	from netip.AddrPort
}

// NewBurst returns an empty Burst for n. It takes no memory of its own.
func (n *Node) NewBurst() Burst { return Burst{n: n} }

// Receive takes in a datagram, as [Node.Receive] does, but leaves it for Flush. b must not change until then. A
// Burst that is full is flushed first.
func (u *Burst) Receive(s Socket, b []byte, from netip.AddrPort) {
	if !isPacket(b, from) {
		return
	}
	if u.out != nil && len(u.out.received) == burstSize {
		u.Flush()
	}
	if u.out == nil {
		u.out = outboxes.Get().(*outbox)
	}
	u.out.received = append(u.out.received, datagram{sock: s, b: b, from: from})
}

// Flush has the node handle what was received, in that order. It does not wait for anything.
func (u *Burst) Flush() {
	if u.out == nil {
		return
	}
	n, out := u.n, u.out
	u.out = nil
	n.mu.Lock()
	if o := n.out; o != nil { // requests are being gathered: they leave with what follows
		o.received, out.received = out.received, o.received
		outboxes.Put(out)
		out = o
	}
	n.out = out
	now := n.clock.Now()
	for _, d := range out.received {
		n.receive(now, d.sock, d.b, unmap(d.from))
	}
	n.unlock()
}
