package punch

import (
	"net/netip"
	"slices"

	"omegatun/dht"
)

// maxRemoteAddrs bounds the addresses of the peer that are probed.
const maxRemoteAddrs = 8

// remote is what is known of the peer's side.
type remote struct {
	firewall dht.Firewall
	punching bool
	token    token            // to be echoed
	seen     netip.AddrPort   // the peer's punch socket, as the relay last saw it; may be invalid
	told     []netip.AddrPort // what the peer says of itself
	count    sequence         // of the peer's router, if it counts its ports up and the peer says so
	verified netip.Addr       // host that was proved to be the peer's; invalid while none is
}

// update takes the peer's view from its message. verified is the host that the message proves, if any.
func (r *remote) update(p *payload, verified netip.Addr) {
	r.firewall = p.firewall
	r.punching = p.punching
	if p.token != (token{}) {
		r.token = p.token
	}
	if verified.IsValid() {
		r.verified = verified
	}
	r.told, r.count = nil, sequence{}
	if r.firewall >= dht.FirewallRandom {
		r.count = announced(p.addresses)
	}
	for _, a := range p.addresses {
		if len(r.told) < maxRemoteAddrs && probeable(a.Addr()) && !slices.Contains(r.told, a) {
			r.told = append(r.told, a)
		}
	}
}

// gone takes the class of the peer's NAT from the message with which it gives up, if that says.
func (r *remote) gone(p *payload) {
	if p.firewall != dht.FirewallUnknown {
		r.firewall = p.firewall
	}
}

// probeable reports whether it makes sense to send to a: single IPv4 hosts only.
func probeable(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// targets returns the peer's addresses to probe. Those that a relay saw, or whose host is proved, come first; doubtful
// is the number at the end that only the peer's word stands for.
func (r *remote) targets() (addrs []netip.AddrPort, doubtful int) {
	if r.seen.IsValid() && r.seen.Port() != 0 {
		addrs = append(addrs, r.seen)
	}
	var unproved []netip.AddrPort
	for _, a := range r.told {
		switch {
		case a.Port() == 0 || a == r.seen:
		case a.Addr() == r.verified:
			addrs = append(addrs, a)
		default:
			unproved = append(unproved, a)
		}
	}
	return append(addrs, unproved...), len(unproved)
}

// proved returns where to guess: for a search or a sweep the peer's host, for a spread its address. ok is false while the
// peer has not proved that the host is its own.
func (r *remote) proved(s strategy) (target netip.AddrPort, ok bool) {
	if !r.verified.IsValid() {
		return netip.AddrPort{}, false
	}
	if s == sweep && r.count.next.Addr() != r.verified {
		return netip.AddrPort{}, false
	}
	if s == search || s == sweep {
		return netip.AddrPortFrom(r.verified, 0), true
	}
	if targets, doubtful := r.targets(); len(targets) > doubtful && targets[0].Addr() == r.verified {
		return targets[0], true
	}
	for _, a := range r.told {
		if a.Addr() == r.verified && a.Port() != 0 {
			return a, true
		}
	}
	return netip.AddrPort{}, false
}

// counter returns the counter of the router of a host that is proved to be the peer's.
func (r *remote) counter() sequence {
	if r.count.next.Addr() != r.verified {
		return sequence{}
	}
	return r.count
}
