package netcheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht"
	"omegatun/session/udp"
)

const (
	measureTime = 4 * time.Second
	cookieSize  = 16
	// openerTTL is how many routers a datagram crosses that is only meant to open our own NAT.
	openerTTL = 6
	// headers are those of IPv4 and UDP.
	headers = 28
)

// socket is a UDP port of ours, whose datagrams go to the node, but for cookies.
type socket struct {
	*udp.Conn
	node *dht.Node
	done chan struct{} // closed when it receives no more

	mu      sync.Mutex // guards cookies
	cookies [][]byte   // that have arrived
}

// listen opens a socket. The caller closes it.
func listen(n *dht.Node) (*socket, error) {
	c, err := udp.Listen(udp.Config{})
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: c, node: n, done: make(chan struct{})}
	go s.receive()
	return s, nil
}

func (s *socket) receive() {
	defer close(s.done)
	batch := udp.NewSmallBatch()
	for s.Conn.Receive(batch) == nil {
		for i := range batch.Len() {
			b, from := batch.Datagram(i)
			if len(b) == cookieSize {
				s.mu.Lock()
				if len(s.cookies) < 16 {
					s.cookies = append(s.cookies, bytes.Clone(b))
				}
				s.mu.Unlock()
				continue
			}
			s.node.Receive(s, b, from)
		}
	}
}

// has reports whether the cookie has arrived.
func (s *socket) has(cookie []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.cookies, func(b []byte) bool { return bytes.Equal(b, cookie) })
}

func (s *socket) close() {
	_ = s.Close() // only to end receive
	<-s.done
}

// seen is how a node sees a socket.
type seen struct {
	by, at netip.AddrPort
	rtt    time.Duration
}

// measure finds out about the NAT and the MTU with the nodes that answer.
func (c *checker) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	nodes := choose(c.Node.RecentNodes(64), wantNodes)
	var socks [4]*socket
	for i := range socks {
		s, err := listen(c.Node)
		if err != nil {
			return err
		}
		defer s.close()
		socks[i] = s
	}
	views := look(ctx, c.Node, socks[0], nodes)
	if len(views) == 0 {
		c.emit(Finding{Check: "udp", Status: Good, Text: "datagrams get out, and answers in"})
		return errors.New("no node answers any more")
	}
	n := &c.report.NAT
	c.judge(socks[0].LocalAddr().Port(), views)
	c.tellUDP(views)

	var wg sync.WaitGroup
	var open, filter [2]bool // for anyone; to hosts that were sent to; the second tells whether it was measured
	var hairpin *bool
	mtu := 0
	far := others(views)
	wg.Go(func() { open[0], open[1] = lets(ctx, c.Node, socks[0], far, socks[1].LocalAddr().Port()) })
	wg.Go(func() { mtu = largest(ctx, c.Node, socks[0], views) })
	if n.Mapping == "endpoint-independent" || n.Mapping == "none" {
		wg.Go(func() { filter = c.filtering(ctx, socks[0], socks[2], views[0].by, far) })
	}
	if n.Mapping == "endpoint-independent" {
		wg.Go(func() { hairpin = c.hairpin(ctx, socks[0], socks[3], views[0]) })
	}
	wg.Wait()
	switch {
	case open[0]:
		n.Filtering = "none"
		if n.Mapping == "none" {
			n.Kind = "open"
		}
	case filter[0]:
		n.Filtering = "endpoint-independent"
	case filter[1]:
		n.Filtering = "address-dependent"
	case open[1] && len(far) > 0 && (n.Mapping == "endpoint-independent" || n.Mapping == "none"):
		n.Filtering = "address-and-port-dependent"
	}
	n.Hairpin = hairpin
	if mtu > 0 {
		c.report.PathMTU = mtu + headers
	}
	c.tellNAT()
	return nil
}

// choose returns up to n nodes, those on hosts of their own first.
func choose(nodes []netip.AddrPort, n int) []netip.AddrPort {
	var first, rest []netip.AddrPort
	hosts := make(map[netip.Addr]bool)
	for _, a := range nodes {
		if hosts[a.Addr()] {
			rest = append(rest, a)
			continue
		}
		hosts[a.Addr()] = true
		first = append(first, a)
	}
	all := append(first, rest...)
	return all[:min(n, len(all))]
}

