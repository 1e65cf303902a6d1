package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const clonePath = "/dev/net/tun"

// maxDefaultNames is how many names are tried when none is configured.
const maxDefaultNames = 100

func open(cfg Config) (Device, error) {
	if cfg.Name != "" {
		return openNamed(cfg)
	}
	for i := range maxDefaultNames {
		cfg.Name = fmt.Sprintf("omega%d", i)
		d, err := openNamed(cfg)
		if !errors.Is(err, ErrBusy) {
			return d, err
		}
	}
	return nil, fmt.Errorf("tun: omega0 to omega%d: %w", maxDefaultNames-1, ErrBusy)
}

// openNamed opens the device of this name, with virtio-net headers if the kernel can do what they need, and with as many queues
// as configured if it can do that.
func openNamed(cfg Config) (Device, error) {
	if cfg.Queues > 1 && !cfg.Plain {
		d, err := openFlags(cfg, unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE)
		if !errors.Is(err, errOneQueue) && !errors.Is(err, errNoOffload) {
			return d, err
		}
		cfg.Logger.Debug("the interface gets one queue", "interface", cfg.Name, "error", err)
	}
	d, err := openFlags(cfg, unix.IFF_VNET_HDR)
	if errors.Is(err, errNoOffload) {
		d, err = openFlags(cfg, 0)
	}
	return d, err
}

// queueLength is how many packets the kernel keeps for us while we do not run. The usual 500 are 2.5 ms of a stream of
// 200,000 small packets a second, less than one turn of another process: a busy machine lost a tenth of it.
const queueLength = 1000

var (
	errNoOffload = errors.New("kernel has no offloads for TUN")
	errOneQueue  = errors.New("kernel has no queues for TUN")
)

func openFlags(cfg Config, flags uint16) (Device, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(err)
	}
	// IFF_TUN_EXCL: an interface that exists is not ours, even if it is a TUN that no process holds.
	err = setInterface(fd, cfg.Name, flags|unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_TUN_EXCL)
	if errors.Is(err, unix.EINVAL) && flags&unix.IFF_MULTI_QUEUE != 0 {
		return nil, errors.Join(fmt.Errorf("%w: %w", errOneQueue, err), unix.Close(fd))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tun: create interface %s: %w", cfg.Name, createError(err)), unix.Close(fd))
	}
	if flags&unix.IFF_VNET_HDR != 0 {
		const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", errNoOffload, err), unix.Close(fd))
		}
	}
	if err := setInterfaceInt(cfg.Name, unix.SIOCSIFMTU, cfg.MTU); err != nil {
		return nil, errors.Join(fmt.Errorf("tun: set MTU of %s to %d: %w", cfg.Name, cfg.MTU, err), unix.Close(fd))
	}
	if err := setInterfaceInt(cfg.Name, unix.SIOCSIFTXQLEN, queueLength); err != nil {
		return nil, errors.Join(fmt.Errorf("tun: set queue length of %s to %d: %w", cfg.Name, queueLength, err), unix.Close(fd))
	}
	var more []*os.File
	if flags&unix.IFF_MULTI_QUEUE != 0 {
		if more, err = openQueues(cfg.Name, flags, cfg.Queues); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", errOneQueue, err), unix.Close(fd))
		}
	}
	native, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil { // fd is that package's now, to close when collected
		return nil, errors.Join(fmt.Errorf("tun: open %s: %w", cfg.Name, err), closeFiles(more))
	}
	d := newDevice(native, name, cfg)
	if flags&unix.IFF_VNET_HDR == 0 || cfg.Plain {
		return d, nil
	}
	large, err := newLargeDevice(d, append([]*os.File{native.File()}, more...))
	if err == nil {
		large.q.merge.Store(!cfg.NoMerge)
		err = large.q.conn.Control(large.q.setOffloads)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tun: open %s: %w", name, err), closeFiles(more), native.Close())
	}
	return large, nil
}

// maxQueues is how many queues an interface gets at most.
const maxQueues = 64

// openQueues opens the second of n queues of an interface and those after it, and behind them, as the last file, one that is only
// written to. What the kernel is asked for must be the same as for the first.
//
// For what goes out, the kernel chooses a queue by a hash of addresses and ports; but once it has seen a packet of a flow come in through
// one queue it sends the flow's own packets there, and some would overtake those that wait in the other. So all that comes in is
// written to a file of which it does not learn: one that was taken off the interface, whose packets it still accepts.
//
// Source: Linux, drivers/net/tun.c: tun_automq_select_queue, tun_flow_update (not for a file that is detached), __tun_detach.
func openQueues(name string, flags uint16, n int) (files []*os.File, err error) {
	for range min(n, maxQueues) {
		var fd int
		if fd, err = unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			break
		}
		if err = setInterface(fd, name, flags|unix.IFF_TUN|unix.IFF_NO_PI); err != nil {
			err = errors.Join(err, unix.Close(fd))
			break
		}
		files = append(files, os.NewFile(uintptr(fd), clonePath))
	}
	if err == nil {
		err = detach(files[len(files)-1])
	}
	if err != nil {
		return nil, errors.Join(err, closeFiles(files))
	}
	return files, nil
}

