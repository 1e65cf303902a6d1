//go:build linux

// Command trials tries omegatun in Internets of namespaces, and measures how it does. scripts/lab builds and runs it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/scripts/netlab"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "endpoint" { // inside a namespace
		exit(endpoint())
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
	fmt.Fprintln(os.Stderr, "lab:", err)
	os.Exit(1)
}

// errGoals reports that something was measured that is not as it should be.
var errGoals = errors.New("not all goals were reached")

func run() error {
	var c config
	var combos, jsonFile, svgFile, part string
	var noRelay, merging bool
	if len(os.Args) < 2 {
		return errors.New("which trials? profiles, matrix, race, dials, faults, lines, mtu, idle")
	}
	fs := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	fs.StringVar(&c.bin, "bin", "", "the omegatun `command`")
	fs.StringVar(&c.js, "js", "", "the JavaScript `program` for the ends")
	fs.StringVar(&combos, "programs", "go:go", "client:server pairs of go and js, separated by commas")
	fs.IntVar(&c.tries, "tries", 0, "tries of each (default 20; faults 1)")
	fs.BoolVar(&c.long, "long", false, "faults: the long ones at full length")
	fs.DurationVar(&c.delay, "delay", 15*time.Millisecond, "delay of each access link, each way; four of them are between two peers and back")
	fs.BoolVar(&noRelay, "no-relay", false, "offer no relay")
	fs.IntVar(&c.workers, "workers", 2, "pairs at a time, each in a lab of its own")
	fs.BoolVar(&c.verbose, "v", false, "print every try")
	fs.StringVar(&jsonFile, "json", "", "store everything in this `file`")
	fs.BoolVar(&merging, "merge", false, "put the new rows into the file of -json, in place of those it has of the same")
	fs.StringVar(&part, "part", "", "`K/N`: every N-th pair of the matrix only, from the K-th on")
	fs.StringVar(&svgFile, "svg", "", "draw the matrix into this `file`")
	if err := fs.Parse(os.Args[2:]); err != nil {
		return err
	}
	c.relay, c.only = !noRelay, fs.Args()
	if c.tries <= 0 {
		c.tries = cmp.Or(map[string]int{"faults": 1, "race": 100 / len(racing)}[os.Args[1]], 20)
	}
	if part != "" {
		if n, err := fmt.Sscanf(part, "%d/%d", &c.part[0], &c.part[1]); n != 2 || err != nil || c.part[0] < 1 || c.part[0] > c.part[1] {
			return fmt.Errorf("-part: %q is not K/N, such as 1/4", part)
		}
	}
	for s := range strings.SplitSeq(combos, ",") {
		client, server, ok := strings.Cut(s, ":")
		if !ok || strings.Trim(client+server, "gojs") != "" {
			return fmt.Errorf("-programs: %q is not go:go, go:js, js:go or js:js", s)
		}
		c.combos = append(c.combos, [2]string{server, client})
	}
	for _, f := range []*string{&jsonFile, &svgFile, &c.js, &c.bin} {
		if *f != "" {
			abs, err := filepath.Abs(*f)
			if err != nil {
				return err
			}
			*f = abs
		}
	}
	if os.Args[1] == "dials" { // in memory: what the test prints is on standard input
		w := newOutput(os.Stdout)
		return errors.Join(readDials(os.Stdin, w), w.end(jsonFile))
	}
	if err := netlab.Enter(); err != nil {
		return err
	}
	var err error
	if c.self, err = os.Executable(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	w := newOutput(os.Stdout)
	if merging {
		if jsonFile == "" {
			return errors.New("-merge needs the file of -json")
		}
		if err := w.into(jsonFile); err != nil {
			return err
		}
	}
	switch os.Args[1] {
	case "profiles":
		err = check(ctx, w, "")
	case "race":
		if len(c.only) == 0 {
			c.only = racing
		}
		err = c.runMatrix(ctx, w)
	case "matrix":
		if err = check(ctx, w, ""); err == nil && w.failed > 0 {
			err = errors.New("a NAT is not what its name says")
		}
		if err == nil {
			err = c.runMatrix(ctx, w)
		}
	case "faults":
		err = c.runFaults(ctx, w)
	case "lines":
		err = c.runLines(ctx, w)
	case "mtu":
		err = c.runMTU(ctx, w)
	case "idle":
		err = c.runIdle(ctx, w)
	default:
		err = fmt.Errorf("there are no trials %q", os.Args[1])
	}
	if svgFile != "" {
		err = errors.Join(err, os.WriteFile(svgFile, w.svg(), 0o644))
	}
	if err2 := w.end(jsonFile); err == nil {
		err = err2
	}
	return err
}
