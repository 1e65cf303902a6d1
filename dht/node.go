package dht

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"omegatun/dht/key"

	crand "crypto/rand"
)

// Node is a participant of the DHT. All methods are safe for concurrent use.
//
// One mutex guards a node's state. Datagrams are handled by whoever hands them to [Node.Receive], timeouts by
// its timer; both change the state under the mutex and collect what is to be sent, and send it, or call a
// [Server], once the mutex is free. So a Socket may deliver to another node within Send.
type Node struct {
	client, server Socket
	mode           Mode
	lookupHost     func(ctx context.Context, host string) ([]netip.Addr, error)
	log            *slog.Logger

	ctx  context.Context // ends when the node closes; for name lookups
	stop context.CancelFunc
	wg   sync.WaitGroup // what the timer runs, and name lookups

	clock Clock
	timer Timer // runs what is due

	askings sync.Pool // of *asking: not global, because its channels are of one synctest bubble

	mu         sync.Mutex // guards the fields below
	closed     bool
	suspended  bool
	out        *outbox   // what to do once mu is free, or requests that are being gathered; nil: nothing
	gathering  bool      // somebody is about to send what is in out,
	gatherTime time.Time // since then
	ended      int       // requests that ended since the last one was sent by request
	alarms     alarms    // what to do later
	armed      time.Time // when the timer rings; zero: it does not
	changes    chan struct{}

	// Requests of ours.
	calls     map[callKey]*call
	queue     []*call // waiting for room in the window
	window    congestionWindow
	drain     alarm
	responses int // requests ever answered
	timeouts  int // requests ever given up
	lookups   map[*lookup]struct{}

	// What we know of the network and our place in it.
	maintenance
	table      *table
	nat        natSampler
	public     netip.AddrPort // known for a fact; invalid: ask nat
	firewalled bool
	persistent bool
	health     health
	private    bool     // not on the public Internet: see Config.Private
	entries    []string // [Config.Bootstrap]
	bootstraps []bootstrapHost
	resolved   map[string]*resolution

	// What we do for others.
	requests requestLimits
	tokens   tokens
	store    store
	router   router
	delayed  int // pings to be answered later

	stats Stats // but for what is counted above
}

// New starts a node, which begins to look for the network at once. The caller hands it what the sockets receive
// from then on, and closes it.
func New(cfg Config) (*Node, error) {
	if cfg.Client == nil || cfg.Server == nil {
		return nil, errors.New("dht: a node needs a client and a server socket")
	}
	if cfg.Client == cfg.Server {
		return nil, errors.New("dht: client and server socket must differ")
	}
	if cfg.Mode > Persistent {
		return nil, fmt.Errorf("dht: there is no mode %d", cfg.Mode)
	}
	if cfg.Bootstrap == nil {
		cfg.Bootstrap = PublicBootstrap()
	}
	hosts, err := parseBootstrap(cfg.Bootstrap)
	if err != nil {
		return nil, err
	}
	if cfg.PublicAddr.IsValid() {
		cfg.PublicAddr = unmap(cfg.PublicAddr)
		if !usable(cfg.PublicAddr) {
			return nil, fmt.Errorf("dht: public address %v is not an IPv4 address with a port", cfg.PublicAddr)
		}
	}
	if cfg.StoreBytes <= 0 {
		cfg.StoreBytes = defaultStoreBytes
	}
	n := &Node{
		client:     cfg.Client,
		server:     cfg.Server,
		mode:       cfg.Mode,
		lookupHost: cfg.LookupHost,
		log:        cfg.Logger,
		clock:      cfg.Clock,
		changes:    make(chan struct{}),
		calls:      make(map[callKey]*call),
		lookups:    make(map[*lookup]struct{}),
		firewalled: !cfg.Open,
		private:    cfg.Private || isPrivate(hosts, cfg),
		entries:    slices.Clone(cfg.Bootstrap),
		bootstraps: hosts,
		resolved:   make(map[string]*resolution),
		requests:   newRequestLimits(),
		store:      newStore(cfg.StoreBytes),
		router:     newRouter(cfg.StoreBytes),
	}
	if n.lookupHost == nil {
		n.lookupHost = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		}
	}
	if n.clock == nil {
		n.clock = systemClock{}
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	var id key.Target
	crand.Read(id[:])
	n.table = newTable(id)
	n.timer = n.clock.AfterFunc(time.Hour, n.ring)

	n.do(func(now time.Time) {
		n.startMaintenance(now)
		n.learnPublicAddr(now, cfg)
		for _, a := range slices.Backward(cfg.Nodes) { // so that the best is the latest
			n.addKnown(unmap(a))
		}
		n.bootstrap(now)
	})
	return n, nil
}

// NewBootstrapper starts the first node of a network, or another to enter it by: a member from the start, that
// others reach at public. cfg.Bootstrap, if it is nil, is empty.
func NewBootstrapper(public netip.AddrPort, cfg Config) (*Node, error) {
	cfg.PublicAddr, cfg.Open, cfg.Mode = public, true, Persistent
	if cfg.Bootstrap == nil {
		cfg.Bootstrap = []string{}
	}
	if !public.IsValid() {
		return nil, errors.New("dht: a bootstrap node needs an address")
	}
	return New(cfg)
}

