package dht

import (
	"math/rand/v2"
	"slices"
	"time"

	"omegatun/dht/key"
)

// topicStore holds the announcements of topics: for each, the records of peers. It forgets by generations, as
// [generations] does, but each record for itself; reading does not keep a record.
//
// Source: npm record-cache 1.2.0, save that announcing again replaces the record.
type topicStore struct {
	size     int // records in a generation
	maxBytes int // in a generation, about
	interval time.Duration

	fresh, stale topicGeneration
	next         time.Time
	turned       bool
}

func newTopicStore(size, maxBytes int, age time.Duration) topicStore {
	return topicStore{size: size, maxBytes: maxBytes, interval: age * 2 / 3}
}

// topicGeneration is a set of records by topic and owner.
type topicGeneration struct {
	topics map[key.Target]*topic
	n      int
	bytes  int // about
}

// topic is the records of one topic, in no order.
type topic struct {
	records []topicRecord
	at      map[key.Public]int // where in records; nil while there are few
}

const (
	fewRecords     = 16  // of a topic, that are searched one by one
	topicOverhead  = 200 // bytes that a topic takes, about
	recordOverhead = 120 // bytes that a record takes besides itself, about
)

// find returns where the record of k is, -1 if there is none.
func (s *topic) find(k key.Public) int {
	if s.at == nil {
		return slices.IndexFunc(s.records, func(r topicRecord) bool { return r.key == k })
	}
	if i, ok := s.at[k]; ok {
		return i
	}
	return -1
}

// add appends r.
func (s *topic) add(r topicRecord) {
	s.records = append(s.records, r)
	if s.at == nil && len(s.records) > fewRecords {
		s.at = make(map[key.Public]int)
		for i, r := range s.records {
			s.at[r.key] = i
		}
	} else if s.at != nil {
		s.at[r.key] = len(s.records) - 1
	}
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
		s = &topic{}
		g.topics[t] = s
		g.bytes += topicOverhead
	}
	if i := s.find(r.key); i >= 0 {
		g.bytes += len(r.wire) - len(s.records[i].wire)
		s.records[i] = r
		return
	}
	s.add(r)
	g.n++
	g.bytes += recordOverhead + len(r.wire)
}

func (g *topicGeneration) remove(t key.Target, k key.Public) {
	s := g.topics[t]
	if s == nil {
		return
	}
	i := s.find(k)
	if i < 0 {
		return
	}
	last := len(s.records) - 1
	s.swap(i, last)
	g.n--
	g.bytes -= recordOverhead + len(s.records[last].wire)
	s.records[last] = topicRecord{}
	s.records = s.records[:last]
	delete(s.at, k)
	if last == 0 {
		delete(g.topics, t)
		g.bytes -= topicOverhead
	}
}

func (s *topic) swap(i, j int) {
	s.records[i], s.records[j] = s.records[j], s.records[i]
	if s.at != nil {
		s.at[s.records[i].key], s.at[s.records[j].key] = i, j
	}
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
	if s.fresh.n >= s.size || s.fresh.bytes >= s.maxBytes {
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
