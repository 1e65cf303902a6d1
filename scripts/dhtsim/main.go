// Command dhtsim runs whole DHT networks in memory under a clock that jumps, and measures how well servers are found:
// in networks of many sizes, after half of the nodes vanished, with nodes that lie, and with keys surrounded by
// Sybils. It prints a table, and writes the numbers and a picture of each curve:
//
//	go run ./scripts/dhtsim                          # 100, 1,000 and 10,000 nodes: some minutes, 2 GB
//	go run ./scripts/dhtsim -sizes 100,1000 -out ""  # quicker, and only the table
//	go run ./scripts/dhtsim -sizes 100000 -only quiet  # one more size: 5 GB, half an hour of CPU time; the rest is kept
//
// The nodes are those of package dht; only sockets and time are simulated. Datagrams take 10 to 90 ms and are not
// lost. Members are open, each in a network of 256 addresses of its own; servers and some of those who look for them
// are clients.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// plan says what is measured.
type plan struct {
	sizes     []int
	hard      int           // nodes in the network that suffers; 0: the largest but 10,000 at most
	servers   int           // looked for
	searches  int           // for each rate
	half      time.Duration // for how long half of the nodes are gone
	step      time.Duration // and how often there are searches then
	perStep   int
	besieged  int // keys surrounded
	seed      uint64
	parts     string
	announced func(format string, args ...any) // progress
}

// result is what was measured.
type result struct {
	Schema int          `json:"schema"`
	Sizes  []sizeResult `json:"sizes"`
	Hard   int          `json:"hard_nodes"`
	Halved []point      `json:"halved,omitempty"`
	Liars  *outcome     `json:"liars,omitempty"`
	Sybils *outcome     `json:"sybils,omitempty"`
}

type sizeResult struct {
	Nodes  int     `json:"nodes"`
	Log2   float64 `json:"log2"`
	KBytes float64 `json:"kib_per_node"` // of heap
	Idle   float64 `json:"idle_bytes_per_minute"`
	outcome
}

const (
	liarShare   = 0.3
	numbersFile = "dht-simulation.json"
)

func (p plan) run() result {
	r := result{Schema: 1, Hard: p.hard}
	has := func(part string) bool { return p.parts == "" || strings.Contains(p.parts, part) }
	for _, size := range p.sizes {
		if !has("quiet") {
			break
		}
		before := heapBytes()
		net := newNetwork(p.seed, size)
		p.announced("%d nodes: joined", size)
		s := sizeResult{Nodes: size, Log2: math.Log2(float64(size)), KBytes: (heapBytes() - before) / float64(size) / 1024}
		sent := net.bytes
		net.run(5*time.Minute, nil)
		s.Idle = float64(net.bytes-sent) / float64(size) / 5
		s.outcome = net.quiet(net.servers(p.servers), p.searches)
		p.announced("%d nodes: %+v", size, s.outcome)
		r.Sizes = append(r.Sizes, s)
	}
	if has("halved") {
		net := newNetwork(p.seed+1, p.hard)
		r.Halved = net.halved(net.servers(p.servers), p.perStep, p.step, p.half)
		p.announced("half gone: first %+v", r.Halved[0].outcome)
	}
	if has("liars") {
		net := newNetwork(p.seed+2, p.hard)
		net.corrupt(liarShare)
		net.run(5*time.Minute, nil)
		o := net.quiet(net.servers(p.servers*2), p.searches)
		r.Liars = &o
		p.announced("liars: %+v", o)
	}
	if has("sybils") {
		net := newNetwork(p.seed+3, p.hard)
		o := net.besieged(p.besieged, 4)
		r.Sybils = &o
		p.announced("Sybils: %+v", o)
	}
	return r
}

func heapBytes() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// during sums up the points from one time to another.
func during(points []point, from, to float64) (o outcome) {
	for _, p := range points {
		if p.Seconds >= from && p.Seconds < to {
			o.Searches += p.Searches
			o.Found += p.Found
		}
	}
	o.Rate = float64(o.Found) / float64(max(1, o.Searches))
	return o
}

// goal is a rate that is asked for, and what was measured.
type goal struct {
	name       string
	want, rate float64
	searches   int
}

