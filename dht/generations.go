package dht

import "time"

// generations is a bounded cache that forgets by halves: entries are put into the new generation; every two
// thirds of the age, and whenever the new one is full, the old one is dropped and the new one becomes old. So
// an entry nobody touches lives between 2/3 and 4/3 of the age.
//
// Source: npm xache.
type generations[K comparable, V any] struct {
	size     int           // entries in a generation
	interval time.Duration // between turnovers by age
	keep     bool          // reading an entry keeps it alive
	weigh    func(V) int   // bytes that an entry takes; nil: not counted
	maxBytes int           // in a generation

	fresh, stale map[K]V
	bytes        int       // of fresh
	next         time.Time // the next turnover by age; zero: not started
	turned       bool      // a turnover by size happened since the last by age
}

func newGenerations[K comparable, V any](size int, age time.Duration, keepRead bool) generations[K, V] {
	return generations[K, V]{size: size, interval: age * 2 / 3, keep: keepRead}
}

// limitBytes bounds a generation to so many bytes, too, as weigh counts them.
func (g *generations[K, V]) limitBytes(limit int, weigh func(V) int) {
	g.maxBytes, g.weigh = limit, weigh
}

// advance does the turnovers due at now.
func (g *generations[K, V]) advance(now time.Time) {
	if g.next.IsZero() {
		g.next = now.Add(g.interval)
		return
	}
	for range 3 { // after that many there is nothing left to forget
		if now.Before(g.next) {
			return
		}
		g.next = g.next.Add(g.interval)
		if !g.turned {
			g.turn()
		}
		g.turned = false
	}
	if !now.Before(g.next) { // the host slept
		g.next = now.Add(g.interval)
	}
}

func (g *generations[K, V]) turn() { g.stale, g.fresh, g.bytes = g.fresh, nil, 0 }

// get returns the entry of k.
func (g *generations[K, V]) get(k K, now time.Time) (v V, ok bool) {
	g.advance(now)
	if v, ok = g.fresh[k]; ok {
		return v, true
	}
	if v, ok = g.stale[k]; ok && g.keep {
		delete(g.stale, k)
		g.put(k, v)
	}
	return v, ok
}

// set stores v under k.
func (g *generations[K, V]) set(k K, v V, now time.Time) {
	g.advance(now)
	delete(g.stale, k)
	g.put(k, v)
}

func (g *generations[K, V]) put(k K, v V) {
	if g.fresh == nil {
		g.fresh = make(map[K]V)
	}
	g.count(k, -1)
	g.fresh[k] = v
	g.count(k, +1)
	if len(g.fresh) >= g.size || g.weigh != nil && g.bytes >= g.maxBytes {
		g.turned = true
		g.turn()
	}
}

// count adds the bytes of fresh's entry of k, if there is one, sign times.
func (g *generations[K, V]) count(k K, sign int) {
	if v, ok := g.fresh[k]; ok && g.weigh != nil {
		g.bytes += sign * g.weigh(v)
	}
}

// remove deletes the entry of k.
func (g *generations[K, V]) remove(k K) {
	g.count(k, -1)
	delete(g.fresh, k)
	delete(g.stale, k)
}

// len returns the number of entries.
func (g *generations[K, V]) len() int { return len(g.fresh) + len(g.stale) }
