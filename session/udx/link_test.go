package udx

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// conditions is what a link does to datagrams.
type conditions struct {
	loss, dup, reorder float64       // shares of datagrams; a reordered one is not delayed
	delay              time.Duration // one way
	jitter             time.Duration // at most, keeps order
	rate               float64       // bytes per second, zero: no limit
	queue              int           // bytes that may wait for the rate
	mtu                int           // largest IP packet, zero: any
}

// network carries datagrams between ports under a clock that may be fake. It is safe for concurrent use.
type network struct {
	mu    sync.Mutex // guards all below, and the ports
	rng   *rand.Rand
	ports map[netip.AddrPort]*port
	drop  func(from, to netip.AddrPort, b []byte) bool // also sees every datagram; may be nil
	due   deliveries
	timer *time.Timer
	at    time.Time
	count int
	bytes int
}

// port is a Socket of a network.
type port struct {
	net  *network
	addr netip.AddrPort
	mux  *Mux                                // that receives
	recv func(b []byte, from netip.AddrPort) // if mux is nil
	link conditions
	free map[netip.AddrPort]time.Time // when the link can take the next datagram
}

type delivery struct {
	at       time.Time
	n        int
	from, to netip.AddrPort
	b        []byte
}

type deliveries []delivery

func (d deliveries) Len() int { return len(d) }
func (d deliveries) Less(i, j int) bool {
	return d[i].at.Before(d[j].at) || d[i].at.Equal(d[j].at) && d[i].n < d[j].n
}
func (d deliveries) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deliveries) Push(x any)   { *d = append(*d, x.(delivery)) }
func (d *deliveries) Pop() any {
	x := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return x
}

func newNetwork(seed uint64) *network {
	return &network{rng: rand.New(rand.NewPCG(seed, 1)), ports: make(map[netip.AddrPort]*port)}
}

// port opens a port whose datagrams go out under the conditions.
func (n *network) port(addr string, mux *Mux, link conditions) *port {
	p := &port{
		net: n, addr: netip.MustParseAddrPort(addr), mux: mux, link: link,
		free: make(map[netip.AddrPort]time.Time),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[p.addr] = p
	return p
}

// setDrop replaces drop; nil lets everything through.
func (n *network) setDrop(drop func(from, to netip.AddrPort, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = drop
}

func (p *port) LocalAddr() netip.AddrPort { return p.addr }

func (p *port) SendBatch(b [][]byte, to netip.AddrPort) error {
	for i := range b {
		if len(b[i]) > len(b[0]) || len(b[i]) < len(b[0]) && i < len(b)-1 {
			panic("udx: a batch of unequal datagrams")
		}
		_ = p.Send(b[i], to)
	}
	return nil
}

func (p *port) Send(b []byte, to netip.AddrPort) error {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count++
	n.bytes += len(b)
	if n.drop != nil && n.drop(p.addr, to, b) {
		return nil
	}
	c := p.link
	now := time.Now()
	if n.rng.Float64() < c.loss || c.mtu > 0 && len(b)+28 > c.mtu {
		return nil
	}
	at := now
	if c.rate > 0 {
		at = p.free[to]
		if at.Before(now) {
			at = now
		}
		if at.Sub(now).Seconds()*c.rate > float64(c.queue) {
			return nil
		}
		at = at.Add(time.Duration(float64(len(b)+28) / c.rate * float64(time.Second)))
		p.free[to] = at
	}
	delay := c.delay
	if n.rng.Float64() < c.reorder {
		delay = 0
	}
	if c.jitter > 0 {
		delay += time.Duration(n.rng.Int64N(int64(c.jitter)))
	}
	n.push(at.Add(delay), p.addr, to, b)
	if n.rng.Float64() < c.dup {
		n.push(at.Add(delay+time.Duration(n.rng.Float64()*float64(delay+time.Millisecond))), p.addr, to, b)
	}
	return nil
}

func (n *network) push(at time.Time, from, to netip.AddrPort, b []byte) {
	heap.Push(&n.due, delivery{at, n.count, from, to, append([]byte(nil), b...)})
	n.arm()
}

func (n *network) arm() {
	if len(n.due) == 0 {
		return
	}
	at := n.due[0].at
	if !n.at.IsZero() && !at.Before(n.at) {
		return
	}
	n.at = at
	if n.timer == nil {
		n.timer = time.AfterFunc(time.Until(at), n.deliver)
	} else {
		n.timer.Reset(time.Until(at))
	}
}

func (n *network) deliver() {
	n.mu.Lock()
	n.at = time.Time{}
	now := time.Now()
	for len(n.due) > 0 && !n.due[0].at.After(now) {
		d := heap.Pop(&n.due).(delivery)
		p := n.ports[d.to]
		n.mu.Unlock()
		switch {
		case p == nil:
		case p.mux != nil:
			p.mux.Receive(p, d.b, d.from)
		case p.recv != nil:
			p.recv(d.b, d.from)
		}
		n.mu.Lock()
	}
	n.arm()
	n.mu.Unlock()
}

// pair returns two connected streams, on muxes of their own that end with the test.
func pair(t testing.TB, n *network, ab, ba conditions) (a, b *Stream) {
	t.Helper()
	return pairConfig(t, n, ab, ba, StreamConfig{}, StreamConfig{})
}

func pairConfig(t testing.TB, n *network, ab, ba conditions, ca, cb StreamConfig) (a, b *Stream) {
	t.Helper()
	ma, mb := NewMux(Config{}), NewMux(Config{})
	t.Cleanup(func() {
		_ = ma.Close()
		_ = mb.Close()
	})
	pa, pb := n.port("192.0.2.1:1", ma, ab), n.port("192.0.2.2:2", mb, ba)
	a, b = newTestStream(t, ma, ca), newTestStream(t, mb, cb)
	connect(t, a, pa, pb.addr, b.ID())
	connect(t, b, pb, pa.addr, a.ID())
	return a, b
}

func newTestStream(t testing.TB, m *Mux, cfg StreamConfig) *Stream {
	t.Helper()
	s, err := m.NewStream(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t testing.TB, s *Stream, sock Socket, to netip.AddrPort, id ID) {
	t.Helper()
	if err := s.Connect(sock, to, id); err != nil {
		t.Fatal(err)
	}
}
