package dht

import "net/netip"

const (
	samplerSize = 16 // samples remembered
	samplerLook = 4  // how many samples back an equal one is looked for
)

// natSampler finds out the node's public address from what other nodes see. Most of the latest samples must
// agree: all of the first three, 13 of the latest 16.
//
// The zero value has no samples. Source: npm nat-sampler 1.0.1.
type natSampler struct {
	ring  [samplerSize]natSample
	size  int // samples in the ring
	next  int // where the next one goes
	exact *natHits
	host  *natHits

	// addr is the finding. Its host is invalid while unknown; its port is 0 if others see different ports.
	addr netip.AddrPort
}

// natSample is one sample: its address counted once with the port and once without.
type natSample struct{ exact, host *natHits }

// natHits counts samples with the same address; it is shared by them.
type natHits struct {
	addr netip.AddrPort
	n    int
}

// add takes in how another node sees us.
func (s *natSampler) add(a netip.AddrPort) {
	host := netip.AddrPortFrom(a.Addr(), 0)
	sample := natSample{
		exact: s.count(a, func(i int) *natHits { return s.ring[i].exact }),
		host:  s.count(host, func(i int) *natHits { return s.ring[i].host }),
	}
	if s.size < samplerSize {
		s.size++
	} else {
		old := s.ring[s.next]
		old.exact.n--
		old.host.n--
	}
	s.ring[s.next] = sample
	s.next = (s.next + 1) % samplerSize

	s.exact = most(s.exact, sample.exact)
	s.host = most(s.host, sample.host)
	switch need := s.size - min(s.size/4, 3); {
	case s.exact.n >= need:
		s.addr = s.exact.addr
	case s.host.n >= need:
		s.addr = s.host.addr
	default:
		s.addr = netip.AddrPort{}
	}
}

// count returns the counter of a among the latest samples, counted up, or a new one.
func (s *natSampler) count(a netip.AddrPort, at func(int) *natHits) *natHits {
	for back := 1; back <= min(samplerLook, s.size); back++ {
		if h := at((s.next - back + samplerSize) % samplerSize); h.addr == a {
			h.n++
			return h
		}
	}
	return &natHits{addr: a, n: 1}
}

// most returns the counter with more hits; best, which may be nil, if they are equal.
func most(best, h *natHits) *natHits {
	if best == nil || h.n > best.n {
		return h
	}
	return best
}

// known reports whether host and port are known: others see us consistently.
func (s *natSampler) known() bool { return s.addr.Addr().IsValid() && s.addr.Port() != 0 }
