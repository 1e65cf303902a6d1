//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
	"omegatun/session/relay"
)

// order is a line on the stdin of an endpoint, in Go or in JavaScript. Keys are in hex.
type order struct {
	Do        string   `json:"do"` // nodes, join, serve, dial, swarm, leave
	Bootstrap string   `json:"bootstrap,omitempty"`
	Addrs     []string `json:"addrs,omitempty"`      // nodes, swarm: where; the first node is the bootstrap node
	RelayAt   string   `json:"relay_at,omitempty"`   // nodes: the address of a relay, if there is to be one
	Relay     string   `json:"relay,omitempty"`      // join: the relay's key
	RelayHost string   `json:"relay_host,omitempty"` // dial: its address, for ends that only see addresses
	Allow     string   `json:"allow,omitempty"`      // serve: the client's key
	To        string   `json:"to,omitempty"`         // dial
	Tunnel    bool     `json:"tunnel,omitempty"`     // dial: the other end is an omegatun
	TimeoutMS int      `json:"timeout_ms,omitempty"`
	Again     bool     `json:"again,omitempty"`     // dial: send the first message until it is answered, because any may be lost
	WatchMS   int      `json:"watch_ms,omitempty"`  // dial: how long to count changes of path, with traffic
	LingerMS  int      `json:"linger_ms,omitempty"` // dial: how long to wait for a direct path after a relayed one
}

// answer is a line on the stdout of an endpoint.
type answer struct {
	Event  string  `json:"event"` // ready (nodes, join, serve), open, done, left, error
	Key    string  `json:"key,omitempty"`
	MS     float64 `json:"ms"`
	Path   string  `json:"path,omitempty"`
	Remote string  `json:"remote,omitempty"`
	EchoMS float64 `json:"echo_ms,omitempty"` // done: from dial to the echo of the first message; 0: it never came
	// DirectMS is when a relayed connection was on a direct path; 0: never, or it was never relayed.
	DirectMS float64  `json:"direct_ms,omitempty"`
	Switches int      `json:"switches,omitempty"` // done: changes of path while it was watched, for MS
	Keys     []string `json:"keys,omitempty"`     // ready (swarm)
	Nodes    int      `json:"nodes,omitempty"`    // ready: DHT nodes known
	Local    string   `json:"local,omitempty"`    // NAT classes as found
	Peer     string   `json:"peer,omitempty"`
	Message  string   `json:"message,omitempty"`
	Steps    []string `json:"steps,omitempty"` // what the product says about a slow or failed attempt
}

func say(a answer) {
	b, err := json.Marshal(a)
	if err != nil {
		b = fmt.Appendf(nil, `{"event":"error","message":%q}`, err)
	}
	fmt.Println(string(b))
}

// endpoint is one end of trials: it does what it is told on stdin, until that ends.
func endpoint() error {
	e := &end{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	if os.Getenv("LAB_DEBUG") != "" {
		e.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			err = e.do(o)
		}
		if err != nil {
			say(answer{Event: "error", Message: err.Error()})
		}
	}
	return errors.Join(in.Err(), e.leave())
}

type end struct {
	log   *slog.Logger
	hosts []*session.Host
	id    key.Private
}

func (e *end) do(o order) error {
	ctx := context.Background()
	if o.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	switch o.Do {
	case "nodes":
		return e.nodes(ctx, o)
	case "join":
		return e.join(ctx, o)
	case "serve":
		return e.serve(ctx, o)
	case "dial":
		if o.Tunnel {
			return e.tunnel(ctx, o)
		}
		return e.stream(ctx, o)
	case "swarm":
		return e.swarm(ctx, o)
	case "leave":
		start := time.Now()
		err := e.leave()
		say(answer{Event: "left", MS: msOf(time.Since(start))})
		return err
	}
	return fmt.Errorf("unknown order %q", o.Do)
}

func (e *end) leave() error {
	var errs []error
	for _, h := range e.hosts {
		errs = append(errs, h.Close())
	}
	e.hosts = nil
	return errors.Join(errs...)
}

// nodes starts members of the DHT, and a relay.
func (e *end) nodes(ctx context.Context, o order) error {
	start := time.Now()
	for _, a := range append(o.Addrs, o.RelayAt) {
		if a == "" {
			continue
		}
		at, err := netip.ParseAddrPort(a)
		if err != nil {
			return err
		}
		cfg := session.Config{
			Identity: key.Generate(), Addr: at.Addr(), Port: at.Port(), Logger: e.log,
			DHT: dht.Config{Mode: dht.Persistent, Open: true, PublicAddr: at, Bootstrap: []string{o.Addrs[0]}},
		}
		if len(e.hosts) == 0 {
			cfg.DHT.Bootstrap = []string{}
		}
		if a == o.RelayAt {
			cfg.Relay = &relay.Config{}
		}
		h, err := session.New(cfg)
		if err != nil {
			return err
		}
		e.hosts = append(e.hosts, h)
		if err := h.Ready(ctx); err != nil {
			return err
		}
		if a != o.RelayAt {
			continue
		}
		l, err := h.Listen(cfg.Identity, session.ListenConfig{
			Admit: func(session.Caller) error { return nil },
			Relay: func(key.Public) bool { return true },
		})
		if err != nil {
			return err
		}
		if err := l.Announced(ctx); err != nil {
			return err
		}
		e.id = cfg.Identity
	}
	a := answer{Event: "ready", MS: msOf(time.Since(start))}
	if o.RelayAt != "" {
		a.Key = e.id.Public().Hex()
	}
	say(a)
	return nil
}

