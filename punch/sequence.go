package punch

import (
	"net/netip"
	"slices"

	"omegatun/dht"
)

const (
	firstPublic = 1024 // a router that counts its ports up begins again here after the last
	publicPorts = 1<<16 - firstPublic

	wantCounted = 3  // samples that follow each other, before a router counts as counting
	maxSkip     = 64 // ports between two of them that other traffic may have taken
	maxStep     = 16
)

// sequence is a router's counter: each new destination gets the port step after the one before. The zero value is none.
type sequence struct {
	next netip.AddrPort // the port that is expected for the peer
	step uint16         // 1 to maxStep
}

// valid reports whether there is a counter.
func (s sequence) valid() bool { return s.step > 0 }

// after returns the port n steps after next, or before it.
func (s sequence) after(n int) netip.AddrPort {
	at := (int(s.next.Port()) - firstPublic + n*int(s.step)) % publicPorts
	if at < 0 {
		at += publicPorts
	}
	return netip.AddrPortFrom(s.next.Addr(), uint16(firstPublic+at))
}

// counted looks for a counter among the samples of a random NAT: the ports of one host, the most of which follow each
// other in small steps. Which node was asked first is not known, as pings overtake each other, and does not matter. Samples
// far away are lies, or another network's. low and high are the first and the last port of the run.
func (a *analysis) counted() (low, high netip.AddrPort, step uint16, ok bool) {
	if a.firewall != dht.FirewallRandom {
		return low, high, 0, false
	}
	host := a.hosts()[0].addr.Addr()
	var ports []int // from firstPublic
	for _, s := range a.samples {
		if s.addr.Addr() == host && s.addr.Port() >= firstPublic {
			ports = append(ports, int(s.addr.Port())-firstPublic)
		}
	}
	slices.Sort(ports)
	// The longest run in the circle of ports, with its greatest common step.
	start, length, common := 0, 0, 0
	for i := range ports {
		n, g := 1, 0
		for n < len(ports) {
			gap := (ports[(i+n)%len(ports)] - ports[(i+n-1)%len(ports)] + publicPorts) % publicPorts
			if gap > maxSkip {
				break
			}
			g = gcd(g, gap)
			n++
		}
		if n > length {
			start, length, common = i, n, g
		}
	}
	if length < wantCounted || 3*length < 2*len(a.by) || common > maxStep {
		return low, high, 0, false
	}
	port := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(host, uint16(firstPublic+ports[(start+i)%len(ports)]))
	}
	return port(0), port(length - 1), uint16(common), true
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// sequence returns the counter of the own NAT, as it stands now. If the peer was sent to before the survey's nodes, as the
// fast opening does, its port is the one before theirs, else the one after.
func (a *analysis) sequence(opened bool) sequence {
	low, high, step, ok := a.counted()
	switch {
	case !ok:
		return sequence{}
	case opened:
		return sequence{sequence{low, step}.after(-1), step}
	}
	return sequence{sequence{high, step}.after(1), step}
}

// announce returns addrs, what is told of a random NAT, with the counter behind it: its next port and the one after. The
// reference implementation looks at the first address only.
func (s sequence) announce(addrs []netip.AddrPort) []netip.AddrPort {
	if !s.valid() {
		return addrs
	}
	return append(addrs, s.next, s.after(1))
}

// announced is the reverse of announce: the counter among the addresses of a peer behind a random NAT, if it says so.
func announced(addrs []netip.AddrPort) sequence {
	if len(addrs) != 3 || addrs[0].Port() != 0 || addrs[1].Port() < firstPublic || addrs[2].Port() < firstPublic ||
		addrs[1].Addr() != addrs[0].Addr() || addrs[2].Addr() != addrs[0].Addr() || !probeable(addrs[0].Addr()) {
		return sequence{}
	}
	step := (int(addrs[2].Port()) - int(addrs[1].Port()) + publicPorts) % publicPorts
	if step == 0 || step > maxStep {
		return sequence{}
	}
	return sequence{addrs[1], uint16(step)}
}

// ahead returns the ports of a search that go first, as the peer counts its ports up: those around the expected one, and some
// of the following ones, of which the peer's many sockets have a long run.
func (s sequence) ahead() []netip.AddrPort {
	if !s.valid() {
		return nil
	}
	var list []netip.AddrPort
	for _, n := range [...]int{
		0, 1, -1, 2, 3, -2, 4, 5, 6, 8, -4, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384,
	} {
		list = append(list, s.after(n))
	}
	return list
}
