package lab

import (
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	defaultHops  = 8
	defaultQueue = 4096 // datagrams
	defaultTTL   = 64

	// batch is how many due packets are moved before the lock is offered to senders and readers.
	batch = 256
)

// Config describes the core of a Network: what every packet between two public addresses passes through. The
// zero value is a core without delay or faults.
type Config struct {
	Seed uint64 // of all random draws; the same seed gives the same faults and ports

	Latency   time.Duration // one way
	Jitter    time.Duration // up to this much more; it does not reorder packets of one pair of hosts
	Loss      float64       // probability, 0 to 1
	Duplicate float64       // probability that a packet arrives twice
	Reorder   float64       // probability that a packet is held back and overtaken
	MTU       int           // largest IP packet in bytes; 0: no limit

	Hops int // routers in the core; a packet needs a TTL above this to cross. Default 8; negative: none

	Queue int // datagrams that a socket keeps unread before it drops more. Default 4096

	Trace    bool                  // record every packet for [Network.Trace]; costs memory
	Describe func(b []byte) string // says in a few words what a payload is, for the trace; nil: its length
}

// Network is an Internet in memory. Its methods, and those of the hosts, NATs and sockets on it, are safe for
// concurrent use.
type Network struct {
	cfg  Config
	born time.Time

	mu      sync.Mutex // guards everything below, and the state of hosts, NATs and sockets
	core    Link
	core6   Link // of IPv6 packets
	root    segment
	events  eventHeap
	timer   *time.Timer // runs run; armed while events is not empty
	running bool        // run is moving packets and will arm the timer when it is done
	closed  bool
	hosts   []*Host
	groups  map[netip.Addr]int // partition of public addresses
	drop    func(Packet) bool
	pairs   map[[2]*cable]time.Time // last arrival of a pair, kept while the core has jitter
	free    []*packet
	trace   []*record
	stats   Stats
}

// Stats counts packets since the Network was made.
type Stats struct {
	Sent      int            // handed to a socket's write methods
	Delivered int            // put in a socket's queue; duplicates count
	Lost      map[string]int // by reason, as the trace words it
}

// Packet is what a function given to [Network.Drop] sees: a packet that enters the core, with addresses as they
// are outside of all NATs.
type Packet struct {
	From, To netip.AddrPort
	TTL      int
	Payload  []byte // valid during the call, not to be changed
}

// Place is where a host can be attached: a [*Network] (the core) or a [*NAT] (its LAN).
type Place interface {
	// Host attaches a new host with the given addresses.
	Host(name string, addrs ...netip.Addr) *Host
	// NAT attaches a new router.
	NAT(name string, cfg NATConfig) *NAT

	place() *segment
}

// segment is a network without routers inside: the core, or the LAN behind a NAT.
type segment struct {
	net    *Network
	router *NAT // nil: the core
	addrs  map[netip.Addr]*cable
}

// New returns an empty Network. It starts no goroutine. [Network.Close] closes all sockets.
func New(cfg Config) *Network {
	switch {
	case cfg.Hops == 0:
		cfg.Hops = defaultHops
	case cfg.Hops < 0:
		cfg.Hops = 0
	}
	if cfg.Queue <= 0 {
		cfg.Queue = defaultQueue
	}
	n := &Network{
		cfg:  cfg,
		born: time.Now(),
		core: Link{
			Latency: cfg.Latency, Jitter: cfg.Jitter, Loss: cfg.Loss,
			Duplicate: cfg.Duplicate, Reorder: cfg.Reorder, MTU: cfg.MTU,
		},
		pairs: make(map[[2]*cable]time.Time),
		stats: Stats{Lost: make(map[string]int)},
	}
	n.core6 = n.core
	n.root = segment{net: n, addrs: make(map[netip.Addr]*cable)}
	return n
}

// Close closes every socket and forgets the packets under way.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.events = nil
	if n.timer != nil {
		n.timer.Stop()
	}
	for _, h := range n.hosts {
		for _, c := range h.conns {
			c.closeLocked()
		}
		clear(h.conns)
	}
	return nil
}

// SetLink changes the core's latency and faults; packets under way keep theirs. The core has no rate.
func (n *Network) SetLink(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.Rate = 0
	n.core, n.core6 = l, l
	clear(n.pairs)
}

