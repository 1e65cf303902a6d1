package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/daemon"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/session"
)

const (
	maxNodes   = 1000        // that one process runs at most
	watchEvery = time.Second // between looks at whether a node has become a member

	// nodeGCPercent is by how much of what is in use garbage may add to it. A node answers without making garbage, and what
	// little the rest makes is collected quickly: it is memory that counts.
	nodeGCPercent = 25
)

func newNode(e *env) *cobra.Command {
	var n nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run DHT nodes",
		Long: `Runs nodes of the DHT, which others find their peers through. It needs no root, no
identity and no state, and carries nobody's traffic. A node joins the public network, the
one that --bootstrap leads to, or, where --bootstrap has no value, begins one of its own.

A node that is reachable becomes a member after 20 minutes; with --persistent, for networks
of your own, as soon as it knows its address.

For each node that is ready it prints a line, ready <host>:<port>, as others see it. With
--json, an object a line:
  {"schema":1,"event":"ready","host","port","id"}
  {"schema":1,"event":"persistent","host","port","id"}     it has become a member

How the nodes are doing is told on request: on SIGUSR1, a line for each node on stdout, or
with --json an object with "event":"metrics"; and with --metrics to whoever asks this
address by HTTP for /metrics, in Prometheus' text format. Counters begin with the node.

It runs until Ctrl-C; a second one does not wait for anything. Exit status 1: the port is taken. 9: no DHT node answers.`,
		Example: `  omegatun node
  omegatun node --bootstrap --host 203.0.113.9                  # the first of a network
  omegatun node --port 49738 --bootstrap 203.0.113.9:49737      # another one
  omegatun node --nodes 5 --bootstrap 203.0.113.9:49737`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e.outliveReader()
			return e.node(cmd.Context(), n)
		},
	}
	f := cmd.Flags()
	f.IntVar(&n.nodes, "nodes", 1, "run this `many`, on ports that follow each other")
	f.Uint16Var(&n.port, "port", 0, "UDP `port` of the first; default: 49737 if it is free")
	f.StringVar(&n.host, "host", "", "IPv4 `address` at which others reach it; default: it finds out")
	f.StringVar(&n.metrics, "metrics", "", "loopback `address:port` to serve metrics at by HTTP; default: none")
	f.BoolVar(&n.persistent, "persistent", false, "become a member at once")
	return cmd
}

type nodeFlags struct {
	nodes      int
	port       uint16
	host       string
	persistent bool
	metrics    string
}

// node runs the nodes until ctx ends.
func (e *env) node(ctx context.Context, flags nodeFlags) error {
	c, err := e.loadConfig()
	if err != nil {
		return err
	}
	first := e.bootstrapsItself()
	cfg := session.NodeConfig{Logger: e.log()}
	if flags.nodes < 1 || flags.nodes > maxNodes {
		return exit.New(exit.Usage, "--nodes must be between 1 and %d", maxNodes)
	}
	if int(flags.port)+flags.nodes-1 > 65535 {
		return exit.New(exit.Usage, "%d nodes from port %d on are more ports than there are", flags.nodes, flags.port)
	}
	var public netip.Addr
	if flags.host != "" {
		if public, err = netip.ParseAddr(flags.host); err != nil || !public.Is4() {
			return exit.New(exit.Usage, "--host: %q is not an IPv4 address", flags.host)
		}
		if !config.IsHost(public) {
			return exit.New(exit.Usage, "--host: %q cannot be the address of a machine", flags.host)
		}
		if isLocal(public) {
			cfg.Addr = public
		}
		cfg.DHT.Open = true
	}
	switch {
	case first && !public.IsValid():
		return exit.New(exit.Usage, "--bootstrap without a value begins a network, which needs an address").
			WithTry("omegatun node --bootstrap --host <IPv4 address of this machine>\n" +
				"or join a network: --bootstrap <host:port>")
	case first:
		cfg.DHT.Bootstrap = []string{}
	default:
		if cfg.DHT.Bootstrap, err = e.bootstrapNodes(c); err != nil {
			return err
		}
	}
	if flags.persistent || first {
		cfg.DHT.Mode = dht.Persistent
	}

	defer debug.SetGCPercent(debug.SetGCPercent(nodeGCPercent))
	all, err := session.NewNodes()
	if err != nil {
		return exit.New(exit.Other, "cannot start: %w", err)
	}
	r := nodeRunner{env: e, all: all}
	defer r.close()
	defer r.wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if flags.metrics != "" {
		l, err := listenMetrics(ctx, flags.metrics)
		if err != nil {
			return err
		}
		e.note("metrics at http://%v/metrics", l.Addr())
		r.wg.Go(func() { r.serveMetrics(ctx, l) })
	}
	signals := make(chan os.Signal, 1)
	notifyMetrics(signals)
	defer signal.Stop(signals)
	r.wg.Go(func() { r.printMetrics(ctx, signals) })
	r.wg.Go(func() { r.watch(ctx) })
	for i := range flags.nodes {
		node := cfg
		if node.Port = flags.port; node.Port != 0 {
			node.Port += uint16(i)
		}
		addr, err := r.start(ctx, node, public)
		if err != nil {
			return err
		}
		if first && i == 0 { // the others join it
			cfg.DHT.Bootstrap = []string{addr.String()}
		}
	}
	debug.FreeOSMemory() // what starting took
	<-ctx.Done()
	return nil
}

