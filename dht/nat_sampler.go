package dht

import (
	"net/netip"
	"slices"
	"time"
)

const (
	samplerSize   = 16          // votes remembered
	samplerLatest = 4           // so many of the latest votes count,
	samplerRecent = time.Minute // and those of the last minute
	samplerRepeat = time.Second // the same vote again says nothing before
)

// natSampler finds out the node's public address from what other nodes see. Each network of 256 addresses has
// one vote, which it may change: so one liar, however many hosts it has there, is outvoted by three others, and
// a change of address shows as soon as three of four say so. Addresses that are not public count each for
// itself, with its port.
//
// Three quarters of the votes must agree; two of three; all of two.
//
// The zero value has no votes. npm nat-sampler 1.0.1 has the same purpose, but counts every sample alike.
type natSampler struct {
	votes []natVote // the latest last

	// addr is the finding. Its host is invalid while unknown; its port is 0 if others see different ports.
	addr netip.AddrPort
}

// natVote is how a network sees us.
type natVote struct {
	voter netip.AddrPort // a network without a port, or an address that is not public
	addr  netip.AddrPort
	at    time.Time
}

// Voter returns whose vote it is when the node at a says how it sees us. A network of 256 public addresses has one vote, and
// is returned without a port; each address that is not public has its own, with its port.
func Voter(a netip.AddrPort) netip.AddrPort {
	if !isPublic(a.Addr()) {
		return a
	}
	b := a.Addr().As4()
	b[3] = 0
	return netip.AddrPortFrom(netip.AddrFrom4(b), 0)
}

// add takes in that the node at from sees us at a.
func (s *natSampler) add(now time.Time, from, a netip.AddrPort) {
	voter := Voter(from)
	if last := len(s.votes) - 1; last >= 0 {
		if v := &s.votes[last]; v.voter == voter && v.addr == a && now.Sub(v.at) < samplerRepeat {
			return
		}
	}
	if i := slices.IndexFunc(s.votes, func(v natVote) bool { return v.voter == voter }); i >= 0 {
		s.votes = slices.Delete(s.votes, i, i+1)
	} else if len(s.votes) >= samplerSize {
		s.votes = slices.Delete(s.votes, 0, 1)
	}
	s.votes = append(s.votes, natVote{voter: voter, addr: a, at: now})

	count := s.votes
	for len(count) > samplerLatest && now.Sub(count[0].at) > samplerRecent {
		count = count[1:]
	}
	need := len(count) - len(count)/4
	if len(count) == 3 {
		need = 2
	}
	if agree := func() (n int) {
		for _, o := range count {
			if o.addr == a {
				n++
			}
		}
		return n
	}(); agree >= need {
		s.addr = a // mostly
		return
	}
	s.addr = netip.AddrPort{}
	for _, v := range count { // one of them has the majority, if there is any
		exact, host := 0, 0
		for _, o := range count {
			if o.addr == v.addr {
				exact++
			}
			if o.addr.Addr() == v.addr.Addr() {
				host++
			}
		}
		if exact >= need {
			s.addr = v.addr
			return
		}
		if host >= need {
			s.addr = netip.AddrPortFrom(v.addr.Addr(), 0)
		}
	}
}

// known reports whether host and port are known: others see us consistently.
func (s *natSampler) known() bool { return s.addr.Addr().IsValid() && s.addr.Port() != 0 }
