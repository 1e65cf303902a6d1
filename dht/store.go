package dht

import (
	"bytes"
	"time"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

const (
	recordCount = 65536 // in a generation, of announcements, peers, …
	recordAge   = 20 * time.Minute
	valueCount  = 32768 // in a generation, of mutable and of immutable values
	valueAge    = 48 * time.Hour

	defaultStoreBytes = 64 << 20
	// Everything is in one of four caches of two generations, and weighs what it holds and what maps and slices
	// take for it, roughly.
	storeShare    = 8
	entryOverhead = 160

	lookupLimit  = 20               // records in the answer to a LOOKUP
	maxBumpDrift = 60 * time.Second // how far ahead of our clock a bump may be

	// What answers may exceed maxAmplification by, for each host: bytes a second, and bytes at once.
	excessRate  = 32 << 10
	excessBurst = 256 << 10
)

// store is what a member of the network keeps for others.
type store struct {
	topics     topicStore
	bumps      generations[key.Target, uint64]
	refreshes  generations[key.Target, refresh]
	mutables   generations[key.Target, mutableRecord]
	immutables generations[key.Target, []byte]
	excess     limiter
}

// refresh is what the holder of a refresh token may renew.
type refresh struct {
	target key.Target
	record Record
}

func newStore(bytes int) store {
	s := store{
		topics:     newTopicStore(recordCount, bytes/storeShare, recordAge),
		bumps:      newGenerations[key.Target, uint64](recordCount, recordAge, true),
		refreshes:  newGenerations[key.Target, refresh](recordCount, recordAge, true),
		mutables:   newGenerations[key.Target, mutableRecord](valueCount, valueAge, true),
		immutables: newGenerations[key.Target, []byte](valueCount, valueAge, true),
		excess:     newLimiter(excessRate, excessBurst),
	}
	s.mutables.limitBytes(bytes/storeShare, func(m mutableRecord) int { return entryOverhead + len(m.value) })
	s.immutables.limitBytes(bytes/storeShare, func(v []byte) int { return entryOverhead + len(v) })
	// Of two small kinds that come with announcements, each has half of what is left for peers.
	s.bumps.limitBytes(bytes/storeShare/4, func(uint64) int { return entryOverhead })
	s.refreshes.limitBytes(bytes/storeShare/4, func(r refresh) int { return 2*entryOverhead + 32*len(r.record.Relays) })
	return s
}

func (s *store) len() int { return s.topics.len() + s.mutables.len() + s.immutables.len() }

// serve handles the commands of members. Requests that lack something get no answer.
func (n *Node) serve(now time.Time, in *incoming) {
	if !in.target.set {
		return
	}
	t := in.target.v
	switch in.command { //nolint:exhaustive // the others are handled where they come in
	case cmdFindPeer:
		n.reply(now, in, n.peerRecord(t, now), withToken|withCloser)
	case cmdLookup:
		n.serveLookup(now, in, t)
	case cmdAnnounce:
		n.serveAnnounce(now, in, t)
	case cmdUnannounce:
		n.serveUnannounce(now, in, t)
	case cmdMutableGet:
		n.serveMutableGet(now, in, t)
	case cmdMutablePut:
		n.serveMutablePut(now, in, t)
	case cmdImmutableGet:
		v, _ := n.store.immutables.get(t, now)
		n.reply(now, in, v, withToken|withCloser)
	case cmdImmutablePut:
		if in.token.set && in.value != nil && key.Hash(in.value) == t {
			n.store.immutables.set(t, append([]byte{}, in.value...), now)
			n.reply(now, in, nil, withToken|withCloser)
		}
	}
}

// peerRecord returns the record of the peer whose key hashes to t, nil if we know of none.
func (n *Node) peerRecord(t key.Target, now time.Time) []byte {
	if a := n.router.servers[t]; a != nil {
		return Record{Key: a.public}.Append(nil)
	}
	if f, ok := n.router.forwards.get(t, now); ok {
		return f.record
	}
	return nil
}

func (n *Node) serveLookup(now time.Time, in *incoming, t key.Target) {
	records := n.store.topics.sample(t, now)
	if r := n.peerRecord(t, now); r != nil && len(records) < lookupLimit {
		records = append(records, r)
	}
	if len(records) == 0 {
		n.reply(now, in, nil, withToken|withCloser)
		return
	}
	v := compact.AppendUint(nil, uint64(len(records)))
	for _, r := range records {
		v = append(v, r...)
	}
	bump, _ := n.store.bumps.get(t, now)
	n.reply(now, in, compact.AppendUint(v, bump), withToken|withCloser)
}

func (n *Node) serveAnnounce(now time.Time, in *incoming, t key.Target) {
	m, err := parseAnnounce(in.value)
	if err != nil || !in.token.set {
		return
	}
	if !m.peer.set {
		n.serveRefresh(now, in, &m)
		return
	}
	if !verifyAnnounce(cmdAnnounce, t, n.table.own, in.token.v, &m) {
		return
	}
	r := m.peer.v
	r.Relays = r.Relays[:min(len(r.Relays), maxRecordRelays)]
	n.storeRecord(now, in, t, r)
	if old, _ := n.store.bumps.get(t, now); r.Key.Target() != t && m.bump > old &&
		m.bump <= uint64(now.Add(maxBumpDrift).UnixMilli()) {
		n.store.bumps.set(t, m.bump, now)
	}
	if m.refresh.set {
		n.store.refreshes.set(m.refresh.v, refresh{target: t, record: r}, now)
	}
	n.reply(now, in, nil, 0)
}

// storeRecord stores r under t. A peer under the hash of its own key is one that we forward to, by the way its
// announcement came.
func (n *Node) storeRecord(now time.Time, in *incoming, t key.Target, r Record) {
	wire := r.Append(nil)
	if r.Key.Target() != t {
		n.store.topics.add(t, r.Key, wire, now)
		return
	}
	n.store.topics.remove(t, r.Key)
	if n.router.servers[t] == nil {
		n.router.forwards.set(t, forward{relay: in.from, record: wire}, now)
	}
}

// serveRefresh renews a record for whoever shows the preimage of its refresh token, which becomes the next one.
func (n *Node) serveRefresh(now time.Time, in *incoming, m *announceMessage) {
	if !m.refresh.set {
		return
	}
	active := key.Hash(m.refresh.v[:])
	r, ok := n.store.refreshes.get(active, now)
	if !ok {
		return
	}
	n.storeRecord(now, in, r.target, r.record)
	n.store.refreshes.remove(active)
	n.store.refreshes.set(m.refresh.v, r, now)
	n.reply(now, in, nil, 0)
}

func (n *Node) serveUnannounce(now time.Time, in *incoming, t key.Target) {
	m, err := parseAnnounce(in.value)
	if err != nil || !in.token.set || !verifyAnnounce(cmdUnannounce, t, n.table.own, in.token.v, &m) {
		return
	}
	k := m.peer.v.Key
	if k.Target() == t {
		n.router.forwards.remove(t)
	}
	n.store.topics.remove(t, k)
	n.reply(now, in, nil, 0)
}

func (n *Node) serveMutableGet(now time.Time, in *incoming, t key.Target) {
	seq, err := parseSeq(in.value)
	if err != nil {
		return
	}
	var value []byte
	if m, ok := n.store.mutables.get(t, now); ok && m.seq >= seq {
		value = m.append(nil)
	}
	n.reply(now, in, value, withToken|withCloser)
}

func (n *Node) serveMutablePut(now time.Time, in *incoming, t key.Target) {
	m, err := parseMutablePut(in.value)
	if err != nil || !in.token.set || m.key.Target() != t || !m.record.verify(m.key) {
		return
	}
	if old, ok := n.store.mutables.get(t, now); ok {
		if m.record.seq == old.seq && !bytes.Equal(m.record.value, old.value) {
			n.refuse(now, in, CodeSeqReused, withCloser)
			return
		}
		if m.record.seq < old.seq {
			n.refuse(now, in, CodeSeqTooLow, withCloser)
			return
		}
	}
	m.record.value = bytes.Clone(m.record.value)
	n.store.mutables.set(t, m.record, now)
	n.reply(now, in, nil, withToken|withCloser)
}
