//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
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

// MarshalJSON summarizes the tries, whose times it lists, and adds what is known about those that failed.
func (r result) MarshalJSON() ([]byte, error) {
	type failure struct {
		Message string   `json:"message"`
		NATs    []string `json:"nats,omitempty"`
		Steps   []string `json:"steps,omitempty"`
	}
	o := struct {
		Server     string    `json:"server"`
		Client     string    `json:"client,omitempty"`
		ServerImpl string    `json:"server_impl"`
		ClientImpl string    `json:"client_impl"`
		Relay      bool      `json:"relay"`
		Want       string    `json:"want"`
		Tries      int       `json:"tries"`
		Connected  int       `json:"connected"`
		Paths      string    `json:"paths"`
		Median     float64   `json:"median_ms"`
		P95        float64   `json:"p95_ms"`
		Packets    float64   `json:"packets_median"`
		MS         []float64 `json:"ms"`
		Direct     []float64 `json:"direct_ms,omitempty"`
		EchoMS     []float64 `json:"echo_ms,omitempty"`
		Switches   int       `json:"switches,omitempty"`
		Watched    float64   `json:"watched_ms,omitempty"`
		Failures   []failure `json:"failures,omitempty"`
	}{
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
		if !t.OK {
			o.Failures = append(o.Failures, failure{t.Message, t.NATs, t.Steps})
		}
	}
	return json.Marshal(o)
}

// rounded returns whole milliseconds.
func rounded(v []float64) []float64 {
	for i := range v {
		v[i] = math.Round(v[i])
	}
	return v
}

// report prints the matrix as tables, one line a pair and one square a pair of implementations, and the goals.
func (c *config) report(w *output, results []result) {
	t := newTable("server", "client", "programs", "connected", "path", "median ms", "p95 ms", "direct", "median ms", "p90 ms", "packets", "why not")
	for _, r := range results {
		median, p95 := times(r.values(timeOf))
		d := r.values(directOf)
		direct, dm, dp := "", "", ""
		if relayed := len(r.values(func(t try) float64 {
			if t.Path == "relay" {
				return 1
			}
			return 0
		})); relayed > 0 {
			direct = fmt.Sprintf("%d/%d", len(d), relayed)
			if len(d) > 0 {
				m, _ := quantile(d, 0.5)
				q, _ := quantile(d, 0.9)
				dm, dp = fmt.Sprintf("%.0f", m), fmt.Sprintf("%.0f", q)
			}
		}
		packets, _ := quantile(r.values(func(t try) float64 { return float64(t.Packets) }), 0.5)
		why := ""
		for _, t := range r.Tries {
			if !t.OK {
				why = t.Message
			}
		}
		t.add(r.Server, r.Client, r.ClientImpl+" → "+r.ServerImpl, fmt.Sprintf("%d/%d", r.connected(), len(r.Tries)), r.paths(), median, p95,
			direct, dm, dp, fmt.Sprintf("%.0f", packets), shorten(why, 60))
	}
	w.parts["rtt_ms"], w.parts["relay_offered"] = 4*msOf(c.delay), c.relay
	w.add("matrix", fmt.Sprintf("NAT matrix, %.0f ms between peers, %d tries", 4*msOf(c.delay), c.tries), results, t)
	c.goals(w, results)
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// goals compares the tries between omegatuns with what is to be reached at 60 ms between peers.
func (c *config) goals(w *output, results []result) {
	var openT, consT, mixRelay, mixDirect, relayed []float64
	var openN, consN, mixN, relayN, failed, tries, lost int
	gather := func(r result, v *[]float64, n *int, f func(try) float64) {
		*v = append(*v, r.values(f)...)
		*n += len(r.Tries)
	}
	for _, r := range results {
		if r.ServerImpl != "go" || r.ClientImpl != "go" {
			continue
		}
		if r.Want != "none" {
			failed += len(r.Tries) - r.connected()
			tries += len(r.Tries)
		}
		for _, t := range r.Tries {
			if t.Path == "relay" && t.EchoMS == 0 {
				lost++
			}
		}
		has := func(k class) bool { return slices.Contains(r.classes[:], k) }
		switch {
		case has(open):
			gather(r, &openT, &openN, timeOf)
		case has(random) && has(consistent):
			gather(r, &mixRelay, &mixN, timeOf)
			for _, t := range r.Tries {
				if t.OK && t.Direct > 0 {
					mixDirect = append(mixDirect, t.Direct)
				} else if t.OK && t.Path == "direct" {
					mixDirect = append(mixDirect, t.MS)
				} else {
					mixDirect = append(mixDirect, 1e9) // never, within the time that was given
				}
			}
		case has(random), r.Want == "relay":
			gather(r, &relayed, &relayN, timeOf)
		case has(consistent):
			gather(r, &consT, &consN, timeOf)
		}
	}
	median := func(name string, limit float64, v []float64, q float64) {
		if len(v) > 0 {
			got, _ := quantile(v, q)
			w.atMost(name, limit, got, got < 1e9)
		}
	}
	median("open pairs, median", 150, openT, 0.5)
	median("consistent pairs, median", 220, consT, 0.5)
	if c.relay {
		median("random and consistent: usable, median", 350, mixRelay, 0.5)
		median("random and consistent: usable, p95", 350, mixRelay, 0.95)
	}
	median("random and consistent: direct, median", 2000, mixDirect, 0.5)
	median("random and consistent: direct, p90", 6000, mixDirect, 0.9)
	if c.relay {
		median("no direct path possible: relayed, median", 350, relayed, 0.5)
		median("no direct path possible: relayed, p95", 350, relayed, 0.95)
		w.goal(goal{"first packet lost on a relayed path", "0", fmt.Sprint(lost), lost == 0})
		w.goal(goal{"failures", "0", fmt.Sprintf("%d of %d", failed, tries), failed == 0})
	}
}
