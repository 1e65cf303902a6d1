package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/punch"
	"omegatun/punch/portmap"
	"omegatun/session/relay"
	"omegatun/session/secretstream"
	"omegatun/session/tunnel"
	"omegatun/session/udp"
	"omegatun/session/udx"
)

const (
	// DefaultPort is the first port that a Host tries for its server socket, followed by the next four.
	DefaultPort = 49737

	dialsAtOnce    = 16 // attempts to reach listed peers that run at the same time
	maintainEvery  = 500 * time.Millisecond
	sleepThreshold = 15 * time.Second // a longer pause between two rounds means that the machine slept

	maxConfigMTU = 65_535 // of Config.MTU
	maxReceivers = 64     // of Config.Receivers: each takes a socket and an arena
)

// Config says how a [Host] is to work. Identity is required; the zero value of everything else works.
type Config struct {
	// Identity is the key pair that the Host dials with.
	Identity key.Private
	// Network provides the sockets. Default: the operating system.
	Network Network
	// Addr is the local address to bind. Default: every IPv4 address.
	Addr netip.Addr
	// Port is the server socket's port. Default: DefaultPort or one of the four after it, else any free one.
	// If it is set and taken, New fails.
	Port uint16
	// Addr6 is the local IPv6 address to bind, for paths between peers. Default: every IPv6 address if Addr is not set,
	// and none if it is. Without IPv6 on the machine there are no such paths, and nothing else is different.
	Addr6 netip.Addr
	// Gateway returns the router that packets to the Internet go to first, and our address towards it, for port mapping:
	// see [portmap.Config]. Default: no port is mapped.
	Gateway func() (gateway, local netip.Addr, ok bool)
	// NoPortMapping leaves the gateway alone: it is not asked to forward a port to the Host.
	NoPortMapping bool
	// DHT configures the node; its sockets, and its Logger if nil, are the Host's.
	DHT dht.Config
	// Inbound receives the IP packets that arrive from listed peers: bufs[i][offset:] is a packet, and the
	// offset bytes before it, 16, are free to use. unfinished[i] says that its checksum of TCP or UDP holds only the
	// sum of the pseudo-header, if Features has that; nil: none of them. The packets and both slices may be
	// changed, but nothing may be kept. It is called from several goroutines, for one peer mostly from one.
	// Default: packets are dropped.
	Inbound func(p *Peer, bufs [][]byte, offset int, unfinished []bool)
	// Avoid reports addresses that no path may lead to, nor be announced: those of the tunnels themselves.
	Avoid func(netip.Addr) bool
	// OnPeer is told when a Peer connects, or cannot be reached. It must return quickly. Default: nobody.
	OnPeer func(PeerEvent)
	// Receivers is how many goroutines receive from each of the sockets that all peers use. What comes from one address and port
	// always comes to the same. At most 64. Default: one, as on systems that cannot divide it.
	Receivers int
	// MTU is the size in bytes of the largest packets that peers are sent, that of a TUN device. Paths are probed for what such
	// packets need, and no more. At most 65,535. Default: DefaultMTU.
	MTU int
	// OnMTU is told when [Peer.MTU] has changed. It must return quickly. Default: nobody.
	OnMTU func(*Peer)
	// NoBeacons keeps the Host from looking for listed peers on local networks, and from answering those that do.
	NoBeacons bool
	// KeepAlive is how long an ordered stream may be silent before an empty message is sent. Default: 5 s,
	// as in npm hyperdht. Negative: never.
	KeepAlive time.Duration
	// RelayThrough are the keys of relays to meet peers at while there is no direct path to them, besides listed peers
	// that are connected and offer to relay. [Host.RelayThrough] changes it.
	RelayThrough []key.Public
	// KnownPeers are peers that an earlier Host knew: see [Host.KnownPeers]. What cannot be used is left out.
	KnownPeers []KnownPeer
	// Relay makes the Host a blind relay for those that [ListenConfig].Relay names. Its Reserve is the Host's own. Default: none.
	// [Host.SetRelay] changes it.
	Relay *relay.Config
	// Suites are the tunnel ciphers to offer. Default: those that this CPU does well.
	Suites tunnel.Suites
	// Features are what Inbound can do with tunnelled packets. Default: nothing beyond the minimum.
	Features tunnel.Features
	// Logger receives what may interest an operator. Default: discard.
	Logger *slog.Logger

	newMapper func(portmap.Config) portMapper // instead of portmap.New, in tests
}

