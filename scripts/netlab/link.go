//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Impairment says what happens to Ethernet frames on a [Link], in each direction. Shares are from 0 to 1.
type Impairment struct {
	// Loss is the share of frames that vanish.
	Loss float64
	// Duplicate is the share that arrive a second time: half of those at once, half some frames later.
	Duplicate float64
	// Reorder is the share that are overtaken by up to 16 later frames.
	Reorder float64
	// Corrupt is the share of IPv4 UDP datagrams of which one bit of the payload is flipped. The checksum is
	// taken out (zero: none), so that the damage reaches the program.
	Corrupt float64
	// Burst is the chance, per frame, that a row of losses begins, which lasts BurstLength frames on average.
	Burst       float64
	BurstLength int
	// Delay is how long a frame is under way; Jitter is added at random between nothing and all of it. Neither changes the order.
	Delay, Jitter time.Duration
	// MTU is the size in bytes above which IP packets vanish without a word; 0: none do.
	MTU int
	// Down is a cable that is cut.
	Down bool
	// Seed makes the accidents repeatable for the same sequence of frames.
	Seed uint64
}

// LinkStats counts frames of both directions.
type LinkStats struct{ Frames, Lost, Duplicated, Reordered, Corrupted uint64 }

// Link is a cable with accidents: two TAP devices and a goroutine for each direction between them.
type Link struct {
	imp   atomic.Pointer[Impairment]
	done  chan struct{} // closed at the end
	ends  [2]*os.File
	wg    sync.WaitGroup
	stats struct{ frames, lost, duplicated, reordered, corrupted atomic.Uint64 }
}

// Set changes what happens from now on. Seed is not looked at.
func (k *Link) Set(imp Impairment) { k.imp.Store(&imp) }

// Stats returns what happened so far.
func (k *Link) Stats() LinkStats {
	s := &k.stats
	return LinkStats{s.frames.Load(), s.lost.Load(), s.duplicated.Load(), s.reordered.Load(), s.corrupted.Load()}
}

func newLink(a *Net, devA string, b *Net, devB string, imp Impairment) (*Link, error) {
	k := &Link{done: make(chan struct{})}
	k.imp.Store(&imp)
	var err error
	if k.ends[0], err = openTUN(a, devA, unix.IFF_TAP); err != nil {
		return nil, err
	}
	if k.ends[1], err = openTUN(b, devB, unix.IFF_TAP); err != nil {
		return nil, errors.Join(err, k.ends[0].Close())
	}
	k.wg.Go(func() { k.carry(k.ends[0], k.ends[1], rand.New(rand.NewPCG(imp.Seed, 0))) })
	k.wg.Go(func() { k.carry(k.ends[1], k.ends[0], rand.New(rand.NewPCG(imp.Seed, 1))) })
	return k, nil
}

func (k *Link) close() error {
	close(k.done)
	err := errors.Join(k.ends[0].Close(), k.ends[1].Close())
	k.wg.Wait()
	return err
}

const (
	maxFrame       = 1 << 16
	ethernetHeader = 14
	// maxUnderWay is how many frames a cable with a delay holds; what more comes is lost.
	maxUnderWay = 1 << 13
	// maxLate is how many later frames may overtake a late one.
	maxLate = 16
	// lateTimeout releases late frames when no more come to overtake them.
	lateTimeout = 3 * time.Millisecond
)

// late is a frame that waits for others to overtake it.
type late struct {
	frame []byte
	after int // frames still to go first
}

// delayed is a frame that is under way.
type delayed struct {
	frame []byte
	at    time.Time // when it arrives
}

