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
			pairs = append(pairs, pair{
				Server: s.name, Client: c.name, classes: [2]class{s.class, c.class}, want: bestPath(s, c), build: mixed(s.name, c.name),
			})
		}
	}
	for _, s := range special {
		pairs = append(pairs, pair{Server: s.name, classes: s.classes, want: s.want, build: s.build})
	}
	return pairs
}

// bestPath returns the best path that two homes can have: a direct one, unless both pick other ports for each destination and
// one of them cannot be foretold.
func bestPath(s, c profile) string {
	if s.class == random && c.class == random && (s.ports != "sequential" || c.ports != "sequential") {
		return "relay"
	}
	return "direct"
}

func (p pair) String() string {
	if p.Client == "" {
		return p.Server
	}
	return p.Server + ":" + p.Client
}

// try is one attempt to connect.
type try struct {
	OK      bool
	MS      float64 // from dial to the first authenticated byte
	Path    string
	Remote  string
	EchoMS  float64
	Direct  float64
	Packets uint64 // between the sites until then
	Message string
	NATs    []string
	// Switches is how often the path changed within Watched; 0 without traffic to watch.
	Switches int
	Watched  float64
	Steps    []string
}

// result is what a pair of places and of implementations did.
type result struct {
	Server, Client         string
	ServerImpl, ClientImpl string
	Relay                  bool // one was offered
	Want                   string
	Tries                  []try
}

// config is what the command line says.
type config struct {
	self, bin, js string
	combos        [][2]string // server, client
	tries         int
	delay         time.Duration // of each access link, each way
	relay         bool
	only          []string
	part          [2]int // of so many; 0: the whole
	workers       int
	verbose       bool
	long          bool // faults at full length
}

// racing are pairs between which a path by way of the relay and a direct one come up at about the same time.
var racing = []string{"home:home", "sym-seq:home", "sym-random:home", "home:sym-random"}

// runMatrix runs the pairs, or some of them, several at a time, each in a lab of its own.
func (c *config) runMatrix(ctx context.Context, w *output) error {
	all := allPairs()
	pairs, err := choose(all, c.only, "pair", pair.String)
	if err != nil {
		return err
	}
	if c.part[1] > 0 {
		var part []pair
		for i := c.part[0] - 1; i < len(pairs); i += c.part[1] {
			part = append(part, pairs[i])
		}
		pairs = part
	}
	results := make([][]result, len(pairs))
	err = c.parallel(ctx, len(pairs), func(i int, prefix string) (err error) {
		if results[i], err = c.runPair(ctx, pairs[i], prefix); err != nil {
			err = fmt.Errorf("%v: %w", pairs[i], err)
		}
		return err
	})
	rows, err2 := merge(w, "matrix", rowsOf(results), row.same)
	if err = errors.Join(err, err2); len(rows) == 0 || err2 != nil {
		return err
	}
	order := func(r row) int {
		return slices.IndexFunc(all, func(p pair) bool { return p.Server == r.Server && p.Client == r.Client })
	}
	slices.SortStableFunc(rows, func(a, b row) int { return order(a) - order(b) })
	c.report(w, rows, all)
	return err
}

// rowsOf summarizes results.
func rowsOf(results [][]result) (rows []row) {
	for _, rs := range results {
		for _, r := range rs {
			rows = append(rows, r.row())
		}
	}
	return rows
}

// choose returns those of all that are asked for by name; without any, all.
func choose[T any](all []T, names []string, what string, name func(T) string) (chosen []T, err error) {
	if len(names) == 0 {
		return all, nil
	}
	for _, n := range names {
		i := slices.IndexFunc(all, func(v T) bool { return name(v) == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no %s %q", what, n)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
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