// Host is one machine in the network: its sockets, its DHT node, the keys it listens on and the peers that
// it is connected to. All methods are safe for concurrent use.
type Host struct {
	cfg     Config
	log     *slog.Logger
	network Network
	node    *dht.Node
	mux     *udx.Mux
	client  Socket
	server  Socket
	six     Socket     // for paths over IPv6; nil: there is none
	mapper  portMapper // of the server socket's port

	relayServer atomic.Pointer[relay.Server] // nil: the Host is no relay
	lan         *lan

	links   sync.Map // receiver index (uint32) → *link
	relayed sync.Map // stream id (udx.ID) → *relaySocket
	// relaySockets is how many relayed has.
	relaySockets atomic.Int32
	streams      sync.Map // *link → nil: the plain streams that are up
	sockets      sockets  // of punched paths
	refused      atomic.Uint64
	dropped      atomic.Uint64 // datagrams that belong to nothing
	dials        chan struct{} // a slot for each attempt that may run

	guessing *punch.Limit // of attempts that guess ports

	ctx    context.Context // ends with the Host
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine of the Host; and those of callers that start some: see enter

	mu        sync.Mutex // guards the fields below; taken before Peer.mu and link.mu
	peers     map[key.Public]*Peer
	listeners []*Listener
	sinks     map[Socket]*probeSink // of the sockets of punching attempts
	known     knownPeers
	announced Announced    // what peers are told
	through   []key.Public // relays: see Config.RelayThrough; replaced, not changed

	relayConns map[key.Public]*relayConn
	badRelays  map[key.Public]time.Time // when they failed
	closed     bool
}

// probeSink hands the probes of an attempt's sockets to the attempt, which exists only after its first socket.
type probeSink struct {
	f atomic.Pointer[func(punch.Socket, netip.AddrPort)]
}

func (p *probeSink) set(f func(punch.Socket, netip.AddrPort)) { p.f.Store(&f) }

func (p *probeSink) handle(s Socket, from netip.AddrPort) {
	if f := p.f.Load(); f != nil {
		(*f)(s, from)
	}
}

