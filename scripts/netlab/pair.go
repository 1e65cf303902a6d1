//go:build linux

package netlab

import (
	"errors"
	"net/netip"
	"strings"
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
		for _, n := range []*Net{hostA, hostB} {
			err = errors.Join(err, n.Run(strings.Fields("ethtool -K wire tso off gso off gro off tx-udp-segmentation off")...))
		}
	}
	return hostA, hostB, err
}
