package punch

import (
	"net/netip"
	"slices"
	"time"

	"omegatun/dht"
)

const (
	surveyBatch    = 4                      // nodes asked at a time: one may fail to answer
	surveyPatience = 300 * time.Millisecond // before more nodes are asked
	surveyLimit    = 16                     // pings in all
	surveyTime     = 3 * time.Second        // after which the samples at hand must do
	surveyRepeats  = 3

	// The nodes heard from last are passed over if there are enough others: they are the ones that the
	// lookup and the handshake went to, and the relays give a sample anyway.
	surveySkip     = 5
	surveySkipFrom = 8
	surveyNodes    = 24 // nodes to choose from
)

// survey asks nodes how they see the punch socket, until an analysis is sure or the nodes are used up. It has no
// clock and sends nothing itself.
type survey struct {
	analysis
	nodes   []netip.AddrPort // not asked yet
	asked   int
	pending int
	start   time.Time
	more    time.Time // when to ask more
	done    bool
	repeats int // times that it began again

	voters []netip.AddrPort // whose samples are in, see [dht.Voter]
	spare  []testimony      // others of theirs: if there are too few, they must do
}

// testimony is how a node sees the socket.
type testimony struct{ seen, by netip.AddrPort }

// newSurvey starts a survey among nodes, the ones heard most recently first.
func newSurvey(now time.Time, nodes []netip.AddrPort) survey {
	if len(nodes) >= surveySkipFrom {
		nodes = append(nodes[surveySkip:len(nodes):len(nodes)], nodes[:surveySkip]...)
	}
	return survey{nodes: nodes, start: now, more: now}
}

// pong takes an answer: the node at by sees the socket as seen.
func (s *survey) pong(seen, by netip.AddrPort) {
	s.pending--
	s.vote(seen, by)
}

// vote takes in that the node at by sees the socket as seen. Each network has one vote, so that one liar, however many hosts it
// has, is outvoted by the others.
func (s *survey) vote(seen, by netip.AddrPort) {
	if v := dht.Voter(by); !slices.Contains(s.voters, v) {
		s.voters = append(s.voters, v)
		s.add(seen, by)
	} else if len(s.spare) < maxSamples {
		s.spare = append(s.spare, testimony{seen, by})
	}
}

// end decides by what there is.
func (s *survey) end() {
	if len(s.voters) == 1 && s.firewall == dht.FirewallUnknown && !s.frozen {
		for _, t := range s.spare { // one network is better than none
			s.add(t.seen, t.by)
		}
	}
	s.conclude()
	s.done = true
}

// miss takes note that the node at by did not answer. It is asked again when all others have been.
func (s *survey) miss(by netip.AddrPort) {
	s.pending--
	s.nodes = append(s.nodes, by)
}

// again begins anew if nobody has answered, up to surveyRepeats times. It reports whether it did.
func (s *survey) again(now time.Time) bool {
	if !s.done || s.firewall != dht.FirewallUnknown || s.frozen || s.repeats == surveyRepeats {
		return false
	}
	s.repeats++
	s.done, s.asked, s.start, s.more = false, 0, now, now
	return true
}

// advance moves the survey to time now. It returns the nodes to ping, without retries, and when it wants to be
// called again, zero for never.
func (s *survey) advance(now time.Time) (ping []netip.AddrPort, wake time.Time) {
	switch {
	case s.done:
		return nil, time.Time{}
	case s.firewall == dht.FirewallConsistent, s.firewall == dht.FirewallRandom && len(s.by) > wantSamples,
		s.pending == 0 && s.exhausted(), !now.Before(s.start.Add(surveyTime)):
		s.end()
		return nil, time.Time{}
	}
	if !s.exhausted() && (s.pending == 0 || !now.Before(s.more)) {
		n := min(surveyBatch, len(s.nodes), surveyLimit-s.asked)
		ping, s.nodes = s.nodes[:n], s.nodes[n:]
		s.asked += n
		s.pending += n
		s.more = now.Add(surveyPatience)
	}
	if s.exhausted() {
		return ping, s.start.Add(surveyTime)
	}
	return ping, s.more
}

func (s *survey) exhausted() bool { return len(s.nodes) == 0 || s.asked >= surveyLimit }
