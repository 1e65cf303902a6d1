package dht

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"omegatun/dht/key"
)

func TestPublicAddresses(t *testing.T) {
	for _, s := range []string{"1.1.1.1", "100.63.0.1", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "192.88.98.1", "198.17.0.1", "198.20.0.1", "203.0.112.1", "223.255.255.255"} {
		if !isPublic(netip.MustParseAddr(s)) {
			t.Errorf("%s is not public", s)
		}
	}
	for _, s := range []string{"0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "169.254.1.1", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "255.255.255.255", "::1", "2001:4860::1"} {
		if isPublic(netip.MustParseAddr(s)) {
			t.Errorf("%s is public", s)
		}
	}
}

// sybils returns the closest of many possible addresses to target, in so many networks.
func sybils(target key.Target, count, networks int) []contact {
	var all []contact
	for i := range 40000 {
		a := netip.AddrFrom4([4]byte{66, byte(i % networks), 6, byte(i)})
		all = append(all, contactAt(netip.AddrPortFrom(a, uint16(1000+i))))
	}
	slices.SortFunc(all, func(a, b contact) int { return compareDistance(target, a.id, b.id) })
	return all[:count]
}

func TestRowsAreNotCrowded(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tab := newTable(randomID(r))
	at := func(addr string) *node {
		n := newNode(contact{id: randomID(r), addr: netip.MustParseAddrPort(addr)}, 0)
		n.id[0] = ^tab.own[0] // all in row 0
		return n
	}
	for i := range bucketSize { // one network fills a row that nobody else wants
		n := at("66.1.1.1:1")
		n.added = int32(i)
		if !tab.add(n) {
			t.Fatalf("node %d has no place", i)
		}
	}
	if tab.add(at("66.1.1.2:1")) {
		t.Error("one more of the same network pushed out another")
	}
	for i := range bucketSize - 1 {
		b := byte(i)
		n := at(netip.AddrPortFrom(netip.AddrFrom4([4]byte{77, b, 1, 1}), 1).String())
		if !tab.add(n) {
			t.Errorf("node %d of another network found no place", i)
		}
	}
	if tab.add(at("88.1.1.1:1")) {
		t.Error("a row without crowds made room")
	}
	if left := tab.row(0); len(left) != bucketSize || tab.oldest.added != 0 || tab.oldest.addr().String() != "66.1.1.1:1" {
		t.Errorf("%d nodes, the oldest %v: the first should have stayed", len(left), tab.oldest.addr())
	}
	for i := range bucketSize { // where addresses are not scarce there are no crowds
		tab.remove(tab.row(0)[0])
		if !tab.add(at("127.0.0.1:1")) {
			t.Errorf("loopback node %d found no place", i)
		}
	}
	if tab.add(at("1.1.1.1:1")) {
		t.Error("a row of loopback nodes made room")
	}
}

func TestAnswersAreNotCrowded(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	target := randomID(r)
	tab := newTable(near(r, target, 6)) // one of few that share that much with the target
	for i := range 400 {
		tab.add(newNode(contactAt(netip.AddrPortFrom(testHost(i), 1)), 0))
	}
	for _, c := range sybils(target, 40, 4) {
		tab.add(newNode(c, 0))
	}
	count := func(tab *table) (found, bad int) {
		list := tab.closest(target, bucketSize)
		if !slices.IsSortedFunc(list, func(a, b *node) int { return compareDistance(target, a.id, b.id) }) {
			t.Error("not nearest first")
		}
		for _, n := range list {
			if n.addr().Addr().As4()[0] == 66 {
				bad++
			}
		}
		return len(list), bad
	}
	if found, bad := count(tab); found != bucketSize || bad != 4*netLimit {
		t.Errorf("%d nodes, %d of four networks that surround the target", found, bad)
	}
	few := newTable(tab.own)
	for i := range 5 {
		few.add(newNode(contactAt(netip.AddrPortFrom(testHost(i), 1)), 0))
	}
	for _, c := range sybils(target, 10, 1) {
		few.add(newNode(c, 0))
	}
	if found, bad := count(few); found != 15 || bad != 10 {
		t.Errorf("%d nodes of 15, %d of a crowd of 10 whose places nobody else wants", found, bad)
	}
}

