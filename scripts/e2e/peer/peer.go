//go:build linux

// Package peer runs the omegatun command on the hosts of a [netlab.Lab], and reads what it prints, as any
// script could: it knows the command's output contract and nothing of the code.
package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"omegatun/scripts/netlab"
)

// Nodes starts DHT nodes, one on each address, the first as the bootstrap node, and returns once all are ready.
func Nodes(ctx context.Context, n *netlab.Net, bin string, addrs ...netip.AddrPort) error {
	for i, a := range addrs {
		bootstrap := "--bootstrap"
		if i > 0 {
			bootstrap += "=" + addrs[0].String()
		}
		lines := make(chan string, 16)
		p, err := n.Start(netlab.Cmd{
			Args: []string{
				bin, "node", bootstrap, "--host", a.Addr().String(), "--port", strconv.Itoa(int(a.Port())),
				"--persistent", "--json",
			},
			OnLine: func(line string) {
				select {
				case lines <- line:
				default: // it was ready long ago
				}
			},
		})
		if err != nil {
			return err
		}
		if err := nodeReady(ctx, p, lines); err != nil {
			return err
		}
	}
	return nil
}

func nodeReady(ctx context.Context, p *netlab.Process, lines <-chan string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("not ready within 10 s"))
	defer cancel()
	for {
		select {
		case line := <-lines:
			var e Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return fmt.Errorf("%s: printed %q: %w", p.Name, line, err)
			}
			if e.Event == "ready" {
				return nil
			}
		case <-p.Done():
			return fmt.Errorf("%s: ended:\n%s", p.Name, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w:\n%s", p.Name, context.Cause(ctx), p.Output())
		}
	}
}

// Peer is an omegatun on a host, with an identity of its own.
type Peer struct {
	Net        *netlab.Net
	Bin        string // path of the command
	Dir        string // its state directory and control socket are in here
	Bootstrap  string // host:port
	Key        string // z-base-32
	IPv6, IPv4 netip.Addr
}

// New makes an identity in dir, which exists, and asks for its addresses.
func New(n *netlab.Net, bin, dir, bootstrap string) (*Peer, error) {
	p := &Peer{Net: n, Bin: bin, Dir: dir, Bootstrap: bootstrap}
	out, err := n.Output(p.Args("key", "new")...)
	if err != nil {
		return nil, err
	}
	p.Key = strings.TrimSpace(out)
	if out, err = n.Output(p.Args("ip", p.Key)...); err != nil {
		return nil, err
	}
	var six, four string
	if _, err := fmt.Sscan(out, &six, &four); err != nil {
		return nil, fmt.Errorf("omegatun ip %s printed %q: %w", p.Key, out, err)
	}
	var err1, err2 error
	p.IPv6, err1 = netip.ParseAddr(six)
	p.IPv4, err2 = netip.ParseAddr(four)
	return p, errors.Join(err1, err2)
}

// State returns the path of the state directory.
func (p *Peer) State() string { return filepath.Join(p.Dir, "state") }

// Socket returns the path of the control socket.
func (p *Peer) Socket() string { return filepath.Join(p.Dir, "socket") }

// Args returns an omegatun command line that uses the peer's identity and daemon.
func (p *Peer) Args(args ...string) []string {
	args = append([]string{p.Bin}, args...)
	return append(args, "--state", p.State(), "--socket", p.Socket(), "--bootstrap="+p.Bootstrap)
}

// Identity is what "id --json" prints.
type Identity struct {
	Schema int        `json:"schema"`
	Key    string     `json:"key"`
	Hex    string     `json:"hex"`
	IPv6   netip.Addr `json:"ipv6"`
	IPv4   netip.Addr `json:"ipv4"`
	Name   string     `json:"name"`
}

// ID asks for the peer's identity.
func (p *Peer) ID() (Identity, error) {
	var id Identity
	out, err := p.Net.Output(p.Args("id", "--json")...)
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal([]byte(out), &id); err != nil {
		return id, fmt.Errorf("omegatun id --json printed %q: %w", out, err)
	}
	return id, nil
}

// Event is a line of "up --json" or "node --json".
type Event struct {
	Schema int     `json:"schema"`
	Event  string  `json:"event"`
	Name   string  `json:"name"`
	MTU    int     `json:"mtu"`
	Key    string  `json:"key"`
	State  string  `json:"state"`
	Path   string  `json:"path"`
	Remote string  `json:"remote"`
	MS     float64 `json:"ms"`
	Code   int     `json:"code"`
	Reason string  `json:"reason"`

	At time.Time `json:"-"` // when it was read
}

