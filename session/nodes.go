package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"omegatun/dht"
	"omegatun/session/udp"
)

// Nodes runs DHT nodes without anything around them: no peers, no streams, no tunnels. All of them share one receiving
// goroutine, so that a node costs no more than what it knows of the network. Its methods are safe for concurrent use.
type Nodes struct{ hub *udp.Hub }

// NodeConfig says how a [Node] is to work. The zero value works.
type NodeConfig struct {
	Addr netip.Addr // the local IPv4 address to bind. Default: every one
	Port uint16     // the server socket's; if it is taken Open fails. Default: as Config.Port

	DHT    dht.Config   // its sockets, and its Logger if nil, are ours
	Logger *slog.Logger // default: discard
}

// Node is one DHT node with its sockets. Its methods are safe for concurrent use.
type Node struct {
	client, server *udp.Conn

	mu   sync.Mutex // guards node while it starts: answers come before dht.New has returned
	node *dht.Node  // nil: it could not be started
}

// NewNodes returns a Nodes that has none. Close ends its goroutine.
func NewNodes() (*Nodes, error) {
	h, err := udp.NewHub()
	if err != nil {
		return nil, err
	}
	return &Nodes{hub: h}, nil
}

// Open opens the sockets of a node and starts it. It does not wait for the network; [Node.Ready] does.
func (s *Nodes) Open(cfg NodeConfig) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if !cfg.Addr.IsValid() {
		cfg.Addr = netip.IPv4Unspecified()
	}
	if cfg.Addr = cfg.Addr.Unmap(); !cfg.Addr.Is4() {
		return nil, fmt.Errorf("session: NodeConfig.Addr is %v, but the DHT is IPv4 only", cfg.Addr)
	}
	n := &Node{}
	listen := func(port uint16) (*udp.Conn, error) {
		return s.hub.Listen(udp.Config{Addr: netip.AddrPortFrom(cfg.Addr, port), Logger: cfg.Logger}, n.receive)
	}
	var err error
	if n.server, err = listenPort(listen, cfg.Port); err != nil {
		return nil, err
	}
	if n.client, err = listen(0); err != nil {
		return nil, errors.Join(err, n.server.Close())
	}
	cfg.DHT.Client, cfg.DHT.Server = n.client, n.server
	if cfg.DHT.Logger == nil {
		cfg.DHT.Logger = cfg.Logger
	}
	n.mu.Lock()
	n.node, err = dht.New(cfg.DHT)
	n.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, n.client.Close(), n.server.Close())
	}
	return n, nil
}

// receive hands the node what belongs to it.
func (n *Node) receive(c *udp.Conn, b *udp.Batch) {
	n.mu.Lock()
	node := n.node
	n.mu.Unlock()
	if node == nil {
		return
	}
	burst := node.NewBurst()
	for i := range b.Len() {
		d, from := b.Datagram(i)
		burst.Receive(c, d, from)
	}
	burst.Flush()
}

// Node returns the node of the DHT.
func (n *Node) Node() *dht.Node { return n.node }

// Addr returns the local address of the server socket.
func (n *Node) Addr() netip.AddrPort { return n.server.LocalAddr() }

// Ready waits until the node has looked around.
func (n *Node) Ready(ctx context.Context) error { return n.Node().Ready(ctx) }

// Close stops the node and closes its sockets.
func (n *Node) Close() error {
	return errors.Join(n.Node().Close(), n.client.Close(), n.server.Close())
}

// Close ends the goroutine, and closes the sockets of nodes that were not closed before: these hear nothing any more, and are to be
// closed all the same.
func (s *Nodes) Close() error { return s.hub.Close() }

// listenPort opens a server socket: at the given port, or, if that is 0, at DefaultPort, one of the four after it, or
// any free one.
func listenPort[S any](listen func(port uint16) (S, error), port uint16) (S, error) {
	if port != 0 {
		return listen(port)
	}
	for i := range uint16(5) {
		if s, err := listen(DefaultPort + i); err == nil {
			return s, nil
		}
	}
	return listen(0)
}
