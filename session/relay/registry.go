package relay

import (
	"errors"
	"time"

	"omegatun/dht/key"
	"omegatun/session/udx"
)

// errLimit reports that a client, or the relay, has as much as it may.
var errLimit = errors.New("relay: limit reached")

// registry knows who waits for whom. It has no lock, no goroutine and no clock of its own.
type registry struct {
	waitingPerKey, linksPerKey, links int // limits
	timeout                           time.Duration
	rate                              int // of each key, bytes per second; 0: no limit

	meetings map[Token]*meeting
	accounts map[key.Public]*account
	linked   int // links, also those that are being made
	open     map[*link]struct{}
}

// account is what a client has, over all of its connections.
type account struct {
	sessions, waiting, links int
	bucket                   bucket
}

// meeting is a token that waits.
type meeting struct {
	token    Token
	places   [2]*place // responder, initiator
	deadline time.Time
}

// place is one client's part of it.
type place struct {
	session *session
	stream  udx.ID
}

func newRegistry() registry {
	return registry{
		meetings: make(map[Token]*meeting), accounts: make(map[key.Public]*account), open: make(map[*link]struct{}),
	}
}

// enter begins a session.
func (r *registry) enter(s *session) {
	a := r.accounts[s.key]
	if a == nil {
		a = &account{bucket: bucket{rate: float64(r.rate)}}
		r.accounts[s.key] = a
	}
	a.sessions++
	s.account = a
	s.waiting, s.links = make(map[Token]*meeting), make(map[Token]*link)
}

// leave ends a session. The caller ends the links that it returns.
func (r *registry) leave(s *session) []*link {
	s.left = true
	for _, m := range s.waiting {
		r.forget(m)
	}
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	if s.account.sessions--; s.account.sessions == 0 {
		delete(r.accounts, s.key)
	}
	return links
}

// pair handles a pair of s at now. It returns the meeting if that is complete: it is forgotten then, a link is
// counted, and the caller calls link or unlink.
func (r *registry) pair(s *session, p pair, now time.Time) (*meeting, error) {
	m := r.meetings[p.token]
	i := 0
	if p.initiator {
		i = 1
	}
	switch {
	case s.links[p.token] != nil, m != nil && m.places[i] != nil: // repeated, or taken
		return nil, nil //nolint:nilnil // nothing to do
	case s.account.waiting >= r.waitingPerKey && m == nil, s.account.links >= r.linksPerKey,
		r.linked >= r.links:
		return nil, errLimit
	case m == nil:
		m = &meeting{token: p.token, deadline: now.Add(r.timeout)}
		r.meetings[p.token] = m
	}
	m.places[i] = &place{s, p.stream}
	s.waiting[p.token] = m
	s.account.waiting++
	if m.places[1-i] == nil {
		return nil, nil //nolint:nilnil // it waits
	}
	r.forget(m)
	other := m.places[1-i].session
	r.linked++
	s.account.links++
	other.account.links++
	if other.account.links > r.linksPerKey { // it has filled its links meanwhile
		r.uncount(s, other)
		return nil, nil //nolint:nilnil // neither is served
	}
	return m, nil
}

// forget forgets a meeting.
func (r *registry) forget(m *meeting) {
	delete(r.meetings, m.token)
	for _, p := range m.places {
		if p != nil {
			p.session.account.waiting--
			delete(p.session.waiting, m.token)
		}
	}
}

// link makes a link that came of a meeting part of its sessions. It reports false if one of them has left.
func (r *registry) link(l *link) bool {
	for i := range l.sides {
		if l.sides[i].owner.left {
			return false
		}
	}
	r.open[l] = struct{}{}
	for i := range l.sides {
		l.sides[i].owner.links[l.token] = l
	}
	return true
}

// unlink takes back what link did. It reports false if that was done before.
func (r *registry) unlink(l *link) bool {
	if _, ok := r.open[l]; !ok {
		return false
	}
	delete(r.open, l)
	for i := range l.sides {
		if s := l.sides[i].owner; s.links[l.token] == l {
			delete(s.links, l.token)
		}
	}
	r.uncount(l.sides[0].owner, l.sides[1].owner)
	return true
}

// uncount gives back the link that pair has counted.
func (r *registry) uncount(a, b *session) {
	r.linked--
	a.account.links--
	b.account.links--
}

// unpair forgets a token that waits, whoever else waits for it, or returns the link of s, for the caller to end.
func (r *registry) unpair(s *session, t Token) *link {
	if m := r.meetings[t]; m != nil {
		r.forget(m)
		return nil
	}
	return s.links[t]
}

// expire forgets the meetings whose time is over, and returns how many there were.
func (r *registry) expire(now time.Time) (n int) {
	for _, m := range r.meetings {
		if !now.Before(m.deadline) {
			r.forget(m)
			n++
		}
	}
	return n
}
