//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"omegatun/scripts/netlab"
)

const (
	dhtNodes = 12
	// dialLimit is how long a try may take; npm's hyperdht gives up by itself after about 30 s.
	dialLimit = 30 * time.Second
	// linger is how long to wait for a direct path where there may be one.
	linger = 20 * time.Second
)

// relayAddr is where the lab's relay is.
var relayAddr = netip.AddrFrom4([4]byte{192, 88, 99, 10 + dhtNodes})

// pair is two places.
type pair struct {
	Server, Client string
	classes        [2]class // of server and client; "" for a special pair
	want           string   // the best path there can be: "direct", "relay", "lan", "none"
	build          func(l *netlab.Lab, delay time.Duration) ([2]place, error)

	line     *netlab.Impairment // of both access links
	oneSide  bool               // … of the server's only
	patience time.Duration      // for joining, announcing and connecting; 0: the usual
	watch    time.Duration      // how long to count changes of path, in the first try
}

// allPairs returns the whole matrix and the special pairs.
func allPairs() []pair {
	var pairs []pair
	for _, s := range profiles {
		for _, c := range profiles {
			want := "direct"
			if s.class == random && c.class == random {
				want = "relay"
			}
			pairs = append(pairs, pair{
				Server: s.name, Client: c.name, classes: [2]class{s.class, c.class}, want: want, build: mixed(s.name, c.name),
			})
		}
	}
	for _, s := range special {
		pairs = append(pairs, pair{Server: s.name, want: s.want, build: s.build})
	}
	return pairs
}

func (p pair) String() string {
	if p.Client == "" {
		return p.Server
	}
	return p.Server + ":" + p.Client
}

// try is one attempt to connect.
type try struct {
	OK      bool     `json:"ok"`
	MS      float64  `json:"ms"` // from dial to the first authenticated byte
	Path    string   `json:"path,omitempty"`
	Remote  string   `json:"remote,omitempty"`
	EchoMS  float64  `json:"echo_ms,omitempty"`
	Direct  float64  `json:"direct_ms,omitempty"`
	Packets uint64   `json:"packets"` // between the sites until then
	Message string   `json:"message,omitempty"`
	NATs    []string `json:"nats,omitempty"`
	// Switches is how often the path changed within Watched; 0 without traffic to watch.
	Switches int      `json:"switches,omitempty"`
	Watched  float64  `json:"watched_ms,omitempty"`
	Steps    []string `json:"steps,omitempty"`
}

// result is what a pair of places and of implementations did.
type result struct {
	Server     string `json:"server"`
	Client     string `json:"client,omitempty"`
	ServerImpl string `json:"server_impl"`
	ClientImpl string `json:"client_impl"`
	Relay      bool   `json:"relay"` // one was offered
	Want       string `json:"want"`
	Tries      []try  `json:"tries"`
	classes    [2]class
}

// config is what the command line says.
type config struct {
	self, bin, js string
	combos        [][2]string // server, client
	tries         int
	delay         time.Duration // of each access link, each way
	relay         bool
	only          []string
	workers       int
	verbose       bool
	long          bool // faults at full length
}