// join starts a Host with a fresh identity.
func (e *end) join(ctx context.Context, o order) error {
	start := time.Now()
	e.id = key.Generate()
	cfg := session.Config{
		Identity: e.id, DHT: dht.Config{Bootstrap: []string{o.Bootstrap}}, Logger: e.log,
		Inbound: func(p *session.Peer, bufs [][]byte, offset int, _ []bool) { echo(p, bufs, offset) },
	}
	if o.Relay != "" {
		k, err := key.ParsePublic(o.Relay)
		if err != nil {
			return err
		}
		cfg.RelayThrough = []key.Public{k}
	}
	h, err := session.New(cfg)
	if err != nil {
		return err
	}
	e.hosts = append(e.hosts, h)
	if err := h.Ready(ctx); err != nil {
		return fmt.Errorf("no DHT node answers: %w", err)
	}
	say(answer{Event: "ready", Key: e.id.Public().Hex(), MS: msOf(time.Since(start)), Nodes: h.Node().Info().Nodes})
	return nil
}

// question and reply are bytes of packets that only this program understands. An IPv6 header is enough for the tunnel.
const (
	packetLen = 48
	question  = 'q'
	reply     = 'r'
)

func packet(kind byte) []byte {
	b := make([]byte, packetLen)
	b[0], b[packetLen-1] = 0x60, kind
	b[5], b[6] = packetLen-40, 59
	return b
}

// replies receives a token for each reply that arrives.
var replies = make(chan struct{}, 64)

// echo answers questions.
func echo(p *session.Peer, bufs [][]byte, offset int) {
	for _, b := range bufs {
		b = b[offset:]
		if len(b) != packetLen {
			continue
		}
		switch b[packetLen-1] {
		case question:
			p.Send([][]byte{packet(reply)}) //nolint:errcheck // then there is no reply, which is what is measured
		case reply:
			select {
			case replies <- struct{}{}:
			default:
			}
		}
	}
}

// serve announces the Host's key: it echoes streams, and the packets of the client.
func (e *end) serve(ctx context.Context, o order) error {
	start := time.Now()
	h := e.hosts[len(e.hosts)-1]
	if o.Allow != "" {
		k, err := key.ParsePublic(o.Allow)
		if err != nil {
			return err
		}
		if _, err := h.AddPeer(k); err != nil {
			return err
		}
	}
	l, err := h.Listen(e.id, session.ListenConfig{Admit: func(session.Caller) error { return nil }, Tunnels: true})
	if err != nil {
		return err
	}
	go func() { // ends with the Host
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c) //nolint:errcheck // the client sees it
				c.Close()
			}()
		}
	}()
	if err := l.Announced(ctx); err != nil {
		return err
	}
	say(answer{Event: "ready", Key: e.id.Public().Hex(), MS: msOf(time.Since(start))})
	return nil
}

// tunnel connects to a peer and sends a packet at once.
func (e *end) tunnel(ctx context.Context, o order) error {
	h := e.hosts[len(e.hosts)-1]
	k, err := key.ParsePublic(o.To)
	if err != nil {
		return err
	}
	p, err := h.AddPeer(k)
	if err != nil {
		return err
	}
	for len(replies) > 0 {
		<-replies
	}
	start := time.Now()
	if err := p.Send([][]byte{packet(question)}); err != nil {
		return err
	}
	err = p.Wait(ctx)
	took := time.Since(start)
	if err != nil {
		a := answer{Event: "open", MS: msOf(took), Message: err.Error()}
		explain(&a, p)
		say(a)
		return nil
	}
	s := p.Status()
	say(answer{Event: "open", Path: s.Path.Kind.String(), MS: msOf(took), Remote: s.Path.Remote.String()})
	done := answer{Event: "done"}
	linger, cancel := context.WithTimeout(context.Background(), time.Duration(o.LingerMS)*time.Millisecond)
	defer cancel()
	wait := 3 * time.Second
	if o.Again {
		wait = 30 * time.Second
	}
	patience, cancel2 := context.WithTimeout(context.Background(), wait)
	again := make(<-chan time.Time)
	if o.Again {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		again = t.C
	}
	defer cancel2()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	relayed := s.Path.Kind == session.PathRelay
	waiting, hoping := true, relayed
	for waiting || hoping {
		select {
		case <-replies:
			done.EchoMS, waiting = msOf(time.Since(start)), false
		case <-again:
			p.Send([][]byte{packet(question)}) //nolint:errcheck // it need not arrive
		case <-patience.Done():
			waiting = false
		case <-linger.Done():
			hoping = false
		case <-tick.C:
			if now := p.Status().Path; hoping && now.Remote.IsValid() && now.Kind != session.PathRelay {
				done.DirectMS, hoping = msOf(time.Since(start)), false
				done.Remote = now.Remote.String()
			}
		}
	}
	explain(&done, p)
	if o.WatchMS > 0 {
		began := time.Now()
		done.Switches = switches(p, time.Duration(o.WatchMS)*time.Millisecond)
		done.MS = msOf(time.Since(began))
	}
	done.Path = p.Status().Path.Kind.String()
	say(done)
	return nil
}

