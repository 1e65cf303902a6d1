package dht

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"omegatun/dht/compact"
	"omegatun/dht/key"
)

// announceTo sends a signed announcement, adjusted before and after signing, and reports whether it was accepted.
func (p *rawPeer) announceTo(n *testNode, cmd Command, k key.Private, target key.Target, m announceMessage, spoil func(*announceMessage)) bool {
	p.t.Helper()
	token := p.token(n, target)
	if !m.peer.set {
		m.peer = some(Record{Key: k.Public()})
	}
	signAnnounce(k, cmd, target, NodeID(n.addr()), token.v, &m)
	if spoil != nil {
		spoil(&m)
	}
	r, ok := p.ask(n, request{command: cmd, target: some(target), token: token, value: m.encode()})
	if ok && (r.code != 0 || r.token.set || len(r.closer) > 0) {
		p.t.Errorf("%v answered with %+v", cmd, r)
	}
	return ok
}

func (p *rawPeer) lookup(n *testNode, target key.Target) lookupReply {
	p.t.Helper()
	r, ok := p.ask(n, request{command: cmdLookup, target: some(target)})
	if !ok {
		p.t.Fatal("lookup is not answered")
	}
	if r.value == nil {
		return lookupReply{}
	}
	m, err := parseLookupReply(r.value)
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

func TestStoringAnnouncements(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(3)[0]
		p := w.raw("20.50.0.1:1000")
		k, topic := key.Generate(), key.Hash([]byte("topic"))
		addrs := addrList("1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4")
		m := announceMessage{peer: some(Record{Key: k.Public(), Relays: addrs})}
		for name, spoil := range map[string]func(*announceMessage){
			"no signature":    func(m *announceMessage) { m.signature.set = false },
			"wrong signature": func(m *announceMessage) { m.signature.v[0] ^= 1 },
			"other relays":    func(m *announceMessage) { m.peer.v.Relays = addrs[:1] },
			"other key":       func(m *announceMessage) { m.peer.v.Key = key.Generate().Public() },
			"refresh added":   func(m *announceMessage) { m.refresh = some([32]byte{}) },
			"nothing":         func(m *announceMessage) { *m = announceMessage{} },
		} {
			if p.announceTo(n, cmdAnnounce, k, topic, m, spoil) {
				t.Errorf("%s: accepted", name)
			}
		}
		if got := p.lookup(n, topic); len(got.peers) != 0 {
			t.Errorf("stored %+v", got)
		}
		if !p.announceTo(n, cmdAnnounce, k, topic, m, nil) {
			t.Fatal("not accepted")
		}
		want := Record{Key: k.Public(), Relays: addrs[:maxRecordRelays]}
		if got := p.lookup(n, topic); len(got.peers) != 1 || !got.peers[0].Equal(want) || got.bump != 0 {
			t.Errorf("stored %+v, want %+v", got, want)
		}
		if p.announceTo(n, cmdUnannounce, k, topic, announceMessage{}, func(m *announceMessage) { m.signature.v[0] ^= 1 }) {
			t.Error("unannounce with a wrong signature is accepted")
		}
		if !p.announceTo(n, cmdUnannounce, k, topic, announceMessage{}, nil) {
			t.Error("unannounce is not accepted")
		}
		if got := p.lookup(n, topic); len(got.peers) != 0 {
			t.Errorf("after unannouncing: %+v", got)
		}
	})
}

