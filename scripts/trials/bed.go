//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// bed is a lab with a tunnel between a and b, by real daemons.
type bed struct {
	lab    *netlab.Lab
	nodes  *program
	places [2]place
	peers  [2]*peer.Peer
	ups    [2]*peer.Up
	args   [2][]string // of up
	relays []*relayHost
}

// relayHost is a third machine, reachable from everywhere, that belongs to the same person.
type relayHost struct {
	addr netip.Addr
	peer *peer.Peer
	up   *peer.Up
}

// bedConfig says what a bed is to be like.
type bedConfig struct {
	profiles [2]string // default: home
	relays   int
	mtu      int // of a's access link, beyond which packets vanish; 0: no limit
	settle   time.Duration
}

// connectLimit is how long building a tunnel may take.
const connectLimit = 40 * time.Second

// newBed builds a bed and waits until both ends are connected. dir is a folder that does not exist yet.
func (c *config) newBed(ctx context.Context, prefix, dir string, bc bedConfig) (_ *bed, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	b := &bed{}
	if b.lab, err = netlab.New(ctx, prefix, nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	addrs, err := b.lab.PublicAddrs(dhtNodes)
	if err != nil {
		return nil, err
	}
	if b.nodes, err = c.start(b.lab.Internet, "go"); err != nil {
		return nil, err
	}
	o := order{Do: "nodes", TimeoutMS: 20_000}
	for _, a := range addrs {
		o.Addrs = append(o.Addrs, a.String())
	}
	if _, err := b.nodes.ask(ctx, o); err != nil {
		return nil, err
	}
	for i := range b.places {
		name := bc.profiles[i]
		if name == "" {
			name = "home"
		}
		p, err := findProfile(name)
		if err != nil {
			return nil, err
		}
		if b.places[i], err = p.at(b.lab, number(i), c.delay); err != nil {
			return nil, err
		}
		if i == 0 && bc.mtu > 0 {
			b.places[i].outer.Link.Set(netlab.Impairment{Delay: c.delay, MTU: bc.mtu})
		}
		if b.peers[i], err = c.newPeer(b.places[i].host, filepath.Join(dir, number(i).name()), addrs[0].String()); err != nil {
			return nil, err
		}
	}
	for i := range bc.relays {
		if err := c.addRelay(b, i, dir, addrs[0].String()); err != nil {
			return nil, err
		}
	}
	for i := range b.peers {
		b.args[i] = []string{"-v", b.peers[1-i].Key}
		for _, r := range b.relays {
			b.args[i] = append(b.args[i], r.peer.Key)
		}
		if b.ups[i], err = b.peers[i].Up(nil, b.args[i]...); err != nil {
			return nil, err
		}
	}
	limit, cancel := context.WithTimeoutCause(ctx, connectLimit, errors.New("not connected in time"))
	defer cancel()
	for i, u := range b.ups {
		for _, key := range b.args[i][1:] {
			if _, err := u.WaitFor(limit, func(e peer.Event) bool { return e.Connected(key) }); err != nil {
				return nil, err
			}
		}
	}
	return b, pause(ctx, bc.settle)
}

// newPeer makes an identity in a new folder.
func (c *config) newPeer(n *netlab.Net, dir, bootstrap string) (*peer.Peer, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return peer.New(n, c.bin, dir, bootstrap)
}

// addRelay starts an omegatun that relays for a and b.
func (c *config) addRelay(b *bed, i int, dir, bootstrap string) error {
	r := &relayHost{addr: netip.AddrFrom4([4]byte{192, 88, 99, 140 + byte(i)})}
	name := fmt.Sprintf("relay%d", i+1)
	s, err := b.lab.Public(name, r.addr, &netlab.Impairment{})
	if err != nil {
		return err
	}
	if r.peer, err = c.newPeer(s.Host(), filepath.Join(dir, name), bootstrap); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.peer.State(), "config.toml"), []byte("relay = true\n"), 0o600); err != nil {
		return err
	}
	b.relays = append(b.relays, r)
	r.up, err = r.peer.Up(nil, b.peers[0].Key, b.peers[1].Key)
	return err
}

func (b *bed) close() error {
	for _, u := range b.ups {
		if u != nil && u.Process != nil {
			u.Signal(unix.SIGCONT)
		}
	}
	if b.nodes != nil {
		b.nodes.stdin.Close()
	}
	return b.lab.Close()
}

