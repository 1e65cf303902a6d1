package session

import (
	"errors"
	"sync"
	"time"

	"omegatun/session/tunnel"
)

// sendControl sends one control datagram along r.
func (l *link) sendControl(r *route, c tunnel.Control) {
	plain := c.Append(make([]byte, 0, pingSize))
	if c.Kind == tunnel.Ping {
		plain = append(plain, make([]byte, pingSize-tunnel.Overhead-len(plain))...)
	}
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
		n, bytes, err := t.fill(l, next, finish, int(r.limit.Load()))
		more = n > 0 && err == nil
		if len(t.datagrams) > 0 {
			sendErr := r.sock.SendBatch(t.datagrams, r.remote)
			if sendErr != nil && l.refusedMTU(r, sendErr, time.Now()) {
				sendErr = nil // lost on the way, like any packet
			}
			err = errors.Join(err, sendErr)
			if t.longest > mtuFloor && !r.large.Load() {
				r.large.Store(true)
			}
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
	longest   int // bytes of the longest of them
	sealer    tunnel.Sealer
}

const (
	trainSize    = 128 << 10 // bytes of datagrams; two trains as the kernel takes them
	trainPackets = 128
)

var trains = sync.Pool{New: func() any { return new(train) }}

// reset empties the train.
func (t *train) reset() {
	if t.arena == nil {
		t.arena = make([]byte, 0, trainSize+maxDatagram)
	}
	t.arena, t.datagrams, t.longest = t.arena[:0], t.datagrams[:0], 0
}

// fill seals packets until the train is full or there are no more. It returns how many, and their bytes. Those that make
// datagrams of more than limit bytes are divided; limit 0: none are.
func (t *train) fill(l *link, next func(int, bool) ([]byte, bool), finish bool, limit int) (packets, size int, err error) {
	t.reset()
	if err := l.epoch.Begin(&t.sealer); err != nil {
		return 0, 0, err
	}
	defer t.sealer.End()
	for len(t.arena) < trainSize && len(t.datagrams) < trainPackets {
		b, unfinished := next(plaintextRoom, finish)
		if b == nil {
			break
		}
		from := plaintextRoom
		packets++
		size += len(b) - from
		if unfinished {
			from -= tunnel.UnfinishedHeader
			tunnel.AppendUnfinished(b[:from])
		}
		if limit > 0 && len(b)-from+tunnel.Overhead > limit {
			err = t.sealParts(b, from, limit, l.parts.Add(1))
		} else {
			err = t.seal(b[from:])
		}
		if err != nil {
			return packets, size, err
		}
	}
	return packets, size, nil
}

func (t *train) seal(plain []byte) (err error) {
	start := len(t.arena)
	if t.arena, err = t.sealer.Seal(t.arena, plain); err != nil {
		return err
	}
	d := t.arena[start:]
	t.datagrams = append(t.datagrams, d)
	t.longest = max(t.longest, len(d))
	return nil
}

// sealParts seals the plaintext b[from:] in parts whose datagrams have at most limit bytes. The header of each is written over
// what is before it in b, where there is room for the first.
func (t *train) sealParts(b []byte, from, limit int, id uint32) error {
	size := len(b) - from
	count := tunnel.Parts(size, limit)
	if count == 0 {
		return t.seal(b[from:]) // too long for any number of parts: it will not arrive
	}
	for i := range count {
		p := tunnel.Part{ID: id, Index: i, Count: count, Total: size}
		first, last := p.Range()
		p.Put(b[from+first-tunnel.PartHeader:])
		if err := t.seal(b[from+first-tunnel.PartHeader : from+last]); err != nil {
			return err
		}
	}
	return nil
}

// maxDatagram is more than what the largest packet becomes.
const maxDatagram = 65535 + tunnel.UnfinishedHeader + tunnel.MaxParts*(tunnel.Overhead+tunnel.PartHeader)
