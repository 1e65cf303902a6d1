package dht

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// MaxValue is the largest value in bytes that is stored: it must fit a datagram on any path, with all that goes
// with it.
const MaxValue = 1000

var (
	// ErrNotFound reports that nobody who answered has the value.
	ErrNotFound = errors.New("dht: not found")
	// ErrTooLarge reports a value of more than [MaxValue] bytes.
	ErrTooLarge = fmt.Errorf("dht: value is larger than %d bytes", MaxValue)
)

var errNoKey = errors.New("dht: a key is needed to sign with")

// Stored says how storing went.
type Stored struct {
	Nodes   []netip.AddrPort // that accepted, nearest first
	Closest int              // nodes closest to the target, which were asked to
	Refused *ReplyError      // the refusal of one that did not; nil: none did
}

// TopicReply is one node's answer to [Node.Lookup].
type TopicReply struct {
	From  netip.AddrPort
	To    netip.AddrPort // our address as that node sees it
	Peers []Record       // up to twenty of those announced
	Bump  uint64         // ms since 1970; 0: none
}

// MutableReply is one node's answer to [Node.MutableValues].
type MutableReply struct {
	From  netip.AddrPort
	Seq   uint64
	Value []byte // owned by the caller
}

// Lookup asks the nodes closest to a topic who announced it, and yields the answers of those that know anyone,
// as they come. Breaking out of the loop cancels the query; the last pair has an error if the query did not run
// to its end: see [Query.All]. Anyone may announce anything: a record is not a proof.
func (n *Node) Lookup(ctx context.Context, topic key.Target) iter.Seq2[TopicReply, error] {
	return func(yield func(TopicReply, error) bool) { n.StartLookup(ctx, topic).All()(yield) }
}

// StartLookup does what [Node.Lookup] does, as a running query.
func (n *Node) StartLookup(ctx context.Context, topic key.Target) *Query[TopicReply] {
	return startQuery(ctx, n, lookupSpec{target: topic, command: cmdLookup}, n.topicReply, nil)
}

// topicReply is what f says of a topic; false if it knows nobody. n.mu is held.
func (n *Node) topicReply(f found) (TopicReply, bool) {
	m, err := parseLookupReply(f.value)
	if err != nil || len(m.peers) == 0 {
		return TopicReply{}, false
	}
	for i, r := range m.peers {
		m.peers[i] = n.inScopeOnly(r)
	}
	return TopicReply{From: f.addr, To: f.to, Peers: m.peers, Bump: m.bump}, true
}

// Announce stores under topic that the owner of k can be reached, by way of relays, of which the first three
// count, and only those with an IPv4 address. Nodes keep that for 13 to 27 minutes. It fails with [ErrNoNodes], or the
// refusal of a node if none accepted.
func (n *Node) Announce(ctx context.Context, topic key.Target, k key.Private, relays []netip.AddrPort) (Stored, error) {
	q := n.StartAnnounce(ctx, topic, k, relays)
	err := q.Wait()
	return q.Stored(), err
}

// StartAnnounce does what [Node.Announce] does, as a running query, which yields who else announced topic.
func (n *Node) StartAnnounce(
	ctx context.Context, topic key.Target, k key.Private, relays []netip.AddrPort,
) *Query[TopicReply] {
	if k.IsZero() {
		return failedQuery[TopicReply](n, errNoKey)
	}
	r := Record{Key: k.Public()}
	for _, a := range relays {
		if a = unmap(a); usable(a) && len(r.Relays) < maxRecordRelays {
			r.Relays = append(r.Relays, a)
		}
	}
	spec := lookupSpec{target: topic, command: cmdLookup}
	return startQuery(ctx, n, spec, n.topicReply, func(f found) (callSpec, bool) {
		m := announceMessage{peer: some(r)}
		signAnnounce(k, cmdAnnounce, topic, f.id, f.token.v, &m)
		return callSpec{command: cmdAnnounce, value: m.encode()}, true
	})
}

// Unannounce has the nodes closest to topic forget what was announced for k.
func (n *Node) Unannounce(ctx context.Context, topic key.Target, k key.Private) (Stored, error) {
	q := n.StartUnannounce(ctx, topic, k)
	err := q.Wait()
	return q.Stored(), err
}

// StartUnannounce does what [Node.Unannounce] does, as a running query, which yields who announced topic.
func (n *Node) StartUnannounce(ctx context.Context, topic key.Target, k key.Private) *Query[TopicReply] {
	if k.IsZero() {
		return failedQuery[TopicReply](n, errNoKey)
	}
	spec := lookupSpec{target: topic, command: cmdLookup}
	return startQuery(ctx, n, spec, n.topicReply, func(f found) (callSpec, bool) {
		known, err := parseLookupReply(f.value)
		listed := len(known.peers) >= lookupLimit // ours may be one of those left out
		for _, r := range known.peers {
			listed = listed || r.Key == k.Public()
		}
		if err != nil || !listed {
			return callSpec{}, false
		}
		m := announceMessage{peer: some(Record{Key: k.Public()})}
		signAnnounce(k, cmdUnannounce, topic, f.id, f.token.v, &m)
		return callSpec{command: cmdUnannounce, value: m.encode()}, true
	})
}

