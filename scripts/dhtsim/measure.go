package main

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// patience is how long a search may take.
const patience = 30 * time.Second

// outcome is what became of a number of searches.
type outcome struct {
	Searches int     `json:"searches"`
	Found    int     `json:"found"`
	Rate     float64 `json:"rate"`
	Hops     float64 `json:"hops"`         // mean, to the closest node
	Requests float64 `json:"requests"`     // mean
	First    float64 `json:"first_ms"`     // median time to the first answer, of those found
	Slow     float64 `json:"first_p99_ms"` // the 99th percentile
}

// silent is a server that answers nobody: it is only looked for.
type silent struct{}

func (silent) HandleHandshake(*dht.HandshakeRequest) {}
func (silent) HandleHolepunch(*dht.HolepunchRequest) {}

// search is a search for a server, running.
type search struct {
	*dht.Query[dht.PeerReply]
	began time.Time
	first time.Duration // 0: not found yet
	over  bool
}

// servers announces a number of keys, each from a client of its own, and waits until they are.
func (n *network) servers(count int) []key.Private {
	keys := make([]key.Private, count)
	for i, m := range n.clients(count) {
		keys[i] = n.key()
		n.serve(m, keys[i])
	}
	n.run(20*time.Second, nil)
	return keys
}

func (n *network) key() key.Private {
	var seed [key.SeedSize]byte
	for i := range seed {
		seed[i] = byte(n.random.Uint32())
	}
	return key.FromSeed(seed)
}

func (n *network) serve(m *node, k key.Private) {
	if _, err := m.Serve(k, silent{}); err != nil {
		panic(err)
	}
}

// find has a node look for a server.
func (n *network) find(from *node, k key.Private) *search {
	return &search{Query: from.StartFindPeer(context.Background(), k.Public().Target(), nil), began: n.now}
}

// await lets time pass until all searches are over.
func (n *network) await(list []*search) {
	for deadline := n.now.Add(patience); n.now.Before(deadline); n.run(10*time.Millisecond, nil) {
		running := 0
		for _, s := range list {
			s.look(n.now)
			if !s.over {
				running++
			}
		}
		if running == 0 {
			break
		}
	}
	for _, s := range list {
		if !s.over {
			s.Cancel()
			s.look(n.now)
		}
	}
}

// look sees how s is doing.
func (s *search) look(now time.Time) {
	if s.over {
		return
	}
	select {
	case <-s.Done():
		s.over = true
	default:
	}
	if s.first == 0 && s.Stats().Found > 0 {
		s.first = max(now.Sub(s.began), time.Millisecond)
	}
}

// sum says what became of searches.
func sum(list []*search) outcome {
	o := outcome{Searches: len(list)}
	var first []float64
	for _, s := range list {
		stats := s.Stats()
		o.Hops += float64(stats.Hops) / float64(len(list))
		o.Requests += float64(stats.Requests) / float64(len(list))
		if s.first > 0 {
			o.Found++
			first = append(first, float64(s.first)/float64(time.Millisecond))
		}
	}
	o.Rate = float64(o.Found) / float64(max(1, o.Searches))
	slices.Sort(first)
	if len(first) > 0 {
		o.First, o.Slow = first[len(first)/2], first[len(first)*99/100]
	}
	return o
}

// quiet has members look for servers in a network where nothing happens.
func (n *network) quiet(keys []key.Private, searches int) outcome {
	var all, batch []*search
	for i := range searches {
		batch = append(batch, n.find(n.anyMember(), keys[i%len(keys)]))
		if len(batch) == 50 || i == searches-1 {
			n.await(batch)
			all, batch = append(all, batch...), nil
		}
	}
	return sum(all)
}

// anyMember returns a member that is there and honest.
func (n *network) anyMember() *node {
	for {
		if m := n.members[n.random.IntN(len(n.members))]; !m.gone && m.gang == nil {
			return m
		}
	}
}

// point is an outcome at a time.
type point struct {
	Seconds float64 `json:"seconds"`
	outcome
}