// look asks nodes how they see s, in order, but does not wait for one to ask the next.
func look(ctx context.Context, n *dht.Node, s *socket, nodes []netip.AddrPort) []seen {
	views := make([]seen, len(nodes))
	var wg sync.WaitGroup
	pause := time.NewTicker(2 * time.Millisecond) // so that they leave in order
	defer pause.Stop()
	for i, a := range nodes {
		wg.Go(func() {
			if pong, err := n.Ping(ctx, s, a, 1); err == nil {
				views[i] = seen{by: a, at: pong.To, rtt: pong.RTT}
			}
		})
		<-pause.C
	}
	wg.Wait()
	return slices.DeleteFunc(views, func(v seen) bool { return !v.at.IsValid() })
}

// judge decides what kind of NAT sees to it that nodes see our port as they do.
func (c *checker) judge(local uint16, views []seen) {
	n := &c.report.NAT
	n.Public = views[0].at.Addr()
	ours := slices.Contains(c.state.Addrs, n.Public) || n.Public.IsLoopback()
	n.PreservesPort = new(views[0].at.Port() == local)
	same, known := true, len(views) > 1
	for _, v := range views {
		same = same && v.at == views[0].at
	}
	switch {
	case ours && same && *n.PreservesPort:
		n.Kind, n.Mapping = dht.FirewallConsistent.String(), "none"
	case !known:
	case same:
		n.Kind, n.Mapping = dht.FirewallConsistent.String(), "endpoint-independent"
	default:
		n.Kind, n.Mapping = dht.FirewallRandom.String(), "endpoint-dependent"
		steps := 0
		for i := range views[1:] {
			if d := int(views[i+1].at.Port()) - int(views[i].at.Port()); d != 0 && max(d, -d) <= 16 {
				steps++
			}
		}
		n.Sequential = new(len(views) > 2 && steps >= (len(views)-1)*2/3)
	}
}

func (c *checker) tellUDP(views []seen) {
	best := slices.MinFunc(views, func(a, b seen) int { return int(a.rtt - b.rtt) })
	c.report.DHT.RTTMS = float64(best.rtt.Microseconds()) / 1000
	c.emit(Finding{
		Check: "udp", Status: Good, Text: "datagrams get out, and answers in",
	})
	c.emit(Finding{
		Check: "dht", Status: Good,
		Text: fmt.Sprintf("%d nodes known, the nearest answers after %.0f ms", c.report.DHT.Nodes, c.report.DHT.RTTMS),
	})
	c.emit(Finding{Check: "address", Status: Good, Text: "others see this machine at " + c.report.NAT.Public.String()})
}

// others returns nodes on other hosts than the first's.
func others(views []seen) []netip.AddrPort {
	var list []netip.AddrPort
	for _, v := range views[1:] {
		if v.by.Addr() != views[0].by.Addr() && len(list) < 3 {
			list = append(list, v.by)
		}
	}
	return list
}

// lets reports whether any of the nodes, asked from s, gets an answer through to a port of ours; and whether they could be
// asked.
func lets(ctx context.Context, n *dht.Node, s *socket, nodes []netip.AddrPort, port uint16) (through, asked bool) {
	ok := make([]bool, len(nodes))
	var wg sync.WaitGroup
	for i, a := range nodes {
		wg.Go(func() {
			_, err := n.PingBack(ctx, s, a, port, 1)
			ok[i] = err == nil
		})
	}
	wg.Wait()
	return slices.Contains(ok, true), len(nodes) > 0
}

// filtering reports whether a port of ours that has sent to one node, first, lets in others; and those to whose host, but
// not to whose port, it has sent.
func (c *checker) filtering(ctx context.Context, asking, s *socket, first netip.AddrPort, far []netip.AddrPort) (lets2 [2]bool) {
	pong, err := c.Node.Ping(ctx, s, first, 1)
	if err != nil {
		return lets2
	}
	port := pong.To.Port()
	if lets2[0], _ = lets(ctx, c.Node, asking, far, port); lets2[0] {
		return lets2
	}
	for _, a := range far {
		other := netip.AddrPortFrom(a.Addr(), a.Port()^1)
		_ = s.SendTTL([]byte{0}, other, openerTTL) // what counts is whether the NAT saw it
	}
	lets2[1], _ = lets(ctx, c.Node, asking, far, port)
	return lets2
}