// Connected reports whether e says that the peer with that key is connected.
func (e Event) Connected(key string) bool {
	return e.Event == "peer" && e.Key == key && e.State == "connected"
}

// Up is a running "omegatun up".
type Up struct {
	*netlab.Process
	Started time.Time

	mu      sync.Mutex    // guards the fields below
	events  []Event       // all so far
	changed chan struct{} // closed at the next event
}

// Up starts "omegatun up" for the given peers. onEvent may be nil; it is called from one goroutine.
func (p *Peer) Up(onEvent func(Event), peers ...string) (*Up, error) {
	return p.UpWith(nil, onEvent, peers...)
}

// UpWith is Up with words in front of the command line, such as a program that changes the environment.
func (p *Peer) UpWith(prefix []string, onEvent func(Event), args ...string) (*Up, error) {
	u := &Up{Started: time.Now(), changed: make(chan struct{})}
	proc, err := p.Net.Start(netlab.Cmd{
		Args: append(prefix, p.Args(append(append([]string{"up"}, args...), "--json")...)...),
		OnLine: func(line string) {
			e := Event{At: time.Now()}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				e.Event, e.Reason = "malformed", line
			}
			u.mu.Lock()
			u.events = append(u.events, e)
			close(u.changed)
			u.changed = make(chan struct{})
			u.mu.Unlock()
			if onEvent != nil {
				onEvent(e)
			}
		},
	})
	u.Process = proc
	return u, err
}

// Events returns the events so far.
func (u *Up) Events() []Event {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Event(nil), u.events...)
}

// Context returns a context that ends with ctx, and with the process.
func (u *Up) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-u.Done():
			cancel(errors.New("omegatun up ended"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// WaitFor returns the first event, of the past or the future, that match accepts. It fails when ctx ends, or the
// process.
func (u *Up) WaitFor(ctx context.Context, match func(Event) bool) (Event, error) {
	for seen := 0; ; {
		u.mu.Lock()
		events, changed := u.events, u.changed
		u.mu.Unlock()
		for ; seen < len(events); seen++ {
			if match(events[seen]) {
				return events[seen], nil
			}
		}
		select {
		case <-changed:
		case <-u.Done():
			u.mu.Lock()
			more := len(u.events) > seen
			u.mu.Unlock()
			if !more {
				return Event{}, fmt.Errorf("%s: ended:\n%s", u.Name, u.Output())
			}
		case <-ctx.Done():
			return Event{}, fmt.Errorf("%s: %w:\n%s", u.Name, context.Cause(ctx), u.Output())
		}
	}
}

// Status is what "status --json" prints.
type Status struct {
	Schema int `json:"schema"`
	Self   struct {
		Key   string `json:"key"`
		State string `json:"state"`
		NAT   string `json:"nat"`
		DHT   struct {
			Nodes int `json:"nodes"`
		} `json:"dht"`
		Interface struct {
			Name string `json:"name"`
			MTU  int    `json:"mtu"`
		} `json:"interface"`
	} `json:"self"`
	Peers []Remote `json:"peers"`
}

// Remote is a peer in [Status].
type Remote struct {
	Key   string `json:"key"`
	State string `json:"state"`
	Path  struct {
		Kind   string  `json:"kind"`
		Remote string  `json:"remote"`
		MTU    int     `json:"mtu"`
		RTT    float64 `json:"rtt_ms"`
	} `json:"path"`
	RxBytes uint64            `json:"rx_bytes"`
	TxBytes uint64            `json:"tx_bytes"`
	Dropped map[string]uint64 `json:"dropped"`
}

// Status asks the running daemon.
func (p *Peer) Status() (Status, error) {
	var s Status
	out, err := p.Net.Output(p.Args("status", "--json")...)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("omegatun status --json printed %q: %w", out, err)
	}
	return s, nil
}

// Peer returns the status of the peer with that key.
func (s Status) Peer(key string) (Remote, bool) {
	for _, p := range s.Peers {
		if p.Key == key {
			return p, true
		}
	}
	return Remote{}, false
}

// FirstReply sends pings to addr until one is answered, and returns when that was.
func FirstReply(ctx context.Context, n *netlab.Net, addr netip.Addr) (time.Time, error) {
	for {
		p, err := n.Start(netlab.Cmd{Args: []string{"ping", "-n", "-c", "1", "-W", "0.1", addr.String()}})
		if err != nil {
			return time.Time{}, err
		}
		code, err := p.Wait(ctx)
		if err != nil {
			p.Kill()
			return time.Time{}, fmt.Errorf("no reply from %v: %w", addr, err)
		}
		if code == 0 {
			return time.Now(), nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no reply from %v: %w", addr, context.Cause(ctx))
		}
	}
}
