//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// line is what both access links do to packets, in each direction.
type line struct {
	name    string
	imp     netlab.Impairment
	limit   time.Duration // p95 of connecting
	oneSide bool          // only the server's access link does it
}

// lines are all there are. Loss is per link and direction: of a question and its answer, which cross four, less remains.
var lines = []line{
	{name: "clean", limit: 350 * time.Millisecond},
	{name: "loss-5", imp: netlab.Impairment{Loss: 0.05}, limit: 2 * time.Second},
	{name: "loss-20", imp: netlab.Impairment{Loss: 0.2}, limit: 5 * time.Second},
	{name: "loss-50-one-side", imp: netlab.Impairment{Loss: 0.5}, limit: 30 * time.Second, oneSide: true},
	{name: "loss-50", imp: netlab.Impairment{Loss: 0.5}, limit: 30 * time.Second},
	{name: "bursts", imp: netlab.Impairment{Burst: 0.02, BurstLength: 10}, limit: 30 * time.Second}, // of ten packets, however few there are
	{name: "reorder-25", imp: netlab.Impairment{Reorder: 0.25, Jitter: 10 * time.Millisecond}, limit: 2 * time.Second},
	{name: "duplicate-25", imp: netlab.Impairment{Duplicate: 0.25}, limit: 2 * time.Second},
	{name: "corrupt-5", imp: netlab.Impairment{Corrupt: 0.05}, limit: 2 * time.Second},
}

const (
	linePatience = 40 * time.Second
	watchTime    = time.Minute
	maxSwitches  = 2 // a minute
)

// runLines connects two homes over each line.
func (c *config) runLines(ctx context.Context, w *output) error {
	nameOf := func(l line) string { return l.name }
	chosen, err := choose(lines, c.only, "line", nameOf)
	if err != nil {
		return err
	}
	results := make([][]result, len(chosen))
	err = c.parallel(ctx, len(chosen), func(i int, prefix string) (err error) {
		results[i], err = c.runPair(ctx, pair{
			Server: chosen[i].name, want: "direct", build: mixed("home", "home"), line: &chosen[i].imp, oneSide: chosen[i].oneSide, patience: linePatience, watch: watchTime,
		}, prefix)
		return err
	})
	rows, err2 := merge(w, "lines", rowsOf(results), row.same)
	if err2 != nil {
		return errors.Join(err, err2)
	}
	order := func(r row) int { return slices.IndexFunc(lines, func(l line) bool { return l.name == r.Server }) }
	slices.SortStableFunc(rows, func(a, b row) int { return order(a) - order(b) })
	t := newTable("line", "programs", "connected", "path", "median ms", "p95 ms", "changes of path a minute", "why not")
	for _, r := range rows {
		median, p95 := times(r.MS)
		perMinute := ""
		if r.Watched > 0 {
			rate := float64(r.Switches) * 60_000 / r.Watched
			perMinute = fmt.Sprintf("%.1f", rate)
			w.goal(goal{r.Server + ": changes of path a minute", "≤ " + strconv.Itoa(maxSwitches), perMinute, rate <= maxSwitches})
		}
		if i := order(r); i >= 0 && r.programs() == "go → go" {
			v := slices.Clone(r.MS)
			for len(v) < r.Tries {
				v = append(v, endless)
			}
			got, _ := quantile(v, 0.95)
			w.atMost(r.Server+": connected, p95", msOf(lines[i].limit), got, got < endless)
		}
		t.add(r.Server, r.programs(), fmt.Sprintf("%d/%d", r.Connected, r.Tries), r.Paths, median, p95, perMinute, shorten(r.why(), 60))
	}
	w.add("lines", fmt.Sprintf("Connecting two homes, %.0f ms apart, over bad lines", 4*msOf(c.delay)), rows, t)
	return err
}

