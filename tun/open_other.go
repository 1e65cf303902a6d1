//go:build !linux

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"syscall"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

func open(cfg Config) (Device, error) {
	if cfg.Name == "" {
		cfg.Name = "omega0"
		if runtime.GOOS == "darwin" {
			cfg.Name = "utun" // the system numbers them
		}
	}
	native, err := wgtun.CreateTUN(cfg.Name, cfg.MTU)
	if err != nil {
		return nil, fmt.Errorf("tun: create interface %s: %w", cfg.Name, createError(err))
	}
	name, err := native.Name()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tun: name of the new interface: %w", err), native.Close())
	}
	d := newDevice(native, name, cfg)
	d.drainEvents()
	return d, nil
}

// drainEvents reads what nobody wants to know, because some devices stop when nobody does.
func (d *device) drainEvents() {
	d.events.Go(func() {
		for range d.native.Events() { // until the device is closed
		}
	})
}

// createError gives a failure to create an interface one of this package's meanings.
func createError(err error) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w; run as root or administrator", ErrPermission, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	return err
}
