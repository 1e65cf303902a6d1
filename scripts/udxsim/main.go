// Command udxsim measures UDX streams over links in memory, under a clock that jumps: goodput and fairness over many
// rates, round trips, losses and queues, and what an outage, a change of address and a path that carries less do to a
// transfer. The same seed gives the same numbers. It prints tables, and writes them and the numbers:
//
//	go run ./scripts/udxsim                                 # everything, as in docs: half an hour of a processor
//	go run ./scripts/udxsim -only goodput -rate 10 -out ""    # a part, and only the tables
//	go run ./scripts/udxsim -read docs/udx-simulation.json  # the tables of what was measured before
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"omegatun/session/udx/lab"
)

// What is written: the numbers, and the tables.
const (
	numbersFile = "udx-simulation.json"
	tablesFile  = "udx-simulation.txt"
)

// The table's axes.
var (
	rates    = []float64{1, 10, 100, 1000} // Mbit/s
	rtts     = []int{1, 20, 100, 300}      // ms
	losses   = []float64{0, .001, .01, .05, .2}
	reorders = []float64{0, .25}
	queues   = []float64{lab.Deep, lab.Shallow}
)

// result is what was measured.
type result struct {
	Schema   int        `json:"schema"`
	Seed     uint64     `json:"seed"`
	Goodput  []goodput  `json:"goodput,omitempty"`
	Fairness []fairness `json:"fairness,omitempty"`
	Events   []event    `json:"events,omitempty"`
}

// place says where in the table something belongs.
type place struct {
	Mbit    float64 `json:"mbit_per_s"`
	RTT     int     `json:"rtt_ms"`
	Queue   string  `json:"queue"`
	Loss    float64 `json:"loss"`
	Reorder float64 `json:"reorder"`
}

type goodput struct {
	place
	Share   float64 `json:"share"`
	Goal    float64 `json:"goal,omitempty"`
	Resent  float64 `json:"resent"`
	StartMS int64   `json:"start_ms"`
	Error   string  `json:"error,omitempty"`
}

type fairness struct {
	place
	Second   []float64 `json:"second"`   // of each seed
	Together float64   `json:"together"` // average of them
	Error    string    `json:"error,omitempty"`
}

type event struct {
	Name      string  `json:"name"`
	StallMS   int64   `json:"stall_ms"`
	RecoverMS int64   `json:"recovered_ms"`
	Share     float64 `json:"share_after"`
	MTU       int     `json:"mtu_after"`
	Error     string  `json:"error,omitempty"`
}

func (p place) conditions() lab.Conditions {
	q := lab.Shallow
	if p.Queue == "deep" {
		q = lab.Deep
	}
	return lab.Conditions{
		Rate: p.Mbit * 1e6 / 8, RTT: time.Duration(p.RTT) * time.Millisecond, Loss: p.Loss, Reorder: p.Reorder, Queue: q,
	}
}