func TestQueryIsNotSurrounded(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		w := newFakeNet(500)
		target := randomID(r)
		honest := w.nearest(target, bucketSize)
		w.nodes = append(w.nodes, sybils(target, 40, 4)...)
		w.names = func(c contact, target key.Target) (named []contact) {
			var places []place
			for _, m := range w.nearest(target, 100) {
				var n tally
				for _, p := range places {
					n.count(placeOf(m.addr.Addr()), p)
				}
				if c.addr.Addr().As4()[0] != 66 && !n.full() || m.addr.Addr().As4()[0] == 66 && c.addr.Addr().As4()[0] == 66 {
					named, places = append(named, m), append(places, placeOf(m.addr.Addr()))
				}
			}
			return named[:min(len(named), bucketSize)]
		}
		q := newQuery(target, randomID(r), queryConcurrency)
		q.start([]contact{w.nodes[r.IntN(500)]})
		asked := w.run(t, r, q)
		bad, crowded := 0, 0
		for _, f := range q.result() {
			if f.addr.Addr().As4()[0] == 66 {
				bad++
			}
			if f.crowded {
				crowded++
			}
		}
		if bad > 4*netLimit || crowded < bad/2 || crowded > bad || len(q.result()) != bucketSize {
			t.Errorf("%d of %d closest are of the crowd, %d are known to be; asked %d", bad, len(q.result()), crowded, asked)
		}
		for _, c := range honest[:bucketSize-4*netLimit] {
			if !slices.ContainsFunc(q.result(), func(f found) bool { return f.contact == c }) {
				t.Errorf("%v is not among the closest", c.addr)
			}
		}
	}
}

// In a network on few hosts all are asked and found.
func TestQueryInASmallNetworkOnOneHost(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	w := newFakeNet(0)
	for port := range uint16(10) {
		w.nodes = append(w.nodes, contactAt(netip.AddrPortFrom(testHost(1), 1+port)))
	}
	target := randomID(r)
	q := newQuery(target, randomID(r), queryConcurrency)
	q.start(w.nodes[:1])
	w.run(t, r, q)
	if got := q.result(); len(got) < 2 || got[0].contact != w.nearest(target, 1)[0] || !got[1].crowded {
		t.Errorf("closest %v", got)
	}
}