func (r result) goals() (list []goal) {
	for _, s := range r.Sizes {
		list = append(list, goal{fmt.Sprintf("quiet, %d nodes", s.Nodes), 0.999, s.Rate, s.Searches})
	}
	if len(r.Halved) > 0 {
		first := during(r.Halved, 0, 60)
		list = append(list, goal{"half gone, first minute", 0.95, first.Rate, first.Searches})
		if later := during(r.Halved, 300, math.Inf(1)); later.Searches > 0 {
			list = append(list, goal{"half gone, after five", 0.99, later.Rate, later.Searches})
		}
	}
	if r.Liars != nil {
		list = append(list, goal{"30 % liars", 0.99, r.Liars.Rate, r.Liars.Searches})
	}
	if r.Sybils != nil {
		list = append(list, goal{"40 Sybils", 0.95, r.Sybils.Rate, r.Sybils.Searches})
	}
	return list
}

func (r result) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%8s %6s %6s %9s %9s %11s %9s %13s\n",
		"nodes", "log2", "hops", "requests", "first ms", "KiB / node", "found", "idle B / min")
	for _, s := range r.Sizes {
		fmt.Fprintf(&b, "%8d %6.2f %6.2f %9.1f %9.0f %11.1f %8.2f%% %13.0f\n",
			s.Nodes, s.Log2, s.Hops, s.Requests, s.First, s.KBytes, 100*s.Rate, s.Idle)
	}
	fmt.Fprintf(&b, "\n%-26s %9s %9s %9s\n", fmt.Sprintf("(of %d nodes)", r.Hard), "searches", "found", "goal")
	for _, g := range r.goals() {
		verdict := ""
		if g.rate < g.want {
			verdict = "  MISSED"
		}
		fmt.Fprintf(&b, "%-26s %9d %8.2f%% %8.1f%%%s\n", g.name, g.searches, 100*g.rate, 100*g.want, verdict)
	}
	return b.String()
}

// merge returns r with what it does not have from old, which was measured before.
func (r result) merge(old result) result {
	for _, s := range old.Sizes {
		if !slices.ContainsFunc(r.Sizes, func(o sizeResult) bool { return o.Nodes == s.Nodes }) {
			r.Sizes = append(r.Sizes, s)
		}
	}
	slices.SortFunc(r.Sizes, func(a, b sizeResult) int { return cmp.Compare(a.Nodes, b.Nodes) })
	if len(r.Halved) == 0 && r.Liars == nil && r.Sybils == nil {
		r.Hard = old.Hard
	}
	if r.Hard != old.Hard { // they would stand under the wrong number
		return r
	}
	if len(r.Halved) == 0 {
		r.Halved = old.Halved
	}
	r.Liars, r.Sybils = cmp.Or(r.Liars, old.Liars), cmp.Or(r.Sybils, old.Sybils)
	return r
}

