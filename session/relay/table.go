package relay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/session/udx"
)

const (
	maxEarly      = 12         // packets kept for a client that has not been heard
	maxEarlyBytes = 16 << 10   // bytes of them
	maxRun        = 64         // datagrams that are sent together
	idOffset      = 4          // of the stream id in a packet
	flagsOffset   = 2          // of the flags
	magic         = "\xff\x01" // what a packet starts with
)

// link carries packets between two clients. Its fields are set when it is made, but those below mu.
type link struct {
	token Token
	sides [2]side // responder, initiator

	mu     sync.Mutex // guards the fields below, and those of the sides that say so; taken before bucket.mu
	seen   time.Time  // the last packet that was forwarded or kept
	closed bool
}

// side is the relay's stream towards one client.
type side struct {
	link    *link
	other   *side
	owner   *session
	id      udx.ID // which packets from the client carry
	remote  udx.ID // which packets to the client must carry
	release func() // gives id back
	sock    udx.Socket
	host    netip.Addr // where the client must be heard from at first; invalid: anywhere

	addr       netip.AddrPort // where the client is; invalid until it is heard; guarded by link.mu
	early      [][]byte       // for the client, from before then; guarded by link.mu
	earlyBytes int            // guarded by link.mu
}

// table finds the side that a packet is for. It is safe for concurrent use.
type table struct {
	mu    sync.RWMutex // guards sides
	sides map[udx.ID]*side

	counters counters
}

type counters struct {
	packets, bytes                atomic.Uint64
	foreign, limited, undelivered atomic.Uint64
}

// add makes a link known, unless one of its ids is taken.
func (t *table) add(l *link) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sides[l.sides[0].id] != nil || t.sides[l.sides[1].id] != nil || l.sides[0].id == l.sides[1].id {
		return false
	}
	for i := range l.sides {
		t.sides[l.sides[i].id] = &l.sides[i]
	}
	return true
}

// remove forgets a link and what it keeps.
func (t *table) remove(l *link) {
	t.mu.Lock()
	for i := range l.sides {
		if t.sides[l.sides[i].id] == &l.sides[i] {
			delete(t.sides, l.sides[i].id)
		}
	}
	t.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for i := range l.sides {
		l.sides[i].early = nil
	}
}

// idle reports whether nothing was forwarded since a time.
func (l *link) idle(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen.Before(since)
}

// find returns the side that a datagram is for, nil if it is for none.
func (t *table) find(b []byte) *side {
	if len(b) < udx.HeaderSize || string(b[:2]) != magic {
		return nil
	}
	id := udx.ID(binary.LittleEndian.Uint32(b[idOffset:]))
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sides[id]
}

// verdict says what becomes of a packet.
type verdict struct {
	forward bool
	to      netip.AddrPort // where to, from the socket of the other side
	early   [][]byte       // packets to send to its sender before
	destroy bool           // the link ends after it
}

// judge decides about a packet for a side, and rewrites its id.
func (t *table) judge(e *side, s udx.Socket, b []byte, from netip.AddrPort, now time.Time) (v verdict) {
	l, o := e.link, e.other
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	l.mu.Lock()
	defer l.mu.Unlock()
	heard := e.addr.IsValid()
	switch {
	case l.closed:
		return v
	case s != e.sock || from.Port() == 0, heard && from != e.addr, !heard && e.host.IsValid() && from.Addr() != e.host:
		t.counters.foreign.Add(1)
		return v
	case !e.owner.account.bucket.take(len(b), now):
		t.counters.limited.Add(1)
		return v
	}
	if !heard {
		e.addr = from
		v.early, e.early = e.early, nil
	}
	l.seen = now
	binary.LittleEndian.PutUint32(b[idOffset:], uint32(o.remote))
	v.destroy = udx.Flags(b[flagsOffset])&udx.FlagDestroy != 0
	switch {
	case o.addr.IsValid():
		v.forward, v.to = true, o.addr
		t.counters.packets.Add(1)
		t.counters.bytes.Add(uint64(len(b)))
	case len(o.early) < maxEarly && o.earlyBytes+len(b) <= maxEarlyBytes:
		o.early = append(o.early, bytes.Clone(b))
		o.earlyBytes += len(b)
	default:
		t.counters.undelivered.Add(1)
	}
	return v
}

// Batch forwards datagrams that were received together. It belongs to one goroutine.
type Batch struct {
	server *Server
	now    time.Time  // of the datagrams; zero: not looked at
	sock   udx.Socket // of the run
	to     netip.AddrPort
	run    [][]byte // datagrams for one destination, equally long except that the last may be shorter
}

// NewBatch returns an empty Batch for a goroutine that receives. It needs not be closed.
func (s *Server) NewBatch() *Batch { return &Batch{server: s, run: make([][]byte, 0, maxRun)} }

// Add handles a datagram that arrived on a socket. It reports whether it was for a link: then nobody else should
// look at it, and it must stay as it is until Flush. Its stream id is changed. Add may send earlier datagrams, and
// waits while a socket is full. It does not allocate, except for the first few packets of a link.
func (k *Batch) Add(s udx.Socket, b []byte, from netip.AddrPort) bool {
	t := &k.server.table
	e := t.find(b)
	if e == nil {
		return false
	}
	if k.now.IsZero() {
		k.now = time.Now()
	}
	v := t.judge(e, s, b, from, k.now)
	if len(v.early) > 0 {
		k.send()
		for _, p := range v.early {
			t.counters.packets.Add(1)
			t.counters.bytes.Add(uint64(len(p)))
			_ = e.sock.Send(p, from) // as good as lost on the way
		}
	}
	if v.forward {
		k.add(e.other.sock, b, v.to)
	}
	if v.destroy {
		k.send()
		k.server.end(e.link, "destroyed")
	}
	return true
}

// add puts a datagram into the run, or sends the run and begins another.
func (k *Batch) add(s udx.Socket, b []byte, to netip.AddrPort) {
	if n := len(k.run); n > 0 && (n == maxRun || k.sock != s || k.to != to || len(b) > len(k.run[0])) {
		k.send()
	}
	k.sock, k.to = s, to
	k.run = append(k.run, b)
	if len(b) < len(k.run[0]) {
		k.send()
	}
}

// send sends the run.
func (k *Batch) send() {
	if len(k.run) == 0 {
		return
	}
	if bs, ok := k.sock.(udx.BatchSocket); ok && len(k.run) > 1 {
		_ = bs.SendBatch(k.run, k.to) // as good as lost on the way
	} else {
		for _, b := range k.run {
			_ = k.sock.Send(b, k.to) // as above
		}
	}
	clear(k.run)
	k.run, k.sock = k.run[:0], nil
}

// Flush sends what is left.
func (k *Batch) Flush() {
	k.send()
	k.now = time.Time{}
}

// Receive handles a datagram by itself: it is Add and Flush of a Batch. It may be called from any goroutine.
func (s *Server) Receive(sock udx.Socket, b []byte, from netip.AddrPort) bool {
	k := s.batches.Get().(*Batch)
	defer s.batches.Put(k)
	known := k.Add(sock, b, from)
	k.Flush()
	return known
}