// New opens the sockets and starts the DHT node. It does not wait for the network; [Host.Ready] does.
func New(cfg Config) (*Host, error) {
	if cfg.Identity.IsZero() {
		return nil, errors.New("session: Config.Identity is required")
	}
	h := &Host{
		cfg: cfg, log: cfg.Logger, network: cfg.Network,
		dials: make(chan struct{}, dialsAtOnce), guessing: punch.NewLimit(0),
		peers: make(map[key.Public]*Peer),
		sinks: make(map[Socket]*probeSink),
		known: newKnownPeers(cfg.KnownPeers),

		through:    slices.Clone(cfg.RelayThrough),
		relayConns: make(map[key.Public]*relayConn),
		badRelays:  make(map[key.Public]time.Time),
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.network == nil {
		h.network = osNetwork{udp.Config{Logger: h.log}}
	}
	if h.cfg.KeepAlive == 0 {
		h.cfg.KeepAlive = 5 * time.Second
	}
	if h.cfg.MTU == 0 {
		h.cfg.MTU = DefaultMTU
	}
	switch {
	case h.cfg.MTU < 0 || h.cfg.MTU > maxConfigMTU:
		return nil, fmt.Errorf("session: Config.MTU is %d, not between 0 and %d", h.cfg.MTU, maxConfigMTU)
	case h.cfg.Receivers < 0 || h.cfg.Receivers > maxReceivers:
		return nil, fmt.Errorf("session: Config.Receivers is %d, not between 0 and %d", h.cfg.Receivers, maxReceivers)
	}
	if !h.cfg.Addr.IsValid() {
		h.cfg.Addr = netip.IPv4Unspecified()
	}
	if h.cfg.Suites == 0 {
		h.cfg.Suites = tunnel.PreferredSuites()
	}
	if h.cfg.Addr = h.cfg.Addr.Unmap(); !h.cfg.Addr.Is4() {
		return nil, fmt.Errorf("session: Config.Addr is %v, but peers are found over IPv4; Config.Addr6 is for IPv6", h.cfg.Addr)
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())

	h.sockets = sockets{
		isMain: h.isMain, log: h.log, held: make(map[Socket]int), nearby: make(map[key.Public]nearby),
	}

	var err error
	listen := func(port uint16) (Socket, error) { return h.network.Listen(netip.AddrPortFrom(h.cfg.Addr, port)) }
	if h.server, err = listenPort(listen, h.cfg.Port); err != nil {
		return nil, err
	}
	if h.client, err = h.network.Listen(netip.AddrPortFrom(h.cfg.Addr, 0)); err != nil {
		return nil, errors.Join(err, h.server.Close())
	}
	h.six = h.listenIPv6()
	h.mux = udx.NewMux(udx.Config{Logger: h.log})
	if cfg.Relay != nil {
		h.relayServer.Store(h.newRelayServer(*cfg.Relay))
	}
	node := cfg.DHT
	node.Client, node.Server = h.client, h.server
	if node.Logger == nil {
		node.Logger = h.log
	}
	if h.node, err = dht.New(node); err != nil {
		return nil, errors.Join(err, h.closeSockets(), h.mux.Close())
	}
	h.startMapping()
	h.startLAN()
	h.serveMain()
	h.warnIPv6Only()
	h.wg.Go(h.maintain)
	return h, nil
}

// serveMain serves the sockets that live as long as the Host, each in as many goroutines as configured.
func (h *Host) serveMain() {
	main := []Socket{h.server, h.client}
	if h.six != nil {
		main = append(main, h.six)
	}
	for _, s := range main {
		useBulk(s)
	}
	var shares [3][]Receiver
	for i, s := range main { // before anything comes in
		shares[i] = receivers(s, h.cfg.Receivers)
	}
	for i, s := range main {
		for _, r := range shares[i] {
			h.wg.Go(func() { h.serve(s, r) })
		}
	}
}

// listenIPv6 opens the socket for IPv6, at the server's port if that is free, and returns nil if there is to be none.
func (h *Host) listenIPv6() Socket {
	addr := h.cfg.Addr6
	if !addr.IsValid() {
		if !h.cfg.Addr.IsUnspecified() {
			return nil
		}
		addr = netip.IPv6Unspecified()
	}
	s, err := h.network.Listen(netip.AddrPortFrom(addr, h.server.LocalAddr().Port()))
	if err != nil {
		s, err = h.network.Listen(netip.AddrPortFrom(addr, 0))
	}
	if err != nil {
		h.log.Info("no paths over IPv6", "error", err)
		return nil
	}
	return s
}

// closeSockets closes the sockets that live as long as the Host.
func (h *Host) closeSockets() error {
	err := errors.Join(h.client.Close(), h.server.Close())
	if h.six != nil {
		err = errors.Join(err, h.six.Close())
	}
	return err
}

// Node returns the Host's DHT node, which ends with the Host. While it is suspended ([dht.Node.Suspend]) peers are neither looked
// for nor found; streams and tunnels go on.
func (h *Host) Node() *dht.Node { return h.node }

// Addr returns the local address of the server socket.
func (h *Host) Addr() netip.AddrPort { return h.server.LocalAddr() }

// Ready waits until the DHT node has looked around.
func (h *Host) Ready(ctx context.Context) error { return h.node.Ready(ctx) }

// Refused returns how many handshakes were met with silence, because the caller was not admitted or the
// message was no handshake for us.
func (h *Host) Refused() uint64 { return h.refused.Load() }

// NetworkChanged tells the Host that the machine's addresses or routes have changed, or that it has slept:
// paths are checked, announcements renewed and lost peers looked for at once.
func (h *Host) NetworkChanged() {
	h.log.Info("network changed")
	h.warnIPv6Only()
	h.node.NetworkChanged()
	h.mapper.Refresh()
	h.mu.Lock()
	listeners := slices.Clone(h.listeners)
	h.mu.Unlock()
	for _, l := range listeners {
		l.Refresh()
	}
	h.announceChanges()
	h.announceStreams()
	h.lan.changed()
	now := time.Now()
	h.eachLink(func(l *link) {
		l.inheritLoss(nil) // another line
		l.check(now)
		l.checkMTUAnew(now)
		if p := l.peer.Load(); p != nil {
			l.tryEndpoints(p.endpoints())
		}
		l.hurryDirect(now)
	})
	h.hurryPeers()
}

// Shutdown withdraws the announcements, waits for streams that have been closed to deliver what was written, tells the
// peers goodbye and closes the Host. When ctx ends first, announcements are left to expire and streams are cut off;
// the error then says so.
func (h *Host) Shutdown(ctx context.Context) error {
	h.lan.ending.Store(true)
	h.mu.Lock()
	listeners := slices.Clone(h.listeners)
	h.mu.Unlock()
	h.eachLink(func(l *link) { l.goodbye(tunnel.CloseShutdown) })
	errs := make([]error, len(listeners)+1)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.mux.Drain(ctx); err != nil {
			errs[len(listeners)] = fmt.Errorf("%w: %w", ErrCutOff, err)
		}
	})
	for i, l := range listeners {
		wg.Go(func() { errs[i] = l.shutdown(ctx) })
	}
	wg.Go(func() {
		if err := h.mapper.Close(ctx); err != nil { // it ends by itself
			h.log.Info("port mapping not removed", "error", err)
		}
	})
	wg.Wait()
	return errors.Join(append(errs, h.Close())...)
}

