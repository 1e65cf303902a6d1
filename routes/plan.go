package routes

import (
	"fmt"
	"net/netip"

	"omegatun/dht/key"
)

// Listed is a peer, or this node itself, as the configuration names it.
type Listed struct {
	Key  key.Public
	IPv4 netip.Addr // set by configuration; zero: [Addr4] of Key
}

// Addresses is the outcome of [Plan4].
type Addresses struct {
	Self      netip.Addr                // zero: this node goes without IPv4, and Peers is empty
	Peers     map[key.Public]netip.Addr // a peer that is missing goes without IPv4
	Conflicts []Conflict                // why addresses were left out, this node first, then peers as listed
}

// Conflict says why an IPv4 address that follows from a key is not used. It is an error so that it can be shown as
// one, but nothing has failed: the key's IPv6 address works.
type Conflict struct {
	Key     key.Public // whose address is left out
	Addr    netip.Addr
	Kind    ConflictKind
	Other   key.Public   // with the same address, if Kind is Collision
	Network netip.Prefix // that holds Addr, if Kind is HostNetwork
}

// ConflictKind is what is wrong with an address.
type ConflictKind uint8

const (
	// Collision means that two keys have the same address. Both go without, unless one of them has it from the
	// configuration, or is this node.
	Collision ConflictKind = iota + 1
	// HostNetwork means that the address lies in a network which the host is on, so that its own programs would
	// no longer reach the machine that has the address there.
	HostNetwork
)

// Error says what is left out, why, and what overrides it.
func (c Conflict) Error() string {
	var why string
	switch c.Kind {
	case Collision:
		why = "it is also the address of " + c.Other.Short()
	case HostNetwork:
		why = fmt.Sprintf("it lies in %v, a network this host is on", c.Network)
	}
	return fmt.Sprintf("IPv4 address %v of %s is left out: %s; IPv6 works; "+
		"a line ipv4 = \"…\" for this key, in the configuration of every node that uses it, overrides it",
		c.Addr, c.Key.Short(), why)
}

// Plan4 decides which IPv4 addresses are used by this node and its peers. hostNetworks are the networks that the host
// is on, without the interface of omegatun; a default route is none and is ignored.
//
// An address from the configuration is used even if it lies in a host network; a collision of two such addresses
// costs both of them. Of entries for one key the first counts, and one for this node's own key does not. The result
// depends only on the arguments.
func Plan4(self Listed, peers []Listed, hostNetworks []netip.Prefix) Addresses {
	plan := Addresses{Peers: make(map[key.Public]netip.Addr, len(peers))}
	if conflict := self.hostConflict(hostNetworks); conflict != nil {
		plan.Conflicts = append(plan.Conflicts, *conflict)
		return plan
	}
	plan.Self = self.address()

	claims := map[netip.Addr]claimants{plan.Self: {{self.Key, rankSelf}}}
	seen := map[key.Public]bool{self.Key: true}
	unique := make([]Listed, 0, len(peers))
	for _, p := range peers {
		if seen[p.Key] {
			continue
		}
		seen[p.Key] = true
		unique = append(unique, p)
		claims[p.address()] = claims[p.address()].with(claim{p.Key, p.rank()})
	}
	for _, p := range unique {
		conflict := p.hostConflict(hostNetworks)
		if rival := claims[p.address()].against(p.Key); conflict == nil && rival.rank >= p.rank() {
			conflict = &Conflict{Key: p.Key, Addr: p.address(), Kind: Collision, Other: rival.key}
		}
		if conflict != nil {
			plan.Conflicts = append(plan.Conflicts, *conflict)
			continue
		}
		plan.Peers[p.Key] = p.address()
	}
	return plan
}

// A claim is a key that wants an address. Of two, the higher rank gets it; of equals, neither.
type claim struct {
	key  key.Public
	rank int // zero: nobody
}

const (
	rankDerived    = iota + 1 // follows from the key
	rankConfigured            // somebody wrote it down
	rankSelf                  // is on this host's interface
)

// claimants are the two strongest claims to one address, the stronger first. Two are enough to tell anyone who the
// strongest of the others is.
type claimants [2]claim

func (c claimants) with(n claim) claimants {
	switch {
	case n.rank > c[0].rank:
		return claimants{n, c[0]}
	case n.rank > c[1].rank:
		return claimants{c[0], n}
	}
	return c
}

// against returns the strongest claim of anyone but k.
func (c claimants) against(k key.Public) claim {
	if c[0].key == k {
		return c[1]
	}
	return c[0]
}

func (l Listed) rank() int {
	if l.IPv4.IsValid() {
		return rankConfigured
	}
	return rankDerived
}

func (l Listed) address() netip.Addr {
	if l.IPv4.IsValid() {
		return l.IPv4.Unmap()
	}
	return Addr4(l.Key)
}

// hostConflict returns which of the host's networks forbids the address of l, nil if none does.
func (l Listed) hostConflict(networks []netip.Prefix) *Conflict {
	if l.IPv4.IsValid() {
		return nil
	}
	for _, n := range networks {
		if n.Bits() > 0 && n.Contains(l.address()) {
			return &Conflict{Key: l.Key, Addr: l.address(), Kind: HostNetwork, Network: n.Masked()}
		}
	}
	return nil
}
