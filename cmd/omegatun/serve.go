package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/quick"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

const (
	// maxCarried bounds the connections that are carried at once for others: with --allow any, strangers open them.
	maxCarried = 10_000
	// serverTimeout is how long one of our TCP servers may take to accept a connection.
	serverTimeout = 10 * time.Second
	// portListEvery is how often the list of ports is stored again, as nodes come and go.
	portListEvery = time.Hour
)

func newServe(e *env) *cobra.Command {
	var allow []string
	cmd := &cobra.Command{
		Use:   "serve <port|host:port>… --allow <peer…|any>",
		Short: "Let peers connect to TCP servers here",
		Long: `Lets those allowed connect to TCP servers of this machine, or of others near it: each stream
that they open becomes a TCP connection. Others get no answer. The other side runs "omegatun
forward", or a HyperDHT program such as hypertele and holesail. It needs no root, but no
omegatun may run with the same identity.

When it can be found it prints a line for each port: serving <port> <key>. One port is served
under this machine's key. Of several ports each has a key of its own besides, which stays
the same from start to start, and this machine's key leads to the first. So that peers need
to know only this machine's key, which port has which is stored in the DHT, where anyone who
knows the key can read it.

With --json, an object a line: {"schema":1,"event":"serving","port","address","key"}.

It runs until Ctrl-C; open connections are reset then. Exit status 2: wrong arguments. 5: no
such peer. 9: no DHT node answers.`,
		Example: `  omegatun serve 22 --allow desk
  omegatun serve 3000 db.lan:5432 --allow desk,phone
  omegatun serve 8080 --allow any`,
		Args: takes(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.outliveReader()
			return e.serve(cmd.Context(), args, allow)
		},
	}
	cmd.Flags().StringSliceVar(&allow, "allow", nil, "who may connect: `peers`, by key or name, or any; may be repeated")
	return cmd
}

// service is a TCP server that is served under a key.
type service struct {
	target target
	key    key.Private
	down   atomic.Bool // the server did not answer the last time
}

// services returns what to serve the targets under, and what to store about that. The first service is the one
// under the identity itself.
func services(identity key.Private, targets []target) ([]*service, portList) {
	first := targets[0]
	list := portList{Host: "127.0.0.1", Port: first.port, Ports: map[uint16]key.Public{first.port: identity.Public()}}
	all := []*service{{target: first, key: identity}}
	if len(targets) == 1 {
		return all, list
	}
	for _, t := range targets {
		k := portKey(identity, t.port)
		list.Ports[t.port] = k.Public()
		all = append(all, &service{target: t, key: k})
	}
	return all, list
}

// parseTargets reads the servers of a command line. No two may have the same port: others could not tell them apart.
func parseTargets(args []string) ([]target, error) {
	var targets []target
	seen := make(map[uint16]bool)
	for _, arg := range args {
		t, err := parseTarget(arg)
		if err != nil {
			return nil, err
		}
		if seen[t.port] {
			return nil, exit.New(exit.Usage, "port %d is named twice", t.port).
				WithTry("a second omegatun, with an identity of its own: --state <folder>")
		}
		seen[t.port] = true
		targets = append(targets, t)
	}
	return targets, nil
}

func (e *env) serve(ctx context.Context, args, allow []string) error {
	targets, err := parseTargets(args)
	if err != nil {
		return err
	}
	admits, err := e.admits(allow)
	if err != nil {
		return err
	}
	// How long the list becomes does not depend on the keys.
	if _, list := services(key.Generate(), targets); len(targets) > 1 {
		if _, err := list.encode(); err != nil {
			return exit.New(exit.Usage, "%d ports are too many: their list is too large for the DHT", len(targets)).
				WithTry("a second omegatun, with an identity of its own: --state <folder>")
		}
	}
	st, err := e.openStation(ctx, nil)
	if err != nil {
		return err
	}
	defer st.close(ctx, e) //nolint:errcheck // the streams have their own errors

	all, list := services(st.key, targets)
	s := newServer(e)
	s.host, s.identity, s.admits = st.host, st.key, admits
	if err := s.run(ctx, all, list); err != nil && ctx.Err() == nil {
		return err
	}
	return nil // it was told to end
}

// server carries streams to TCP servers.
type server struct {
	env      *env
	host     *session.Host
	identity key.Private
	admits   func(key.Public) bool
	slots    chan struct{} // taken by each connection
	wg       sync.WaitGroup
}

