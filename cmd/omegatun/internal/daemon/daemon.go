// Package daemon is "omegatun up" at work: it opens the packet device and the sockets, joins the network, sets up the
// host, carries packets until it is told to stop, and undoes everything.
//
//	programs ⇄ tun.Device ⇄ routes.Forwarder ⇄ session.Peer ⇄ network
//
// What is opened first is closed last:
//
//	lock of the state folder, control socket, device, session host, addresses and routes, announcement
//
// # Goroutines
//
// Run owns all of them and waits for them: one carries packets from the device (those from the network come in the
// goroutines of the session host), one waits for changes of the host's own network, one accepts streams, one waits to
// be announced, one passes events to Run's caller. Each open stream and each call on the control socket has one more.
//
// # Limitations
//
//   - Streams that a listed peer opens are accepted and read, but nothing is done with them.
//   - Of the configuration, what concerns peers and relaying can be reloaded; all else is fixed when the daemon starts.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/routes"
	"omegatun/session"
	"omegatun/session/tunnel"
	"omegatun/tun"
	"omegatun/tun/hostnet"
)

const (
	// keptConnected is up to how many listed peers are kept connected without being asked for. Of more, those are
	// connected that packets are sent to.
	keptConnected = 64
	// goodbyeTimeout bounds what is said to others at the end.
	goodbyeTimeout = 2 * time.Second
	// What was learnt is written down once peers may have connected, and then from time to time.
	rememberFirst = 30 * time.Second
	rememberEvery = 10 * time.Minute
	// lockPatience is how long the predecessor may take to let go of the state folder.
	lockPatience = 2 * time.Second
)

// Config says how to run. Everything without a default is required.
type Config struct {
	Identity  key.Private
	Version   string                         // of the program, for peers to see; may be empty
	Name      string                         // of this machine; may be empty
	Settings  *config.Config                 // as read at the start
	Reload    func() (*config.Config, error) // reads it again
	Peers     []key.Public                   // to admit and keep connected, besides those that are listed
	Bootstrap []string                       // DHT nodes to start from; nil: the public network
	State     *state.Dir                     // stays the caller's
	Socket    string                         // path of the control socket
	Events    func(control.Event)            // called from one goroutine; default: nobody
	Logger    *slog.Logger                   // default: discard
}

// Daemon is a running omegatun. It implements [control.Daemon].
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	own     key.Public
	started time.Time
	events  hub

	stop context.CancelCauseFunc // begins the end
	done chan struct{}           // closed when all is undone
	err  error                   // what went wrong in undoing; read after done

	device    tun.Device
	host      *session.Host
	forwarder atomic.Pointer[routes.Forwarder] // nil at first
	hostnet   *hostnet.Host
	mtu       int
	queues    int // of the device; as many receivers have the sockets that all peers use
	addr6     netip.Addr
	addr4     netip.Addr  // zero: none; set before forwarder
	inbound   sync.Map    // *session.Peer → *routes.Peer
	ready     atomic.Bool // the fields above are set for good

	applying sync.Mutex // held while peers are admitted and dismissed; taken before mu

	mu       sync.Mutex // guards the fields below; no lock of the parts is taken while it is held
	settings *config.Config
	extra    []key.Public // admitted without being listed
	peers    map[key.Public]*member
	notes    []string
	offline  string // why the DHT is not asked for peers; empty: it is
}

// member is a peer that is admitted. Once it is, it does not change, but for its name.
type member struct {
	name     string // guarded by Daemon.mu
	prefixes []netip.Prefix
	session  *session.Peer
	route    *routes.Peer
}