// nodeRunner runs nodes, and prints what becomes of them.
type nodeRunner struct {
	env *env
	all *session.Nodes
	wg  sync.WaitGroup

	mu    sync.Mutex // guards stdout and the fields below
	nodes []*session.Node
}

// start runs a node until ctx ends, and returns its address when it is ready. public, if it is valid, is the address
// at which others reach the machine.
func (r *nodeRunner) start(ctx context.Context, cfg session.NodeConfig, public netip.Addr) (netip.AddrPort, error) {
	alone := cfg.DHT.Bootstrap != nil && len(cfg.DHT.Bootstrap) == 0
	if public.IsValid() && cfg.Port == 0 {
		port, err := freePort(cfg.Addr)
		if err != nil {
			return netip.AddrPort{}, exit.New(exit.Other, "no UDP port is free: %w", err)
		}
		cfg.Port = port
	}
	if public.IsValid() {
		cfg.DHT.PublicAddr = netip.AddrPortFrom(public, cfg.Port)
	}
	h, err := daemon.OpenNode(r.all, cfg)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if !alone {
		err = daemon.Join(ctx, h.Node(), cfg.DHT.Bootstrap, nil)
	} else {
		err = h.Ready(ctx)
	}
	if err != nil {
		return netip.AddrPort{}, errors.Join(err, h.Close())
	}
	r.tell("ready", h)
	r.mu.Lock()
	r.nodes = append(r.nodes, h)
	r.mu.Unlock()
	return nodeAddr(h.Node(), h.Addr()), nil
}

// watch prints when nodes become members, until ctx ends. A look each second costs less than a goroutine for each.
func (r *nodeRunner) watch(ctx context.Context) {
	members := make(map[*session.Node]bool)
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		r.mu.Lock()
		nodes := r.nodes // it only grows
		r.mu.Unlock()
		for _, n := range nodes {
			if now := n.Node().Info().Persistent; now != members[n] {
				if members[n] = now; now {
					r.tell("persistent", n)
				}
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// close stops all nodes.
func (r *nodeRunner) close() {
	for _, n := range r.nodes {
		if err := n.Close(); err != nil {
			r.env.log().Warn("closing a node", "error", err)
		}
	}
	if err := r.all.Close(); err != nil {
		r.env.log().Warn("closing sockets", "error", err)
	}
}

// tell tells of a node: a line for its readiness, an object for everything with --json.
func (r *nodeRunner) tell(event string, h *session.Node) {
	addr := nodeAddr(h.Node(), h.Addr())
	text := ""
	if event == "ready" {
		text = fmt.Sprintf("ready %v\n", addr)
	}
	r.print(nodeEvent{
		Schema: control.Schema, Event: event, Host: addr.Addr(), Port: addr.Port(), ID: h.Node().Info().ID.String(),
	}, text)
}

// print prints to stdout: text, or v as JSON.
func (r *nodeRunner) print(v any, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.env.print(v, text); err != nil {
		r.env.log().Warn("stdout is closed", "error", err)
	}
}

type nodeEvent struct {
	Schema int        `json:"schema"`
	Event  string     `json:"event"` // "ready", "persistent"
	Host   netip.Addr `json:"host"`
	Port   uint16     `json:"port"`
	ID     string     `json:"id"` // hex
}

// nodeAddr returns the address at which others see a node whose server socket has the address local, as far as it is
// known.
func nodeAddr(n *dht.Node, local netip.AddrPort) netip.AddrPort {
	if a, ok := n.RemoteAddr(); ok {
		return a
	}
	if host := n.Info().Host; host.IsValid() {
		return netip.AddrPortFrom(host, local.Port())
	}
	return local
}

// isLocal reports whether a is an address of this machine.
func isLocal(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, local := range addrs {
		if p, err := netip.ParsePrefix(local.String()); err == nil && p.Addr().Unmap() == a {
			return true
		}
	}
	return a.IsLoopback()
}

// freePort returns a UDP port that is free at addr, the usual one if it is.
func freePort(addr netip.Addr) (uint16, error) {
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	var last error
	for i := range 6 {
		port := strconv.Itoa(session.DefaultPort + i)
		if i == 5 {
			port = "0"
		}
		c, err := net.ListenPacket("udp4", net.JoinHostPort(addr.String(), port))
		if err != nil {
			last = err
			continue
		}
		local, err := netip.ParseAddrPort(c.LocalAddr().String())
		c.Close()
		if err == nil {
			return local.Port(), nil
		}
		last = err
	}
	return 0, last
}
