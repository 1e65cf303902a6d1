package tun

import (
	"errors"
	"fmt"

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

// openNamed opens the device of this name, with virtio-net headers if the kernel can do what they need.
func openNamed(cfg Config) (Device, error) {
	d, err := openFlags(cfg, unix.IFF_VNET_HDR)
	if errors.Is(err, errNoOffload) {
		d, err = openFlags(cfg, 0)
	}
	return d, err
}

// queueLength is how many packets the kernel keeps for us while we do not run. The usual 500 are 2.5 ms of a stream of
// 200,000 small packets a second, less than one turn of another process: a busy machine lost a tenth of it.
const queueLength = 1000

var errNoOffload = errors.New("kernel has no offloads for TUN")

func openFlags(cfg Config, flags uint16) (Device, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(err)
	}
	// IFF_TUN_EXCL: an interface that exists is not ours, even if it is a TUN that no process holds.
	if err := setInterface(fd, cfg.Name, flags|unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_TUN_EXCL); err != nil {
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
	native, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("tun: open %s: %w", cfg.Name, err) // fd is that package's now, to close when collected
	}
	d := newDevice(native, name, cfg)
	if flags&unix.IFF_VNET_HDR == 0 || cfg.Plain {
		return d, nil
	}
	q, err := newQueue(native.File(), name, cfg.Logger)
	if err == nil {
		q.merge.Store(!cfg.NoMerge)
		err = q.conn.Control(q.setOffloads)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tun: open %s: %w", name, err), native.Close())
	}
	return &largeDevice{d, q}, nil
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

// largeDevice is a device with a queue of our own. What it cannot do better is the device's.
type largeDevice struct {
	*device
	q *queue
}

var _ Large = (*largeDevice)(nil)

func (d *largeDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.q.Read(bufs, sizes, offset)
	return n, d.readError(err)
}

func (d *largeDevice) ReadLarge() (int, error) {
	n, err := d.q.ReadLarge()
	return n, d.readError(err)
}

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
