package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// device is a wireguard/tun device, kept within the bounds of what it can take.
type device struct {
	native wgtun.Device
	name   string
	log    *slog.Logger

	merge    atomic.Bool  // packets may be merged
	merged   atomic.Bool  // a write of several packets has succeeded since the last failure
	failures atomic.Int32 // writes of several packets that failed with EINVAL in a row

	closing  sync.Once
	closeErr error
	events   sync.WaitGroup // the goroutine that drains events, where there is one
}

// maxMergeFailures is how many writes must fail in a row before merging is given up: a peer can make single writes
// fail.
const maxMergeFailures = 8

// newDevice takes native over.
func newDevice(native wgtun.Device, name string, cfg Config) *device {
	d := &device{native: native, name: name, log: cfg.Logger}
	d.merge.Store(!cfg.NoMerge)
	return d
}

func (d *device) Name() string { return d.name }

func (d *device) BatchSize() int { return d.native.BatchSize() }

func (d *device) MTU() (int, error) {
	mtu, err := d.native.MTU()
	if err != nil {
		return 0, fmt.Errorf("tun: MTU of %s: %w", d.name, err)
	}
	return mtu, nil
}

func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.readOnce(bufs, sizes, offset)
		switch {
		case n > 0:
			return n, nil // after ErrTooManySegments, these are good; the rest does not fit and is lost
		case errors.Is(err, os.ErrClosed):
			return 0, os.ErrClosed
		case err != nil && (!skipsBadPackets || isSystemError(err)):
			return 0, fmt.Errorf("tun: read from %s: %w", d.name, err)
		case err != nil:
			d.log.Debug("a packet from the host was dropped", "interface", d.name, "error", err)
		}
	}
}

// readOnce is one Read of the device below. That one slices past the end of a buffer if the host sends larger segments
// than the interface's MTU allowed when the buffers were made, which takes no more than "ip link set mtu".
func (d *device) readOnce(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(runtime.Error)
			if !ok {
				panic(r)
			}
			n, err = 0, fmt.Errorf("a segment is larger than the buffers: %w", e)
		}
	}()
	n, err = d.native.Read(bufs, sizes, offset)
	for i := range n {
		if sizes[i] > len(bufs[i])-offset {
			return 0, errors.New("a segment is larger than the buffers")
		}
	}
	return n, err
}

// isSystemError tells errors of the file from those about what a packet contains.
func isSystemError(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true
	}
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	if offset < MinHeadroom {
		return 0, fmt.Errorf("tun: write to %s: headroom of %d bytes, less than %d", d.name, offset, MinHeadroom)
	}
	merge := d.merge.Load()
	for i, b := range bufs {
		if len(b) <= offset || len(b)-offset > maxPacket {
			return 0, fmt.Errorf("tun: write to %s: packet of %d bytes", d.name, len(b)-offset)
		}
		// The capacity decides how much may be merged. More than this would overflow the length field of a packet.
		capacity := MergeCapacity(offset)
		if !merge || cap(b) < capacity {
			capacity = len(b)
		}
		bufs[i] = b[:len(b):capacity]
	}
	// The device below runs out of flow tables, and panics, if it gets more at once.
	most := d.native.BatchSize()
	for rest := bufs; len(rest) > 0; {
		n := min(len(rest), most)
		_, err := d.native.Write(rest[:n], offset)
		if n > 1 && merge {
			d.judgeMerging(err)
		}
		switch {
		case errors.Is(err, os.ErrClosed):
			return 0, os.ErrClosed
		case err != nil:
			return len(bufs) - len(rest), fmt.Errorf("tun: write to %s: %w", d.name, err)
		}
		rest = rest[n:]
	}
	return len(bufs), nil
}

// judgeMerging is told the outcome of a write that could merge packets, and gives up if it never works.
func (d *device) judgeMerging(err error) {
	switch {
	case err == nil:
		if !d.merged.Load() {
			d.merged.Store(true)
		}
	case errors.Is(err, syscall.EINVAL):
		if d.merged.Swap(false) {
			d.failures.Store(0)
		}
		if d.failures.Add(1) == maxMergeFailures {
			d.merge.Store(false)
			d.log.Warn("the kernel refuses merged packets; they are written one by one from now on",
				"interface", d.name, "error", err)
		}
	}
}

func (d *device) Close() error {
	d.closing.Do(func() {
		if err := d.native.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			d.closeErr = fmt.Errorf("tun: close %s: %w", d.name, err)
		}
		d.events.Wait()
	})
	return d.closeErr
}
