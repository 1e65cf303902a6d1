//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// values returns f of every try that connected and for which f is set.
func (r result) values(f func(try) float64) []float64 {
	var v []float64
	for _, t := range r.Tries {
		if x := f(t); t.OK && x > 0 {
			v = append(v, x)
		}
	}
	return v
}

func (r result) connected() int {
	n := 0
	for _, t := range r.Tries {
		if t.OK {
			n++
		}
	}
	return n
}

func timeOf(t try) float64   { return t.MS }
func directOf(t try) float64 { return t.Direct }

// paths counts the first paths, most frequent first: "direct", or "relay 15, direct 5".
func (r result) paths() string {
	count := map[string]int{}
	var names []string
	for _, t := range r.Tries {
		if !t.OK {
			continue
		}
		if count[t.Path]++; count[t.Path] == 1 {
			names = append(names, t.Path)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return count[b] - count[a] })
	if len(names) == 1 {
		return names[0]
	}
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, count[n])
	}
	return strings.Join(names, ", ")
}

// times returns median and p95 in milliseconds, "–" without any.
func times(v []float64) (median, p95 string) {
	m, ok := quantile(v, 0.5)
	if !ok {
		return "–", "–"
	}
	q, _ := quantile(v, 0.95)
	return fmt.Sprintf("%.0f", m), fmt.Sprintf("%.0f", q)
}

// String returns the result in a line.
func (r result) String() string {
	median, p95 := times(r.values(timeOf))
	s := fmt.Sprintf("%d/%d  %s  median %s, p95 %s ms", r.connected(), len(r.Tries), r.paths(), median, p95)
	if d := r.values(directOf); len(d) > 0 {
		m, _ := quantile(d, 0.5)
		s += fmt.Sprintf("; direct %d, median %.0f ms", len(d), m)
	}
	for _, t := range r.Tries {
		if !t.OK {
			return s + "; " + t.Message
		}
	}
	return s
}

// row is a result as it is stored: what two programs in two places did, in numbers. Rows of several runs may be put together.
type row struct {
	Server     string    `json:"server"`
	Client     string    `json:"client,omitempty"`
	ServerImpl string    `json:"server_impl"`
	ClientImpl string    `json:"client_impl"`
	Relay      bool      `json:"relay"` // one was offered
	Want       string    `json:"want"`
	Tries      int       `json:"tries"`
	Connected  int       `json:"connected"`
	Paths      string    `json:"paths"`
	Relayed    int       `json:"relayed,omitempty"` // tries that began so
	Lost       int       `json:"first_packets_lost,omitempty"`
	Median     float64   `json:"median_ms"`
	P95        float64   `json:"p95_ms"`
	Packets    float64   `json:"packets_median"`
	MS         []float64 `json:"ms"`
	Direct     []float64 `json:"direct_ms,omitempty"`         // of those that began relayed
	AtOnce     []float64 `json:"direct_at_once_ms,omitempty"` // where only some began relayed: of those that did not
	EchoMS     []float64 `json:"echo_ms,omitempty"`
	Switches   int       `json:"switches,omitempty"`
	Watched    float64   `json:"watched_ms,omitempty"`
	Failures   []failure `json:"failures,omitempty"`
}

// failure is what is known about a try that did not connect.
type failure struct {
	Message string   `json:"message"`
	NATs    []string `json:"nats,omitempty"`
	Steps   []string `json:"steps,omitempty"`
}