// goal returns the share that is asked for, zero for none.
func (p place) goal() float64 {
	switch {
	case p.Loss <= .01:
		return .9
	case p.Loss <= .05:
		return .7
	}
	return 0
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// plan says what to measure.
type plan struct {
	seed    uint64
	runs    int // of each row of fairness
	workers int
	places  []place
	parts   string
}

func (p plan) run() result {
	r := result{Schema: 2, Seed: p.seed}
	has := func(part string) bool { return p.parts == "" || strings.Contains(p.parts, part) }
	var jobs []func()
	if has("goodput") {
		r.Goodput = make([]goodput, len(p.places))
		for i, at := range p.places {
			jobs = append(jobs, func() {
				o, err := at.conditions().Goodput(p.seed)
				r.Goodput[i] = goodput{at, o.Share, at.goal(), o.Resent, o.Start.Milliseconds(), text(err)}
			})
		}
	}
	if has("fairness") {
		for _, at := range p.places {
			if at.Loss <= .01 && at.Reorder == 0 && at.Loss != .001 {
				r.Fairness = append(r.Fairness, fairness{place: at})
			}
		}
		for i := range r.Fairness {
			f := &r.Fairness[i]
			jobs = append(jobs, func() {
				f.measure(p.seed, p.runs)
			})
		}
	}
	if has("events") {
		list := lab.Events()
		r.Events = make([]event, len(list))
		for i, e := range list {
			jobs = append(jobs, func() {
				o, err := e.Run(p.seed)
				r.Events[i] = event{e.Name, o.Stall.Milliseconds(), o.Recovered.Milliseconds(), o.Share, o.MTU, text(err)}
			})
		}
	}
	var wg sync.WaitGroup
	next := make(chan func())
	for range p.workers {
		wg.Go(func() {
			for job := range next {
				job()
			}
		})
	}
	for _, job := range jobs {
		next <- job
	}
	close(next)
	wg.Wait()
	return r
}

// measure lets two streams share the path once for each of so many seeds, up to the first that fails.
func (f *fairness) measure(seed uint64, runs int) {
	for i := range runs {
		second, together, err := f.conditions().Fairness(seed + uint64(i))
		if f.Error = text(err); err != nil {
			return
		}
		f.Second = append(f.Second, second)
		f.Together += (together - f.Together) / float64(len(f.Second))
	}
}

// unfair reports whether one of two streams has more than 60 %.
func unfair(second float64) bool { return second < .4 || second > .6 }

// table returns everything as text. A share that misses its goal is marked.
func (r result) table() string {
	var b strings.Builder
	if len(r.Goodput) > 0 {
		fmt.Fprintf(&b, "share of the best possible in %% (packets sent again in %%); ! misses the goal: 90 to 1 %% loss, 70 at 5 %%\n")
		fmt.Fprintf(&b, "%6s %6s %-8s %7s", "Mbit/s", "rtt ms", "queue", "reorder")
		for _, l := range losses {
			fmt.Fprintf(&b, " %13s", fmt.Sprintf("loss %g %%", 100*l))
		}
		var last place
		missed, asked := 0, 0
		for i, g := range r.Goodput {
			row := g.place
			row.Loss = 0
			if i == 0 || row != last {
				fmt.Fprintf(&b, "\n%6g %6d %-8s %5.0f %%", g.Mbit, g.RTT, g.Queue, 100*g.Reorder)
				last = row
			}
			mark := " "
			if g.Goal > 0 {
				asked++
			}
			if g.Share < g.Goal || g.Error != "" {
				mark = "!"
				missed++
			}
			fmt.Fprintf(&b, " %5.0f%s %6s", 100*g.Share, mark, fmt.Sprintf("(%.1f)", 100*g.Resent))
		}
		fmt.Fprintf(&b, "\n%d of %d goals met\n", asked-missed, asked)
	}
	if len(r.Fairness) > 0 {
		missed, runs, outside := 0, 0, 0
		fmt.Fprintf(&b, "\nshare of the second of two streams, on average and from the least to the most of several seeds, and of the best possible\n"+
			"for both together; goal: 40 to 60 %% on average\n%6s %6s %-8s %6s %9s %9s %12s\n",
			"Mbit/s", "rtt ms", "queue", "loss", "second", "from-to", "together")
		for _, f := range r.Fairness {
			sum, least, most := 0., 1., 0.
			for _, share := range f.Second {
				sum, least, most = sum+share, min(least, share), max(most, share)
				if runs++; unfair(share) {
					outside++
				}
			}
			mean, mark := sum/float64(max(len(f.Second), 1)), ""
			if unfair(mean) || f.Error != "" {
				mark = " !"
				missed++
			}
			fmt.Fprintf(&b, "%6g %6d %-8s %4g %% %7.0f %% %9s %10.0f %%%s%s\n", f.Mbit, f.RTT, f.Queue, 100*f.Loss, 100*mean,
				fmt.Sprintf("%.0f-%.0f", 100*least, 100*most), 100*f.Together, mark, f.Error)
		}
		fmt.Fprintf(&b, "%d of %d goals met; %d of %d single runs are outside\n", len(r.Fairness)-missed, len(r.Fairness), outside, runs)
	}
	if len(r.Events) > 0 {
		fmt.Fprintf(&b, "\n%-52s %9s %13s %11s %5s\n", "in mid-transfer, 20 Mbit/s, 40 ms", "stall ms", "recovered ms", "share after", "MTU")
		for _, e := range r.Events {
			fmt.Fprintf(&b, "%-52s %9d %13d %9.0f %% %5d %s\n", e.Name, e.StallMS, e.RecoverMS, 100*e.Share, e.MTU, e.Error)
		}
	}
	return b.String()
}

func (r result) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, numbersFile), append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, tablesFile), []byte(r.table()), 0o644)
}

func main() {
	log.SetFlags(0)
	out := flag.String("out", "docs", "`folder` for the numbers and the tables; empty: none")
	read := flag.String("read", "", "print what is in this `file` instead of measuring")
	asJSON := flag.Bool("json", false, "print the numbers as JSON instead of tables")
	rate := flag.Float64("rate", 0, "only this many Mbit/s; 0: all")
	rtt := flag.Int("rtt", 0, "only this round trip in ms; 0: all")
	loss := flag.Float64("loss", -1, "only this `share` of loss; negative: all")
	reorder := flag.Float64("reorder", -1, "only this `share` of reordering; negative: all")
	queue := flag.String("queue", "", "only this queue: deep or shallow")
	p := plan{workers: runtime.GOMAXPROCS(0)}
	flag.Uint64Var(&p.seed, "seed", 1, "of chance")
	flag.IntVar(&p.runs, "seeds", 4, "`number` of seeds for each row of fairness, from -seed on")
	flag.StringVar(&p.parts, "only", "", "measure only these `parts`: goodput,fairness,events")
	flag.Parse()
	if p.runs < 1 {
		log.Fatalf("-seeds %d: at least one is needed", p.runs)
	}
	for _, m := range rates {
		for _, t := range rtts {
			for _, q := range queues {
				for _, o := range reorders {
					for _, l := range losses {
						at := place{m, t, map[float64]string{lab.Deep: "deep", lab.Shallow: "shallow"}[q], l, o}
						if (*rate == 0 || *rate == m) && (*rtt == 0 || *rtt == t) && (*loss < 0 || *loss == l) &&
							(*reorder < 0 || *reorder == o) && (*queue == "" || *queue == at.Queue) {
							p.places = append(p.places, at)
						}
					}
				}
			}
		}
	}
	var r result
	if *read == "" {
		r = p.run()
	} else if b, err := os.ReadFile(*read); err != nil {
		log.Fatal(err)
	} else if err := json.Unmarshal(b, &r); err != nil {
		log.Fatalf("%s: %v", *read, err)
	}
	if *out != "" && *read == "" {
		if err := r.write(*out); err != nil {
			log.Fatal(err)
		}
	}
	if !*asJSON {
		fmt.Print(r.table())
		return
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		log.Fatal(err)
	}
}
