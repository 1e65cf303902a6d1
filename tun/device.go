package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	n, err := d.native.Read(bufs, sizes, offset)
	if errors.Is(err, wgtun.ErrTooManySegments) {
		return n, nil // the rest of a large packet is lost, and more will come
	}
	return n, d.readError(err)
}

func (d *device) readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	}
	return fmt.Errorf("tun: read from %s: %w", d.name, err)
}

// checkWrite refuses what no device takes.
func (d *device) checkWrite(bufs [][]byte, offset int) error {
	if offset < MinHeadroom {
		return fmt.Errorf("tun: write to %s: headroom of %d bytes, less than %d", d.name, offset, MinHeadroom)
	}
	for _, b := range bufs {
		if len(b) <= offset || len(b)-offset > maxPacket {
			return fmt.Errorf("tun: write to %s: packet of %d bytes", d.name, len(b)-offset)
		}
	}
	return nil
}

func (d *device) writeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	}
	return fmt.Errorf("tun: write to %s: %w", d.name, err)
}

func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	if err := d.checkWrite(bufs, offset); err != nil {
		return 0, err
	}
	merge := d.merge.Load()
	for i, b := range bufs {
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
		if err != nil {
			return len(bufs) - len(rest), d.writeError(err)
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