// row summarizes the tries.
func (r result) row() row {
	o := row{
		Server: r.Server, Client: r.Client, ServerImpl: r.ServerImpl, ClientImpl: r.ClientImpl, Relay: r.Relay, Want: r.Want,
		Tries: len(r.Tries), Connected: r.connected(), Paths: r.paths(),
		MS: rounded(r.values(timeOf)), Direct: rounded(r.values(directOf)),
		EchoMS: rounded(r.values(func(t try) float64 { return t.EchoMS })),
	}
	median, _ := quantile(r.values(timeOf), 0.5)
	p95, _ := quantile(r.values(timeOf), 0.95)
	o.Median, o.P95 = math.Round(median), math.Round(p95)
	o.Packets, _ = quantile(r.values(func(t try) float64 { return float64(t.Packets) }), 0.5)
	for _, t := range r.Tries {
		o.Switches += t.Switches
		o.Watched += math.Round(t.Watched)
		switch {
		case t.Path == "relay" && t.EchoMS == 0:
			o.Lost++
		case !t.OK:
		case t.Path == "relay":
			o.Relayed++
		default:
			o.AtOnce = append(o.AtOnce, math.Round(t.MS))
		}
		if !t.OK {
			o.Failures = append(o.Failures, failure{t.Message, t.NATs, t.Steps})
		}
	}
	if o.Relayed == 0 {
		o.AtOnce = nil
	}
	return o
}

// programs names client and server, as tables do.
func (r row) programs() string { return r.ClientImpl + " → " + r.ServerImpl }

// name is the pair's.
func (r row) name() string {
	if r.Client == "" {
		return r.Server
	}
	return r.Server + ":" + r.Client
}

// same reports whether two rows are of the same places and programs.
func (r row) same(o row) bool { return r.name() == o.name() && r.programs() == o.programs() }

// why is what the last failure said.
func (r row) why() string {
	if len(r.Failures) == 0 {
		return ""
	}
	return r.Failures[len(r.Failures)-1].Message
}

// untilDirect returns the times until a direct path was there, whether or not there was a relayed one before it; never counts
// as endless.
func (r row) untilDirect() []float64 {
	v := r.AtOnce
	if r.Relayed == 0 {
		v = r.MS
	}
	v = append(slices.Clone(v), r.Direct...)
	for len(v) < r.Tries {
		v = append(v, endless)
	}
	return v
}

// endless is a time, in milliseconds, for what never happened while it was waited for.
const endless = 1e9

// rounded returns whole milliseconds.
func rounded(v []float64) []float64 {
	for i := range v {
		v[i] = math.Round(v[i])
	}
	return v
}

// kind is what is expected of a pair between omegatuns.
type kind int

const (
	openPair       kind = iota // one side needs no punching
	consistentPair             // punched by addresses that are known
	mixedPair                  // relayed at first: the port of one side must be guessed, or foretold
	relayedPair                // never direct
	mutePair                   // never connected
)

func (p pair) kind() kind {
	has := func(k class) bool { return slices.Contains(p.classes[:], k) }
	switch {
	case p.want == "none":
		return mutePair
	case p.want == "relay":
		return relayedPair
	case has(open):
		return openPair
	case has(random):
		return mixedPair
	default:
		return consistentPair
	}
}

// limit is a goal: a quantile of times in milliseconds that is not to be exceeded, at 60 ms between peers.
type limit struct {
	of    kind
	what  string
	q     float64
	ms    float64
	times func(row) []float64
	relay bool // only if one was offered
}

func allTimes(r row) []float64 { return r.MS }

// limits are the goals for each pair, and for all of a kind together.
var limits = []limit{
	{openPair, "median", 0.5, 150, allTimes, false},
	{consistentPair, "median", 0.5, 220, allTimes, false},
	{mixedPair, "usable, median", 0.5, 350, allTimes, true},
	{mixedPair, "usable, p95", 0.95, 350, allTimes, true},
	{mixedPair, "direct, median", 0.5, 2000, row.untilDirect, false},
	{mixedPair, "direct, p90", 0.9, 6000, row.untilDirect, false},
	{relayedPair, "all", 1, 350, allTimes, true},
}

var kindNames = map[kind]string{
	openPair: "open pairs", consistentPair: "consistent pairs", mixedPair: "random and consistent", relayedPair: "no direct path possible: relayed",
}

// goalDelay is the delay of each access link for which the limits are.
const goalDelay = 15 * time.Millisecond