// hairpin reports whether two ports of ours reach each other by their public addresses; nil: not known.
func (c *checker) hairpin(ctx context.Context, a, b *socket, viewA seen) *bool {
	pong, err := c.Node.Ping(ctx, b, viewA.by, 1)
	if err != nil {
		return nil
	}
	cookie := make([]byte, cookieSize)
	rand.Read(cookie) // never fails
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 6 { // both send, so that each has let the other in
		_ = a.Send(cookie, pong.To) // lost like any datagram
		_ = b.Send(cookie, viewA.at)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if a.has(cookie) || b.has(cookie) {
			return new(true)
		}
	}
	return new(false)
}

// sizes are payloads of datagrams to try: what fits links of 1500 bytes, PPPoE, common VPNs, and the smallest link of IPv6.
var sizes = []int{1500 - headers, 1492 - headers, 1460 - headers, 1420 - headers, 1400 - headers, 1340 - headers, 1280 - headers, 1200 - headers, 1024 - headers, 576 - headers}

// largest returns the largest of sizes that a node answers; 0: none.
func largest(ctx context.Context, n *dht.Node, s *socket, views []seen) int {
	ctx, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
	defer cancel()
	ok := make([]atomic.Bool, len(sizes))
	var wg sync.WaitGroup
	for i, size := range sizes {
		for _, v := range views[:min(2, len(views))] {
			wg.Go(func() {
				if _, err := n.PingSize(ctx, s, v.by, size, 1); err == nil {
					ok[i].Store(true)
				}
			})
		}
	}
	wg.Wait()
	for i := range ok {
		if ok[i].Load() {
			return sizes[i]
		}
	}
	return 0
}

// tellNAT says what the NAT means.
func (c *checker) tellNAT() {
	n := &c.report.NAT
	f := Finding{Check: "nat", Status: Good}
	switch {
	case n.Kind == "open":
		f.Text = "none: anyone can reach this machine"
		f.Meaning = "it connects to everybody, and can relay for others (relay = true)"
	case n.Mapping == "none":
		f.Text = "none, but a firewall that lets only answers in"
		f.Meaning = "it connects directly to all but those whose NAT picks a port for each destination: to them after some seconds"
	case n.Mapping == "endpoint-independent":
		f.Text = "one public port for all destinations"
		if *n.PreservesPort {
			f.Text += ", the same as inside"
		}
		f.Meaning = "it connects directly to most; to those whose NAT picks a port for each destination after some seconds"
	case n.Mapping == "endpoint-dependent":
		f.Status, f.Text = Bad, "another public port for each destination"
		if *n.Sequential {
			f.Text += ", one after the other"
		}
		f.Meaning = "direct paths take some seconds; to others with such a NAT they need a relay"
		f.Remedy = "forward a UDP port to this machine and set port in the configuration, or list a peer that relays (relay = true)"
	default:
		f.Status, f.Text = Note, "not known: only one node answers"
	}
	c.emit(f)
	switch n.Filtering {
	case "none":
		c.emit(Finding{Check: "filtering", Status: Good, Text: "none: ports that have not sent anything can be reached"})
	case "endpoint-independent":
		c.emit(Finding{Check: "filtering", Status: Good, Text: "a port that is in use lets everyone in", Meaning: "peers reach it without punching"})
	case "address-dependent":
		c.emit(Finding{Check: "filtering", Status: Good, Text: "a port lets in the hosts that it has sent to", Meaning: "the usual: holes are punched"})
	case "address-and-port-dependent":
		c.emit(Finding{Check: "filtering", Status: Good, Text: "a port lets in the addresses and ports that it has sent to", Meaning: "the usual: holes are punched"})
	}
	if n.Hairpin != nil && !*n.Hairpin {
		c.emit(Finding{
			Check: "hairpin", Status: Note, Text: "the router does not send back what is meant for itself",
			Meaning: "machines behind it meet by their local addresses, or behind a carrier's NAT through a relay",
		})
	} else if n.Hairpin != nil {
		c.emit(Finding{Check: "hairpin", Status: Good, Text: "works"})
	}
}