func TestSelfAnnouncementMakesAWay(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(3)[0]
		p, client := w.raw("20.50.0.1:1000"), w.raw("20.50.0.2:1000")
		k := key.Generate()
		target := k.Public().Target()
		if !p.announceTo(n, cmdAnnounce, k, target, announceMessage{}, nil) {
			t.Fatal("not accepted")
		}
		r, ok := client.ask(n, request{command: cmdFindPeer, target: some(target)})
		if got, err := ParseRecord(r.value); !ok || err != nil || got.Key != k.Public() {
			t.Errorf("find peer: %+v, %v", got, err)
		}
		if got := client.lookup(n, target); len(got.peers) != 1 {
			t.Errorf("lookup: %+v", got)
		}
		p.take()
		value := handshakeMessage{mode: fromClient, noise: []byte("x")}.encode()
		client.send(n, request{tid: 77, command: cmdPeerHandshake, target: some(target), value: value})
		got := p.take()
		if len(got) != 1 {
			t.Fatalf("%d messages forwarded", len(got))
		}
		q, err := parseRequest(got[0])
		if err != nil || q.tid != 77 || q.to != p.socket.public {
			t.Errorf("forwarded %+v, %v", q, err)
		}
		if m, err := parseHandshake(q.value); err != nil || m.mode != fromRelay || m.peer != client.socket.public {
			t.Errorf("forwarded %+v, %v", m, err)
		}
		time.Sleep(30 * time.Minute)
		if r, _ := client.ask(n, request{command: cmdFindPeer, target: some(target)}); r.value != nil {
			t.Error("the record lives for half an hour")
		}
	})
}

func TestBumps(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		k, topic := key.Generate(), key.Hash([]byte("topic"))
		ms := func(d time.Duration) uint64 { return uint64(time.Now().Add(d).UnixMilli()) }
		for _, row := range []struct {
			bump, want uint64
		}{
			{ms(-time.Hour), ms(-time.Hour)},
			{ms(-2 * time.Hour), ms(-time.Hour)},
			{ms(30 * time.Second), ms(30 * time.Second)},
			{ms(time.Hour), ms(30 * time.Second)},
		} {
			p.announceTo(n, cmdAnnounce, k, topic, announceMessage{bump: row.bump}, nil)
			if got := p.lookup(n, topic).bump; got != row.want {
				t.Errorf("bump %d: stored %d, want %d", row.bump, got, row.want)
			}
		}
	})
}

func TestRefreshChain(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		k, topic := key.Generate(), key.Hash([]byte("topic"))
		first := [32]byte{1}
		second := [32]byte(key.Hash(first[:]))
		third := [32]byte(key.Hash(second[:]))
		p.announceTo(n, cmdAnnounce, k, topic, announceMessage{refresh: some(third)}, nil)
		refresh := func(r [32]byte) bool {
			m := announceMessage{refresh: some(r)}
			_, ok := p.ask(n, request{command: cmdAnnounce, target: some(topic), token: p.token(n, topic), value: m.encode()})
			return ok
		}
		for _, step := range []struct {
			name string
			r    [32]byte
			want bool
		}{{"skipping one", first, false}, {"next", second, true}, {"again", second, false}, {"last", first, true}} {
			time.Sleep(9 * time.Minute)
			if got := refresh(step.r); got != step.want {
				t.Errorf("%s: accepted %v, want %v", step.name, got, step.want)
			}
		}
		if got := p.lookup(n, topic); len(got.peers) != 1 {
			t.Errorf("the record was not kept alive: %+v", got)
		}
	})
}

func TestMutableRecords(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		k := key.Generate()
		target := k.Public().Target()
		get := func(seq uint64) []byte {
			r, ok := p.ask(n, request{command: cmdMutableGet, target: some(target), value: compact.AppendUint(nil, seq)})
			if !ok {
				t.Fatal("no answer")
			}
			return r.value
		}
		for i, row := range []struct {
			name   string
			seq    uint64
			value  string
			target key.Target
			spoil  bool
			silent bool
			code   uint64
		}{
			{name: "first", seq: 5, value: "a", target: target},
			{name: "same", seq: 5, value: "a", target: target},
			{name: "other value", seq: 5, value: "b", target: target, code: CodeSeqReused},
			{name: "lower", seq: 4, value: "b", target: target, code: CodeSeqTooLow},
			{name: "wrong signature", seq: 6, value: "b", target: target, spoil: true, silent: true},
			{name: "wrong target", seq: 6, value: "b", target: key.Target{1}, silent: true},
			{name: "higher, empty", seq: 6, value: "", target: target},
			{name: "empty is a value", seq: 6, value: "b", target: target, code: CodeSeqReused},
			{name: "last", seq: 300, value: "c", target: target},
		} {
			m := mutablePut{key: k.Public(), record: signMutable(k, row.seq, []byte(row.value))}
			if row.spoil {
				m.record.signature[3] ^= 1
			}
			r, ok := p.ask(n, request{
				command: cmdMutablePut, target: some(row.target), token: p.token(n, target), value: m.encode(),
			})
			if ok == row.silent || r.code != row.code {
				t.Errorf("%d, %s: answered %v, code %d", i, row.name, ok, r.code)
			}
		}
		m, err := parseMutable(get(300))
		if err != nil || m.seq != 300 || string(m.value) != "c" || !m.verify(k.Public()) {
			t.Errorf("got %+v, %v", m, err)
		}
		if v := get(301); v != nil {
			t.Errorf("got %x for a higher seq", v)
		}
	})
}

