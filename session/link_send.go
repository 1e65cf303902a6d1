package session

import (
	"errors"
	"sync"
	"time"

	"omegatun/session/tunnel"
)

// sendControl sends one control datagram along r.
func (l *link) sendControl(r *route, c tunnel.Control) {
	plain := c.Append(make([]byte, 0, 64))
	b, err := l.epoch.Seal(make([]byte, 0, len(plain)+tunnel.Overhead), plain)
	if err == nil {
		err = r.sock.Send(b, r.remote)
	}
	if err != nil {
		l.log.Debug("control datagram not sent", "remote", r.remote, "error", err)
	}
}

// send seals the IP packets that next returns, as [Peer.SendFrom] says, and sends them on the path in use.
func (l *link) send(next func(offset int, finish bool) (b []byte, unfinished bool)) (packets, size int, err error) {
	r := l.cur.Load()
	if r == nil {
		return 0, 0, ErrNotConnected
	}
	t := trains.Get().(*train)
	defer trains.Put(t)
	l.sent.Store(time.Now().UnixNano())
	finish := l.epoch.Params().RemoteFeatures&tunnel.FeatureUnfinished == 0
	for more := true; more; {
		n, bytes, err := t.fill(l.epoch, next, finish)
		more = n > 0 && err == nil
		if len(t.datagrams) > 0 {
			err = errors.Join(err, r.sock.SendBatch(t.datagrams, r.remote))
		}
		packets, size = packets+n, size+bytes
		if err != nil {
			return packets, size, err
		}
	}
	return packets, size, nil
}

// train is the room in which a batch of packets is sealed, one behind the other. It has a fixed size, so that it stays
// in the processor's cache, and is sent when it is full.
type train struct {
	arena     []byte
	datagrams [][]byte
	sealer    tunnel.Sealer
}

const (
	trainSize    = 128 << 10 // bytes of datagrams; two trains as the kernel takes them
	trainPackets = 128
)

var trains = sync.Pool{New: func() any { return new(train) }}

// fill seals packets until the train is full or there are no more. It returns how many, and their bytes.
func (t *train) fill(s *tunnel.Session, next func(int, bool) ([]byte, bool), finish bool) (packets, size int, err error) {
	const offset = tunnel.UnfinishedHeader
	if t.arena == nil {
		t.arena = make([]byte, 0, trainSize+maxDatagram)
	}
	t.arena, t.datagrams = t.arena[:0], t.datagrams[:0]
	if err := s.Begin(&t.sealer); err != nil {
		return 0, 0, err
	}
	defer t.sealer.End()
	for len(t.arena) < trainSize && len(t.datagrams) < trainPackets {
		b, unfinished := next(offset, finish)
		if b == nil {
			break
		}
		plain := b[offset:]
		packets++
		size += len(plain)
		if unfinished {
			tunnel.AppendUnfinished(b[:0])
			plain = b
		}
		start := len(t.arena)
		if t.arena, err = t.sealer.Seal(t.arena, plain); err != nil {
			return packets, size, err
		}
		t.datagrams = append(t.datagrams, t.arena[start:])
	}
	return packets, size, nil
}

// maxDatagram is more than the largest datagram that can be sealed.
const maxDatagram = 65535 + tunnel.Overhead + tunnel.UnfinishedHeader
