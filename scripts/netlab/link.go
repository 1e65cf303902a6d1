//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
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
	// Seed makes the accidents repeatable for the same sequence of frames.
	Seed uint64
}

// LinkStats counts frames of both directions.
type LinkStats struct{ Frames, Lost, Duplicated, Reordered, Corrupted uint64 }

// Link is a cable with accidents: two TAP devices and a goroutine for each direction between them.
type Link struct {
	imp   atomic.Pointer[Impairment]
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
	k := &Link{}
	k.imp.Store(&imp)
	var err error
	if k.ends[0], err = openTAP(a, devA); err != nil {
		return nil, err
	}
	if k.ends[1], err = openTAP(b, devB); err != nil {
		return nil, errors.Join(err, k.ends[0].Close())
	}
	k.wg.Go(func() { k.carry(k.ends[0], k.ends[1], rand.New(rand.NewPCG(imp.Seed, 0))) })
	k.wg.Go(func() { k.carry(k.ends[1], k.ends[0], rand.New(rand.NewPCG(imp.Seed, 1))) })
	return k, nil
}

func (k *Link) close() error {
	err := errors.Join(k.ends[0].Close(), k.ends[1].Close())
	k.wg.Wait()
	return err
}

func openTAP(n *Net, dev string) (*os.File, error) {
	var f *os.File
	err := n.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), dev)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("netlab: tap %s in %s: %w", dev, n.Name, err)
	}
	return f, nil
}

const (
	maxFrame = 1 << 16
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

// carry brings frames from one end to the other until an end is closed.
func (k *Link) carry(from, to *os.File, rng *rand.Rand) {
	var (
		buf     = make([]byte, maxFrame)
		waiting []late
	)
	send := func(frame []byte) {
		to.Write(frame) //nolint:errcheck // a full or closed device loses frames, as a cable does
	}
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
		switch hit := func(share float64) bool { return share > 0 && rng.Float64() < share }; {
		case hit(imp.Loss):
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
	const ethernet, udp = 14, 8
	if len(frame) < ethernet+20 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return false
	}
	ip := frame[ethernet:]
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