// isPrivate reports whether a node with that configuration is in a network of its own, that may use addresses
// which are not public.
func isPrivate(hosts []bootstrapHost, cfg Config) bool {
	if a := unmap(cfg.Server.LocalAddr()).Addr(); a.IsLoopback() {
		return true
	}
	if cfg.PublicAddr.IsValid() && !isPublic(cfg.PublicAddr.Addr()) || len(hosts) == 0 && !cfg.PublicAddr.IsValid() {
		return true
	}
	return slices.ContainsFunc(hosts, func(h bootstrapHost) bool { return h.ip.IsValid() && !isPublic(h.ip) })
}

// learnPublicAddr takes in what the configuration says of the node's own address.
func (n *Node) learnPublicAddr(now time.Time, cfg Config) {
	a := cfg.PublicAddr
	if local := unmap(n.server.LocalAddr()); !a.IsValid() && cfg.Open && local.Addr().IsLoopback() && usable(local) {
		a = local
	}
	switch {
	case !a.IsValid():
	case cfg.Open:
		n.public = a
		if n.mode == Persistent {
			n.join(now, a)
		}
	default:
		n.nat.add(now, a, a)
	}
}

// Close stops the node: requests and queries end with [ErrClosed], announcements stop being renewed. To have
// the network forget an announcement, close that first. Close waits for what the node runs; no datagram is
// sent after it returned, except by calls already on their way through [Node.Receive].
func (n *Node) Close() error {
	n.do(func(now time.Time) {
		if n.closed {
			return
		}
		n.closed = true
		n.stop()
		n.timer.Stop()
		n.endAll(now, ErrClosed)
		for _, a := range n.router.servers {
			a.closeLocked(now)
		}
		close(n.changes)
	})
	n.wg.Wait()
	return nil
}

// do runs f with the mutex held, and then what f left to be done.
func (n *Node) do(f func(now time.Time)) {
	n.mu.Lock()
	f(n.clock.Now())
	n.unlock()
}

// unlock frees the mutex, and does what was collected while it was held.
func (n *Node) unlock() {
	out := n.out
	n.out = nil
	n.arm()
	n.mu.Unlock()
	if out != nil {
		out.do(n.notSent)
		outboxes.Put(out)
	}
}

// gatherFrom is how many requests that are on their way, or have just been answered, make it likely that others follow
// at once.
const gatherFrom = 4

// gatherTurns is how many times others are let go first, as long as each time brings more requests.
const gatherTurns = 4

// request sends the request of c, a new call. If many are on their way, those that other goroutines are about to make leave
// together with it: what a hundred goroutines ask one after the other are a hundred system calls otherwise.
func (n *Node) request(c *call) {
	n.mu.Lock()
	if n.gathering { // at what is nearly this time
		n.start(n.gatherTime, c)
		n.arm()
		n.mu.Unlock()
		return
	}
	now := n.clock.Now()
	n.start(now, c)
	if len(n.calls)+n.ended < gatherFrom {
		n.ended = 0
		n.unlock()
		return
	}
	n.gathering, n.gatherTime = true, now
	for range gatherTurns {
		before := n.stats.Sent
		n.mu.Unlock()
		runtime.Gosched()
		n.mu.Lock()
		if n.stats.Sent == before {
			break
		}
	}
	n.gathering, n.ended = false, 0
	n.unlock()
}

func (n *Node) notSent(to netip.AddrPort, err error) {
	n.log.Debug("datagram not sent", "to", to, "err", err)
}

// arm sets the timer to the first alarm.
func (n *Node) arm() {
	next := n.alarms.next()
	if next.IsZero() || n.closed || !n.armed.IsZero() && !next.Before(n.armed) {
		return
	}
	n.armed = next
	n.timer.Reset(next.Sub(n.clock.Now()))
}

// ring runs the alarms that are due.
func (n *Node) ring() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.wg.Add(1) // Close, which has not begun, waits for what follows
	defer n.wg.Done()
	n.armed = time.Time{}
	now := n.clock.Now()
	for !n.closed {
		f, ok := n.alarms.due(now)
		if !ok {
			break
		}
		f(now)
	}
	n.unlock()
}

// notify tells those who wait for [Node.Changes].
func (n *Node) notify() {
	if !n.closed {
		close(n.changes)
		n.changes = make(chan struct{})
	}
}