// switches counts changes of the path to p while packets go back and forth.
func switches(p *session.Peer, during time.Duration) (n int) {
	end := time.After(during)
	look, send := time.NewTicker(10*time.Millisecond), time.NewTicker(50*time.Millisecond)
	defer look.Stop()
	defer send.Stop()
	last := p.Status().Path
	for {
		select {
		case <-end:
			return n
		case <-replies:
		case <-send.C:
			p.Send([][]byte{packet(question)}) //nolint:errcheck // it need not arrive
		case <-look.C:
			if now := p.Status().Path; now.Remote.IsValid() && now != last {
				n, last = n+1, now
			}
		}
	}
}

// swarm starts a Host at each address, which waits for the client.
func (e *end) swarm(ctx context.Context, o order) error {
	start := time.Now()
	client, err := key.ParsePublic(o.Allow)
	if err != nil {
		return err
	}
	a := answer{Event: "ready"}
	for _, text := range o.Addrs {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return err
		}
		id := key.Generate()
		h, err := session.New(session.Config{
			Identity: id, Addr: at.Addr(), Port: at.Port(), Logger: e.log,
			DHT: dht.Config{Open: true, PublicAddr: at, Bootstrap: []string{o.Bootstrap}},
		})
		if err != nil {
			return err
		}
		e.hosts = append(e.hosts, h)
		if _, err := h.AddPeer(client); err != nil {
			return err
		}
		l, err := h.Listen(id, session.ListenConfig{Admit: func(session.Caller) error { return nil }, Tunnels: true})
		if err != nil {
			return err
		}
		if err := l.Announced(ctx); err != nil {
			return err
		}
		a.Keys = append(a.Keys, id.Public().Hex())
	}
	a.MS = msOf(time.Since(start))
	say(a)
	return nil
}

// explain adds what the product says about its latest attempt.
func explain(a *answer, p *session.Peer) {
	all := p.Attempts()
	if len(all) == 0 {
		return
	}
	a.Local, a.Peer = all[0].Local.String(), all[0].Remote.String()
	for _, at := range all {
		for _, s := range at.Steps {
			a.Steps = append(a.Steps, fmt.Sprintf("%.0f %s: %s", msOf(s.After), s.Stage, s.Text))
		}
	}
	if len(a.Steps) > 60 {
		a.Steps = a.Steps[:60]
	}
}

// stream connects to a HyperDHT program.
func (e *end) stream(ctx context.Context, o order) error {
	h := e.hosts[len(e.hosts)-1]
	k, err := key.ParsePublic(o.To)
	if err != nil {
		return err
	}
	start := time.Now()
	c, err := h.Dial(ctx, k, session.DialConfig{})
	if err != nil {
		say(answer{Event: "open", MS: msOf(time.Since(start)), Message: err.Error()})
		return nil
	}
	defer c.Close() //nolint:errcheck // all has been said
	say(answer{Event: "open", Path: "stream", MS: msOf(time.Since(start)), Remote: c.RemoteAddr().String()})
	done := answer{Event: "done"}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	b := []byte{question}
	if _, err := c.Write(b); err == nil {
		if _, err := io.ReadFull(c, b); err == nil {
			done.EchoMS = msOf(time.Since(start))
		}
	}
	first := c.RemoteAddr().String()
	until := time.Now().Add(time.Duration(o.LingerMS) * time.Millisecond)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for isRelay(first) && time.Now().Before(until) {
		<-tick.C
		if now := c.RemoteAddr().String(); now != first {
			done.DirectMS, done.Remote = msOf(time.Since(start)), now
			break
		}
	}
	say(done)
	return nil
}

// isRelay reports whether an address is the lab's relay's.
func isRelay(a string) bool {
	p, err := netip.ParseAddrPort(a)
	return err == nil && p.Addr() == relayAddr
}