// parallel runs f for every i below n, some at a time, each with a prefix for a lab that no other uses meanwhile.
func (c *config) parallel(ctx context.Context, n int, f func(i int, prefix string) error) error {
	var (
		wg   sync.WaitGroup
		feed = make(chan int)
		mu   sync.Mutex // guards errs
		errs []error
	)
	for i := range max(1, c.workers) {
		wg.Go(func() {
			for j := range feed {
				if err := f(j, fmt.Sprintf("w%d-", i)); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
feeding:
	for i := range n {
		select {
		case feed <- i:
		case <-ctx.Done():
			break feeding
		}
	}
	close(feed)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

const mtuBytes = 1 << 20

// numbers reads the numbers that are asked for; without any, the usual ones.
func numbers(words []string, lowest, highest int, what string, usual ...int) (all []int, err error) {
	if len(words) == 0 {
		return usual, nil
	}
	for _, word := range words {
		n, err := strconv.Atoi(word)
		if err != nil || n < lowest || n > highest {
			return nil, fmt.Errorf("%q is not %s from %d to %d", word, what, lowest, highest)
		}
		all = append(all, n)
	}
	return all, nil
}

// mtuRow is a transfer.
type mtuRow struct {
	MTU     int     `json:"mtu"`
	Way     string  `json:"way"`
	MS      float64 `json:"ms"`
	StallMS float64 `json:"stall_ms"`
	Message string  `json:"message,omitempty"`
}

// runMTU sends 1 MiB each way over TCP where larger packets vanish without a word.
func (c *config) runMTU(ctx context.Context, w *output) error {
	sizes, err := numbers(c.only, 576, 1500, "an MTU", 1500, 1280, 1124, 600)
	if err != nil {
		return err
	}
	measured := make([][2]mtuRow, len(sizes))
	err = c.parallel(ctx, len(sizes), func(i int, prefix string) (err error) {
		b, err := c.newBed(ctx, prefix, filepath.Join("/run", fmt.Sprintf("mtu-%d", sizes[i])), bedConfig{mtu: sizes[i]})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.close()) }()
		for from, way := range []string{"a to b", "b to a"} {
			r := mtuRow{MTU: sizes[i], Way: way}
			took, stall, err := b.transfer(ctx, from)
			r.MS, r.StallMS = msOf(took), msOf(stall)
			if err != nil {
				r.Message = err.Error()
			}
			measured[i][from] = r
			fmt.Fprintf(os.Stderr, "MTU %d, %s: %.0f ms, longest stall %.0f ms %s\n", r.MTU, r.Way, r.MS, r.StallMS, r.Message)
		}
		return nil
	})
	var rows []mtuRow
	for _, m := range measured {
		rows = append(rows, m[:]...)
	}
	rows, err2 := merge(w, "mtu", rows, func(a, b mtuRow) bool { return a.MTU == b.MTU && a.Way == b.Way })
	t := newTable("MTU", "way", "1 MiB in", "longest stall", "why not")
	for _, r := range rows {
		t.add(strconv.Itoa(r.MTU), r.Way, ms(r.MS), ms(r.StallMS), shorten(r.Message, 60))
		w.atMost(fmt.Sprintf("MTU %d, %s: longest stall", r.MTU, r.Way), 3000, r.StallMS, r.Message == "" && r.MS > 0)
	}
	w.add("mtu", "1 MiB over TCP where larger packets vanish, no ICMP", rows, t)
	return errors.Join(err, err2)
}

// transferLimit is how long one MiB may take.
const transferLimit = time.Minute

// transfer sends one MiB over TCP from one end to the other and returns how long it took and the longest time without a byte.
func (b *bed) transfer(ctx context.Context, from int) (took, stall time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, transferLimit, errors.New("not within a minute"))
	defer cancel()
	to := b.peers[1-from]
	addr := netip.AddrPortFrom(to.IPv6, tcpPort)
	ln, err := to.Net.Listen("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer ln.Close()
	start := time.Now()
	c, err := b.peers[from].Net.Dial(ctx, "tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	in, err := ln.Accept()
	if err != nil {
		return 0, 0, err
	}
	defer in.Close()
	defer context.AfterFunc(ctx, func() { in.Close() })()
	go io.CopyBuffer(struct{ io.Writer }{c}, peer.Random(3, mtuBytes), nil) //nolint:errcheck // ends when c is closed
	last, n := time.Now(), 0
	buf := make([]byte, 64<<10)
	for n < mtuBytes {
		m, err := in.Read(buf)
		stall = max(stall, time.Since(last))
		last = time.Now()
		n += m
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return time.Since(start), stall, fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
	return time.Since(start), stall, nil
}

// usage is what a device has carried, both ways.
type usage struct{ packets, bytes float64 }

// carried returns what a device of a host has carried so far.
func carried(n *netlab.Net, dev string) (u usage, err error) {
	text, err := n.Output("cat", "/proc/net/dev")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(rest)
		if name != dev || len(f) < 10 {
			continue
		}
		var v [4]float64
		for i, at := range [4]int{0, 1, 8, 9} {
			if v[i], err = strconv.ParseFloat(f[at], 64); err != nil {
				return u, err
			}
		}
		return usage{packets: v[1] + v[3], bytes: v[0] + v[2]}, nil
	}
	return u, fmt.Errorf("%s: no device %s", n.Name, dev)
}

const (
	idleSettle = 20 * time.Second
	idleTime   = 2 * time.Minute
)

// idleRow is what so many peers cost.
type idleRow struct {
	Peers   int     `json:"peers"`
	Packets float64 `json:"packets_per_minute"`
	Bytes   float64 `json:"bytes_per_minute"`
}

// runIdle counts what crosses the cable of a host whose peers have nothing to say.
func (c *config) runIdle(ctx context.Context, w *output) error {
	counts, err := numbers(c.only, 0, 500, "a number of peers", 0, 1, 10, 100)
	if err != nil {
		return err
	}
	rows := make([]idleRow, len(counts))
	err = c.parallel(ctx, len(counts), func(i int, prefix string) error {
		u, err := c.idle(ctx, prefix, filepath.Join("/run", fmt.Sprintf("idle-%d", counts[i])), counts[i])
		rows[i] = idleRow{counts[i], u.packets, u.bytes}
		fmt.Fprintf(os.Stderr, "%d peers: %.0f packets, %.0f bytes a minute\n", counts[i], u.packets, u.bytes)
		return err
	})
	rows, err2 := merge(w, "idle", rows, func(a, b idleRow) bool { return a.Peers == b.Peers })
	slices.SortFunc(rows, func(a, b idleRow) int { return a.Peers - b.Peers })
	t := newTable("idle peers", "packets a minute", "bytes a minute", "more for each peer")
	for _, r := range rows {
		more := ""
		if rows[0].Peers == 0 && r.Peers > 0 {
			n := float64(r.Peers)
			more = fmt.Sprintf("%.1f packets, %.0f bytes", (r.Packets-rows[0].Packets)/n, (r.Bytes-rows[0].Bytes)/n)
		}
		t.add(strconv.Itoa(r.Peers), fmt.Sprintf("%.0f", r.Packets), fmt.Sprintf("%.0f", r.Bytes), more)
	}
	w.add("idle", "What a host sends and receives, Ethernet included, while its peers have nothing to say; 0 is the DHT", rows, t)
	return errors.Join(err, err2)
}

// idle connects a host to so many peers and returns what it costs a minute.
func (c *config) idle(ctx context.Context, prefix, dir string, peers int) (u usage, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return u, err
	}
	b := &bed{}
	if b.lab, err = netlab.New(ctx, prefix, nil); err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	addrs, err := b.lab.PublicAddrs(dhtNodes + 1)
	if err != nil {
		return u, err
	}
	if b.nodes, err = c.start(b.lab.Internet, "go"); err != nil {
		return u, err
	}
	o := order{Do: "nodes", TimeoutMS: 20_000}
	for _, a := range addrs[:dhtNodes] {
		o.Addrs = append(o.Addrs, a.String())
	}
	if _, err := b.nodes.ask(ctx, o); err != nil {
		return u, err
	}
	home, err := profiles[2].at(b.lab, 0, c.delay)
	if err != nil {
		return u, err
	}
	p, err := c.newPeer(home.host, filepath.Join(dir, "a"), addrs[0].String())
	if err != nil {
		return u, err
	}
	swarm, err := c.start(b.lab.Internet, "go")
	if err != nil {
		return u, err
	}
	defer swarm.stop()
	o = order{Do: "swarm", Bootstrap: addrs[0].String(), Allow: p.Key, TimeoutMS: 50_000}
	for i := range peers {
		o.Addrs = append(o.Addrs, netip.AddrPortFrom(addrs[dhtNodes].Addr(), uint16(50_000+i)).String())
	}
	ready, err := swarm.ask(ctx, o)
	if err != nil {
		return u, err
	}
	up, err := p.Up(nil, ready.Keys...)
	if err != nil {
		return u, err
	}
	limit, cancel := context.WithTimeoutCause(ctx, connectLimit, errors.New("not connected in time"))
	defer cancel()
	if _, err := up.WaitFor(limit, func(e peer.Event) bool { return e.Event == "listening" }); err != nil {
		return u, err
	}
	for connected := -1; connected < peers; {
		s, err := p.Status()
		if err != nil {
			return u, err
		}
		connected = 0
		for _, r := range s.Peers {
			if r.State == "connected" {
				connected++
			}
		}
		if err := pause(limit, 500*time.Millisecond); err != nil {
			return u, fmt.Errorf("%d of %d peers: %w", connected, peers, err)
		}
	}
	if err := pause(ctx, idleSettle); err != nil {
		return u, err
	}
	before, err := carried(home.host, "eth0")
	if err != nil {
		return u, err
	}
	start := time.Now()
	if err := pause(ctx, c.longer(idleTime, 10*time.Minute)); err != nil {
		return u, err
	}
	after, err := carried(home.host, "eth0")
	minutes := time.Since(start).Minutes()
	return usage{(after.packets - before.packets) / minutes, (after.bytes - before.bytes) / minutes}, err
}
