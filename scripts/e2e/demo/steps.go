//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

const (
	nodes = 8
	// replyLimit is how long after "up" the first reply may come.
	replyLimit   = 3 * time.Second
	downloadSize = 100 << 20
)

type demo struct {
	*show
	bin            string
	shell, verbose bool

	lab    *netlab.Lab
	sites  [2]*netlab.Site
	peers  [2]*peer.Peer
	ups    [2]*peer.Up
	before [2]string // state of the hosts' networks

	eventMu   sync.Mutex // guards connected; one event at a time
	connected map[string]bool
}

var names = [2]string{"a", "b"}

// run plays the whole demonstration. Whatever it built is gone when it returns.
func (d *demo) run(ctx context.Context) (err error) {
	var trace func(string, string)
	if d.verbose {
		trace = d.trace
	}
	if d.lab, err = netlab.New(ctx, "", trace); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"An Internet of two home networks", d.network},
		{fmt.Sprintf("A DHT of %d nodes", nodes), d.nodes},
		{"A key for each host, and the addresses that follow from it", d.keys},
		{"omegatun up <the other's key>, on both at once", d.up},
		{"ping, over IPv6 and IPv4", d.ping},
		{"An interactive TCP session, as ssh would hold it", d.session},
		{"A download over HTTP", d.download},
		{"What crossed the Internet", d.wire},
		{"", d.openShell},
		{"Ctrl-C on both", d.down},
	} {
		if step.title != "" {
			d.title(step.title)
		}
		if err := step.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) network(context.Context) error {
	for i, site := range []netlab.NAT{
		{WAN: netip.MustParseAddr("192.88.99.101"), LAN: netip.MustParsePrefix("192.168.1.0/24")},
		{WAN: netip.MustParseAddr("192.88.99.102"), LAN: netip.MustParsePrefix("192.168.2.0/24")},
	} {
		var err error
		if d.sites[i], err = d.lab.Site(names[i], site); err != nil {
			return err
		}
		if d.before[i], err = d.sites[i].Host().Snapshot(); err != nil {
			return err
		}
		d.line(names[i], "%v ── router, NAT ── %v ── Internet", d.sites[i].Addrs[0], site.WAN)
	}
	d.line("", "%s", d.paint(dim, "the routers masquerade, and drop what nobody inside asked for"))
	return nil
}

func (d *demo) nodes(ctx context.Context) error {
	addrs, err := d.lab.PublicAddrs(nodes)
	if err != nil {
		return err
	}
	if err := peer.Nodes(ctx, d.lab.Internet, d.bin, addrs...); err != nil {
		return err
	}
	d.held("", "omegatun node on %v to %v, port %d", addrs[0].Addr(), addrs[nodes-1].Addr(), addrs[0].Port())
	for i, name := range names {
		dir := filepath.Join("/run", name) // in the sandbox: gone with it
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		d.peers[i] = &peer.Peer{Net: d.sites[i].Host(), Bin: d.bin, Dir: dir, Bootstrap: addrs[0].String()}
	}
	return nil
}

func (d *demo) keys(context.Context) error {
	for i, name := range names {
		var err error
		p := d.peers[i]
		if d.peers[i], err = peer.New(p.Net, p.Bin, p.Dir, p.Bootstrap); err != nil {
			return err
		}
		d.line(name, "%s", d.paint(bold, d.peers[i].Key))
		d.line("", "%v  %v", d.peers[i].IPv6, d.peers[i].IPv4)
	}
	return nil
}

// other returns the index of the other host.
func other(i int) int { return 1 - i }

// each runs f for both hosts at once.
func each(f func(i int) error) error {
	var (
		wg   sync.WaitGroup
		errs [2]error
	)
	for i := range names {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (d *demo) up(ctx context.Context) error {
	for i, name := range names {
		var err error
		d.ups[i], err = d.peers[i].Up(func(e peer.Event) { d.event(name, e) }, d.peers[other(i)].Key)
		if err != nil {
			return err
		}
	}
	limit, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("not connected within 15 s"))
	defer cancel()
	var first [2]time.Duration
	err := each(func(i int) error {
		limit, cancel := d.ups[i].Context(limit)
		defer cancel()
		at, err := peer.FirstReply(limit, d.peers[i].Net, d.peers[other(i)].IPv6)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, d.ups[i].Output())
		}
		first[i] = at.Sub(d.ups[i].Started)
		return nil
	})
	if err != nil {
		return err
	}
	for i, name := range names {
		if _, err := d.ups[i].WaitFor(limit, func(e peer.Event) bool { return e.Connected(d.peers[other(i)].Key) }); err != nil {
			return err
		}
		if first[i] > replyLimit {
			return fmt.Errorf("%s: first reply after %v, want at most %v", name, first[i], replyLimit)
		}
		d.held(name, "first reply from %s %s after up", names[other(i)], d.paint(bold, millis(first[i])))
	}
	return nil
}