// Close ends everything at once and waits for the Host's goroutines, and for calls of Dial to fail with [ErrClosed]. Nobody is told.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	listeners := slices.Clone(h.listeners)
	h.mu.Unlock()
	h.cancel(ErrClosed)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, l := range listeners {
		_ = l.shutdown(gone) // only to free what it holds: nobody is told
	}
	for _, p := range h.Peers() {
		p.remove(false)
	}
	h.eachLink(func(l *link) { l.close(ErrClosed) })
	err := errors.Join(h.mux.Close(), h.lan.close(), h.node.Close(), h.closeSockets())
	_ = h.mapper.Close(gone) // a mapping that Shutdown has not removed ends by itself
	if s := h.relayServer.Load(); s != nil {
		err = errors.Join(err, s.Close())
	}
	h.sockets.close()
	h.wg.Wait()
	return err
}

// Dial connects to a key's server and opens an ordered encrypted stream, as any HyperDHT program would. It
// blocks until the peer has been heard on the stream; the error is a *[DialError].
func (h *Host) Dial(ctx context.Context, k key.Public, cfg DialConfig) (*secretstream.Conn, error) {
	if !h.enter() {
		return nil, &DialError{Key: k, Stage: StageFind, Err: ErrClosed}
	}
	defer h.wg.Done()
	local := cfg.Identity
	if local.IsZero() {
		local = h.cfg.Identity
	}
	l, err := h.dial(ctx, dialing{local: local, remote: k, relays: cfg.Relays, through: cfg.RelayThrough, silence: cfg.OnSilence})
	if err != nil {
		return nil, err
	}
	return l.secure.Load(), nil
}

// enter counts the caller's goroutine among those of the Host until it calls h.wg.Done, so that Close waits for it and for what
// it starts. It reports false if the Host is closed.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	return true
}

// DialConfig is the configuration of one [Host.Dial]. The zero value works.
type DialConfig struct {
	Identity key.Private      // default: the Host's
	Relays   []netip.AddrPort // DHT nodes to try first
	// RelayThrough are the keys of relays to meet the peer at, in place of those of the Host.
	RelayThrough []key.Public
	// OnSilence, if set, is called at most once, before Dial returns: the key is announced, but nobody has answered the handshake
	// for three seconds. Most likely that is how it ends (ErrNoAnswer), but Dial goes on, for as long again or longer. It must not
	// close the Host.
	OnSilence func()
}