// PutImmutable stores value under its hash, which it returns. Nodes keep it for 32 to 64 hours after it was
// last asked for.
func (n *Node) PutImmutable(ctx context.Context, value []byte) (key.Target, Stored, error) {
	target := key.Hash(value)
	if len(value) > MaxValue {
		return target, Stored{}, ErrTooLarge
	}
	if value == nil {
		value = []byte{}
	}
	s, err := n.storeAt(ctx, lookupSpec{target: target, command: cmdImmutableGet}, func(found) (callSpec, bool) {
		return callSpec{command: cmdImmutablePut, value: value}, true
	})
	return target, s, err
}

// GetImmutable returns the value whose hash is target. It fails with [ErrNotFound].
func (n *Node) GetImmutable(ctx context.Context, target key.Target) ([]byte, error) {
	q := startQuery(ctx, n, lookupSpec{target: target, command: cmdImmutableGet}, func(f found) ([]byte, bool) {
		return f.value, f.value != nil && key.Hash(f.value) == target
	}, nil)
	return q.first()
}

// PutMutable stores value under k's public key, in place of values with lower sequence numbers. If another
// value was stored with the same number, or any with a higher one, nodes refuse with a [ReplyError]; that is the
// error if all do. A sequence number has at most 53 bits.
func (n *Node) PutMutable(ctx context.Context, k key.Private, seq uint64, value []byte) (Stored, error) {
	if k.IsZero() {
		return Stored{}, errNoKey
	}
	if len(value) > MaxValue {
		return Stored{}, ErrTooLarge
	}
	if seq > compact.MaxUint {
		return Stored{}, errSeq(seq)
	}
	put := mutablePut{key: k.Public(), record: signMutable(k, seq, value)}
	wire := put.encode()
	spec := lookupSpec{target: k.Public().Target(), command: cmdMutableGet, value: compact.AppendUint(nil, 0)}
	return n.storeAt(ctx, spec, func(found) (callSpec, bool) {
		return callSpec{command: cmdMutablePut, value: wire}, true
	})
}

// errSeq says that no value can have the sequence number seq.
func errSeq(seq uint64) error {
	return fmt.Errorf("dht: sequence number %d is too large, the highest is %d", seq, uint64(compact.MaxUint))
}

// MutableValues yields the values stored under k with a sequence number of at least seq, as the answers come:
// most of them alike, some older. All are signed by k's owner. So the first is a quick answer, and GetMutable
// gives the latest.
func (n *Node) MutableValues(ctx context.Context, k key.Public, seq uint64) iter.Seq2[MutableReply, error] {
	return func(yield func(MutableReply, error) bool) { n.StartMutableValues(ctx, k, seq).All()(yield) }
}

// StartMutableValues does what [Node.MutableValues] does, as a running query.
func (n *Node) StartMutableValues(ctx context.Context, k key.Public, seq uint64) *Query[MutableReply] {
	if seq > compact.MaxUint { // no node would answer
		return failedQuery[MutableReply](n, errSeq(seq))
	}
	spec := lookupSpec{target: k.Target(), command: cmdMutableGet, value: compact.AppendUint(nil, seq)}
	return startQuery(ctx, n, spec, func(f found) (MutableReply, bool) {
		m, err := parseMutable(f.value)
		if err != nil || m.seq < seq || !m.verify(k) {
			return MutableReply{}, false
		}
		return MutableReply{From: f.addr, Seq: m.seq, Value: m.value}, true
	}, nil)
}

// FirstMutable returns the first value with a sequence number of at least seq that anyone answers with: sooner
// than [Node.GetMutable], but perhaps not the latest. It fails with [ErrNotFound].
func (n *Node) FirstMutable(ctx context.Context, k key.Public, seq uint64) (MutableReply, error) {
	return n.StartMutableValues(ctx, k, seq).first()
}

// GetMutable returns the value with the highest sequence number stored under k, that is at least seq. It asks
// all the nodes closest to k, so that no older value is taken for the latest. It fails with [ErrNotFound].
func (n *Node) GetMutable(ctx context.Context, k key.Public, seq uint64) (best MutableReply, err error) {
	for m, err := range n.MutableValues(ctx, k, seq) {
		if err != nil {
			return MutableReply{}, err
		}
		if !best.From.IsValid() || m.Seq > best.Seq {
			best = m
		}
	}
	if !best.From.IsValid() {
		return best, ErrNotFound
	}
	return best, nil
}

// storeAt runs a query, and then sends what makes returns to each of the closest nodes, with its token.
func (n *Node) storeAt(ctx context.Context, spec lookupSpec, makes func(f found) (callSpec, bool)) (Stored, error) {
	q := startQuery(ctx, n, spec, func(found) (struct{}, bool) { return struct{}{}, false }, makes)
	err := q.Wait()
	return q.Stored(), err
}
