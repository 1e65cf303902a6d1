package lab

import "net/netip"

// The routers that are met in practice. Each function returns a configuration to use as it is or to change.

// Firewall routes public addresses and lets only answers in.
func Firewall() NATConfig {
	return NATConfig{Filtering: AddressAndPortDependent, RefreshInbound: true}
}

// FullCone maps independently of the remote, keeps ports and lets everyone in once a mapping exists.
func FullCone(public netip.Addr) NATConfig { return NATConfig{Public: public} }

// AddressRestricted is [FullCone] that lets in only hosts which were sent to.
func AddressRestricted(public netip.Addr) NATConfig {
	return NATConfig{Public: public, Filtering: AddressDependent}
}

// PortRestricted is [FullCone] that lets in only addresses and ports which were sent to.
func PortRestricted(public netip.Addr) NATConfig {
	return NATConfig{Public: public, Filtering: AddressAndPortDependent}
}

// Linux is the usual home router: one flow per remote, all from the inside port if that is free.
func Linux(public netip.Addr) NATConfig {
	return NATConfig{
		Public: public, Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, RefreshInbound: true,
	}
}

// RandomPort is [PortRestricted] with outside ports unlike the inside ones.
func RandomPort(public netip.Addr) NATConfig {
	return NATConfig{Public: public, Filtering: AddressAndPortDependent, Ports: RandomPorts}
}

// Carrier is what RFC 6888 asks of a carrier's NAT: random ports, independent mapping and filtering, hairpinning.
func Carrier(public netip.Addr) NATConfig {
	return NATConfig{Public: public, Ports: RandomPorts, Hairpin: true}
}

// Symmetric uses another random port for each remote.
func Symmetric(public netip.Addr) NATConfig {
	return NATConfig{
		Public: public, Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Ports: RandomPorts,
	}
}
