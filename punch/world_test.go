package punch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch/lab"
)

// The nodes of these tests speak JSON instead of the DHT's wire format; they do the same with it.
type message struct {
	Kind    string // ping, pong, ask (client to relay), asked (relay to server), told (server to relay), tell
	ID      int    `json:",omitempty"`
	Peer    netip.AddrPort
	Seen    netip.AddrPort // the receiver, as the sender sees it
	Payload []byte         `json:",omitempty"`
}

func encode(m message) []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// labSocket is a lab socket as an attempt sees it.
type labSocket struct{ *lab.Conn }

func (s *labSocket) Send(b []byte, to netip.AddrPort) error {
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func (s *labSocket) SendTTL(b []byte, to netip.AddrPort, ttl int) error {
	return s.WriteTTL(b, to, ttl)
}
func (s *labSocket) LocalAddr() netip.AddrPort { return s.LocalAddrPort() }

// startNode runs a node of the DHT on h until the network is closed.
func startNode(t *testing.T, h *lab.Host) {
	c, err := h.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 49737))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			var m message
			if json.Unmarshal(b[:n], &m) != nil {
				continue
			}
			to, out := from, message{ID: m.ID, Seen: from, Peer: from, Payload: m.Payload}
			switch m.Kind {
			case "ping":
				out.Kind = "pong"
			case "ask":
				out.Kind, to = "asked", m.Peer
			case "told":
				out.Kind, to = "tell", m.Peer
			}
			out.Seen = to
			c.WriteToUDPAddrPort(encode(out), to)
		}
	}()
}

// side is one of the two hosts: its sockets, and the part of the DHT that an attempt sees.
type side struct {
	t     *testing.T
	host  *lab.Host
	nodes []netip.AddrPort // of the network; the first three are a server's relays
	known []netip.AddrPort // by whom the NAT is looked at

	mu      sync.Mutex
	waiting map[int]chan message
	ids     int
	opened  int
	noMore  int // sockets that can be opened; 0: any number
	readers sync.WaitGroup

	handlers
}

// handlers take what a side's sockets receive, except for answers to requests.
type handlers struct {
	probe func(s Socket, from netip.AddrPort)
	asked func(s *labSocket, m message, from netip.AddrPort)
	echo  func(s *labSocket, text string, from netip.AddrPort)
}

func (d *side) handle(h handlers) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handlers = h
}

func newSide(t *testing.T, h *lab.Host, nodes []netip.AddrPort) *side {
	return &side{t: t, host: h, nodes: nodes, known: nodes, waiting: make(map[int]chan message)}
}

func (d *side) openSocket() (Socket, error) {
	d.mu.Lock()
	d.opened++
	full := d.noMore > 0 && d.opened > d.noMore
	port := uint16(40000 + d.opened)
	d.mu.Unlock()
	if full {
		return nil, errors.New("too many open files")
	}
	c, err := d.host.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		return nil, err
	}
	s := &labSocket{c}
	d.readers.Go(func() { d.read(s) })
	return s, nil
}

func (d *side) read(s *labSocket) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		d.mu.Lock()
		h := d.handlers
		d.mu.Unlock()
		switch {
		case n <= 1:
			if h.probe != nil {
				h.probe(s, from)
			}
		case b[0] == '{':
			var m message
			if err := json.Unmarshal(b[:n], &m); err != nil {
				d.t.Errorf("bad message: %v", err)
			}
			d.receive(s, m, from)
		case h.echo != nil:
			h.echo(s, string(b[:n]), from)
		}
	}
}

func (d *side) receive(s *labSocket, m message, from netip.AddrPort) {
	d.mu.Lock()
	h, c := d.handlers, d.waiting[m.ID]
	if m.Kind != "asked" {
		delete(d.waiting, m.ID)
	}
	d.mu.Unlock()
	switch {
	case m.Kind == "asked" && h.asked != nil:
		h.asked(s, m, from)
	case m.Kind != "asked" && c != nil:
		c <- m
	}
}

// request sends m and waits for the answer, sending again each second.
func (d *side) request(ctx context.Context, s dht.Socket, to netip.AddrPort, m message, tries int) (message, error) {
	c := make(chan message, 1)
	d.mu.Lock()
	d.ids++
	m.ID = d.ids
	d.waiting[m.ID] = c
	d.mu.Unlock()
	for range tries {
		if err := s.Send(encode(m), to); err != nil {
			return message{}, err
		}
		timer := time.NewTimer(time.Second)
		select {
		case m := <-c:
			timer.Stop()
			return m, nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return message{}, ctx.Err()
		}
	}
	return message{}, dht.ErrTimeout
}