func TestNATSampler(t *testing.T) {
	const a, b = "50.0.0.1:1", "60.0.0.1:1"
	type sample struct{ from, addr string }
	for _, row := range []struct {
		name    string
		samples []sample
		want    string // "": unknown
	}{
		{"nothing", nil, ""},
		{"one", []sample{{"1.0.0.1:1", a}}, a},
		{"two that disagree", []sample{{"1.0.0.1:1", a}, {"2.0.0.1:1", b}}, ""},
		{"a liar among three", []sample{{"1.0.0.1:1", b}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}}, a},
		{"a liar among four", []sample{{"1.0.0.1:1", a}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}, {"4.0.0.1:1", b}}, a},
		{"two liars among four", []sample{{"1.0.0.1:1", a}, {"2.0.0.1:1", b}, {"3.0.0.1:1", a}, {"4.0.0.1:1", b}}, ""},
		{"a liar with many hosts", []sample{
			{"1.0.0.1:1", a},
			{"2.0.0.1:1", a},
			{"3.0.0.1:1", a},
			{"4.0.0.1:1", b},
			{"4.0.0.2:1", b},
			{"4.0.0.3:1", b},
			{"4.0.0.3:2", b},
			{"4.0.0.4:1", b},
		}, a},
		{"another port for each", []sample{
			{"1.0.0.1:1", "50.0.0.1:1"}, {"2.0.0.1:1", "50.0.0.1:2"}, {"3.0.0.1:1", "50.0.0.1:3"},
		}, "50.0.0.1:0"},
		{"voters of one private network", []sample{{"192.168.1.1:1", b}, {"192.168.1.2:1", a}, {"192.168.1.2:2", a}}, a},
		{"all change their mind", []sample{
			{"1.0.0.1:1", a}, {"2.0.0.1:1", a}, {"3.0.0.1:1", a}, {"1.0.0.1:1", b}, {"2.0.0.1:1", b}, {"3.0.0.1:1", b},
		}, b},
	} {
		var s natSampler
		for _, e := range row.samples {
			s.add(time.Time{}, netip.MustParseAddrPort(e.from), netip.MustParseAddrPort(e.addr))
		}
		got := ""
		if s.addr.IsValid() {
			got = s.addr.String()
		}
		if got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

// When the address changes, a few that are still spoken to suffice: the others' votes are old.
func TestNATSamplerIsRevised(t *testing.T) {
	var s natSampler
	now := time.Unix(1000, 0)
	before, after := netip.MustParseAddrPort("50.0.0.1:1"), netip.MustParseAddrPort("60.0.0.1:1")
	for i := range 100 {
		s.add(now, netip.AddrPortFrom(testHost(i), 1), before)
	}
	if s.addr != before || len(s.votes) != samplerSize {
		t.Fatalf("%v after %d votes", s.addr, len(s.votes))
	}
	now = now.Add(2 * samplerRecent)
	for i := range 3 {
		s.add(now, netip.AddrPortFrom(testHost(200+i), 1), after)
	}
	if s.addr != after {
		t.Errorf("%v after three of the latest four saw us at %v", s.addr, after)
	}
}

func TestOnlyPublicAddressesInThePublicNetwork(t *testing.T) {
	local := netip.MustParseAddrPort("0.0.0.0:49737")
	for _, row := range []struct {
		name    string
		adjust  func(*Config)
		private bool
	}{
		{"public network", func(c *Config) { c.Bootstrap = nil }, false},
		{"public bootstrap node", func(c *Config) { c.Bootstrap = []string{"20.0.0.1:1"} }, false},
		{"public bootstrap node of ours", func(c *Config) { c.PublicAddr = netip.MustParseAddrPort("20.0.0.1:1") }, false},
		{"isolated", func(*Config) {}, true},
		{"private bootstrap node", func(c *Config) { c.Bootstrap = []string{"192.168.1.1:1"} }, true},
		{"documentation address", func(c *Config) { c.PublicAddr = netip.MustParseAddrPort("203.0.113.9:1") }, true},
		{"on loopback", func(c *Config) {
			c.Bootstrap, c.Server = nil, &nullSocket{netip.MustParseAddrPort("127.0.0.1:1")}
		}, true},
		{"asked for", func(c *Config) { c.Bootstrap, c.Private = nil, true }, true},
	} {
		cfg := Config{Client: &nullSocket{local}, Server: &nullSocket{local}, Bootstrap: []string{}}
		row.adjust(&cfg)
		n, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"192.168.1.7:80", "127.0.0.1:80", "20.1.2.3:80"} {
			want := row.private || a == "20.1.2.3:80"
			if got := n.acceptable(netip.MustParseAddrPort(a)); got != want {
				t.Errorf("%s: node at %s acceptable: %v, want %v", row.name, a, got, want)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestForwardingStaysOutOfLocalNetworks(t *testing.T) {
	bubble(t, func(t *testing.T, w *testNet) {
		n := w.members(2)[0]
		p := w.raw("20.50.0.1:1000")
		inside := w.raw("192.168.1.1:80")
		outside := w.raw("20.60.0.1:80")
		var target [4]byte
		for i, to := range []*rawPeer{inside, outside} {
			binary.LittleEndian.PutUint32(target[:], uint32(i))
			k := some(key.Hash(target[:]))
			h := handshakeMessage{mode: fromClient, noise: []byte("x"), relay: to.socket.public}
			p.send(n, request{command: cmdPeerHandshake, target: k, value: h.encode()})
			b := handshakeMessage{mode: fromServer, noise: []byte("x"), peer: to.socket.public}
			p.send(n, request{command: cmdPeerHandshake, target: k, value: b.encode()})
			u := holepunchMessage{mode: fromClient, payload: []byte("x"), peer: to.socket.public}
			p.send(n, request{command: cmdPeerHolepunch, target: k, value: u.encode()})
		}
		if got := inside.take(); len(got) > 0 {
			t.Errorf("%d datagrams went to %v", len(got), inside.socket.public)
		}
		if got := outside.take(); len(got) != 3 {
			t.Errorf("%d datagrams went to %v, want 3", len(got), outside.socket.public)
		}
	})
}

func TestShortAnswersNameTheNearestAndAnyOthers(t *testing.T) {
	all := make([]*node, bucketSize)
	for i := range all {
		all[i] = &node{port: uint16(i)}
	}
	named := make(map[uint16]bool)
	for range 1000 {
		got := someOf(slices.Clone(all), 4)
		for i, m := range got {
			if i < 2 && m != all[i] || i > 0 && m.port <= got[i-1].port {
				t.Fatalf("place %d has node %d", i, m.port)
			}
			named[m.port] = true
		}
	}
	if len(named) != len(all) {
		t.Errorf("%d of %d nodes are ever named", len(named), len(all))
	}
	for _, limit := range []int{0, 1, bucketSize, bucketSize + 1} {
		if got := someOf(slices.Clone(all), limit); len(got) != min(limit, len(all)) || len(got) > 0 && got[0] != all[0] {
			t.Errorf("limit %d: %d nodes", limit, len(got))
		}
	}
}