// Run is an omegatun from its start to its end. It returns when ctx has ended, when it was told to on the control
// socket, or when it cannot go on; then everything it did to the host is undone. Errors are [exit.Error]s; that it
// was told to stop is none.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Daemon{
		cfg: cfg, log: cfg.Logger, own: cfg.Identity.Public(), started: time.Now(),
		done: make(chan struct{}), settings: cfg.Settings, extra: cfg.Peers, peers: make(map[key.Public]*member),
		addr6: routes.Addr6(cfg.Identity.Public()), mtu: session.DefaultMTU,
		queues: Queues(cfg.Settings.Queues),
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer d.events.close()
	if cfg.Events != nil {
		_, events := d.events.subscribe()
		wg.Go(func() {
			for e := range events {
				cfg.Events(e)
			}
		})
	}

	lock, err := takeLock(ctx, cfg.State)
	if err != nil {
		return err
	}
	defer lock.Close()
	socket, err := control.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d.stop = stop
	var undo closers
	server := control.Serve(socket, d, d.log)
	err = d.run(running, &undo)
	if errors.Is(err, errStopped) || d.ready.Load() && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		err = nil
	}
	stop(errStopped)
	wasUp := d.hostnet != nil
	d.err = undo.run()
	if wasUp && d.err == nil {
		d.events.emit(control.Event{Event: "down"}, false)
	}
	server.Retire()
	lock.Close()
	close(d.done)
	return errors.Join(err, d.err, server.Close())
}