// SetLink6 is SetLink for IPv6 packets only, which often take another way than those of IPv4.
func (n *Network) SetLink6(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.Rate = 0
	n.core6 = l
	clear(n.pairs)
}

// Partition splits the core: public addresses in different groups cannot reach each other, addresses in no
// group reach everybody. Each call replaces the groups of the last; without arguments the core is whole again.
func (n *Network) Partition(groups ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups = make(map[netip.Addr]int)
	for i, g := range groups {
		for _, a := range g {
			n.groups[a] = i + 1
		}
	}
}

// Drop has every packet that enters the core shown to f, and lost if f returns true. f must not call the
// Network. It replaces the function of an earlier call; nil drops nothing.
func (n *Network) Drop(f func(Packet) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// Stats returns the counters so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Lost = maps.Clone(n.stats.Lost)
	return s
}

// Pending returns the number of packets under way.
func (n *Network) Pending() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.events)
}

func (n *Network) place() *segment { return &n.root }

// source returns a random source of its own for the thing called name.
func (n *Network) source(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(n.cfg.Seed, h.Sum64()))
}

// packet is a datagram under way or in a socket's queue.
type packet struct {
	src, dst netip.AddrPort
	ttl      int
	data     []byte
	order    uint64  // sender's number, then a count: breaks ties
	record   *record // nil: not traced
}

// size returns the length of the IP packet in bytes.
func (p *packet) size() int {
	if p.dst.Addr().Is4() {
		return len(p.data) + 20 + 8
	}
	return len(p.data) + 40 + 8
}

func (n *Network) newPacketLocked(data []byte) *packet {
	var p *packet
	if k := len(n.free); k > 0 {
		p, n.free = n.free[k-1], n.free[:k-1]
	} else {
		p = new(packet)
	}
	p.data = append(p.data[:0], data...)
	return p
}

func (n *Network) freeLocked(p *packet) {
	p.record = nil
	if len(n.free) < 4*batch && cap(p.data) <= 1<<16 {
		n.free = append(n.free, p)
	}
}

// loseLocked ends p's life for the given reason.
func (n *Network) loseLocked(p *packet, reason string) {
	n.stats.Lost[reason]++
	p.record.lost(reason)
	n.freeLocked(p)
}

// event is a packet that arrives somewhere at a time.
type event struct {
	at    time.Time
	p     *packet
	stage stage
	cable *cable
}

// stage names what happens to a packet when its event is due.
type stage uint8

const (
	stageLeft    stage = iota // it went up cable and is in the segment that cable is plugged into
	stageCrossed              // it crossed the segment and is about to go down cable
	stageArrived              // it is at the lower end of cable: a host, or the outside of a NAT
)

// afterLocked has the packet handled at time at: now if that is not in the future.
func (n *Network) afterLocked(now, at time.Time, p *packet, s stage, c *cable) {
	if !at.After(now) {
		n.moveLocked(now, p, s, c)
		return
	}
	n.events.push(event{at: at, p: p, stage: s, cable: c})
	if !n.running && n.events[0].p == p {
		n.armLocked(now)
	}
}

// armLocked sets the timer to the next event.
func (n *Network) armLocked(now time.Time) {
	if len(n.events) == 0 {
		return
	}
	d := n.events[0].at.Sub(now)
	if n.timer == nil {
		n.timer = time.AfterFunc(d, n.run)
	} else {
		n.timer.Reset(d)
	}
}

// run moves the packets that are due. The timer calls it in a goroutine of its own.
func (n *Network) run() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running {
		return
	}
	n.running = true
	now := time.Now()
	for moved := 1; len(n.events) > 0 && !n.closed; moved++ {
		if moved%batch == 0 {
			n.mu.Unlock() // let senders and readers in
			n.mu.Lock()
			if len(n.events) == 0 {
				break
			}
		}
		if n.events[0].at.After(now) {
			if now = time.Now(); n.events[0].at.After(now) {
				break
			}
		}
		e := n.events.pop()
		n.moveLocked(now, e.p, e.stage, e.cable)
	}
	n.running = false
	if !n.closed {
		n.armLocked(now)
	}
}

