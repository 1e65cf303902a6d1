package main

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
)

// node is a participant of a simulated network.
type node struct {
	*dht.Node
	net     *network
	id      key.Target // of its server socket
	sockets [2]*socket
	gone    bool // it vanished without a word

	// A liar answers as its gang wants. What it was asked last is kept by the asker's address and tid.
	gang  *gang
	asked map[question]key.Target
}

type question struct {
	from netip.AddrPort
	tid  uint16
}

// network is a DHT of simulated nodes.
type network struct {
	*world
	members []*node // those that are to stay; the first is the bootstrap node
	hosts   int     // addresses used
}

// newNetwork makes a network of n members that joined one after the other, and lets it settle.
func newNetwork(seed uint64, n int) *network {
	net := &network{world: newWorld(seed)}
	for i := range n {
		net.members = append(net.members, net.join(net.newAddr(), dht.Persistent, nil))
		if i%64 == 0 {
			net.run(50*time.Millisecond, nil)
		} else {
			net.run(time.Millisecond, nil)
		}
	}
	net.run(10*time.Minute, nil) // two refreshes of all tables
	return net
}

// newAddr returns an address in a network of 256 addresses of its own.
func (n *network) newAddr() netip.AddrPort {
	n.hosts++
	h := n.hosts
	ip := netip.AddrFrom4([4]byte{20 + byte(h>>16), byte(h >> 8), byte(h), 1 + byte(n.random.IntN(250))})
	return netip.AddrPortFrom(ip, 49737)
}

// join adds a node at an address. gang may be nil.
func (n *network) join(at netip.AddrPort, mode dht.Mode, g *gang) *node {
	m := &node{net: n, id: dht.NodeID(at), gang: g}
	m.sockets = [2]*socket{n.socket(netip.AddrPortFrom(at.Addr(), at.Port()-1)), n.socket(at)}
	for _, s := range m.sockets {
		s.node = m
	}
	if g != nil {
		m.asked = make(map[question]key.Target)
		g.add(m)
	}
	cfg := dht.Config{
		Client: m.sockets[0], Server: m.sockets[1], Bootstrap: []string{}, Mode: mode, Clock: n, PublicAddr: at,
		Open: mode == dht.Persistent, StoreBytes: 1 << 20,
	}
	if mode != dht.Persistent {
		cfg.PublicAddr = netip.AddrPort{}
	}
	if len(n.members) > 0 {
		cfg.Bootstrap = []string{n.members[0].sockets[1].addr.String()}
	}
	var err error
	if m.Node, err = dht.New(cfg); err != nil {
		panic(err)
	}
	return m
}

// leave takes a node away without a word, for good.
func (n *network) leave(m *node) {
	m.gone = true
	if err := m.Close(); err != nil {
		panic(err)
	}
	for _, s := range m.sockets {
		delete(n.sockets, s.addr)
	}
}

// clients adds a number of clients at once.
func (n *network) clients(count int) []*node {
	list := make([]*node, count)
	for i := range list {
		list[i] = n.join(n.newAddr(), dht.Ephemeral, nil)
		n.run(5*time.Millisecond, nil)
	}
	n.run(20*time.Second, nil)
	return list
}

func (m *node) receive(s *socket, b []byte, from netip.AddrPort) {
	if m.gang != nil && len(b) > 10 && b[0] == 0x03 {
		if target, command, ok := requestTarget(b); ok {
			if command == peerHandshake || command == peerHolepunch {
				return // swallowed
			}
			if len(m.asked) > 10000 {
				clear(m.asked)
			}
			m.asked[question{from, binary.LittleEndian.Uint16(b[2:])}] = target
		}
	}
	m.Receive(s, b, from)
}

// outgoing returns what really leaves the node instead of b, which it may change.
func (m *node) outgoing(b []byte, to netip.AddrPort) []byte {
	if m.gang == nil || len(b) < 10 || b[0] != 0x13 {
		return b
	}
	q := question{to, binary.LittleEndian.Uint16(b[2:])}
	target, ok := m.asked[q]
	if !ok {
		return b
	}
	delete(m.asked, q)
	return m.gang.lie(b, target)
}

// Commands of requests, and flags, as on the wire.
const (
	peerHandshake = 0
	peerHolepunch = 1

	flagID     = 1
	flagToken  = 2
	flagRPC    = 4 // of a request
	flagCloser = 4 // of a response
	flagTarget = 8 // of a request
	flagError  = 8 // of a response
	flagValue  = 16
)

// requestTarget returns what a request asks for, and by which command (-1: one of the RPC layer).
func requestTarget(b []byte) (target key.Target, command int, ok bool) {
	flags, rest := b[1], b[10:]
	for _, f := range []byte{flagID, flagToken} {
		if flags&f != 0 {
			if len(rest) < 32 {
				return target, 0, false
			}
			rest = rest[32:]
		}
	}
	if flags&flagTarget == 0 || len(rest) < 33 {
		return target, 0, false
	}
	command = int(rest[0])
	if flags&flagRPC != 0 {
		command = -1
	}
	return key.Target(rest[1:]), command, true
}

// gang is nodes that work together: they name each other as the closest to whatever is looked for, and nobody
// else; say that they store, and do not; and know nothing.
type gang struct {
	ids   []key.Target // sorted
	addrs map[key.Target]netip.AddrPort
}

func newGang() *gang { return &gang{addrs: make(map[key.Target]netip.AddrPort)} }

func (g *gang) add(m *node) {
	at, _ := slices.BinarySearchFunc(g.ids, m.id, compareIDs)
	g.ids = slices.Insert(g.ids, at, m.id)
	g.addrs[m.id] = m.sockets[1].addr
}

func compareIDs(a, b key.Target) int { return slices.Compare(a[:], b[:]) }

// lie turns a response into what the gang wants it to be: no value, other nodes.
func (g *gang) lie(b []byte, target key.Target) []byte {
	at := 10
	for _, f := range []byte{flagID, flagToken} {
		if b[1]&f != 0 {
			at += 32
		}
	}
	if b[1]&flagCloser == 0 {
		b[1] &^= flagError | flagValue
		return b[:at]
	}
	b[1] &^= flagError | flagValue
	closest := g.closest(target, 20)
	b = append(b[:at], byte(len(closest)))
	for _, id := range closest {
		a := g.addrs[id]
		ip := a.Addr().As4()
		b = binary.LittleEndian.AppendUint16(append(b, ip[:]...), a.Port())
	}
	return b
}

// closest returns up to count of the gang, nearest to target first.
func (g *gang) closest(target key.Target, count int) []key.Target {
	lo, hi := 0, len(g.ids)
	for bit := 0; bit < 256 && hi-lo > count; bit++ { // only those with the longest prefix
		split := lo + sort.Search(hi-lo, func(i int) bool { return g.ids[lo+i][bit/8]&(0x80>>(bit%8)) != 0 })
		l, h := lo, split
		if target[bit/8]&(0x80>>(bit%8)) != 0 {
			l, h = split, hi
		}
		if h-l < count {
			break
		}
		lo, hi = l, h
	}
	near := slices.Clone(g.ids[lo:hi])
	slices.SortFunc(near, func(a, b key.Target) int { return compareDistance(target, a, b) })
	return near[:min(count, len(near))]
}

// compareDistance orders a and b by their XOR distance from target.
func compareDistance(target, a, b key.Target) int {
	for i, t := range target {
		if a[i] != b[i] {
			return int(t^a[i]) - int(t^b[i])
		}
	}
	return 0
}