// takeLock locks the state folder, and waits for a predecessor that is about to end.
func takeLock(ctx context.Context, dir *state.Dir) (io.Closer, error) {
	deadline := time.NewTimer(lockPatience)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		lock, err := dir.Lock()
		if !errors.Is(err, state.ErrLocked) {
			return lock, err
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// errStopped is why the daemon stops if it was told to on the control socket.
var errStopped = errors.New("told to stop")

// closers undo what was done, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) run() error {
	var errs []error
	for _, undo := range slices.Backward(*c) {
		errs = append(errs, undo())
	}
	*c = nil
	return errors.Join(errs...)
}

// run starts the parts, and waits for the end. What is to be undone then is in undo, also after an error.
func (d *Daemon) run(ctx context.Context, undo *closers) error {
	var wg sync.WaitGroup
	undo.add(func() error { wg.Wait(); return nil })

	if err := d.openDevice(undo); err != nil {
		return err
	}
	if err := d.openHost(undo); err != nil {
		return err
	}
	joined := make(chan error, 1)
	wg.Go(func() { joined <- d.join(ctx) })
	if err := d.setUpHost(undo); err != nil {
		return err
	}
	d.prefer(ctx, &wg)
	broken := d.forward(&wg)
	if err := d.listen(ctx, &wg); err != nil {
		return err
	}
	d.connectListed((*session.Peer).Expect)
	d.watch(ctx, &wg)

	remember := time.NewTimer(rememberFirst)
	defer remember.Stop()
	for {
		select {
		case <-remember.C:
			Remember(d.host, d.cfg.State, d.log)
			remember.Reset(rememberEvery)
		case err := <-joined:
			if err != nil {
				return err
			}
			d.connectListed((*session.Peer).Connect)
		case err := <-broken:
			return exit.New(exit.Other, "the interface %s is gone: %w", d.device.Name(), err).WithTry("omegatun up, again")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// forward carries what the host sends until the device is closed. The channel gets an error when that, or anything else, has ended it.
func (d *Daemon) forward(wg *sync.WaitGroup) (broken <-chan error) {
	f := d.forwarder.Load()
	runs := []func(context.Context) error{f.Run}
	if large, ok := d.device.(tun.Large); ok {
		for _, q := range large.Queues()[1:] { // the device is the first
			runs = append(runs, func(ctx context.Context) error { return f.RunQueue(ctx, q) })
		}
	}
	ended := make(chan error, len(runs))
	for _, run := range runs {
		wg.Go(func() { ended <- cmp.Or(run(context.Background()), os.ErrClosed) })
	}
	return ended
}

// Queues returns how many goroutines carry packets each way: as many as configured, by default half as many as Go uses processors, at
// most four. One that reads from the device and one that receives from a socket keep two busy.
func Queues(configured int) int { return queues(configured, runtime.GOMAXPROCS(0)) }

func queues(configured, processors int) int {
	if configured > 0 {
		return configured
	}
	return max(1, min(processors/2, 4))
}

// note tells of something that a person should know, now and in the status. d.mu is not held.
func (d *Daemon) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.mu.Lock()
	d.notes = append(d.notes, text)
	d.mu.Unlock()
	d.events.emit(control.Event{Event: "note", Reason: text}, true)
}

func (d *Daemon) openDevice(undo *closers) error {
	dev, err := tun.Open(tun.Config{Name: d.settings.Interface, MTU: d.mtu, Queues: d.queues, Logger: d.log})
	switch {
	case errors.Is(err, tun.ErrNoDevice):
		return exit.Wrap(exit.Other, err, "cannot make a network interface: %s", withoutAdvice(err)).
			WithTry("sudo modprobe tun; in a container: --device /dev/net/tun")
	case errors.Is(err, tun.ErrPermission):
		return noNetAdmin(err)
	case errors.Is(err, tun.ErrBusy):
		return exit.Wrap(exit.Other, err, "there is an interface called %s already", d.settings.Interface).
			WithTry("another name, or none, for interface in the configuration: omegatun config path")
	case err != nil:
		return exit.New(exit.Other, "cannot make a network interface: %w", err)
	}
	d.device = dev
	undo.add(dev.Close)
	return nil
}

func noNetAdmin(err error) error {
	return exit.Wrap(exit.Permission, err, "making a network interface needs the capability CAP_NET_ADMIN, which root has").
		WithTry("sudo omegatun up …; in a container: --cap-add NET_ADMIN\nwithout: omegatun connect and listen")
}

// withoutAdvice returns what err says happened, without what it says to do.
func withoutAdvice(err error) string {
	what, _, _ := strings.Cut(err.Error(), "; ")
	return what
}

func (d *Daemon) openHost(undo *closers) error {
	var features tunnel.Features
	if _, ok := d.device.(tun.Large); ok {
		features |= tunnel.FeatureUnfinished
	}
	cfg := session.Config{
		Features: features,
		Identity: d.cfg.Identity,
		Port:     d.settings.Port,
		DHT:      dht.Config{Bootstrap: d.cfg.Bootstrap},
		Inbound:  d.deliver,
		Avoid:    d.isVirtual,
		Gateway:  hostnet.Gateway,

		Receivers:     d.queues,
		NoPortMapping: d.settings.NoMapping,
		OnPeer:        d.peerChanged,
		MTU:           d.mtu,
		OnMTU:         d.mtuChanged,
		Logger:        d.log,
	}
	cfg.NoBeacons = d.settings.NoLAN
	h, err := Open(cfg, d.cfg.State)
	if err != nil {
		return err
	}
	d.host = h
	undo.add(func() error {
		if d.ready.Load() {
			Remember(h, d.cfg.State, d.log)
		}
		ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
		defer cancel()
		if err := h.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			d.log.Info("goodbye", "error", err) // announcements expire by themselves
		}
		return nil
	})
	return nil
}

// setUpHost gives the interface its addresses and routes, and admits the peers.
func (d *Daemon) setUpHost(undo *closers) error {
	networks := d.networks()
	d.mu.Lock()
	plan := d.planLocked(networks)
	d.mu.Unlock()
	d.addr4 = plan.Self
	local := []netip.Addr{d.addr6}
	if plan.Self.IsValid() {
		local = append(local, plan.Self)
	}
	d.forwarder.Store(routes.NewForwarder(d.device, routes.Config{Local: local, Logger: d.log}))
	addrs := make([]netip.Prefix, len(local))
	for i, a := range local {
		addrs[i] = netip.PrefixFrom(a, a.BitLen())
	}
	hn, err := hostnet.Configure(hostnet.Config{
		Interface: d.device.Name(), Addrs: addrs, MTU: d.mtu, MaxSegments: d.device.BatchSize(), Logger: d.log,
	})
	switch {
	case errors.Is(err, hostnet.ErrPermission):
		return noNetAdmin(err)
	case errors.Is(err, hostnet.ErrUnsupported):
		return exit.New(exit.Other, "%w", err).WithTry("omegatun connect and listen work here")
	case err != nil:
		return exit.New(exit.Other, "cannot set up the interface: %w", err)
	}
	d.hostnet = hn
	undo.add(hn.Close)
	up := control.Event{Event: "interface", Name: d.device.Name(), MTU: d.mtu, IPv6: d.addr6, IPv4: plan.Self}
	if slices.ContainsFunc(hn.Problems(), func(err error) bool { return errors.Is(err, hostnet.ErrIPv6Disabled) }) {
		up.IPv6 = netip.Addr{}
	}
	d.events.emit(up, true)
	d.host.Announce(session.Announced{Version: d.cfg.Version, Name: d.cfg.Name, Addresses: local, MTU: d.mtu})
	d.apply(nil)
	d.ready.Store(true)
	return nil
}

// listen announces this machine and answers whoever is admitted.
func (d *Daemon) listen(ctx context.Context, wg *sync.WaitGroup) error {
	l, err := d.host.Listen(d.cfg.Identity, session.ListenConfig{
		Tunnels: true,
		Admit: func(c session.Caller) error {
			if d.host.Peer(c.Key) == nil {
				return fmt.Errorf("%s is not listed", c.Key.Short())
			}
			return nil
		},
		Relay: func(k key.Public) bool { return d.host.Peer(k) != nil }, // it may have been dismissed meanwhile
	})
	if err != nil {
		return exit.New(exit.Other, "cannot listen: %w", err)
	}
	wg.Go(func() {
		if err := l.Announced(ctx); err == nil {
			d.events.emit(control.Event{Event: "listening", Key: d.own}, true)
		}
	})
	wg.Go(func() { // until the host closes the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { // until the peer or the host ends the stream
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	return nil
}

// watch tells the session host about changes of the machine's own network.
func (d *Daemon) watch(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { WatchNetwork(ctx, d.host, d.log) })
}

// WatchNetwork tells h about changes of the machine's own network, until ctx ends. Where they are not known it returns at
// once.
func WatchNetwork(ctx context.Context, h *session.Host, log *slog.Logger) {
	states, err := hostnet.Watch(ctx)
	if err != nil {
		if !errors.Is(err, hostnet.ErrUnsupported) {
			log.Warn("changes of the network go unnoticed", "error", err)
		}
		return
	}
	for range states {
		h.NetworkChanged()
	}
}

// deliver carries packets from a peer to the device. It runs in the session host's goroutines.
func (d *Daemon) deliver(p *session.Peer, bufs [][]byte, offset int, unfinished []bool) {
	if r, ok := d.inbound.Load(p); ok {
		d.forwarder.Load().Deliver(r.(*routes.Peer), bufs, offset, unfinished)
	}
}

// mtuChanged holds the packets to a peer to what its path carries. It runs in the session host's goroutines.
func (d *Daemon) mtuChanged(p *session.Peer) {
	if r, ok := d.inbound.Load(p); ok {
		r.(*routes.Peer).SetMTU(p.MTU())
	}
}

// isVirtual reports whether a is reached through the tunnels themselves.
func (d *Daemon) isVirtual(a netip.Addr) bool {
	f := d.forwarder.Load()
	return routes.Block6.Contains(a) || f != nil && (a == d.addr4 || f.Lookup(a) != nil)
}

// peerChanged turns what the session host tells into events. It must not block.
func (d *Daemon) peerChanged(e session.PeerEvent) {
	k := e.Peer.Key()
	event := control.Event{Event: "peer", Key: k, PeerName: d.nameOf(k)}
	last, known := d.events.last(k)
	switch {
	case e.Connected:
		event.State, event.Path, event.Remote = "connected", e.Path.Kind.String(), e.Path.Remote
		event.MS = float64(e.After.Microseconds()) / 1000
	default:
		why := Explain(e.Err)
		event.State, event.Code, event.Reason, event.Try = "failed", why.Code, why.Reason, why.Try
		if _, dialled := errors.AsType[*session.DialError](e.Err); !dialled {
			event.State = "disconnected"
		}
		if known && last.State == event.State && last.Code == event.Code {
			return // it is being tried again and again
		}
	}
	d.events.emit(event, true)
}

func (d *Daemon) nameOf(k key.Public) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.peers[k]; m != nil {
		return m.name
	}
	return ""
}

var _ control.Daemon = (*Daemon)(nil)