// matrix runs the pairs, several at a time, each in a lab of its own.
func (c *config) matrix(ctx context.Context, w *output) error {
	pairs := allPairs()
	if len(c.only) > 0 {
		all := pairs
		pairs = nil
		for _, name := range c.only {
			i := slices.IndexFunc(all, func(p pair) bool { return p.String() == name })
			if i < 0 {
				return fmt.Errorf("there is no pair %q", name)
			}
			pairs = append(pairs, all[i])
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu      sync.Mutex // guards results
		results []result
		wg      sync.WaitGroup
		jobs    = make(chan pair)
	)
	for i := range max(1, c.workers) {
		wg.Go(func() {
			for p := range jobs {
				rs, err := c.runPair(ctx, p, fmt.Sprintf("w%d-", i))
				if err != nil && ctx.Err() == nil {
					cancel(fmt.Errorf("%v: %w", p, err))
				}
				mu.Lock()
				results = append(results, rs...)
				mu.Unlock()
			}
		})
	}
feed:
	for _, p := range pairs {
		select {
		case jobs <- p:
		case <-ctx.Done():
			break feed
		}
	}
	close(jobs)
	wg.Wait()
	if err := context.Cause(ctx); err != nil && len(results) == 0 {
		return err
	}
	order := func(r result) int {
		return slices.IndexFunc(pairs, func(p pair) bool { return p.Server == r.Server && p.Client == r.Client })
	}
	slices.SortStableFunc(results, func(a, b result) int { return order(a) - order(b) })
	c.report(w, results)
	return context.Cause(ctx)
}

// runPair runs all tries of all implementations between two places.
func (c *config) runPair(ctx context.Context, p pair, prefix string) (results []result, err error) {
	l, err := netlab.New(ctx, prefix, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	addrs, err := l.PublicAddrs(dhtNodes + 1)
	if err != nil {
		return nil, err
	}
	nodes, err := c.start(l.Internet, "go")
	if err != nil {
		return nil, err
	}
	defer nodes.stop()
	o := order{Do: "nodes", TimeoutMS: 20_000}
	for _, a := range addrs[:dhtNodes] {
		o.Addrs = append(o.Addrs, a.String())
	}
	if c.relay {
		o.RelayAt = addrs[dhtNodes].String()
	}
	ready, err := nodes.ask(ctx, o)
	if err != nil {
		return nil, err
	}
	ends, err := p.build(l, c.delay)
	if err != nil {
		return nil, err
	}
	if p.line != nil {
		for i, e := range ends {
			if p.oneSide && i > 0 {
				break
			}
			imp := *p.line
			imp.Delay += c.delay
			e.outer.Link.Set(imp)
		}
	}
	for _, combo := range c.combos {
		r := result{
			Server: p.Server, Client: p.Client, ServerImpl: combo[0], ClientImpl: combo[1], Relay: c.relay, Want: p.want,
			classes: p.classes,
		}
		t := trial{config: c, lab: l, ends: ends, bootstrap: o.Addrs[0], relay: ready.Key, pair: p, result: &r}
		err := t.run(ctx)
		if len(r.Tries) > 0 {
			results = append(results, r)
			fmt.Fprintf(os.Stderr, "%-24s %s→%s  %s\n", p, combo[1], combo[0], r)
		}
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

// trial is the tries of one pair of programs.
type trial struct {
	*config
	lab            *netlab.Lab
	ends           [2]place
	bootstrap      string
	relay          string
	pair           pair
	server, client *program
	result         *result
}

func (t *trial) run(ctx context.Context) error {
	var err error
	if t.server, err = t.start(t.ends[0].host, t.result.ServerImpl); err != nil {
		return err
	}
	defer t.server.stop()
	if t.client, err = t.start(t.ends[1].host, t.result.ClientImpl); err != nil {
		return err
	}
	defer t.client.stop()
	tries := t.tries
	if t.result.Want == "none" { // the same every time, and slow
		tries = min(tries, 3)
	}
	for i := range tries {
		if i == 1 {
			t.pair.watch = 0
		}
		if err := t.once(ctx); err != nil {
			return err
		}
	}
	return nil
}

// once starts both ends anew, behind routers that remember nothing, and connects.
func (t *trial) once(ctx context.Context) error {
	for _, e := range t.ends {
		if err := e.forget(); err != nil {
			return err
		}
	}
	defer func() {
		t.both(func(p *program) error { _, err := p.ask(ctx, order{Do: "leave"}); return err }) //nolint:errcheck // the next order shows it
	}()
	join, announce, limit := 5*time.Second, 8*time.Second, dialLimit
	if t.pair.patience > 0 {
		join, announce, limit = t.pair.patience, t.pair.patience, t.pair.patience
	}
	var keys [2]string
	err := t.both(func(p *program) error {
		a, err := p.ask(ctx, order{Do: "join", Bootstrap: t.bootstrap, Relay: t.relay, TimeoutMS: int(join.Milliseconds())})
		if p == t.client {
			keys[1] = a.Key
		} else {
			keys[0] = a.Key
		}
		return err
	})
	if err == nil {
		var a answer
		if a, err = t.server.ask(ctx, order{Do: "serve", Allow: keys[1], TimeoutMS: int(announce.Milliseconds())}); err == nil {
			keys[0] = a.Key
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil { // it says that it reaches nobody
		t.result.Tries = append(t.result.Tries, try{Message: strings.SplitN(err.Error(), "\n", 2)[0]})
		if t.result.Want == "none" {
			return nil
		}
	}
	before, err := t.lab.Between()
	if err != nil {
		return err
	}
	o := order{
		Do: "dial", To: keys[0], Tunnel: t.result.ServerImpl == "go" && t.result.ClientImpl == "go",
		TimeoutMS: int(limit.Milliseconds()), WatchMS: int(t.pair.watch.Milliseconds()), Again: t.pair.line != nil, RelayHost: relayAddr.String(),
	}
	if t.result.Want != "none" && t.result.Want != "relay" {
		o.LingerMS = int(linger.Milliseconds())
	} else {
		o.LingerMS = 1500
	}
	opened, err := t.client.ask(ctx, o)
	if err != nil {
		return err
	}
	after, err := t.lab.Between()
	if err != nil {
		return err
	}
	r := try{
		MS: opened.MS, Path: opened.Path, Remote: opened.Remote, Message: opened.Message, Packets: after - before,
		NATs: []string{opened.Local, opened.Peer}, Steps: opened.Steps,
	}
	if opened.Message == "" {
		done, err := t.client.next(ctx)
		if err != nil {
			return err
		}
		r.OK, r.EchoMS, r.Direct = done.EchoMS > 0, done.EchoMS, done.DirectMS
		if r.EchoMS == 0 {
			r.Message = "the first message was not echoed"
		}
		r.NATs = []string{done.Local, done.Peer}
		if at, err := netip.ParseAddrPort(opened.Remote); r.Path == "stream" && err == nil {
			switch {
			case at.Addr() == relayAddr:
				r.Path = "relay"
			case at.Addr().IsPrivate():
				r.Path = "lan"
			default:
				r.Path = "direct"
			}
		}
		r.Steps, r.Switches, r.Watched = done.Steps, done.Switches, done.MS
	}
	if r.OK && r.MS < 1000 && r.Direct < 5000 { // nothing to explain
		r.Steps = nil
	}
	t.result.Tries = append(t.result.Tries, r)
	if t.verbose {
		fmt.Fprintf(os.Stderr, "  %s %+v\n", t.result.Server+":"+t.result.Client, r)
	}
	return nil
}

// both runs f for both programs at once.
func (t *trial) both(f func(*program) error) error {
	var wg sync.WaitGroup
	var errs [2]error
	for i, p := range []*program{t.server, t.client} {
		wg.Go(func() { errs[i] = f(p) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}