func TestImmutableValues(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		for _, value := range [][]byte{[]byte("value"), {}, make([]byte, 1000)} {
			target := key.Hash(value)
			put := request{command: cmdImmutablePut, target: some(target), value: value}
			if _, ok := p.ask(n, put); ok {
				t.Error("stored without a token")
			}
			put.token = p.token(n, target)
			wrong := put
			wrong.target = some(key.Target{1})
			if _, ok := p.ask(n, wrong); ok {
				t.Error("stored under another target")
			}
			if r, ok := p.ask(n, put); !ok || r.code != 0 {
				t.Errorf("put of %d bytes: %+v, %v", len(value), r, ok)
			}
			get := request{command: cmdImmutableGet, target: some(target)}
			if r, ok := p.ask(n, get); !ok || !bytes.Equal(r.value, value) || r.value == nil {
				t.Errorf("get of %d bytes: %+v, %v", len(value), r, ok)
			}
			time.Sleep(70 * time.Hour)
			if r, ok := p.ask(n, get); !ok || r.value != nil {
				t.Errorf("%d bytes live for 70 hours", len(value))
			}
		}
	})
}

func TestStoredDataIsNotShared(t *testing.T) {
	// Receive does not keep the datagram: the caller reuses it.
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		value := []byte("value")
		target := key.Hash(value)
		q := request{to: n.addr(), command: cmdImmutablePut, target: some(target), token: p.token(n, target), value: value}
		b := q.append(nil)
		n.Receive(n.server, b, p.socket.public)
		for i := range b {
			b[i] = 0xff
		}
		time.Sleep(time.Second)
		p.take()
		if r, _ := p.ask(n, request{command: cmdImmutableGet, target: some(target)}); !bytes.Equal(r.value, value) {
			t.Errorf("stored %q", r.value)
		}
	})
}

func TestStoreIsBounded(t *testing.T) {
	const limit = 4 << 20
	s, r := newStore(limit), newRouter(limit)
	now := time.Unix(0, 0)
	value := make([]byte, 1000)
	relays := addrList("1.2.3.4:5", "1.2.3.4:6", "1.2.3.4:7")
	before := heapInUse()
	for i := range 100_000 {
		binary.LittleEndian.PutUint32(value, uint32(i))
		target := key.Target(value[:32])
		k := key.Public(target)
		stored := bytes.Clone(value)
		record := Record{Key: k, Relays: slices.Clone(relays)}
		s.immutables.set(target, stored, now)
		s.mutables.set(target, mutableRecord{value: bytes.Clone(value)}, now)
		s.topics.add(target, k, record.Append(nil), now)       // a topic each
		s.topics.add(key.Target{}, k, record.Append(nil), now) // and all in one
		s.bumps.set(target, uint64(i), now)
		s.refreshes.set(target, refresh{target: target, record: record}, now)
		r.forwards.set(target, forward{record: record.Append(nil)}, now)
	}
	if took := heapInUse() - before; took > limit*3/2 || took < limit/4 {
		t.Errorf("%d bytes taken, the limit is %d", took, limit)
	}
	if s.len() == 0 || r.forwards.len() == 0 {
		t.Error("nothing stored")
	}
}

// heapInUse collects garbage until that brings nothing: what earlier tests have left may become free one after the other.
func heapInUse() int {
	last := math.MaxInt
	for range 20 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		now := int(m.HeapAlloc)
		if now > last-4096 {
			return now
		}
		last = now
	}
	return last
}

func addrList(list ...string) (addrs []netip.AddrPort) {
	for _, s := range list {
		addrs = append(addrs, netip.MustParseAddrPort(s))
	}
	return addrs
}
