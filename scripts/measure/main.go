//go:build linux

// Command measure compares omegatun with other tunnels on one machine, in fresh network namespaces, and stores what
// it finds. scripts/bench builds and runs it.
//
// Two hosts are joined by one cable. In each round every system is started anew, in an order that changes from round
// to round, and the same traffic is put through it. Both daemons, both ends of the traffic and the kernel share the
// machine, so only ratios within one run mean something; what is reported are medians over the rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/scripts/netlab"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] { // inside a namespace
		case "udp-sink":
			exit(sink(os.Args[2:]))
		case "udp-blast":
			exit(blast(os.Args[2:]))
		}
	}
	exit(run())
}

func exit(err error) {
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// options are what the command line says.
type options struct {
	bin      string // folder with the programs
	self     string // this program
	systems  []string
	rounds   int
	seconds  int // of each TCP run
	parts    string
	plain    bool
	verbose  bool
	json     string
	svg      string
	omegatun []string // further arguments
	prefix   []string // words before it
	tcp      string   // congestion control of the traffic; empty: the system's
}

func run() error {
	var o options
	var systems, omegatun, merge string
	flag.StringVar(&o.bin, "bin", "", "`folder` with the programs to measure")
	flag.StringVar(&systems, "systems", "veth,omegatun,wireguard-go", "what to measure, separated by commas")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds")
	flag.IntVar(&o.seconds, "seconds", 4, "seconds of each TCP run")
	flag.StringVar(&o.parts, "parts", "tcp,reverse,four,idle,load,udp64,udp1400", "what to measure of each")
	flag.BoolVar(&o.plain, "wire", false, "switch the cable's offloads off")
	flag.BoolVar(&o.verbose, "v", false, "print every figure as it is taken")
	flag.StringVar(&o.json, "json", "", "write all figures to this `file`")
	flag.StringVar(&o.svg, "svg", "", "draw the medians into this `file`")
	flag.StringVar(&omegatun, "args", "", "further arguments for omegatun up")
	flag.StringVar(&o.tcp, "tcp", "", "congestion `control` of the TCP flows; empty: the system's")
	flag.StringVar(&merge, "merge", "", "`files` of earlier runs, separated by commas: report on all of their rounds, and measure nothing")
	prefix := flag.String("prefix", "", "words before omegatun up, such as \"nice -n -10\"")
	flag.Parse()
	o.prefix = strings.Fields(*prefix)
	o.systems, o.omegatun = strings.Split(systems, ","), strings.Fields(omegatun)
	if merge != "" {
		report, err := mergeFiles(strings.Split(merge, ","))
		if err != nil {
			return err
		}
		return report.publish(&o)
	}
	if err := netlab.Enter(); err != nil {
		return err
	}
	var err error
	if o.self, err = os.Executable(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()

	results := make(map[string][]figures)
	missing := make(map[string]string)
	for _, name := range o.systems {
		if why, err := os.ReadFile(filepath.Join(o.bin, name+".missing")); err == nil {
			missing[name] = strings.TrimSpace(string(why))
		}
	}
	o.systems = slices.DeleteFunc(o.systems, func(name string) bool { return missing[name] != "" })
	for round := range o.rounds {
		for i := range o.systems {
			name := o.systems[(i+round)%len(o.systems)]
			f, err := measure(ctx, &o, name, fmt.Sprintf("r%d-%s-", round, name))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			results[name] = append(results[name], f)
			fmt.Fprintf(os.Stderr, "round %d: %-14s %s\n", round+1, name, f)
		}
	}
	report := newReport(&o, results)
	report.Missing = missing
	return report.publish(&o)
}

// measure starts one system in a lab of its own and takes its figures.
func measure(ctx context.Context, o *options, name, prefix string) (f figures, err error) {
	lab, err := netlab.New(ctx, prefix, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	dir := filepath.Join("/run", strings.TrimSuffix(prefix, "-"))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	b := &bed{o: o, system: name, lab: lab, dir: dir}
	if routed[name] {
		err = b.sites()
	} else {
		b.a, b.b, err = lab.Pair("a", addrA, "b", addrB, o.plain)
	}
	if err != nil {
		return nil, err
	}
	start := starters[name]
	if start == nil {
		return nil, errors.New("no such system")
	}
	began := time.Now()
	if err := start(ctx, b); err != nil {
		return nil, err
	}
	f = make(figures)
	took, err := b.firstReply(ctx, began)
	if err != nil {
		return nil, err
	}
	f["connect_s"] = took.Seconds()
	return f, b.take(ctx, f)
}
