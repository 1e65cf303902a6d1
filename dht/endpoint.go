package dht

import (
	"encoding/binary"
	"net/netip"
)

// endpoint is a usable address in eight bytes: in maps it is much cheaper than a netip.AddrPort.
type endpoint uint64

func endpointOf(a netip.AddrPort) endpoint {
	ip := a.Addr().As4()
	return endpoint(binary.BigEndian.Uint32(ip[:]))<<16 | endpoint(a.Port())
}

func (e endpoint) addr() netip.AddrPort {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], uint32(e>>16))
	return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(e))
}