// event tells what a daemon reports.
func (d *demo) event(name string, e peer.Event) {
	d.eventMu.Lock()
	defer d.eventMu.Unlock()
	switch {
	case e.Event == "interface":
		d.line(name, "interface %s, MTU %d", e.Name, e.MTU)
	case e.Event == "listening":
		d.line(name, "announced in the DHT: whoever knows the key can ask for it")
	case e.Event == "peer" && e.State == "connected" && d.connected[name]:
		d.line(name, "both called at once; of the two sessions one stays, on a %s path to %s", e.Path, d.paint(bold, e.Remote))
	case e.Event == "peer" && e.State == "connected":
		d.connected[name] = true
		d.line(name, "found in the DHT by its key, connected: %s path to %s, in %.0f ms", e.Path, d.paint(bold, e.Remote), e.MS)
	case e.Event == "peer" && e.State == "failed":
		d.line(name, "%s; tries again", e.Reason) // the other was not there yet
	case e.Event == "down":
		d.line(name, "down")
	}
}

func (d *demo) ping(ctx context.Context) error {
	p := d.peers[1]
	for _, addr := range []netip.Addr{p.IPv6, p.IPv4} {
		out, err := d.peers[0].Net.Output("ping", "-n", "-c", "10", "-i", "0.05", "-W", "1", addr.String())
		if err != nil {
			return err
		}
		received, rtt := "", ""
		for line := range strings.Lines(out) {
			if strings.Contains(line, "received") {
				fields := strings.Split(line, ", ")
				received = strings.Join(fields[:min(3, len(fields))], ", ")
			}
			if _, after, ok := strings.Cut(line, "rtt min/avg/max/mdev = "); ok {
				rtt = strings.TrimSpace(after)
			}
		}
		if !strings.Contains(received, " 0% packet loss") {
			return fmt.Errorf("ping %v: %s", addr, received)
		}
		d.held("a", "ping %v: %s", addr, received)
		d.line("", "min/avg/max/mdev %s", rtt)
	}
	return ctx.Err()
}

func (d *demo) session(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("session not over within 20 s"))
	defer cancel()
	addr := netip.AddrPortFrom(d.peers[1].IPv6, 2222)
	stats, err := peer.Session(ctx, d.peers[1].Net, addr, d.peers[0].Net, 200, 5*time.Millisecond)
	if err != nil {
		return err
	}
	d.held("a", "one connection to %v", addr)
	d.line("", "%d keys typed and echoed, median %s, slowest %s; %d lines from b in between",
		stats.Keys, millis(stats.Median), millis(stats.Most), stats.Lines)
	return nil
}

func (d *demo) download(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not over within 30 s"))
	defer cancel()
	addr := netip.AddrPortFrom(d.peers[0].IPv6, 8080)
	stop, err := peer.ServeHTTP(d.peers[0].Net, addr)
	if err != nil {
		return err
	}
	defer stop()
	url := fmt.Sprintf("http://%v/%d", addr, downloadSize)
	want := make(chan string, 1)
	size, sum, took, err := peer.Download(ctx, d.peers[1].Net, url)
	if err != nil {
		return err
	}
	go func() { want <- peer.Sum(7, downloadSize) }() // after the download: it would take its processor time
	if want := <-want; size != downloadSize || sum != want {
		return fmt.Errorf("curl %s: %d bytes with checksum %s, want %d with %s", url, size, sum, downloadSize, want)
	}
	d.held("b", "curl %s", url)
	d.line("", "%s in %.2f s: %s; SHA-256 %s… is right", amount(size), took.Seconds(),
		d.paint(bold, fmt.Sprintf("%.0f Mbit/s", float64(size)*8/1e6/took.Seconds())), sum[:16])
	return nil
}

// wire shows from the Internet's own counters that the path was direct.
func (d *demo) wire(context.Context) error {
	flows, err := d.lab.Flows()
	if err != nil {
		return err
	}
	atNodes, err := d.lab.NodeBytes()
	if err != nil {
		return err
	}
	for i, name := range names {
		var most netlab.Flow
		for _, f := range flows {
			if f.From.Addr() == d.sites[i].WAN && f.To.Addr() == d.sites[other(i)].WAN && f.Bytes > most.Bytes {
				most = f
			}
		}
		if i == 0 && most.Bytes < downloadSize {
			return fmt.Errorf("only %s went directly from %s to %s", amount(most.Bytes), name, names[other(i)])
		}
		d.line(name, "%v → %v  %s", most.From, most.To, d.paint(bold, amount(most.Bytes)))
	}
	d.held("", "directly between the two routers; %s to and from the DHT nodes", amount(atNodes))
	return nil
}

// openShell lets the user look around on host a.
func (d *demo) openShell(ctx context.Context) error {
	if !d.shell {
		return nil
	}
	d.title("A shell on host a; b is $B and $B4; exit ends the demo")
	cmd := exec.CommandContext(ctx, "bash", "--norc", "-i")
	cmd.Env = append(os.Environ(), `PS1=a:\w\$ `, "B="+d.peers[1].IPv6.String(), "B4="+d.peers[1].IPv4.String())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := d.peers[0].Net.Do(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			return err
		}
	}
	return ctx.Err()
}

func (d *demo) down(context.Context) error {
	err := each(func(i int) error {
		code, err := d.ups[i].Stop(5 * time.Second)
		if err == nil && code != 0 && code != 130 {
			err = fmt.Errorf("%s: exit status %d:\n%s", d.ups[i].Name, code, d.ups[i].Output())
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, name := range names {
		after, err := d.sites[i].Host().Snapshot()
		if err != nil {
			return err
		}
		if after != d.before[i] {
			return fmt.Errorf("%s is not as it was before.\nBefore:\n%s\nAfter:\n%s", name, d.before[i], after)
		}
	}
	d.held("", "addresses, routes, rules and packet filters of both hosts are as they were before")
	return nil
}