// path returns the kind of the path that end i uses to the other, and where it leads.
func (b *bed) path(i int) (kind, remote string, err error) {
	s, err := b.peers[i].Status()
	if err != nil {
		return "", "", err
	}
	r, _ := s.Peer(b.peers[1-i].Key)
	return r.Path.Kind, r.Path.Remote, nil
}

// waitPath waits until end i uses a path of the given kind, and returns when that was.
func (b *bed) waitPath(ctx context.Context, i int, kind string) (time.Time, error) {
	for {
		got, _, err := b.path(i)
		if err != nil {
			return time.Time{}, err
		}
		if got == kind {
			return time.Now(), nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return time.Time{}, fmt.Errorf("no %s path: %w", kind, err)
		}
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// traffic is who sends datagrams every 50 ms through the tunnel.
type traffic int

const (
	pings  traffic = iota // a, and b sends them back
	fromA                 // a only: nothing comes back
	fromB                 // b only
	silent                // nobody
)

const (
	tick     = 50 * time.Millisecond
	echoPort = 7007
	tcpPort  = 7070
	tcpChunk = 8 << 10
)

// monitor watches datagrams and a TCP connection through the tunnel.
type monitor struct {
	bed    *bed
	cancel context.CancelFunc
	wg     sync.WaitGroup
	socks  [2]*net.UDPConn

	mu       sync.Mutex    // guards the fields below
	arrivals []time.Time   // of datagrams
	received []time.Time   // of TCP's bytes
	since    time.Time     // when the fault happened, or was over if that is what counts; zero: nothing is to be said of TCP
	stall    time.Duration // the longest that the sender was late: how busy this machine was

	tcp     net.Conn // a's end
	sent    int64
	sending chan struct{} // closed when the transfer is to end
	pausing bool
	result  chan tcpResult // of b's end
}

type tcpResult struct {
	received int64
	err      error
}

// watch starts traffic of the given kind, and a TCP transfer beside it. Unless there are pings, the transfer pauses until
// finish, so as not to be traffic itself.
func (b *bed) watch(ctx context.Context, kind traffic) (*monitor, error) {
	inner, cancel := context.WithCancel(ctx)
	m := &monitor{bed: b, cancel: cancel, sending: make(chan struct{}), result: make(chan tcpResult, 1), pausing: kind != pings}
	ln, err := b.peers[1].Net.Listen("tcp", netip.AddrPortFrom(b.peers[1].IPv6, tcpPort))
	if err != nil {
		return nil, err
	}
	m.wg.Go(func() { m.receiveTCP(inner, ln) })
	dial, cancelDial := context.WithTimeout(ctx, 20*time.Second)
	defer cancelDial()
	if m.tcp, err = b.peers[0].Net.Dial(dial, "tcp", netip.AddrPortFrom(b.peers[1].IPv6, tcpPort)); err == nil {
		err = patientTCP(m.tcp)
	}
	if err != nil {
		m.stop()
		return nil, err
	}
	for i, p := range b.peers {
		if m.socks[i], err = p.Net.ListenUDP(netip.AddrPortFrom(p.IPv6, echoPort)); err != nil {
			m.stop()
			return nil, err
		}
	}
	m.wg.Go(func() { m.sendTCP(inner) })
	from := 0
	if kind == fromB {
		from = 1
	}
	if kind == silent {
		return m, nil
	}
	m.wg.Go(func() { m.send(inner, m.socks[from], b.peers[1-from].IPv6) })
	if kind == pings {
		m.wg.Go(func() { m.reflect(m.socks[1]) })
		m.wg.Go(func() { m.note(m.socks[0]) })
	} else {
		m.wg.Go(func() { m.note(m.socks[1-from]) })
	}
	return m, nil
}

func (m *monitor) send(ctx context.Context, c *net.UDPConn, to netip.Addr) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for seq := uint64(0); ; seq++ {
		c.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, seq), netip.AddrPortFrom(to, echoPort)) //nolint:errcheck // the gap shows it
		select {
		case due := <-t.C:
			m.mu.Lock()
			m.stall = max(m.stall, time.Since(due))
			m.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

func (m *monitor) reflect(c *net.UDPConn) {
	b := make([]byte, 64)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteToUDPAddrPort(b[:n], from) //nolint:errcheck // the gap shows it
		}
	}
}

func (m *monitor) note(c *net.UDPConn) {
	b := make([]byte, 64)
	for {
		_, _, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			m.mu.Lock()
			m.arrivals = append(m.arrivals, time.Now())
			m.mu.Unlock()
		}
	}
}

