package udx

import (
	"net/netip"
	"time"
)

const (
	// lingerTime: a peer gives up 13 s after the first packet that got no answer; its packets may be late as well.
	lingerTime = 30 * time.Second

	maxLingering = 16384 // closed streams remembered; beyond, the oldest is forgotten
)

// lingering answers for a stream that is closed. If the last acknowledgement was lost, the peer asks again and must
// not be left to conclude that the end of its data never arrived; if a DESTROY was lost, it is told again.
type lingering struct {
	paths  [2]path // present and previous
	header Header  // what to answer: STATE or DESTROY
	until  instant
}

// answer replies to a packet that asks for an acknowledgement and comes from the peer.
func (l lingering) answer(sock Socket, h Header, from netip.AddrPort) {
	if h.Flags&(FlagData|FlagEnd|FlagHeartbeat) == 0 {
		return
	}
	for _, p := range l.paths {
		if p.sock == sock && p.addr == from {
			var b [HeaderSize]byte
			l.header.put(b[:])
			_ = p.sock.Send(b[:], p.addr) // the peer asks again if it is lost
			return
		}
	}
}

// linger is the set of streams that are answered for. It is part of a Mux and guarded by its lock.
type linger struct {
	entries map[ID]lingering
	order   []ID // oldest first
	timer   Timer
}

func (l *linger) add(m *Mux, id ID, e lingering) {
	if len(l.order) >= maxLingering {
		delete(l.entries, l.order[0])
		l.order = l.order[1:]
	}
	e.until = m.now().add(lingerTime)
	l.entries[id] = e
	l.order = append(l.order, id)
	if l.timer == nil {
		l.timer = m.afterFunc(lingerTime, m.expire)
	} else if len(l.order) == 1 {
		l.timer.Reset(lingerTime)
	}
}

// expire forgets what is old enough, and sets the timer for the next.
func (m *Mux) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	l, now := &m.linger, m.now()
	for len(l.order) > 0 {
		if until := l.entries[l.order[0]].until; now < until {
			l.timer.Reset(until.sub(now))
			return
		}
		delete(l.entries, l.order[0])
		l.order = l.order[1:]
	}
	l.order = nil
}

func (l *linger) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
	clear(l.entries)
	l.order = nil
}