// arrive writes frames to the far end when their time has come. It sleeps in the kernel, to about 0.1 ms, because Go's timers
// may be a millisecond late, which four cables and two ways would make eight.
func (k *Link) arrive(under <-chan delayed, to *os.File) {
	for {
		select {
		case d := <-under:
			for wait := time.Until(d.at); wait > 0; wait = time.Until(d.at) {
				ts := unix.NsecToTimespec(min(wait, time.Second).Nanoseconds())
				unix.Nanosleep(&ts, nil) //nolint:errcheck // if it was interrupted, the loop goes on
			}
			to.Write(d.frame) //nolint:errcheck // as in carry
		case <-k.done:
			return
		}
	}
}

// carry brings frames from one end to the other until an end is closed.
func (k *Link) carry(from, to *os.File, rng *rand.Rand) {
	var (
		buf     = make([]byte, maxFrame)
		waiting []late
	)
	under := make(chan delayed, maxUnderWay)
	k.wg.Go(func() { k.arrive(under, to) })
	var last time.Time // when the latest frame arrives
	send := func(frame []byte) {
		imp := k.imp.Load()
		now := time.Now()
		at := now.Add(imp.Delay)
		if imp.Jitter > 0 {
			at = at.Add(time.Duration(rng.Int64N(int64(imp.Jitter) + 1)))
		}
		if imp.Delay+imp.Jitter == 0 && !last.After(now) {
			to.Write(frame) //nolint:errcheck // a full or closed device loses frames, as a cable does
			return
		}
		if at.Before(last) {
			at = last
		}
		last = at
		select {
		case under <- delayed{append([]byte(nil), frame...), at}:
		default:
			k.stats.lost.Add(1)
		}
	}
	inBurst := false
	hold := func(frame []byte) {
		waiting = append(waiting, late{append([]byte(nil), frame...), 1 + rng.IntN(maxLate)})
	}
	for {
		var deadline time.Time
		if len(waiting) > 0 {
			deadline = time.Now().Add(lateTimeout)
		}
		if err := from.SetReadDeadline(deadline); err != nil {
			return
		}
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			for _, w := range waiting {
				send(w.frame)
			}
			waiting = waiting[:0]
			continue
		case errors.Is(err, unix.EIO): // not up yet
			time.Sleep(time.Millisecond)
			continue
		case err != nil:
			return
		}
		frame, imp := buf[:n], k.imp.Load()
		k.stats.frames.Add(1)
		hit := func(share float64) bool { return share > 0 && rng.Float64() < share }
		if inBurst {
			inBurst = !hit(1 / float64(max(1, imp.BurstLength)))
		} else {
			inBurst = hit(imp.Burst)
		}
		switch {
		case imp.Down, inBurst && imp.Burst > 0, imp.MTU > 0 && n-ethernetHeader > imp.MTU, hit(imp.Loss):
			k.stats.lost.Add(1)
			continue
		case hit(imp.Reorder):
			k.stats.reordered.Add(1)
			hold(frame)
		case hit(imp.Duplicate):
			k.stats.duplicated.Add(1)
			send(frame)
			if rng.IntN(2) == 0 {
				send(frame)
			} else {
				hold(frame)
			}
		case hit(imp.Corrupt) && corrupt(frame, rng):
			k.stats.corrupted.Add(1)
			send(frame)
		default:
			send(frame)
		}
		kept := waiting[:0]
		for _, w := range waiting {
			if w.after--; w.after < 0 {
				send(w.frame)
			} else {
				kept = append(kept, w)
			}
		}
		waiting = kept
	}
}

// corrupt flips one bit in the payload of an unfragmented IPv4 UDP datagram and takes out its checksum. It
// reports false, and does nothing, for any other frame.
func corrupt(frame []byte, rng *rand.Rand) bool {
	const udp = 8
	if len(frame) < ethernetHeader+20 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return false
	}
	ip := frame[ethernetHeader:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || total > len(ip) || total <= header+udp || ip[9] != unix.IPPROTO_UDP ||
		binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return false
	}
	payload := ip[header+udp : total]
	payload[rng.IntN(len(payload))] ^= 1 << rng.IntN(8)
	ip[header+6], ip[header+7] = 0, 0
	return true
}
