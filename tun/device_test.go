package tun

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// fakeNative is what a device is made on top of.
type fakeNative struct {
	wgtun.Device // nil: what is not overridden is not called

	reads  []func(bufs [][]byte, sizes []int, offset int) (int, error) // one is used up by each Read
	writes []int                                                       // packets of each Write
	caps   []int                                                       // capacity of each packet written
	err    error                                                       // of Write
	closes int
}

func (f *fakeNative) BatchSize() int { return 4 }

func (f *fakeNative) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(f.reads) == 0 {
		return 0, fmt.Errorf("read: %w", os.ErrClosed)
	}
	read := f.reads[0]
	f.reads = f.reads[1:]
	return read(bufs, sizes, offset)
}

func (f *fakeNative) Write(bufs [][]byte, _ int) (int, error) {
	f.writes = append(f.writes, len(bufs))
	bytes := 0
	for _, b := range bufs {
		f.caps = append(f.caps, cap(b))
		bytes += len(b)
	}
	return bytes, f.err
}

func (f *fakeNative) Close() error { f.closes++; return nil }

func newTestDevice(native wgtun.Device) *device {
	return newDevice(native, "test0", Config{Logger: slog.New(slog.DiscardHandler)})
}

// packets returns n buffers of this length and capacity.
func packets(n, length, capacity int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, length, capacity)
	}
	return bufs
}

func TestReadErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want error
	}{
		{"closed", fmt.Errorf("read: %w", os.ErrClosed), os.ErrClosed},
		{"file", &fs.PathError{Op: "read", Path: "tun", Err: syscall.EIO}, syscall.EIO},
		{"errno", syscall.ENOMEM, syscall.ENOMEM},
	} {
		native := &fakeNative{}
		native.reads = append(native.reads, func([][]byte, []int, int) (int, error) { return 0, row.err })
		if n, err := newTestDevice(native).Read(packets(4, 100, 100), make([]int, 4), 10); n != 0 || !errors.Is(err, row.want) {
			t.Errorf("%s: Read = %d, %v, want %v", row.name, n, err, row.want)
		}
	}
}

func TestWriteStaysWithinTheBounds(t *testing.T) {
	const offset = 16
	full := MergeCapacity(offset)
	for _, row := range []struct {
		name       string
		bufs       [][]byte
		noMerge    bool
		wantWrites []int
		wantCap    int
	}{
		{"room to merge", packets(2, 100, full), false, []int{2}, full},
		{"more room than a packet can have", packets(2, 100, full+5000), false, []int{2}, full},
		{"too little room", packets(2, 100, full-1), false, []int{2}, 100},
		{"switched off", packets(2, 100, full), true, []int{2}, 100},
		{"more than a batch", packets(9, 100, 100), false, []int{4, 4, 1}, 100},
	} {
		native := &fakeNative{}
		d := newDevice(native, "test0", Config{NoMerge: row.noMerge})
		n, err := d.Write(row.bufs, offset)
		if n != len(row.bufs) || err != nil {
			t.Errorf("%s: Write = %d, %v, want %d packets", row.name, n, err, len(row.bufs))
		}
		if fmt.Sprint(native.writes) != fmt.Sprint(row.wantWrites) {
			t.Errorf("%s: writes of %v packets, want %v", row.name, native.writes, row.wantWrites)
		}
		for _, c := range native.caps {
			if c != row.wantCap {
				t.Errorf("%s: capacity %d, want %d", row.name, c, row.wantCap)
			}
		}
	}
}

func TestWriteRefusesWhatNoDeviceTakes(t *testing.T) {
	for _, row := range []struct {
		name   string
		bufs   [][]byte
		offset int
	}{
		{"no headroom", packets(1, 100, 100), 9},
		{"empty packet", packets(2, 16, 100), 16},
		{"shorter than the headroom", packets(1, 15, 100), 16},
		{"longer than any packet", packets(1, 16+65536, 16+65536), 16},
	} {
		native := &fakeNative{}
		if _, err := newTestDevice(native).Write(row.bufs, row.offset); err == nil || native.writes != nil {
			t.Errorf("%s: Write = %v after %d writes, want an error before any", row.name, err, len(native.writes))
		}
	}
	native := &fakeNative{err: os.ErrClosed}
	if _, err := newTestDevice(native).Write(packets(1, 100, 100), 16); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write to a closed device: %v, want ErrClosed", err)
	}
}

func TestMergingStopsWhereTheKernelRefusesIt(t *testing.T) {
	var logged bytes.Buffer
	native := &fakeNative{}
	d := newDevice(native, "test0", Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	refused := errors.Join(&fs.PathError{Op: "write", Path: "tun", Err: syscall.EINVAL})
	write := func(packetCount, times int, err error) {
		t.Helper()
		native.err = err
		for range times {
			if _, got := d.Write(packets(packetCount, 100, MergeCapacity(16)), 16); (got != nil) != (err != nil) {
				t.Fatalf("Write = %v, want %v", got, err)
			}
		}
	}
	merges := func() bool {
		t.Helper()
		native.caps = nil
		write(1, 1, nil)
		return native.caps[0] == MergeCapacity(16)
	}
	write(2, maxMergeFailures-1, refused)
	write(2, 1, nil)
	write(2, maxMergeFailures-1, refused)
	if !merges() {
		t.Fatal("merging stopped although it worked in between")
	}
	write(1, 2*maxMergeFailures, refused)
	write(2, 2*maxMergeFailures, &fs.PathError{Op: "write", Path: "tun", Err: syscall.EIO})
	if !merges() {
		t.Fatal("merging stopped because of failures that are none of merging")
	}
	write(2, 1, refused)
	if merges() {
		t.Error("merging goes on although it never works")
	}
	if got := strings.Count(logged.String(), "level=WARN"); got != 1 {
		t.Errorf("%d warnings, want 1: %s", got, logged.String())
	}
}

func TestCloseTwice(t *testing.T) {
	native := &fakeNative{}
	d := newTestDevice(native)
	if err := errors.Join(d.Close(), d.Close()); err != nil || native.closes != 1 {
		t.Errorf("Close twice = %v, closed %d times, want once and no error", err, native.closes)
	}
}

func TestOpenChecksItsConfig(t *testing.T) {
	for _, cfg := range []Config{
		{MTU: 1279},
		{MTU: 65536},
		{MTU: -1},
		{Name: "sixteen-letters-"},
		{Name: "a/b"},
		{Name: "a b"},
		{Name: ".."},
		{Name: "omega%d"},
		{Name: "a:1"},
	} {
		if d, err := Open(cfg); err == nil {
			t.Errorf("Open(%+v) succeeded", cfg)
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