// offer is the tunnel offer for a link.
func (h *Host) offer(index uint32) tunnel.Offer {
	return tunnel.Offer{Index: index, Suites: h.cfg.Suites, Features: h.cfg.Features | tunnel.FeaturePostQuantum | tunnel.FeatureParts}
}

func (h *Host) avoid(a netip.Addr) bool { return h.cfg.Avoid != nil && h.cfg.Avoid(a) }

func (h *Host) event(e PeerEvent) {
	if h.cfg.OnPeer != nil {
		h.cfg.OnPeer(e)
	}
}

// eachLink calls f for every link that has a tunnel.
func (h *Host) eachLink(f func(*link)) {
	h.links.Range(func(k, v any) bool {
		if l := v.(*link); l != nil && l.index == k { // else only reserved, or a later index of the same link
			f(l)
		}
		return true
	})
}

// linkUp gives a link with a tunnel to its peer.
func (h *Host) linkUp(l *link) {
	if p := l.peer.Load(); p != nil {
		if l.beside {
			p.noteAttempt(l.account) // the others are of no interest
		}
		p.linkUp(l)
	} else {
		l.close(ErrRemoved)
	}
}

// pathChanged tells of a better path.
func (h *Host) pathChanged(l *link) {
	if p, r := l.peer.Load(), l.cur.Load(); p != nil && p.cur.Load() == l {
		h.event(PeerEvent{Peer: p, Connected: true, Path: r.path()})
	}
}

// linkLost starts a new connection beside one that has fallen silent.
func (h *Host) linkLost(l *link) {
	if r := l.cur.Load(); r != nil {
		if s, ok := r.sock.(*relaySocket); ok { // it may be the relay that has gone
			h.mu.Lock()
			h.avoidRelayLocked(s.via)
			h.mu.Unlock()
		}
	}
	h.mapper.Refresh() // or the gateway
	p := l.peer.Load()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.chooseLocked(time.Now())
	wanted := p.wanted
	p.mu.Unlock()
	p.tellParting()
	p.noteMTU()
	if wanted {
		p.dial()
	}
}

// renew starts a new connection beside one that works, but not for much longer.
func (h *Host) renew(l *link) {
	p := l.peer.Load()
	if p == nil || p.cur.Load() != l {
		return
	}
	p.mu.Lock()
	needed := !p.dialing && (p.wanted || l.busy(time.Now()))
	p.mu.Unlock()
	if needed {
		p.dial()
	}
}

func (h *Host) linkClosed(l *link) {
	if p := l.peer.Load(); p != nil {
		p.linkClosed(l)
	}
}

// maintain looks after the links and notices when the machine has slept.
func (h *Host) maintain() {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	last := time.Now().Round(0) // wall clock: the monotonic one may stand still during sleep
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		if now.Round(0).Sub(last) > sleepThreshold {
			h.NetworkChanged()
		}
		last = now.Round(0)
		h.eachLink(func(l *link) {
			l.maintain(now)
			l.retryDirect(now)
		})
		h.mu.Lock()
		listeners := slices.Clone(h.listeners)
		h.mu.Unlock()
		for _, l := range listeners {
			l.slots.expire(now)
		}
		h.sockets.expire(now)
	}
}

// isMain reports whether s is one of the sockets that live as long as the Host.
func (h *Host) isMain(s Socket) bool { return s == h.server || s == h.client || s == h.six }

// openSocket opens a socket of an attempt's own, whose probes go to sink.
func (h *Host) openSocket(sink *probeSink) (Socket, error) {
	s, err := h.network.Listen(netip.AddrPortFrom(h.cfg.Addr, 0))
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, errors.Join(net.ErrClosed, s.Close())
	}
	h.sinks[s] = sink
	h.wg.Go(func() {
		h.serve(s, s)
		h.mu.Lock()
		delete(h.sinks, s)
		h.mu.Unlock()
	})
	h.mu.Unlock()
	return s, nil
}