// gap returns the longest time without an arrival since from, up to now.
func (m *monitor) gap(from time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	gap, since := longest(m.arrivals, from)
	return max(gap, since)
}

// longest returns the longest time without an arrival that ended after from, and the time since the last one.
func longest(arrivals []time.Time, from time.Time) (gap, since time.Duration) {
	last := from
	for _, at := range arrivals {
		if at.After(from) {
			gap = max(gap, at.Sub(last))
		}
		last = at
	}
	return gap, time.Since(last)
}

// counts says from when on the gap of the TCP transfer is to be measured.
func (m *monitor) counts(from time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since = from
}

// wait waits for the first arrival after from that another one follows within half a second, and returns how long that took.
func (m *monitor) wait(ctx context.Context, from time.Time) (time.Duration, error) {
	for {
		m.mu.Lock()
		for i := range m.arrivals[:max(0, len(m.arrivals)-1)] {
			if at := m.arrivals[i]; at.After(from) && m.arrivals[i+1].Sub(at) < 500*time.Millisecond {
				m.mu.Unlock()
				return at.Sub(from), nil
			}
		}
		m.mu.Unlock()
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("nothing came through: %w", err)
		}
	}
}

// sendTCP sends at a leisurely pace until the transfer is to end, or, if it pauses, only then.
func (m *monitor) sendTCP(ctx context.Context) {
	b := make([]byte, tcpChunk)
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	write := func() bool {
		n, err := m.tcp.Write(b)
		m.mu.Lock()
		m.sent += int64(n)
		m.mu.Unlock()
		return err == nil
	}
	if !write() {
		return
	}
	for ending := false; !ending; {
		if m.pausing {
			select {
			case <-m.sending:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-t.C:
		case <-m.sending:
			ending = true
		case <-ctx.Done():
			return
		}
		if !write() {
			return
		}
	}
	m.tcp.(*net.TCPConn).CloseWrite() //nolint:errcheck // b's end sees it
}

func (m *monitor) receiveTCP(ctx context.Context, ln net.Listener) {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	c, err := ln.Accept()
	ln.Close()
	if err != nil {
		m.result <- tcpResult{err: err}
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	err = patientTCP(c)
	var r tcpResult
	b := make([]byte, 64<<10)
	for err == nil {
		var n int
		if n, err = c.Read(b); n > 0 {
			r.received += int64(n)
			m.mu.Lock()
			m.received = append(m.received, time.Now())
			m.mu.Unlock()
		}
	}
	if !errors.Is(err, io.EOF) {
		r.err = err
	}
	m.result <- r
}

// patientTCP makes a connection wait as long as TCP itself does, as those of most programs. Go's would be given up after
// 150 s in which nobody answers, if it has nothing to send.
func patientTCP(c net.Conn) error { return c.(*net.TCPConn).SetKeepAlive(false) }

// tcpLimit is how long the transfer may take to end after the tunnel works again: TCP itself waits longer and longer between
// its attempts, as long as the outage was.
const tcpLimit = 150 * time.Second

// finish ends the TCP transfer and notes whether all of it arrived.
func (m *monitor) finish(ctx context.Context, o *outcome) {
	close(m.sending)
	defer m.stop()
	select {
	case r := <-m.result:
		m.mu.Lock()
		defer m.mu.Unlock()
		o.TCP = r.err == nil && r.received == m.sent && m.sent >= tcpChunk
		switch {
		case r.err != nil:
			o.TCPError = r.err.Error()
		case !o.TCP:
			o.TCPError = fmt.Sprintf("%d of %d bytes arrived", r.received, m.sent)
		case !m.pausing && !m.since.IsZero():
			later := slices.IndexFunc(m.received, m.since.Before)
			gap, _ := longest(m.received[max(0, later):], m.since)
			o.TCPGapMS = msOf(gap)
		}
	case <-time.After(tcpLimit):
		o.TCPError = "not within " + tcpLimit.String()
	case <-ctx.Done():
		o.TCPError = context.Cause(ctx).Error()
	}
}

func (m *monitor) stop() {
	m.cancel()
	for _, c := range m.socks {
		if c != nil {
			c.Close() //nolint:errcheck // nothing is lost
		}
	}
	if m.tcp != nil {
		m.tcp.Close()
	}
	m.wg.Wait()
}
