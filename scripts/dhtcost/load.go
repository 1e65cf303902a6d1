//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
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

// load asks the node at port for d, and prints how often it answered. Nothing of the module is in it: a socket and a goroutine
// for each client, and a system call for each datagram.
func load(port uint16, kind string, p pattern, d time.Duration) error {
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	end := time.Now().Add(d)
	var answers atomic.Int64
	var wg sync.WaitGroup
	for i := range p.Clients {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0)))
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			loader{c, kind, to, uint16(i * 1009)}.run(p.Window, end, &answers)
		})
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(map[string]int64{"answers": answers.Load()})
}

// loader asks the node at to.
type loader struct {
	conn *net.UDPConn
	kind string
	to   netip.AddrPort
	seed uint16
}

// run has so many requests unanswered until end. What is lost is not asked again.
func (c loader) run(window int, end time.Time, answers *atomic.Int64) {
	if err := c.conn.SetReadDeadline(end); err != nil {
		return
	}
	buf := make([]byte, 2048)
	for asked := 0; ; asked++ {
		if asked >= window {
			if _, _, err := c.conn.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			answers.Add(1)
		}
		c.seed++
		if _, err := c.conn.WriteToUDPAddrPort(request(c.kind, c.seed), c.to); err != nil {
			return
		}
	}
}

// echoSizes are those of the answers that dhtcost's nodes give.
var echoSizes = map[string]int{"ping": 42, "find_node": 42 + 1 + 20*6, "find_peer": 42 + 32 + 1 + 20*6}

// echo answers each datagram with one of so many bytes, and nothing else: what a node cannot do without.
func echo(size int) error {
	g, err := udp.NewHub()
	if err != nil {
		return err
	}
	var b [][]byte
	var to []netip.AddrPort
	answer := make([]byte, size)
	c, err := g.Listen(udp.Config{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, func(c *udp.Conn, in *udp.Batch) {
		b, to = b[:0], to[:0]
		for i := range in.Len() {
			_, from := in.Datagram(i)
			b, to = append(b, answer), append(to, from)
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
