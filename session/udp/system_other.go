//go:build !linux

package udp

import (
	"errors"
	"net/netip"
)

// system is empty: there are no batches.
type system struct{}

type batchSystem struct{}

func (*batchSystem) init(*Batch) {}

// control returns no room for ancillary data.
func (*batchSystem) control(int) []byte { return nil }

func (*batchSystem) parse([]byte) control { return control{} }

func sourceControl(netip.Addr) []byte { return nil }

func appendTTL(b []byte, _ bool, _ int) []byte { return b }

// setOptions prepares a socket before it is bound.
func setOptions(fd uintptr, addr netip.Addr, cfg Config) error {
	if cfg.Mark != 0 {
		return errors.New("firewall marks exist on Linux only")
	}
	if err := setDontFragment(fd, addr); err != nil {
		cfg.Logger.Warn("udp: cannot set don't-fragment", "error", err)
	}
	return nil
}

// start sets the socket's buffers, as large as the system lets us.
func (c *Conn) start(cfg Config) {
	c.portable = true
	if cfg.ReadBuffer > 0 {
		if err := c.udp.SetReadBuffer(cfg.ReadBuffer); err != nil {
			c.log.Info("udp: the receive buffer keeps its size", "wanted", cfg.ReadBuffer, "error", err)
		}
	}
	if cfg.WriteBuffer > 0 {
		if err := c.udp.SetWriteBuffer(cfg.WriteBuffer); err != nil {
			c.log.Info("udp: the send buffer keeps its size", "wanted", cfg.WriteBuffer, "error", err)
		}
	}
}

func (*Conn) buffers() (read, write int) { return 0, 0 }

// suitMerge has nothing to turn on or off.
func (*Conn) suitMerge(*Batch) {}

// receiveMany is not reached: FeatureBatch is never on.
func (c *Conn) receiveMany(b *Batch) error { return c.receiveOne(b) }

// sendTrains is not reached: FeatureBatch is never on.
func (*Conn) sendTrains([][]byte, []byte, int, netip.AddrPort, []byte) error {
	return errors.ErrUnsupported
}

// sendTo is not reached: FeatureBatch is never on.
func (*Conn) sendTo([][]byte, []netip.AddrPort, []byte) error { return errors.ErrUnsupported }

func (c *Conn) closeSocket() error { return c.udp.Close() }

// sendRaw is not reached: every socket is the net package's.
func (*Conn) sendRaw([]byte, netip.AddrPort, []byte) error { return errors.ErrUnsupported }

// writeAtOnce leaves it to the net package.
func (*Conn) writeAtOnce([]byte, netip.AddrPort, []byte) (bool, error) { return false, nil }
