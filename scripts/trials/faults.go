//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// fault is something that happens to a tunnel between a and b.
type fault struct {
	name, about string
	limit       time.Duration
	bed         bedConfig
	traffic     traffic
	// do lets it happen and returns how long nothing came through.
	do func(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error
}

// outcome is what became of one try.
type outcome struct {
	GapMS   float64            `json:"gap_ms"`
	Further map[string]float64 `json:"further_ms,omitempty"`
	TCP     bool               `json:"tcp_survived"`
	// TCPGapMS is the longest time without a byte of the transfer: TCP waits longer and longer between its attempts.
	TCPGapMS float64 `json:"tcp_gap_ms,omitempty"`
	TCPError string  `json:"tcp_error,omitempty"`
	StallMS  float64 `json:"lab_stall_ms"` // the longest that the lab itself stood still: the machine was busy
	Message  string  `json:"message,omitempty"`
	Path     string  `json:"path,omitempty"` // at the end
}

const (
	settled = 4 * time.Second  // after connecting: keys have been replaced, candidates probed
	quiet   = 12 * time.Second // how long to watch after a fault that is not expected to last
	patient = 60 * time.Second // how long to wait for a tunnel to come back
)

// longer returns d, or the full length if that was asked for.
func (c *config) longer(d, full time.Duration) time.Duration {
	if c.long {
		return full
	}
	return d
}

// sudden is a fault that happens at once: the longest gap after it is measured.
func sudden(f func(b *bed) error) func(context.Context, *config, *bed, *monitor, *outcome) error {
	return func(ctx context.Context, _ *config, b *bed, m *monitor, o *outcome) error {
		at := time.Now()
		m.counts(at)
		if err := f(b); err != nil {
			return err
		}
		if err := pause(ctx, quiet/2); err != nil {
			return err
		}
		limit, cancel := context.WithTimeoutCause(ctx, patient, errors.New("within a minute"))
		defer cancel()
		if _, err := m.wait(limit, time.Now()); err != nil {
			return err
		}
		if err := pause(ctx, quiet/2); err != nil {
			return err
		}
		o.GapMS = msOf(m.gap(at))
		return nil
	}
}

// healed waits for the first datagram after something has been healed.
func healed(ctx context.Context, m *monitor, o *outcome) error {
	limit, cancel := context.WithTimeoutCause(ctx, 2*patient, errors.New("within two minutes"))
	defer cancel()
	at := time.Now()
	m.counts(at)
	took, err := m.wait(limit, at)
	o.GapMS = msOf(took)
	return err
}

var rebind = sudden(func(b *bed) error { return b.places[0].forget() })

func newAddress(b *bed, i int) error {
	return b.places[i].outer.Renumber(netip.AddrFrom4([4]byte{192, 88, 99, 111 + byte(i)}))
}

// direct lets datagrams pass directly between the two sites, or not.
func direct(b *bed, pass bool) error {
	if pass {
		return b.lab.Internet.Run("nft", "delete", "table", "inet", "wall")
	}
	x, y := b.places[0].outer.WAN, b.places[1].outer.WAN
	return b.lab.Internet.Input(fmt.Sprintf(`table inet wall {
  chain forward {
    type filter hook forward priority -10
    ip saddr %[1]v ip daddr %[2]v drop
    ip saddr %[2]v ip daddr %[1]v drop
  }
}
`, x, y), "nft", "-f", "-")
}

// faults are all there are.
var faults = []fault{
	{"rebind", "a's router forgets its flows, and gives a the same port again", time.Second, bedConfig{}, pings, rebind},
	{"rebind-we-send", "a's router forgets its flows, and gives a another port; only a sends", time.Second, bedConfig{
		profiles: [2]string{"eim-random", "open"},
	}, fromA, rebind},
	{"rebind-peer-sends", "a's router forgets its flows, and gives a another port; only b sends", 5 * time.Second, bedConfig{
		profiles: [2]string{"eim-random", "open"},
	}, fromB, rebind},
	{"rebind-filtered", "a's router forgets its flows, and gives a another port, which b's router does not let in", 5 * time.Second, bedConfig{
		profiles: [2]string{"eim-random", "home"},
	}, pings, rebind},
	{"new-address", "a's router gets another public address", 3 * time.Second, bedConfig{}, pings, sudden(func(b *bed) error { return newAddress(b, 0) })},
	{"interface-swap", "a changes to another network and interface", 3 * time.Second, bedConfig{}, pings, swap},
	{"both-new-address", "both routers get other public addresses at once", 15 * time.Second, bedConfig{}, pings, sudden(func(b *bed) error {
		return errors.Join(newAddress(b, 0), newAddress(b, 1))
	})},
	{"relay-killed", "the relay in use is killed; there is another, and no direct path", 8 * time.Second, bedConfig{
		profiles: [2]string{"sym-random", "sym-random"}, relays: 2,
	}, pings, sudden(killRelay)},
	{"direct-cut", "the direct path is cut; there is a relay", 5 * time.Second, bedConfig{relays: 1}, pings, cutDirect},
	{"dht-killed", "all DHT nodes are killed", 250 * time.Millisecond, bedConfig{}, pings, func(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error {
		at := time.Now()
		m.counts(at)
		b.nodes.Kill()
		if err := pause(ctx, c.longer(30*time.Second, 5*time.Minute)); err != nil {
			return err
		}
		o.GapMS = msOf(m.gap(at))
		return nil
	}},
	{"peer-restart", "b's daemon is restarted; counted from when it is ready", 2 * time.Second, bedConfig{}, pings, restartPeer},
	{"peer-killed", "b's daemon is killed and started again; counted from when it is ready", 2 * time.Second, bedConfig{}, pings, killPeer},
	{"partition", "a is cut off for a minute; counted from healing", 5 * time.Second, bedConfig{}, pings, func(ctx context.Context, _ *config, b *bed, m *monitor, o *outcome) error {
		b.places[0].outer.Link.Set(netlab.Impairment{Down: true})
		if err := pause(ctx, time.Minute); err != nil {
			return err
		}
		b.places[0].outer.Link.Set(*b.places[0].outer.NAT.Link)
		return healed(ctx, m, o)
	}},
	{"asleep", "a's daemon is stopped (10 min with --long); counted from when it goes on", 3 * time.Second, bedConfig{}, pings, func(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error {
		return sleep(ctx, c, m, o, b.ups[0])
	}},
	{"both-asleep", "both daemons are stopped (10 min with --long); counted from when they go on", 3 * time.Second, bedConfig{}, pings, func(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error {
		return sleep(ctx, c, m, o, b.ups[:]...)
	}},
	{"idle", "mappings live for 30 s, nothing is said for long (10 min with --long); the first ping", 0, bedConfig{}, silent, idlePing},
}

// sleep stops daemons for long.
func sleep(ctx context.Context, c *config, m *monitor, o *outcome, ups ...*peer.Up) error {
	for _, u := range ups {
		u.Signal(unix.SIGSTOP)
	}
	err := pause(ctx, c.longer(45*time.Second, 10*time.Minute))
	for _, u := range ups {
		u.Signal(unix.SIGCONT)
	}
	if err != nil {
		return err
	}
	return healed(ctx, m, o)
}

// swap moves a to another home, as from Ethernet to a phone's network.
func swap(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error {
	other, err := b.lab.Site("x", netlab.NAT{
		WAN: netip.AddrFrom4([4]byte{192, 88, 99, 121}), LAN: netip.MustParsePrefix("192.168.77.0/24"),
		Link: &netlab.Impairment{Delay: c.delay}, Hosts: -1,
	})
	if err != nil {
		return err
	}
	a := b.places[0].host
	return sudden(func(*bed) error {
		if err := a.Run("ip", "link", "set", "eth0", "down"); err != nil {
			return err
		}
		return other.Plug(a, "eth1", netip.MustParseAddr("192.168.77.30"))
	})(ctx, c, b, m, o)
}

// killRelay kills the relay that a uses.
func killRelay(b *bed) error {
	kind, remote, err := b.path(0)
	if err != nil {
		return err
	}
	if kind != "relay" {
		return fmt.Errorf("the path is %s, want relay", kind)
	}
	for _, r := range b.relays {
		if strings.HasPrefix(remote, r.addr.String()+":") {
			r.up.Kill()
			return nil
		}
	}
	return fmt.Errorf("there is no relay at %s", remote)
}

// cutDirect cuts the direct path, and heals it again.
func cutDirect(ctx context.Context, _ *config, b *bed, m *monitor, o *outcome) error {
	limit, cancel := context.WithTimeoutCause(ctx, 3*patient, errors.New("within three minutes"))
	defer cancel()
	if _, err := b.waitPath(limit, 0, "direct"); err != nil {
		return err
	}
	at := time.Now()
	m.counts(at)
	if err := direct(b, false); err != nil {
		return err
	}
	relayed, err := b.waitPath(limit, 0, "relay")
	if err != nil {
		return err
	}
	if err := pause(ctx, quiet); err != nil {
		return err
	}
	o.GapMS = msOf(m.gap(at))
	o.Further = map[string]float64{"relayed": msOf(relayed.Sub(at))}
	at = time.Now()
	if err := direct(b, true); err != nil {
		return err
	}
	back, err := b.waitPath(limit, 0, "direct")
	if err != nil {
		return err
	}
	o.Further["back"] = msOf(back.Sub(at))
	return nil
}

// restartPeer ends b's daemon in order and starts it again.
func restartPeer(ctx context.Context, _ *config, b *bed, m *monitor, o *outcome) error {
	if _, err := b.ups[1].Stop(10 * time.Second); err != nil {
		return err
	}
	return startPeer(ctx, b, m, o)
}

// killPeer ends b's daemon without a word and starts it again.
func killPeer(ctx context.Context, _ *config, b *bed, m *monitor, o *outcome) error {
	b.ups[1].Kill()
	return startPeer(ctx, b, m, o)
}

func startPeer(ctx context.Context, b *bed, m *monitor, o *outcome) error {
	start := time.Now()
	u, err := b.peers[1].Up(nil, b.args[1]...)
	if err != nil {
		return err
	}
	b.ups[1] = u
	limit, cancel := context.WithTimeoutCause(ctx, 2*patient, errors.New("within two minutes"))
	defer cancel()
	ready, err := u.WaitFor(limit, func(e peer.Event) bool { return e.Event == "listening" })
	if err != nil {
		return err
	}
	m.counts(ready.At)
	took, err := m.wait(limit, start)
	if err != nil {
		return err
	}
	o.GapMS = msOf(max(0, start.Add(took).Sub(ready.At)))
	o.Further = map[string]float64{"since start": msOf(took)}
	return nil
}

// idlePing lets the tunnel be, and then measures the first ping.
func idlePing(ctx context.Context, c *config, b *bed, m *monitor, o *outcome) error {
	for _, p := range b.places {
		if err := p.outer.Lifetime(30 * time.Second); err != nil {
			return err
		}
	}
	if err := pause(ctx, c.longer(100*time.Second, 10*time.Minute)); err != nil {
		return err
	}
	m.wg.Go(func() { m.reflect(m.socks[1]) })
	m.wg.Go(func() { m.note(m.socks[0]) })
	start := time.Now()
	inner, cancel := context.WithTimeoutCause(ctx, patient, errors.New("within a minute"))
	defer cancel()
	m.wg.Go(func() { m.send(inner, m.socks[0], b.peers[1].IPv6) })
	took, err := m.wait(inner, start)
	o.GapMS = msOf(took)
	return err
}

// faultRow is a fault and what it did, each time.
type faultRow struct {
	Fault   string    `json:"fault"`
	About   string    `json:"about"`
	LimitMS float64   `json:"limit_ms"`
	Tries   []outcome `json:"tries"`
}

// runFaults lets every fault happen, several at a time, each in a lab of its own.
func (c *config) runFaults(ctx context.Context, w *output) error {
	chosen, err := choose(faults, c.only, "fault", func(f fault) string { return f.name })
	if err != nil {
		return err
	}
	var rows []faultRow
	for _, f := range chosen {
		rows = append(rows, faultRow{f.name, f.about, msOf(cmp.Or(f.limit, 2*4*c.delay)), make([]outcome, c.tries)})
	}
	err = c.parallel(ctx, len(chosen)*c.tries, func(i int, prefix string) error {
		f, try := chosen[i/c.tries], i%c.tries
		o := &rows[i/c.tries].Tries[try]
		if err := c.fault(ctx, f, prefix, filepath.Join("/run", fmt.Sprintf("%s-%d", f.name, try)), o); err != nil {
			o.Message = err.Error()
		}
		fmt.Fprintf(os.Stderr, "%-18s %8.0f ms  TCP %v %s  %s %v (lab stood still for %.0f ms) %s\n", f.name, o.GapMS, o.TCP, o.TCPError, o.Path,
			o.Further, o.StallMS, shorten(o.Message, 2000))
		return nil
	})
	if err != nil {
		return err
	}
	if rows, err = merge(w, "faults", rows, func(a, b faultRow) bool { return a.Fault == b.Fault }); err != nil {
		return err
	}
	order := func(r faultRow) int { return slices.IndexFunc(faults, func(f fault) bool { return f.name == r.Fault }) }
	slices.SortStableFunc(rows, func(a, b faultRow) int { return order(a) - order(b) })
	t := newTable("fault", "longest gap", "limit", "TCP survived", "its gap", "further", "what happens")
	for _, r := range rows {
		var worst, gap float64
		survived, failed := 0, ""
		further := map[string]float64{}
		for _, o := range r.Tries {
			worst, gap = max(worst, o.GapMS), max(gap, o.TCPGapMS)
			for k, v := range o.Further {
				further[k] = max(further[k], v)
			}
			if o.TCP {
				survived++
			}
			if o.Message != "" {
				failed = o.Message
			}
		}
		var more []string
		for k, v := range further {
			more = append(more, k+" "+ms(v))
		}
		slices.Sort(more)
		g := goal{r.Fault, "≤ " + ms(r.LimitMS), ms(worst), failed == "" && worst <= r.LimitMS && survived == len(r.Tries)}
		if back, ok := further["back"]; ok && back > 60_000 {
			g.OK = false
		}
		if failed != "" {
			g.Got = shorten(strings.SplitN(failed, "\n", 2)[0], 60)
		} else if survived < len(r.Tries) {
			g.Got += ", TCP lost"
		}
		w.goal(g)
		t.add(r.Fault, g.Got, ms(r.LimitMS), fmt.Sprintf("%d/%d", survived, len(r.Tries)), ms(gap), strings.Join(more, ", "), r.About)
	}
	w.add("faults", "Faults, with a datagram every 50 ms and a TCP transfer through the tunnel", rows, t)
	return nil
}

// fault builds a tunnel and lets one fault happen to it.
func (c *config) fault(ctx context.Context, f fault, prefix, dir string, o *outcome) (err error) {
	f.bed.settle = settled
	b, err := c.newBed(ctx, prefix, dir, f.bed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	m, err := b.watch(ctx, f.traffic)
	if err != nil {
		return err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		m.stop()
		return err
	}
	err = f.do(ctx, c, b, m, o)
	if err != nil {
		for i, u := range b.ups {
			err = errors.Join(err, fmt.Errorf("%s:\n%s", number(i).name(), u.Output()))
		}
		m.stop()
		return err
	}
	m.mu.Lock()
	o.StallMS = msOf(m.stall)
	m.mu.Unlock()
	m.finish(ctx, o)
	o.Path, _, _ = b.path(0)
	if c.verbose || !o.TCP || f.limit > 0 && o.GapMS > msOf(f.limit) {
		for i, u := range b.ups {
			fmt.Fprintf(os.Stderr, "%s, %s:\n%s\n", f.name, number(i).name(), u.Output())
		}
	}
	return nil
}