func newServer(e *env) *server {
	return &server{env: e, slots: make(chan struct{}, maxCarried)}
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context, all []*service, list portList) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	failed := make(chan error, len(all))
	var listeners []*session.Listener
	for _, v := range all {
		l, err := s.host.Listen(v.key, session.ListenConfig{Admit: admit(s.admits)})
		if err != nil {
			return exit.New(exit.Other, "cannot listen: %w", err)
		}
		listeners = append(listeners, l)
		s.wg.Go(func() { // waits for the announcement to be withdrawn
			<-ctx.Done()
			l.Close()
		})
		s.wg.Go(func() { failed <- s.accept(ctx, l, v) })
	}
	for _, l := range listeners {
		if err := l.Announced(ctx); err != nil {
			return err
		}
	}
	if len(list.Ports) > 1 {
		s.storeList(ctx, list)
		s.wg.Go(func() { s.keepList(ctx, list) })
	} else {
		s.wg.Go(func() { s.replaceList(ctx, list) })
	}
	told := all
	if len(all) > 1 {
		told = all[1:] // the first is among them, under a key of its own
	}
	for _, v := range told {
		err := s.env.print(servingEvent{
			Schema: control.Schema, Event: "serving", Port: v.target.port, Address: v.target.String(), Key: v.key.Public(),
		}, fmt.Sprintf("serving %d %s\n", v.target.port, v.key.Public()))
		if err != nil {
			return err
		}
	}
	return <-failed // the first to end, when ctx does
}

type servingEvent struct {
	Schema  int        `json:"schema"`
	Event   string     `json:"event"` // "serving"
	Port    uint16     `json:"port"`
	Address string     `json:"address"` // host:port
	Key     key.Public `json:"key"`
}

// accept carries the streams that come in, until l is closed.
func (s *server) accept(ctx context.Context, l net.Listener, v *service) error {
	for {
		c, err := accept(l)
		if err != nil {
			return err
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.env.log().Warn("too many connections at once, one more is refused", "limit", maxCarried)
			cut(c)
			continue
		}
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			s.carry(ctx, c, v)
		})
	}
}

// carry connects a stream to its TCP server. If that does not answer the stream is reset, as a connection to a port
// where nobody listens would be.
func (s *server) carry(ctx context.Context, c stream, v *service) {
	log := s.env.log().With("remote", c.RemoteAddr().String(), "server", v.target.String())
	if k, ok := c.(interface{ RemoteKey() key.Public }); ok {
		log = log.With("peer", k.RemoteKey().String())
	}
	d := net.Dialer{Timeout: serverTimeout}
	tcp, err := d.DialContext(ctx, "tcp", v.target.String())
	if err != nil {
		cut(c)
		if ctx.Err() == nil && !v.down.Swap(true) {
			s.env.note("the TCP server does not answer: %v", err)
		}
		return
	}
	v.down.Store(false)
	log.Info("connection")
	err = carry(ctx, c, quick.NewConn(tcp.(*net.TCPConn)))
	log.Info("connection ended", "error", err)
}

// keepList stores the list of ports from time to time, until ctx ends.
func (s *server) keepList(ctx context.Context, list portList) {
	ticker := time.NewTicker(portListEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.storeList(ctx, list)
		}
	}
}

// storeList stores the list of ports. Without it peers find only the first port.
func (s *server) storeList(ctx context.Context, list portList) {
	value, err := list.encode()
	if err == nil {
		err = putLatest(ctx, s.host.Node(), s.identity, value)
	}
	if err != nil && ctx.Err() == nil {
		s.env.note("the list of ports could not be stored, so peers may find only port %d: %v", list.Port, err)
	}
}

// replaceList stores list if another list of ports is stored, from when more of them were served.
func (s *server) replaceList(ctx context.Context, list portList) {
	old, err := s.host.Node().GetMutable(ctx, s.identity.Public(), 0)
	if err != nil {
		return // mostly because there is none
	}
	if _, err := parsePortList(old.Value); err == nil {
		s.storeList(ctx, list)
	}
}

// putLatest stores value under k in place of what is there.
func putLatest(ctx context.Context, n *dht.Node, k key.Private, value []byte) error {
	seq, err := nextSeq(ctx, n, k.Public(), value)
	if err != nil {
		return err
	}
	stored, err := n.PutMutable(ctx, k, seq, value)
	if err == nil && len(stored.Nodes) == 0 {
		err = dht.ErrNoNodes
	}
	return err
}