// missed names the goals that a row between omegatuns misses.
func (c *config) missed(p pair, r row) (all []string) {
	miss := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	k := p.kind()
	if k == mutePair {
		if n := len(r.Failures); r.Connected > 0 || n < r.Tries {
			miss("connected")
		}
		return all
	}
	if r.Connected < r.Tries && (c.relay || k != relayedPair) {
		miss("%d failed", r.Tries-r.Connected)
	}
	if r.Lost > 0 {
		miss("%d first packets lost", r.Lost)
	}
	if p.want == "lan" && r.Paths != "lan" {
		miss("not on the LAN")
	}
	if indirect := r.Relayed - len(r.Direct); (k == openPair || k == consistentPair) && indirect > 0 {
		miss("%d stayed relayed", indirect)
	}
	for _, l := range limits {
		if l.of != k || l.relay && !c.relay || c.delay != goalDelay || r.Connected < r.Tries {
			continue
		}
		if got, ok := quantile(l.times(r), l.q); ok && got > l.ms {
			miss("%s > %s", l.what, ms(l.ms))
		}
	}
	return all
}

// report prints the matrix as a table, one line a pair, and the goals.
func (c *config) report(w *output, rows []row, pairs []pair) {
	t := newTable("server", "client", "programs", "connected", "path", "median ms", "p95 ms", "direct", "median ms", "p90 ms", "packets", "missed", "why not")
	all := map[kind][]row{}
	failed, lost, tries, missing, ours := 0, 0, 0, 0, 0
	for _, r := range rows {
		median, p95 := times(r.MS)
		direct, dm, dp := "", "", ""
		if r.Relayed > 0 {
			direct = fmt.Sprintf("%d/%d", len(r.Direct), r.Relayed)
			if len(r.Direct) > 0 {
				m, _ := quantile(r.Direct, 0.5)
				q, _ := quantile(r.Direct, 0.9)
				dm, dp = fmt.Sprintf("%.0f", m), fmt.Sprintf("%.0f", q)
			}
		}
		var missed []string
		i := slices.IndexFunc(pairs, func(p pair) bool { return p.Server == r.Server && p.Client == r.Client })
		if r.programs() == "go → go" && i >= 0 {
			k := pairs[i].kind()
			all[k] = append(all[k], r)
			missed = c.missed(pairs[i], r)
			ours++
			if len(missed) > 0 {
				missing++
			}
			if k != mutePair {
				failed, lost, tries = failed+r.Tries-r.Connected, lost+r.Lost, tries+r.Tries
			}
		}
		t.add(r.Server, r.Client, r.programs(), fmt.Sprintf("%d/%d", r.Connected, r.Tries), r.Paths, median, p95,
			direct, dm, dp, fmt.Sprintf("%.0f", r.Packets), strings.Join(missed, ", "), shorten(r.why(), 60))
	}
	w.parts["rtt_ms"], w.parts["relay_offered"] = 4*msOf(c.delay), c.relay
	w.add("matrix", fmt.Sprintf("NAT matrix, %.0f ms between peers", 4*msOf(c.delay)), rows, t)
	if ours == 0 {
		return
	}
	for _, l := range limits {
		var v []float64
		for _, r := range all[l.of] {
			v = append(v, l.times(r)...)
		}
		if got, ok := quantile(v, l.q); ok && c.delay == goalDelay && (c.relay || !l.relay) {
			w.atMost(kindNames[l.of]+", "+l.what, l.ms, got, got < endless)
		}
	}
	if c.relay {
		w.goal(goal{"first packet lost on a relayed path", "0", fmt.Sprint(lost), lost == 0})
		w.goal(goal{"failures", "0", fmt.Sprintf("%d of %d", failed, tries), failed == 0})
	}
	w.goal(goal{"pairs that miss a goal", "0", fmt.Sprintf("%d of %d", missing, ours), missing == 0})
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