// moveLocked handles a packet that is due.
func (n *Network) moveLocked(now time.Time, p *packet, s stage, c *cable) {
	switch s {
	case stageLeft:
		if c.seg.router == nil {
			n.crossCoreLocked(now, p, c)
		} else {
			n.crossLANLocked(now, p, c.seg)
		}
	case stageCrossed:
		n.traverseLocked(now, p, c, &c.down, stageArrived)
	case stageArrived:
		if c.nat != nil {
			c.nat.inboundLocked(now, p)
		} else {
			c.host.deliverLocked(p)
		}
	}
}

// crossCoreLocked takes a packet from the edge where it entered the core to the one that has its destination.
func (n *Network) crossCoreLocked(now time.Time, p *packet, from *cable) {
	core := &n.core
	if p.dst.Addr().Is6() {
		core = &n.core6
	}
	to := n.root.addrs[p.dst.Addr()]
	p.record.outside(p)
	p.ttl -= n.cfg.Hops
	a, b := n.groups[p.src.Addr()], n.groups[p.dst.Addr()]
	switch {
	case p.ttl <= 0:
		n.loseLocked(p, "ttl")
	case to == nil:
		n.loseLocked(p, "no route")
	case a != 0 && b != 0 && a != b:
		n.loseLocked(p, "partition")
	case n.drop != nil && n.drop(Packet{From: p.src, To: p.dst, TTL: p.ttl + n.cfg.Hops, Payload: p.data}):
		n.loseLocked(p, "dropped")
	default:
		at, reason := core.pass(now, p, &from.up)
		if reason != "" {
			n.loseLocked(p, reason)
			return
		}
		if core.Jitter > 0 && !from.up.held {
			pair := [2]*cable{from, to}
			if last := n.pairs[pair]; at.Before(last) {
				at = last
			}
			n.pairs[pair] = at
		}
		if from.up.chance(core.Duplicate) {
			n.afterLocked(now, at, n.copyLocked(p), stageCrossed, to)
		}
		n.afterLocked(now, at, p, stageCrossed, to)
	}
}

// crossLANLocked hands a packet to a neighbour in its LAN, or to the router.
func (n *Network) crossLANLocked(now time.Time, p *packet, lan *segment) {
	if p.dst.Addr().IsMulticast() {
		n.multicastLocked(p, lan)
		return
	}
	if to := lan.addrs[p.dst.Addr()]; to != nil {
		n.afterLocked(now, now, p, stageCrossed, to)
		return
	}
	lan.router.outboundLocked(now, p)
}

// traverseLocked sends a packet over one direction of a cable.
func (n *Network) traverseLocked(now time.Time, p *packet, c *cable, d *direction, next stage) {
	if c.cut {
		n.loseLocked(p, "cable cut")
		return
	}
	at, reason := d.link.pass(now, p, d)
	if reason != "" {
		n.loseLocked(p, reason)
		return
	}
	if !d.held {
		if at.Before(d.last) {
			at = d.last
		}
		d.last = at
	}
	if d.chance(d.link.Duplicate) {
		n.afterLocked(now, at, n.copyLocked(p), next, c)
	}
	n.afterLocked(now, at, p, next, c)
}

func (n *Network) copyLocked(p *packet) *packet {
	q := n.newPacketLocked(p.data)
	q.src, q.dst, q.ttl, q.order = p.src, p.dst, p.ttl, p.order
	q.record = p.record.duplicate(n)
	return q
}

// eventHeap is a binary heap, the earliest event first.
type eventHeap []event

func (h eventHeap) before(i, j int) bool {
	a, b := &h[i], &h[j]
	if c := a.at.Compare(b.at); c != 0 {
		return c < 0
	}
	return a.p.order < b.p.order
}

func (h *eventHeap) push(e event) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.before(i, up) {
			break
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (h *eventHeap) pop() event {
	s := *h
	top, last := s[0], len(s)-1
	s[0] = s[last]
	s[last] = event{}
	s = s[:last]
	*h = s
	for i := 0; ; {
		least := i
		for _, child := range [...]int{2*i + 1, 2*i + 2} {
			if child < last && s.before(child, least) {
				least = child
			}
		}
		if least == i {
			return top
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}
