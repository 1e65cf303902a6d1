package dht

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

const (
	outboxBytes   = 16 << 10 // memory that an outbox keeps for the next use, as far as it needed as much
	outboxEffects = 256
)

// effect is something to do once the node's mutex is free: send a datagram, or call.
type effect struct {
	sock Socket
	to   netip.AddrPort
	b    []byte
	call func()
}

// outbox collects what is to be done once a node's mutex is free, and lends memory for it, so that a request is
// answered without allocating. Nodes have one only while they have something to do.
type outbox struct {
	effects []effect
	arena   []byte           // what is sent, one after the other; older parts of it may lie in arrays that it outgrew
	value   []byte           // scratch: the value of an answer
	nodes   []*node          // scratch: nodes that an answer names
	in      incoming         // scratch: the request being answered
	answer  answer           // scratch: the answer to a request of ours
	closer  []netip.AddrPort // scratch: the nodes that it names

	received []datagram // of a Burst

	datagrams [][]byte // of a run for SendTo
	to        []netip.AddrPort
}

var outboxes = sync.Pool{New: func() any { return new(outbox) }} //nolint:gochecknoglobals // a cache

// box returns the node's outbox. n.mu is held.
func (n *Node) box() *outbox {
	if n.out == nil {
		n.out = outboxes.Get().(*outbox)
	}
	return n.out
}

// sendResponse sends r from s once the mutex is free. It is encoded at once.
func (n *Node) sendResponse(s Socket, r *response, to netip.AddrPort) {
	o := n.box()
	at := len(o.arena)
	o.arena = r.append(o.arena)
	n.sendLater(s, o.arena[at:len(o.arena):len(o.arena)], to)
}

// sendRequest is sendResponse for a request that nobody waits for.
func (n *Node) sendRequest(s Socket, r *request, to netip.AddrPort) {
	o := n.box()
	at := len(o.arena)
	o.arena = r.append(o.arena)
	n.sendLater(s, o.arena[at:len(o.arena):len(o.arena)], to)
}

// sendLater sends b from s once the mutex is free. b must not change until then.
func (n *Node) sendLater(s Socket, b []byte, to netip.AddrPort) {
	n.stats.Sent++
	n.stats.SentBytes += uint64(len(b))
	o := n.box()
	o.effects = append(o.effects, effect{sock: s, to: to, b: b})
}

// callLater calls f once the mutex is free.
func (n *Node) callLater(f func()) {
	o := n.box()
	o.effects = append(o.effects, effect{call: f})
}

// scratch returns what encode appends, in memory that is good until the next call.
func (n *Node) scratch(encode func([]byte) []byte) []byte {
	o := n.box()
	o.value = encode(o.value[:0])
	return o.value
}

// do does in order what o has collected, and leaves it empty. The node's mutex is free.
func (o *outbox) do(failed func(to netip.AddrPort, err error)) {
	for left := o.effects; len(left) > 0; {
		e := &left[0]
		if e.call != nil {
			e.call()
			left = left[1:]
			continue
		}
		run := 1
		for run < len(left) && left[run].call == nil && left[run].sock == e.sock {
			run++
		}
		o.send(left[:run], failed)
		left = left[run:]
	}
	o.reset()
}

// send sends a run of datagrams that leave by the same socket. Those to one address keep their order.
func (o *outbox) send(run []effect, failed func(to netip.AddrPort, err error)) {
	if s, ok := run[0].sock.(BatchSocket); ok {
		o.group(run)
		if err := s.SendTo(o.datagrams, o.to); err != nil {
			failed(run[0].to, err)
		}
		clear(o.datagrams)
		o.datagrams, o.to = o.datagrams[:0], o.to[:0]
		return
	}
	for _, e := range run {
		if err := e.sock.Send(e.b, e.to); err != nil {
			failed(e.to, err)
		}
	}
}

// groupSlots is how many addresses group remembers. Of two with the same hash each may be taken for a new one each time.
const groupSlots = 128

// group gathers the datagrams of a run for SendTo, those to one address one after the other, as the kernel can take
// several of a size as one.
func (o *outbox) group(run []effect) {
	for len(run) > burstSize {
		o.group(run[:burstSize])
		run = run[burstSize:]
	}
	var (
		last [groupSlots]uint8 // of the datagrams to an address of that hash, the latest, plus 1
		next [burstSize]uint8  // the next one to the same address, plus 1
		led  [burstSize]bool   // it is the next one of another
	)
	for i := range run {
		a := run[i].to
		ip := a.Addr().As16()
		h := (binary.LittleEndian.Uint32(ip[12:]) ^ uint32(a.Port())<<12) * 0x9e3779b1 >> 25
		if at := last[h]; at != 0 && run[at-1].to == a {
			next[at-1], led[i] = uint8(i+1), true
		}
		last[h] = uint8(i + 1)
	}
	for i := range run {
		if led[i] {
			continue
		}
		for at := i + 1; at != 0; at = int(next[at-1]) {
			o.datagrams, o.to = append(o.datagrams, run[at-1].b), append(o.to, run[at-1].to)
		}
	}
}

// reset forgets everything, and memory beyond what is usually needed.
func (o *outbox) reset() {
	clear(o.effects)
	clear(o.received)
	o.received = o.received[:0]
	clear(o.nodes[:cap(o.nodes)])
	o.in, o.answer = incoming{}, answer{}
	o.effects, o.arena, o.value, o.nodes = o.effects[:0], o.arena[:0], o.value[:0], o.nodes[:0]
	if cap(o.arena) > outboxBytes || cap(o.value) > outboxBytes || cap(o.effects) > outboxEffects ||
		cap(o.closer) > outboxEffects {
		*o = outbox{}
	}
}
