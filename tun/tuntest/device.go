// Package tuntest has a packet device over channels, and packets to put through it, for tests.
//
// The device keeps the contract of package tun and is stricter than the real ones about what a caller could get
// wrong: it insists on the headroom, and scribbles over the headroom and the spare capacity of what is written, as
// merging packets does.
//
// Limitations: packets are neither cut nor merged.
package tuntest

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// MinHeadroom is the smallest offset in bytes that [Device.Write] accepts, the same as on Linux.
const MinHeadroom = 10

// BatchSize is how many packets one Read returns at most.
const BatchSize = 16

// Device is a packet device in memory. All methods are safe for concurrent use, and work inside a synctest bubble.
type Device struct {
	name    string
	mtu     atomic.Int32
	in      chan [][]byte // batches for Read
	out     chan []byte   // packets from Write
	closing sync.Once
	closed  chan struct{}
}

// New returns an open device. It is closed when the test ends, if not before.
func New(t testing.TB, mtu int) *Device {
	d := &Device{name: "test0", in: make(chan [][]byte, 64), out: make(chan []byte, 1024), closed: make(chan struct{})}
	d.mtu.Store(int32(mtu))
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Inject makes packets appear to come from the host: one Read returns all of them, at most [BatchSize]. They are
// copied. It blocks while 64 batches are waiting.
func (d *Device) Inject(packets ...[]byte) {
	if len(packets) > BatchSize {
		panic("tuntest: more packets than a batch has")
	}
	batch := make([][]byte, len(packets))
	for i, p := range packets {
		batch[i] = append([]byte(nil), p...)
	}
	select {
	case d.in <- batch:
	case <-d.closed:
	}
}

// Next returns the next packet written to the device. The test fails if there is none within five seconds.
func (d *Device) Next(t testing.TB) []byte {
	t.Helper()
	select {
	case p := <-d.out:
		return p
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was written to the device within five seconds")
		return nil
	}
}

// WantNothing fails the test if a packet has been written to the device and not been taken. It does not wait.
func (d *Device) WantNothing(t testing.TB, reason string) {
	t.Helper()
	select {
	case p := <-d.out:
		t.Errorf("%s: want nothing written to the device, got %x", reason, p)
	default:
	}
}

// Read waits for the packets of one [Device.Inject].
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	default:
	}
	select {
	case batch := <-d.in:
		if len(batch) > len(bufs) {
			return 0, errors.New("tuntest: Read with fewer buffers than BatchSize")
		}
		for i, p := range batch {
			if len(p) > len(bufs[i])-offset {
				return 0, errors.New("tuntest: Read with too small a buffer")
			}
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(batch), nil
	case <-d.closed:
		return 0, os.ErrClosed
	}
}

// Write keeps copies of the packets for [Device.Next]. It blocks while 1,024 packets are waiting.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	if offset < MinHeadroom {
		return 0, errors.New("tuntest: Write with too little headroom")
	}
	packets := make([][]byte, len(bufs))
	for i, b := range bufs {
		if len(b) <= offset {
			return 0, errors.New("tuntest: Write of an empty packet")
		}
		packets[i] = append([]byte(nil), b[offset:]...)
	}
	for i, b := range bufs { // after all were copied: buffers that overlap show
		scribble(b[:offset])
		scribble(b[len(b):cap(b)])
		bufs[i] = nil
	}
	for i, p := range packets {
		select {
		case <-d.closed:
			return i, os.ErrClosed
		default:
		}
		select {
		case d.out <- p:
		case <-d.closed:
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xa5
	}
}

// BatchSize returns [BatchSize].
func (d *Device) BatchSize() int { return BatchSize }

// MTU returns the size given to [New], or set since.
func (d *Device) MTU() (int, error) { return int(d.mtu.Load()), nil }

// SetMTU changes what [Device.MTU] returns.
func (d *Device) SetMTU(mtu int) { d.mtu.Store(int32(mtu)) }

// Name returns "test0".
func (d *Device) Name() string { return d.name }

// Close ends Read and Write with [os.ErrClosed]. It may be called more than once.
func (d *Device) Close() error {
	d.closing.Do(func() { close(d.closed) })
	return nil
}
