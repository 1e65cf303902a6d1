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
	if err != nil {
		return nil, err // not a nil *device in an interface
	}
	return d, nil
}

var errNoOffload = errors.New("kernel has no offloads for TUN")

func openFlags(cfg Config, flags uint16) (*device, error) {
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
	if err := setMTU(cfg.Name, cfg.MTU); err != nil {
		return nil, errors.Join(fmt.Errorf("tun: set MTU of %s to %d: %w", cfg.Name, cfg.MTU, err), unix.Close(fd))
	}
	native, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("tun: open %s: %w", cfg.Name, err) // fd is that package's now, to close when collected
	}
	d := newDevice(native, name, cfg)
	if flags&unix.IFF_VNET_HDR != 0 {
		q, err := newQueue(native.File(), name, cfg.Logger)
		if err == nil {
			err = q.conn.Control(setOffloads)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("tun: open %s: %w", name, err), native.Close())
		}
		d.reader = q
	}
	return d, nil
}

// setOffloads lets the kernel hand over large packets with ECN too: our queue cuts them right, wireguard/tun would not.
// UDP needs Linux 6.2. If all of it is refused, what wireguard/tun has set stays.
func setOffloads(fd uintptr) {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	if unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|udp) != nil {
		_ = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp)
	}
}

func setInterface(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

func setMTU(name string, mtu int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	ifr.SetUint32(uint32(mtu))
	return errors.Join(unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr), unix.Close(fd))
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
