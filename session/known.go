package session

import (
	"net/netip"
	"slices"

	"omegatun/dht/key"
)

const (
	// maxKnownPeers bounds the peers whose nodes a Host remembers.
	maxKnownPeers = 512
	// maxKnownNodes is how many nodes are remembered of each: as many as HyperDHT servers name.
	maxKnownNodes = 3
)

// KnownPeer is a key, and addresses at which its owner was reached before: DHT nodes that pass handshakes on to it, or its
// own if it is open. The best is first; there are at most three.
type KnownPeer struct {
	Key   key.Public       `json:"key"`
	Nodes []netip.AddrPort `json:"nodes"`
}

// knownPeers is a bounded list of peers, the one last connected to first.
type knownPeers []KnownPeer

// newKnownPeers returns the part of a list from elsewhere that can be used.
func newKnownPeers(list []KnownPeer) (k knownPeers) {
	for _, p := range slices.Backward(list[:min(len(list), maxKnownPeers)]) {
		k.note(p.Key, p.Nodes)
	}
	return k
}

// note remembers that nodes led to a key, in place of what was known of it. Addresses that no datagram can go to, and a key
// that is none, are left out.
func (k *knownPeers) note(peer key.Public, nodes []netip.AddrPort) {
	var usable []netip.AddrPort
	for _, a := range nodes {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if a.Addr().Is4() && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast() && a.Port() != 0 &&
			!slices.Contains(usable, a) && len(usable) < maxKnownNodes {
			usable = append(usable, a)
		}
	}
	if peer == (key.Public{}) || len(usable) == 0 {
		return
	}
	list := slices.DeleteFunc(*k, func(p KnownPeer) bool { return p.Key == peer })
	*k = slices.Insert(list[:min(len(list), maxKnownPeers-1)], 0, KnownPeer{peer, usable})
}

// nodes returns those that led to a key.
func (k knownPeers) nodes(peer key.Public) []netip.AddrPort {
	if i := slices.IndexFunc(k, func(p KnownPeer) bool { return p.Key == peer }); i >= 0 {
		return k[i].Nodes
	}
	return nil
}

// KnownPeers returns the peers that the Host has connected to, and those of [Config].KnownPeers, with the nodes to reach them
// by; the latest first, at most 512. Kept and given to the next Host, they let it reach these peers at once, and without a
// bootstrap node.
func (h *Host) KnownPeers() []KnownPeer {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := slices.Clone(h.known)
	for i := range list {
		list[i].Nodes = slices.Clone(list[i].Nodes)
	}
	return list
}

// relaysFor returns the nodes to try first.
func (h *Host) relaysFor(d dialing) []netip.AddrPort {
	if len(d.relays) > 0 {
		return d.relays
	}
	h.mu.Lock()
	known := slices.Clone(h.known.nodes(d.remote))
	h.mu.Unlock()
	return slices.DeleteFunc(known, func(a netip.AddrPort) bool { return !h.node.InScope(a) }) // the peer has named them
}

// rememberRelays keeps the nodes that lead to a key, for the next time.
func (h *Host) rememberRelays(k key.Public, advertised []netip.AddrPort, used netip.AddrPort) {
	nodes := slices.Concat(advertised, []netip.AddrPort{used})
	h.mu.Lock()
	h.known.note(k, nodes)
	h.mu.Unlock()
}
