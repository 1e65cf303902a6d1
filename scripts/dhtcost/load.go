//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"omegatun/session/udp"
)

// pattern is how requests come: each of so many clients, on a port of its own, has so many unanswered at a time. When
// one is answered, the next is sent.
type pattern struct {
	Clients int `json:"clients"`
	Window  int `json:"window"`
}

func (p pattern) String() string { return fmt.Sprintf("%d x %d", p.Clients, p.Window) }

// Requests as on the wire: flags (4: of the RPC layer, 8: with a target, 16: with a value), command.
var requests = map[string][2]byte{"ping": {4, 0}, "find_node": {4 | 8 | 16, 2}, "find_peer": {8 | 16, 2}}

// request returns a request; those with a target are padded to 84 bytes, as those of queries are.
func request(kind string, seed uint16) []byte {
	r := requests[kind]
	q := append([]byte{3, r[0], 0, 0, 127, 0, 0, 1}, 0, 0, r[1])
	if r[0]&8 != 0 {
		q = append(q, make([]byte, 32)...)
		pad := 84 - len(q) - 1
		q = append(append(q, byte(pad)), make([]byte, pad)...)
	}
	binary.LittleEndian.PutUint16(q[2:], seed)
	if r[0]&8 != 0 {
		binary.BigEndian.PutUint16(q[11:], seed*40503) // another target each time
	}
	return q
}

// client asks the node at to, again for each answer. Its methods are called by the hub alone, but for start.
type client struct {
	conn    *udp.Conn
	kind    string
	to      netip.AddrPort
	seed    uint16
	q       [][]byte
	tos     []netip.AddrPort
	answers *atomic.Int64
}

func (c *client) ask(count int) {
	for range count {
		c.seed++
		c.q, c.tos = append(c.q, request(c.kind, c.seed)), append(c.tos, c.to)
	}
	_ = c.conn.SendTo(c.q, c.tos) // what is lost is asked again
	c.q, c.tos = c.q[:0], c.tos[:0]
}

func (c *client) answered(_ *udp.Conn, b *udp.Batch) {
	c.answers.Add(int64(b.Len()))
	c.ask(b.Len())
}

// load asks the node at port for d, and prints how often it answered. It does so with plain datagrams: no trains.
func load(port uint16, kind string, p pattern, d time.Duration) error {
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	var answers atomic.Int64
	for end := time.Now().Add(d); time.Now().Before(end); {
		// A generation of clients lasts until so much was lost that nothing moves any more.
		g, err := udp.NewHub()
		if err != nil {
			return err
		}
		for i := range p.Clients {
			c := &client{kind: kind, to: to, seed: uint16(i * 1009), answers: &answers}
			first := make(chan struct{})
			c.conn, err = g.Listen(udp.Config{Addr: netip.AddrPortFrom(to.Addr(), 0), NoOffload: true}, func(s *udp.Conn, b *udp.Batch) {
				<-first
				c.answered(s, b)
			})
			if err != nil {
				return err
			}
			c.ask(p.Window)
			close(first)
		}
		for last := int64(-1); time.Now().Before(end) && answers.Load() != last; {
			last = answers.Load()
			time.Sleep(min(200*time.Millisecond, time.Until(end)))
		}
		if err := g.Close(); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]int64{"answers": answers.Load()})
}

// echo answers each datagram with one of the size of a PONG, and nothing else: what a node cannot do without.
func echo() error {
	g, err := udp.NewHub()
	if err != nil {
		return err
	}
	var b [][]byte
	var to []netip.AddrPort
	pong := make([]byte, 42)
	c, err := g.Listen(udp.Config{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, func(c *udp.Conn, in *udp.Batch) {
		b, to = b[:0], to[:0]
		for i := range in.Len() {
			_, from := in.Datagram(i)
			b, to = append(b, pong), append(to, from)
		}
		_ = c.SendTo(b, to) // whoever does not get it asks again
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(event{Event: "ready", Port: c.LocalAddr().Port()}); err != nil {
		return err
	}
	select {}
}
