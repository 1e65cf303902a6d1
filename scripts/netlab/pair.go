//go:build linux

package netlab

import (
	"errors"
	"net/netip"
)

// Pair adds two hosts that one cable joins directly: nothing between them forwards, filters or counts. Each has its
// address, of one network, on the device "wire". The cable passes trains of segments whole, as a network card with
// segmentation offloads does, unless plain is set.
func (l *Lab) Pair(nameA string, a netip.Prefix, nameB string, b netip.Prefix, plain bool) (hostA, hostB *Net, err error) {
	if hostA, err = l.newNet(nameA); err != nil {
		return nil, nil, err
	}
	if hostB, err = l.newNet(nameB); err != nil {
		return nil, nil, err
	}
	if _, err := l.cable(hostA, "wire", hostB, "wire", nil); err != nil {
		return nil, nil, err
	}
	err = errors.Join(
		hostA.Run("ip", "addr", "add", a.String(), "dev", "wire"),
		hostB.Run("ip", "addr", "add", b.String(), "dev", "wire"),
	)
	if plain {
		err = errors.Join(err, hostA.plain("wire"), hostB.plain("wire"))
	}
	return hostA, hostB, err
}

// plain switches a device's offloads off.
func (n *Net) plain(dev string) error {
	return n.Run("ethtool", "-K", dev, "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off")
}
