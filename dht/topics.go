package dht

import (
	"math/rand/v2"
	"time"

	"omegatun/dht/key"
)

// topicStore holds the announcements of topics: for each, the records of peers. It forgets by generations, as
// [generations] does, but each record for itself; reading does not keep a record.
//
// Source: npm record-cache 1.2.0, save that announcing again replaces the record.
type topicStore struct {
	size     int // records in a generation
	interval time.Duration

	fresh, stale topicGeneration
	next         time.Time
	turned       bool
}

func newTopicStore(size int, age time.Duration) topicStore {
	return topicStore{size: size, interval: age * 2 / 3}
}

// topicGeneration is a set of records by topic and owner.
type topicGeneration struct {
	topics map[key.Target]*topic
	n      int
}

// topic is the records of one topic, in no order.
type topic struct {
	records []topicRecord
	at      map[key.Public]int // where in records
}

type topicRecord struct {
	key  key.Public
	wire []byte
}

func (g *topicGeneration) put(t key.Target, r topicRecord) {
	if g.topics == nil {
		g.topics = make(map[key.Target]*topic)
	}
	s := g.topics[t]
	if s == nil {
		s = &topic{at: make(map[key.Public]int)}
		g.topics[t] = s
	}
	if i, ok := s.at[r.key]; ok {
		s.records[i] = r
		return
	}
	s.at[r.key] = len(s.records)
	s.records = append(s.records, r)
	g.n++
}

func (g *topicGeneration) remove(t key.Target, k key.Public) {
	s := g.topics[t]
	if s == nil {
		return
	}
	i, ok := s.at[k]
	if !ok {
		return
	}
	last := len(s.records) - 1
	s.swap(i, last)
	s.records = s.records[:last]
	delete(s.at, k)
	g.n--
	if last == 0 {
		delete(g.topics, t)
	}
}

func (s *topic) swap(i, j int) {
	s.records[i], s.records[j] = s.records[j], s.records[i]
	s.at[s.records[i].key], s.at[s.records[j].key] = i, j
}

// sample returns up to limit records, any of them.
func (g *topicGeneration) sample(t key.Target, limit int) (wire [][]byte) {
	s := g.topics[t]
	if s == nil {
		return nil
	}
	for i := range min(limit, len(s.records)) {
		s.swap(i, i+rand.IntN(len(s.records)-i))
		wire = append(wire, s.records[i].wire)
	}
	return wire
}

func (s *topicStore) advance(now time.Time) {
	if s.next.IsZero() {
		s.next = now.Add(s.interval)
		return
	}
	for range 3 {
		if now.Before(s.next) {
			return
		}
		s.next = s.next.Add(s.interval)
		if !s.turned {
			s.turn()
		}
		s.turned = false
	}
	if !now.Before(s.next) {
		s.next = now.Add(s.interval)
	}
}

func (s *topicStore) turn() { s.stale, s.fresh = s.fresh, topicGeneration{} }

// add stores the record of k under topic t.
func (s *topicStore) add(t key.Target, k key.Public, wire []byte, now time.Time) {
	s.advance(now)
	s.stale.remove(t, k)
	s.fresh.put(t, topicRecord{key: k, wire: wire})
	if s.fresh.n >= s.size {
		s.turned = true
		s.turn()
	}
}

// remove deletes the record of k under topic t.
func (s *topicStore) remove(t key.Target, k key.Public) {
	s.fresh.remove(t, k)
	s.stale.remove(t, k)
}

// sample returns up to lookupLimit records of topic t, any of them.
func (s *topicStore) sample(t key.Target, now time.Time) [][]byte {
	s.advance(now)
	wire := s.fresh.sample(t, lookupLimit)
	return append(wire, s.stale.sample(t, lookupLimit-len(wire))...)
}

// len returns the number of records.
func (s *topicStore) len() int { return s.fresh.n + s.stale.n }