// charts returns the pictures by file name.
func (r result) charts() map[string]*chart {
	all := make(map[string]*chart)
	if len(r.Sizes) > 1 {
		hops := &chart{
			Title: "Hops to the closest node", Subtitle: "one node naming the next, mean of all searches",
			XTitle: "nodes in the network (log2)", YTitle: "hops", YStep: 2,
		}
		requests := &chart{
			Title: "Requests of a search", Subtitle: "nodes asked until the twenty closest have answered, mean",
			XTitle: "nodes in the network (log2)", YTitle: "requests", YStep: 10,
		}
		var h, q, log [][2]float64
		for _, s := range r.Sizes {
			h = append(h, [2]float64{s.Log2, s.Hops})
			q = append(q, [2]float64{s.Log2, s.Requests})
			log = append(log, [2]float64{s.Log2, s.Log2})
			l := label{s.Log2, fmt.Sprintf("%d", s.Nodes)}
			hops.XLabels, requests.XLabels = append(hops.XLabels, l), append(requests.XLabels, l)
			hops.YMax = max(hops.YMax, 2*math.Ceil(s.Log2/2))
			requests.YMax = max(requests.YMax, 10*math.Ceil((s.Requests+1)/10))
		}
		hops.Lines = []line{{Name: "measured", Points: h}, {Name: "log2(n)", Points: log, Faint: true}}
		requests.Lines = []line{{Name: "measured", Points: q}}
		all["dht-hops.svg"], all["dht-requests.svg"] = hops, requests
	}
	if len(r.Halved) > 1 {
		c := &chart{
			Title:    "Half of the nodes vanish at once",
			Subtitle: fmt.Sprintf("share of searches that find the server, %d nodes", r.Hard),
			XTitle:   "time since (min)", YMin: 0.9, YMax: 1, YStep: 0.02, Percent: true,
		}
		l, goal := line{Name: ""}, line{Name: "asked for", Faint: true}
		last := r.Halved[len(r.Halved)-1].Seconds / 60
		for _, p := range r.Halved {
			l.Points = append(l.Points, [2]float64{p.Seconds / 60, p.Rate})
			c.YMin = min(c.YMin, math.Floor(p.Rate*10)/10)
		}
		if c.YMin < 0.9 {
			c.YStep = 0.1
		}
		goal.Points = [][2]float64{{0, .95}, {1, .95}, {5, .99}, {last, .99}}
		for m := 0.0; m <= last; m++ {
			c.XLabels = append(c.XLabels, label{m, fmt.Sprintf("%g", m)})
		}
		c.Lines = []line{l, goal}
		all["dht-halved.svg"] = c
	}
	c := &chart{
		Title: "Servers found", Subtitle: fmt.Sprintf("share of searches in networks of %d nodes; dashed: asked for", r.Hard),
		YMin: 0.9, YMax: 1, YStep: 0.02, Percent: true,
	}
	names := map[string]string{
		"half gone, first minute": "half gone", "half gone, after five": "5 min later",
	}
	quiet := len(r.Sizes) - 1
	for i, g := range r.goals() {
		if i < quiet {
			continue
		}
		name := g.name
		if i == quiet {
			name = "quiet"
		}
		if short := names[name]; short != "" {
			name = short
		}
		c.Bars = append(c.Bars, bar{name, g.rate, g.want})
	}
	if len(c.Bars) > 1 {
		all["dht-found.svg"] = c
	}
	return all
}

// write writes the numbers and pictures into a folder.
func (r result) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{numbersFile: append(b, '\n')}
	for name, c := range r.charts() {
		files[name] = []byte(c.svg())
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// read returns the numbers in a folder.
func read(dir string) (r result, err error) {
	b, err := os.ReadFile(filepath.Join(dir, numbersFile))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// redraw draws the numbers in a folder again.
func redraw(dir string) error {
	r, err := read(dir)
	if err != nil {
		return err
	}
	fmt.Print(r.table())
	return r.write(dir)
}

func main() {
	log.SetFlags(log.Ltime)
	sizes := flag.String("sizes", "100,1000,10000", "`numbers` of nodes of the networks")
	out := flag.String("out", "docs", "`folder` for the numbers and pictures; empty: none")
	asJSON := flag.Bool("json", false, "print the numbers as JSON instead of a table")
	quick := flag.Bool("quick", false, "a tenth of the searches")
	p := plan{announced: log.Printf}
	flag.IntVar(&p.hard, "hard", 0, "nodes of the network that suffers; 0: as the largest, but 10,000 at most")
	flag.Uint64Var(&p.seed, "seed", 1, "of chance")
	flag.StringVar(&p.parts, "only", "", "measure only these `parts`: quiet,halved,liars,sybils; other numbers in the folder are kept")
	draw := flag.Bool("draw", false, "measure nothing: draw the numbers in the folder again")
	flag.Parse()
	if *draw {
		if err := redraw(*out); err != nil {
			log.Fatal(err)
		}
		return
	}
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 50 {
			log.Fatalf("-sizes: %q is not a number of at least 50", s)
		}
		p.sizes = append(p.sizes, n)
		if p.hard < n && p.hard < 10000 {
			p.hard = min(n, 10000)
		}
	}
	p.servers, p.searches, p.perStep, p.besieged = 100, 3000, 60, 50
	p.half, p.step = 6*time.Minute, 5*time.Second
	if *quick {
		p.searches, p.perStep, p.besieged = 300, 6, 5
	}
	r := p.run()
	if *out != "" {
		switch old, err := read(*out); {
		case p.parts == "" || errors.Is(err, fs.ErrNotExist): // all is new
		case err != nil:
			log.Fatal(err)
		default:
			r = r.merge(old)
		}
		if err := r.write(*out); err != nil {
			log.Fatal(err)
		}
	}
	if !*asJSON {
		fmt.Print(r.table())
		return
	}
	e := json.NewEncoder(os.Stdout)
	if err := e.Encode(r); err != nil {
		log.Fatal(err)
	}
}