func (d *side) Ping(ctx context.Context, s dht.Socket, to netip.AddrPort, retries int) (dht.Pong, error) {
	m, err := d.request(ctx, s, to, message{Kind: "ping"}, retries+1)
	return dht.Pong{From: to, To: m.Seen}, err
}

func (d *side) Holepunch(ctx context.Context, relay netip.AddrPort, s dht.Socket, _ key.Target, _ uint64,
	payload []byte, peer netip.AddrPort,
) (dht.HolepunchReply, error) {
	m, err := d.request(ctx, s, relay, message{Kind: "ask", Peer: peer, Payload: payload}, 4)
	return dht.HolepunchReply{Payload: m.Payload, Peer: m.Peer, Self: m.Seen}, err
}

func (d *side) RecentNodes(limit int) []netip.AddrPort {
	return slices.Clone(d.known[:min(limit, len(d.known))])
}

var (
	_ Node = (*side)(nil)
	_ Node = (*dht.Node)(nil)
)

// reply answers a message of the client, which came in on s from the relay.
type reply struct {
	s     *labSocket
	relay netip.AddrPort
	m     message
}

func (r *reply) Reply(s dht.Socket, payload []byte) error {
	if s == nil {
		s = r.s
	}
	return s.Send(encode(message{Kind: "told", ID: r.m.ID, Peer: r.m.Peer, Payload: payload}), r.relay)
}

// world is an Internet with DHT nodes and two hosts that want to meet.
type world struct {
	net            *lab.Network
	client, server *side
	limit          *Limit
	noFastOpen     bool
}

var payloadKey = [32]byte{1, 2, 3}

// describe tells the trace what a datagram of these tests is.
func describe(b []byte) string {
	if len(b) <= 1 {
		return "probe"
	}
	var m message
	if json.Unmarshal(b, &m) != nil {
		return string(b)
	}
	if m.Payload == nil {
		return m.Kind
	}
	p, err := openPayload(&payloadKey, m.Payload)
	if err != nil {
		return m.Kind + " " + err.Error()
	}
	words := []string{m.Kind, fmt.Sprintf("round %d, %v", p.round, p.firewall)}
	for _, w := range []struct {
		set  bool
		text string
	}{
		{p.refusal != refusalNone, fmt.Sprintf("refusal %d", p.refusal)},
		{p.punching, "punching"},
		{p.connected, "connected"},
		{p.addresses != nil, fmt.Sprint(p.addresses)},
		{p.remoteAddress.IsValid(), fmt.Sprintf("opened to %v", p.remoteAddress)},
		{p.token != token{}, "token"},
		{p.remoteToken != token{}, "remote token"},
	} {
		if w.set {
			words = append(words, w.text)
		}
	}
	return strings.Join(words, ", ")
}

var nextPublic = func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 88, 99, byte(100 + i)}) }

// place attaches a host behind the named kind of router. i tells the two sides apart.
func place(t *testing.T, n *lab.Network, kind string, i int, name string) *lab.Host {
	t.Helper()
	public := nextPublic(i)
	private := netip.AddrFrom4([4]byte{192, 168, byte(i), 10})
	carrierSide := netip.AddrFrom4([4]byte{100, 64, byte(i), 1})
	if inner, outer, ok := strings.Cut(kind, "/"); ok {
		carrier := n.NAT(name+"-carrier", router(t, outer, public))
		return carrier.NAT(name+"-home", router(t, inner, carrierSide)).Host(name, private)
	}
	if kind == "fw" {
		return n.NAT(name+"-fw", lab.Firewall()).Host(name, public)
	}
	return n.NAT(name+"-home", router(t, kind, public)).Host(name, private)
}

func router(t *testing.T, kind string, public netip.Addr) lab.NATConfig {
	t.Helper()
	switch kind {
	case "fullcone":
		return lab.FullCone(public)
	case "adcone":
		return lab.AddressRestricted(public)
	case "linux":
		return lab.Linux(public)
	case "linux-accept":
		c := lab.Linux(public)
		c.AcceptInbound = true
		return c
	case "eimrand":
		return lab.RandomPort(public)
	case "cgn":
		return lab.Carrier(public)
	case "sym":
		return lab.Symmetric(public)
	case "symeif":
		c := lab.Symmetric(public)
		c.Filtering = lab.EndpointIndependent
		return c
	case "symseq":
		c := lab.Symmetric(public)
		c.Ports = lab.SequentialPorts
		return c
	case "adm":
		c := lab.Symmetric(public)
		c.Mapping = lab.AddressDependent
		return c
	}
	t.Fatalf("no such router: %s", kind)
	return lab.NATConfig{}
}