// Events yields what [Node.Info] says now, and again whenever anything of what [Node.Changes] names has changed.
// It ends with ctx, or when the node closes. What changes back quickly may be missed.
func (n *Node) Events(ctx context.Context) iter.Seq[Info] {
	return func(yield func(Info) bool) {
		for ctx.Err() == nil {
			changed := n.Changes()
			if n.ctx.Err() != nil || !yield(n.Info()) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// Changes returns a channel that is closed at the next change of what [Info] says of the node: persistent,
// firewalled, NAT, online, degraded, bootstrapped, suspended, host or port; or when the node closes. Take the
// channel, look at Info, then wait.
func (n *Node) Changes() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changes
}

// Info returns a snapshot of the node's state.
func (n *Node) Info() Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.publicAddr()
	return Info{
		ID:           n.table.own,
		Persistent:   n.persistent,
		Firewalled:   n.firewalled,
		Online:       !n.health.offline,
		Degraded:     n.health.degraded,
		Bootstrapped: n.bootstrapped,
		Suspended:    n.suspended,
		NAT:          n.natKind(),
		Host:         a.Addr(),
		Port:         a.Port(),
		Nodes:        n.table.n,
		Requests:     len(n.calls),
		Records:      n.store.len() + n.router.forwards.len(),
	}
}

// natKind returns what kind of NAT the node is behind, as far as others' answers show.
func (n *Node) natKind() Firewall {
	switch a := n.publicAddr(); {
	case !n.firewalled:
		return FirewallOpen
	case !a.Addr().IsValid():
		return FirewallUnknown
	case a.Port() == 0:
		return FirewallRandom
	}
	return FirewallConsistent
}

// publicAddr returns our default socket's address as others see it, as far as known: see natSampler.addr.
func (n *Node) publicAddr() netip.AddrPort {
	if n.public.IsValid() {
		return n.public
	}
	return n.nat.addr
}

// RemoteAddr returns the address at which anyone can reach the server socket; false if there is none, or it is
// not known.
func (n *Node) RemoteAddr() (netip.AddrPort, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.remoteAddr()
}

func (n *Node) remoteAddr() (netip.AddrPort, bool) {
	if n.firewalled {
		return netip.AddrPort{}, false
	}
	if n.public.IsValid() {
		return n.public, true
	}
	if !n.nat.known() || n.nat.addr.Port() != n.server.LocalAddr().Port() {
		return netip.AddrPort{}, false
	}
	return n.nat.addr, true
}

// DefaultSocket returns the socket that requests leave by: the client socket while the node may be firewalled,
// else the server socket.
func (n *Node) DefaultSocket() Socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.defaultSocket()
}

func (n *Node) defaultSocket() Socket {
	if n.firewalled {
		return n.client
	}
	return n.server
}

// Bootstrap returns the nodes to enter the network by that the node was configured with, those of the public network included.
func (n *Node) Bootstrap() []string { return slices.Clone(n.entries) }

// RecentNodes returns up to limit members of the network, the one most recently heard from first.
func (n *Node) RecentNodes(limit int) []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	nodes := make([]netip.AddrPort, 0, max(0, min(limit, n.table.n)))
	for m := n.table.latest; m != nil && len(nodes) < limit; m = m.older {
		nodes = append(nodes, m.addr())
	}
	return nodes
}

// Nodes returns the members of the network in the routing table, at most 20 for each length of the prefix that
// their ids share with ours, in no order.
func (n *Node) Nodes() []Contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	nodes := make([]Contact, 0, n.table.n)
	for m := n.table.latest; m != nil; m = m.older {
		nodes = append(nodes, Contact{ID: m.id, Addr: m.addr()})
	}
	return nodes
}

// Keepers returns the addresses of those members, at most limit, that keep what is announced under target, nearest first,
// if that can be known without asking: in a network of fewer than 20 members all of them do. It returns nil where
// more are known.
func (n *Node) Keepers(target key.Target, limit int) []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.table.n >= bucketSize {
		return nil
	}
	var addrs []netip.AddrPort
	for _, m := range n.table.closest(target, limit) {
		addrs = append(addrs, m.addr())
	}
	return addrs
}

// AddNode tells the node of a member of the network. It enters the routing table if there is room, and is asked
// for a sign of life; without that it is dropped.
func (n *Node) AddNode(a netip.AddrPort) error {
	a = unmap(a)
	ok, closed := true, false
	n.do(func(now time.Time) {
		ok, closed = n.acceptable(a), n.closed
		if !ok || closed {
			return
		}
		n.addKnown(a)
		if m := n.table.get(NodeID(a)); m != nil && !n.suspended {
			n.check(now, m)
		}
	})
	switch {
	case closed:
		return ErrClosed
	case !ok:
		return fmt.Errorf("dht: %v cannot be a node in this network", a)
	}
	return nil
}

// InScope reports whether the node sends to a because others name it: in the public network, only to public addresses. See
// [Config].Private.
func (n *Node) InScope(a netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inScope(unmap(a))
}

// idFor returns our id if a packet from s shows it: only members have one, and only at their server socket.
func (n *Node) idFor(s Socket) optional[key.Target] {
	if n.persistent && s == n.server {
		return some(n.table.own)
	}
	return optional[key.Target]{}
}

// unmap returns a with an IPv4 address that is mapped into IPv6 as plain IPv4.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// jitter returns a random number in (n/2, n].
func jitter(n int) int { return n - rand.IntN(max(1, n/2)) }