// detach takes the queue of file off its interface, and finds out whether what is written to it still gets there.
func detach(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_DETACH_QUEUE)
	e := raw.Control(func(fd uintptr) {
		if err = unix.IoctlIfreq(int(fd), unix.TUNSETQUEUE, ifr); err != nil {
			return
		}
		// Too short for any packet, which is refused with EINVAL. Without an interface it would be EBADFD.
		if _, e := unix.Write(int(fd), []byte{0}); !errors.Is(e, unix.EINVAL) {
			err = fmt.Errorf("write to a queue that was taken off: %w", e)
		}
	})
	return errors.Join(err, e)
}

func closeFiles(files []*os.File) error {
	var errs []error
	for _, f := range files {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setOffloads lets the kernel hand over large packets with ECN too: our queue cuts them right, wireguard/tun would not.
// UDP needs Linux 6.2. If all of it is refused, what wireguard/tun has set stays.
func (q *queue) setOffloads(fd uintptr) {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	q.uso = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|udp) == nil
	if !q.uso {
		_ = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp)
	}
}

// largeDevice is a device with queues of our own. What they cannot do better is the device's.
type largeDevice struct {
	*device
	q      *queue // the first one
	queues []Queue
	more   []*os.File // those that are not the device's own
}

var _ Large = (*largeDevice)(nil)

// newLargeDevice makes a large device of d. If there is more than one file, packets are read from all but the last, and written to that.
func newLargeDevice(d *device, files []*os.File) (*largeDevice, error) {
	l := &largeDevice{device: d, more: files[1:]}
	in := files[:max(1, len(files)-1)]
	for i, file := range in {
		q, err := newQueue(file, d.name, d.log)
		if err != nil {
			return nil, err
		}
		q.spare = runtime.GOMAXPROCS(0) > len(in) // when all of them sleep
		if i == 0 {
			l.q = q
		}
		q.written = l.q.written
		l.queues = append(l.queues, &largeQueue{q, d})
	}
	if len(l.more) > 0 {
		var err error
		if l.q.out, err = files[len(files)-1].SyscallConn(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// largeQueue is one of the queues of a largeDevice.
type largeQueue struct {
	*queue
	d *device
}

func (q *largeQueue) ReadLarge() (int, error) {
	n, err := q.queue.ReadLarge()
	return n, q.d.readError(err)
}

func (d *largeDevice) Queues() []Queue { return d.queues }

func (d *largeDevice) Close() error {
	err := closeFiles(d.more)
	if err != nil {
		err = fmt.Errorf("tun: close %s: %w", d.name, err)
	}
	return errors.Join(err, d.device.Close())
}

func (d *largeDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.q.Read(bufs, sizes, offset)
	return n, d.readError(err)
}

func (d *largeDevice) ReadLarge() (int, error) { return d.queues[0].ReadLarge() }

func (d *largeDevice) Packet(i int) (packet []byte, longest int) { return d.q.Packet(i) }

func (d *largeDevice) Cut(i, offset int, finish bool) (b []byte, unfinished bool) {
	return d.q.Cut(i, offset, finish)
}

func (d *largeDevice) Write(bufs [][]byte, offset int) (int, error) {
	return d.WriteLarge(bufs, offset, nil)
}

func (d *largeDevice) WriteLarge(bufs [][]byte, offset int, unfinished []bool) (int, error) {
	if err := d.checkWrite(bufs, offset); err != nil {
		return 0, err
	}
	n, err := d.q.WriteLarge(bufs, offset, unfinished)
	return n, d.writeError(err)
}

func setInterface(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

// setInterfaceInt makes one of the requests of netdevice(7) that take a number.
func setInterfaceInt(name string, request uint, value int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	ifr.SetUint32(uint32(value))
	return errors.Join(unix.IoctlIfreq(fd, request, ifr), unix.Close(fd))
}

// openError says what to do about a failure to open clonePath.
func openError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("tun: %w: opening %s: %w; run \"modprobe tun\", or start the container with \"--device %s\"",
			ErrNoDevice, clonePath, err, clonePath)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("tun: %w: opening %s: %w; run as root or with CAP_NET_ADMIN, "+
			"in a container with \"--device %s --cap-add NET_ADMIN\"", ErrPermission, clonePath, err, clonePath)
	}
	return fmt.Errorf("tun: open %s: %w", clonePath, err)
}

// createError gives a failure to create an interface one of this package's meanings.
func createError(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w; run as root or with CAP_NET_ADMIN, in a container with \"--cap-add NET_ADMIN\"",
			ErrPermission, err)
	}
	return err
}