// halved lets half of the members vanish at once, the bootstrap node apart, and has the others look for servers for
// the time after.
func (n *network) halved(keys []key.Private, searches int, step, total time.Duration) []point {
	order := n.random.Perm(len(n.members) - 1)
	for _, i := range order[:len(order)/2] {
		n.leave(n.members[1+i])
	}
	type wave struct {
		at   time.Duration
		list []*search
	}
	var waves []*wave
	began := n.now
	for at := time.Duration(0); at < total; at += step {
		w := &wave{at: at}
		for i := range searches {
			w.list = append(w.list, n.find(n.anyMember(), keys[i%len(keys)]))
		}
		waves = append(waves, w)
		for n.now.Sub(began) < at+step {
			n.run(20*time.Millisecond, nil)
			for _, w := range waves {
				for _, s := range w.list {
					if s.look(n.now); !s.over && n.now.Sub(s.began) >= patience {
						s.Cancel()
					}
				}
			}
		}
	}
	var points []point
	for _, w := range waves {
		n.await(w.list)
		points = append(points, point{w.at.Seconds(), sum(w.list)})
	}
	return points
}

// corrupt turns a share of the members into liars, that replace as many honest ones.
func (n *network) corrupt(share float64) {
	g := newGang()
	for _, i := range n.random.Perm(len(n.members) - 1)[:int(math.Round(share*float64(len(n.members))))] {
		m := n.members[1+i]
		m.gang, m.asked = g, make(map[question]key.Target)
		g.add(m)
	}
}

// The Sybils of a key.
const (
	sybilNodes    = 40
	sybilNetworks = 4
)

// surround lets Sybils join that are closer to a key than any honest node: whoever has four networks of 256 addresses
// can choose among their ports.
func (n *network) surround(target key.Target) []*node {
	type place struct {
		addr netip.AddrPort
		id   key.Target
	}
	n.hosts++
	var all []place
	for i := range 80 * max(len(n.members), 1000) {
		ip := netip.AddrFrom4([4]byte{80 + byte(n.hosts>>16), byte(n.hosts >> 8), byte(n.hosts), byte(i)})
		ip = netip.AddrFrom4([4]byte{ip.As4()[0] + 10*byte(i>>8%sybilNetworks), ip.As4()[1], ip.As4()[2], byte(i)})
		a := netip.AddrPortFrom(ip, uint16(1001+2*(i>>10)%60000))
		all = append(all, place{a, dht.NodeID(a)})
	}
	slices.SortFunc(all, func(a, b place) int { return compareDistance(target, a.id, b.id) })
	g := newGang()
	var sybils []*node
	for _, p := range all {
		if len(sybils) == sybilNodes {
			break
		}
		if n.sockets[p.addr] == nil && n.sockets[netip.AddrPortFrom(p.addr.Addr(), p.addr.Port()-1)] == nil {
			sybils = append(sybils, n.join(p.addr, dht.Persistent, g))
		}
	}
	return sybils
}

// besieged surrounds keys by Sybils, a few at a time, before their servers announce them, and then has members look
// for them.
func (n *network) besieged(keys, searches int) outcome {
	var all []*search
	const atOnce = 5
	for done := 0; done < keys; done += atOnce {
		var sybils []*node
		var victims []key.Private
		for range min(atOnce, keys-done) {
			k := n.key()
			victims = append(victims, k)
			sybils = append(sybils, n.surround(k.Public().Target())...)
		}
		n.run(5*time.Minute, nil)
		servers := n.clients(len(victims))
		for i, m := range servers {
			n.serve(m, victims[i])
		}
		n.run(20*time.Second, nil)
		var batch []*search
		for _, k := range victims {
			for range searches {
				batch = append(batch, n.find(n.anyMember(), k))
			}
		}
		n.await(batch)
		all = append(all, batch...)
		for _, m := range slices.Concat(sybils, servers) {
			n.leave(m)
		}
	}
	return sum(all)
}
