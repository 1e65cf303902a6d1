package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/quick"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

const (
	// maxDialing bounds the streams that are being opened to a peer at once; the others wait. Servers admit only so many.
	maxDialing = 64
	// portListAge is how long it takes until a peer's list of ports is looked up again without a reason.
	portListAge = 10 * time.Minute
	// portListPause is the time between two lookups, if there are reasons.
	portListPause = 5 * time.Second
	// portListTime is how long a lookup may take.
	portListTime = 20 * time.Second
	// redialPause is the time until a peer that answered before, and then did not, is called again.
	redialPause = 250 * time.Millisecond
	// acceptPause is the time until the next attempt when the system cannot accept a connection.
	acceptPause = 100 * time.Millisecond
)

func newForward(e *env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "forward <[bind:]port:peer:port>…",
		Short: "Make TCP ports of peers ports of this machine",
		Long: `Listens on TCP ports of this machine, at 127.0.0.1 or the address given, and connects who
comes there with a port of a peer: each TCP connection becomes a stream. The peer runs
"omegatun serve", or a HyperDHT program such as hypertele and holesail; those serve one port,
whichever they are asked for. It needs no root and no running omegatun.

It prints a line for each port once it listens: forwarding <address:port> <key> <port>. Port 0
is any free one. A peer that is not there is looked for with each connection; one that
cannot be made is reset.

With --json, an object a line: {"schema":1,"event":"forwarding","listen","key","port"}.

It runs until Ctrl-C; open connections are reset then. Exit status 1: a port is taken.
2: wrong arguments. 4: the port is one for root. 5: no such peer. 9: no DHT node answers.`,
		Example: `  omegatun forward 8080:desk:80
  omegatun forward 2222:desk:22 5432:desk:5432
  omegatun forward 0.0.0.0:8080:hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko:80`,
		Args: takes(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.outliveReader()
			return e.forward(cmd.Context(), args, timeout)
		},
	}
	timeVar(cmd.Flags(), &timeout, "timeout", "", 30*time.Second, "how long to try for each connection")
	return cmd
}

func (e *env) forward(ctx context.Context, args []string, timeout time.Duration) error {
	f := forwarder{env: e, timeout: timeout, ports: make(map[key.Public]*peerPorts)}
	var all []*forwarded
	for _, arg := range args {
		spec, err := parseForwarding(arg)
		if err != nil {
			return err
		}
		p, err := e.findPeer(spec.peer)
		if err != nil {
			return err
		}
		all = append(all, &forwarded{forwarding: spec, peer: p})
	}
	k, err := e.makeIdentity()
	if err != nil {
		return err
	}
	dir, err := e.makeState()
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, v := range all {
		if v.listener, err = listenTCP(ctx, v.forwarding); err != nil {
			return err
		}
		defer v.listener.Close()
	}
	keepSecrets()
	if f.host, err = e.openHost(ctx, k, dir); err != nil {
		return err
	}
	defer e.closeHost(ctx, f.host, dir) //nolint:errcheck // the streams have their own errors
	return f.run(ctx, all)
}

// listenTCP listens where a forwarding says. Errors are [exit.Error]s.
func listenTCP(ctx context.Context, f forwarding) (net.Listener, error) {
	addr := net.JoinHostPort(f.bind, strconv.Itoa(int(f.at)))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, exit.Wrap(exit.Other, err, "TCP port %s is in use already", addr).
			WithTry("another port, or stop what has it: ss -tlpn sport = %d", f.at)
	case errors.Is(err, fs.ErrPermission):
		return nil, exit.New(exit.Permission, "may not listen on TCP port %s: %w", addr, err).WithTry("a port above 1023")
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	failure := exit.New(exit.Usage, "cannot listen on %s: %w", addr, err)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		failure = exit.Wrap(exit.Usage, err, "cannot listen on %s: this machine does not have that address", addr)
	}
	return nil, failure.WithTry("an address of this machine (ip address lists them), * for all, or none for 127.0.0.1")
}

// forwarded is a port that is being forwarded.
type forwarded struct {
	forwarding
	peer     config.Peer
	listener net.Listener
	reached  atomic.Pointer[time.Time] // when the peer answered last, nil: never
	down     atomic.Bool               // the last attempt to connect failed
	silent   atomic.Bool               // it was told that the peer does not answer
}

// forwarder carries TCP connections to peers.
type forwarder struct {
	env     *env
	host    *session.Host
	timeout time.Duration
	ports   map[key.Public]*peerPorts
	wg      sync.WaitGroup
}

