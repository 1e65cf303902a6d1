package udp

import (
	"net"
	"strconv"
)

// zoneCache translates between the number of an interface and its name, which is the zone of an IPv6 link-local
// address. It remembers the last answer, because asking the system takes longer than sending a packet.
type zoneCache struct {
	index uint32
	name  string
}

// toName returns the zone of interface index: the number itself if there is no such interface.
func (z *zoneCache) toName(index uint32) string {
	if z.name == "" || z.index != index {
		z.index, z.name = index, strconv.FormatUint(uint64(index), 10)
		if ifi, err := net.InterfaceByIndex(int(index)); err == nil {
			z.name = ifi.Name
		}
	}
	return z.name
}

// toIndex returns the interface of a zone, which may be its name or its number; 0: no zone or no such interface.
func (z *zoneCache) toIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if z.name != zone {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			n, err := strconv.ParseUint(zone, 10, 32)
			if err != nil {
				return 0
			}
			return uint32(n)
		}
		z.index, z.name = uint32(ifi.Index), zone
	}
	return z.index
}