// newWorld makes a network with 12 nodes, and the two sides behind the named routers.
func newWorld(t *testing.T, cfg lab.Config, serverKind, clientKind string) *world {
	t.Helper()
	cryptotest.SetGlobalRandom(t, cfg.Seed) // guessing ports is luck: let it be the same each time
	cfg.Describe = describe
	n := lab.New(cfg)
	var nodes []netip.AddrPort
	for i := range 12 {
		addr := netip.AddrFrom4([4]byte{192, 88, 99, byte(10 + i)})
		startNode(t, n.Host(fmt.Sprintf("node %d", i), addr))
		nodes = append(nodes, netip.AddrPortFrom(addr, 49737))
	}
	w := &world{net: n}
	w.server = newSide(t, place(t, n, serverKind, 2, "server"), nodes)
	w.client = newSide(t, place(t, n, clientKind, 1, "client"), nodes)
	t.Cleanup(func() {
		n.Close()
		w.server.readers.Wait()
		w.client.readers.Wait()
	})
	return w
}

// outcome is how a meeting went.
type outcome struct {
	err      error         // the client's
	took     time.Duration // from the client's start to the first echo
	tried    int           // paths offered
	serverIn bool          // the server got an echo request
	server   Report        // when the client had closed its attempt
}

// meet does what two sessions do: the server's handshake answer, then both attempts, then echoes.
func (w *world) meet(t *testing.T) (o outcome) {
	t.Helper()
	s, c := w.server, w.client
	ctx := t.Context()

	// The server's main socket is known to three relays.
	main, err := s.openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer main.Close()
	var relays []dht.RelayPair
	isRelay := func(a netip.AddrPort) bool {
		return slices.ContainsFunc(relays, func(p dht.RelayPair) bool { return p.Relay == a })
	}
	for _, r := range s.nodes[:3] {
		pong, err := s.Ping(ctx, main, r, 100)
		if err != nil {
			t.Fatalf("the server's relay: %v", err)
		}
		relays = append(relays, dht.RelayPair{Relay: r, Peer: pong.To})
	}

	// A handshake through the second relay, answered from the punch socket.
	server, err := NewServer(ServerConfig{
		Node: s, OpenSocket: s.openSocket, Secret: payloadKey, IsRelay: isRelay, Limit: w.limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	serverUp := true
	closeServer := func(keep ...Socket) {
		if serverUp {
			serverUp = false
			server.Close(keep...)
		}
	}
	defer func() { closeServer() }()
	s.handle(handlers{
		probe: server.HandleProbe,
		asked: func(sock *labSocket, m message, from netip.AddrPort) {
			server.handle(&reply{sock, from, m}, m.Payload, m.Peer, from, m.Seen, sock)
		},
		echo: func(sock *labSocket, text string, from netip.AddrPort) {
			if text == "echo?" {
				s.mu.Lock()
				o.serverIn = true
				s.mu.Unlock()
				sock.Send([]byte("echo!"), from)
			}
		},
	})
	handshake, err := s.Ping(ctx, server.Socket(), relays[1].Relay, 100)
	if err != nil {
		t.Fatalf("the server's handshake: %v", err)
	}

	// The client has the handshake's answer.
	start := time.Now()
	echoed := make(chan Path, 1)
	onEcho := func(sock *labSocket, text string, from netip.AddrPort) {
		if text == "echo!" {
			select {
			case echoed <- Path{sock, from}:
			default:
			}
		}
	}
	client, err := NewClient(ClientConfig{
		Node: c, OpenSocket: c.openSocket, Secret: payloadKey, Relay: relays[1].Relay, Server: handshake.To,
		Relays: relays, NoFastOpen: w.noFastOpen, Limit: w.limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.handle(handlers{probe: client.HandleProbe, echo: onEcho})
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	var trying []Path
	var keep []Socket
wait:
	for {
		select {
		case p, ok := <-client.Paths():
			if !ok {
				o.err = client.Err()
				break wait
			}
			trying = append(trying, p)
			o.tried++
			p.Socket.Send([]byte("echo?"), p.Remote)
		case <-again.C: // for a lost echo
			for _, p := range trying[max(0, len(trying)-4):] {
				p.Socket.Send([]byte("echo?"), p.Remote)
			}
		case p := <-echoed:
			o.took = time.Since(start)
			keep = append(keep, p.Socket)
			break wait
		}
	}
	client.Close(keep...)
	o.server = server.Report()
	closeServer()
	for _, s := range keep {
		s.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return o
}