// run forwards until ctx ends.
func (f *forwarder) run(ctx context.Context, all []*forwarded) error {
	ctx, cancel := context.WithCancel(ctx)
	defer f.wg.Wait()
	defer cancel()
	for _, v := range all {
		f.wg.Go(func() {
			<-ctx.Done()
			v.listener.Close()
		})
		if f.ports[v.peer.Key] == nil {
			p := &peerPorts{
				key: v.peer.Key, node: f.host.Node(), asked: make(chan struct{}), again: make(chan struct{}, 1),
				dialing: make(chan struct{}, maxDialing), log: f.env.log(),
			}
			f.ports[p.key] = p
			f.wg.Go(func() { p.follow(ctx) })
		}
	}
	for _, v := range all {
		select { // so that the first connection finds the right port
		case <-f.ports[v.peer.Key].asked:
		case <-ctx.Done():
			return nil
		}
		if _, err := f.ports[v.peer.Key].keyFor(v.port); err != nil {
			f.env.note("%v", err)
		}
	}
	for _, v := range all {
		f.wg.Go(func() { f.accept(ctx, v) })
		at := v.listener.Addr().String()
		err := f.env.print(forwardingEvent{
			Schema: control.Schema, Event: "forwarding", Listen: at, Key: v.peer.Key, Port: v.port,
		}, fmt.Sprintf("forwarding %s %s %d\n", at, v.peer.Key, v.port))
		if err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

type forwardingEvent struct {
	Schema int        `json:"schema"`
	Event  string     `json:"event"`  // "forwarding"
	Listen string     `json:"listen"` // address:port
	Key    key.Public `json:"key"`    // the peer's
	Port   uint16     `json:"port"`   // the peer's
}

// accept carries the TCP connections that come in, until ctx ends.
func (f *forwarder) accept(ctx context.Context, v *forwarded) {
	for {
		tcp, err := v.listener.Accept()
		if err == nil {
			f.wg.Go(func() { f.carry(ctx, tcp.(*net.TCPConn), v) })
			continue
		}
		if ctx.Err() != nil {
			return
		}
		f.env.log().Warn("a connection was not accepted", "listen", v.listener.Addr().String(), "error", err)
		select { // there may be too many open files, for the moment
		case <-ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

// carry connects a TCP connection to the peer.
func (f *forwarder) carry(ctx context.Context, tcp *net.TCPConn, v *forwarded) {
	log := f.env.log().With("client", tcp.RemoteAddr().String(), "peer", v.peer.Key.String(), "port", v.port)
	dialing, settle := watchClient(ctx, tcp)
	c, err := f.dial(dialing, v)
	left := errors.Is(context.Cause(dialing), errClientLeft)
	client := settle()
	if err != nil {
		cut(client)
		if left {
			log.Info("the client left before there was a connection")
			return
		}
		f.ports[v.peer.Key].lookAgain()
		if ctx.Err() == nil && !v.down.Swap(true) {
			f.env.note("no connection to port %d of %s: %s", v.port, v.name(), exit.From(err).Reason)
		}
		log.Info("no connection", "error", err)
		return
	}
	v.reached.Store(new(time.Now()))
	v.silent.Store(false)
	if v.down.Swap(false) {
		f.env.say("port %d of %s can be reached again", v.port, v.name())
	}
	log.Info("connection", "remote", c.RemoteAddr().String())
	err = carry(ctx, c, client)
	log.Info("connection ended", "error", err)
}

// errClientLeft is why a connection to a peer is not made any more.
var errClientLeft = errors.New("the client has left")

// maxEarly is how much of what a client sends is read before there is a connection.
const maxEarly = 64 << 10

// waitingClient is a TCP connection of which something has been read already.
type waitingClient struct {
	*quick.Conn
	early []byte
	end   error // of what can be read; nil: there is more
}

// watchClient reads what a client sends while it waits, which is the only way to notice that it leaves: then the context
// ends with errClientLeft. That it has no more to send is no reason to leave. settle ends the watch, and returns the
// connection with all that it sends still to be read.
func watchClient(ctx context.Context, tcp *net.TCPConn) (waiting context.Context, settle func() *waitingClient) {
	waiting, cancel := context.WithCancelCause(ctx)
	c := &waitingClient{Conn: quick.NewConn(tcp)}
	done := make(chan struct{})
	go func() { // ends with settle
		defer close(done)
		b := make([]byte, 4<<10)
		for len(c.early) < maxEarly {
			n, err := tcp.Read(b)
			c.early = append(c.early, b[:n]...)
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				return
			case err != nil:
				if c.end = err; !errors.Is(err, io.EOF) {
					cancel(errClientLeft)
				}
				return
			}
		}
	}()
	return waiting, func() *waitingClient {
		tcp.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // it fails if the connection is gone, and then reading ends
		<-done
		tcp.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
		cancel(nil)
		return c
	}
}

func (c *waitingClient) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	if c.end != nil {
		return 0, c.end
	}
	return c.Conn.Read(b)
}

// WriteTo keeps io.Copy from that of the connection, which knows nothing of what was read before.
func (c *waitingClient) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// name is what a person calls the peer.
func (v *forwarded) name() string {
	if v.peer.Name != "" {
		return v.peer.Name
	}
	return v.peer.Key.Short()
}

// dial opens a stream to the peer's port.
func (f *forwarder) dial(ctx context.Context, v *forwarded) (stream, error) {
	done, err := f.turn(ctx, v)
	if err != nil {
		return nil, err
	}
	defer done()
	dialing, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	k, err := f.ports[v.peer.Key].keyFor(v.port)
	if err != nil {
		return nil, err
	}
	for {
		c, err := f.host.Dial(dialing, k, session.DialConfig{OnSilence: func() { f.tellSilence(v) }})
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case v.reached.Load() == nil || !errors.Is(err, session.ErrNoAnswer):
			return nil, daemon.Explain(err)
		}
		select { // it has too many callers at the moment, or is just being restarted
		case <-dialing.Done():
			return nil, daemon.Explain(err)
		case <-time.After(redialPause):
		}
	}
}

// turn waits while too many streams are being opened to the peer, as long as some come about. The caller calls done when its own
// is open, or is not to be.
func (f *forwarder) turn(ctx context.Context, v *forwarded) (done func(), err error) {
	dialing := f.ports[v.peer.Key].dialing
	began := time.Now()
	timer := time.NewTimer(f.timeout)
	defer timer.Stop()
	for {
		select {
		case dialing <- struct{}{}:
			return func() { <-dialing }, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
		last := began
		if t := v.reached.Load(); t != nil && t.After(began) {
			last = *t
		}
		left := f.timeout - time.Since(last)
		if left <= 0 {
			return nil, exit.New(exit.Timeout, "of many streams that are being opened none came about within %v", f.timeout)
		}
		timer.Reset(left)
	}
}

// tellSilence says once that the peer is announced, but does not answer, while that goes on.
func (f *forwarder) tellSilence(v *forwarded) {
	if !v.down.Load() && !v.silent.Swap(true) {
		f.env.note("port %d of %s is announced, but nobody answers yet: it is not served any more, or not to us", v.port, v.name())
	}
}

// peerPorts keeps the list of ports that a peer stores in the DHT, if it does.
type peerPorts struct {
	key   key.Public
	node  *dht.Node
	asked chan struct{} // closed after the first lookup, whatever it found
	again chan struct{} // holds one: there is reason to look again

	dialing chan struct{} // taken while a stream is being opened to the peer

	list atomic.Pointer[portList]
	log  *slog.Logger
}

// follow looks the list up, from time to time, until ctx ends.
func (p *peerPorts) follow(ctx context.Context) {
	seq := uint64(0)
	for first := true; ; first = false {
		seq = p.lookUp(ctx, seq)
		if first {
			close(p.asked)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(portListPause):
		}
		select {
		case <-ctx.Done():
			return
		case <-p.again:
		case <-time.After(portListAge):
		}
	}
}

// lookUp looks the list up once and returns its sequence number; seq if there is none, or an older one.
func (p *peerPorts) lookUp(ctx context.Context, seq uint64) uint64 {
	ctx, cancel := context.WithTimeout(ctx, portListTime)
	defer cancel()
	m, err := p.node.GetMutable(ctx, p.key, seq)
	if err != nil {
		p.log.Debug("no list of ports", "peer", p.key.String(), "error", err)
		return seq
	}
	list, err := parsePortList(m.Value)
	if err != nil { // the peer has stored something else since
		p.log.Debug("no list of ports", "peer", p.key.String(), "error", err)
		p.list.Store(nil)
		return m.Seq
	}
	p.list.Store(&list)
	return m.Seq
}

// lookAgain has the list looked up soon.
func (p *peerPorts) lookAgain() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// keyFor returns the key under which the peer serves a port. A peer that stores no list serves one port, under its
// own key.
func (p *peerPorts) keyFor(port uint16) (key.Public, error) {
	list := p.list.Load()
	if list == nil {
		return p.key, nil
	}
	k, ok := list.Ports[port]
	if !ok {
		return key.Public{}, exit.New(exit.Refused, "%s does not serve port %d, but %v", p.key.Short(), port, list)
	}
	return k, nil
}
