//go:build linux

// Command udxspeed moves bytes on loopback between this implementation and npm's, each end a process, in all four
// combinations in turns, and compares throughput and CPU time, layer by layer:
//
//	udx      bare UDX streams, without encryption: package udx, and npm's udx-native
//	stream   encrypted streams, standard input to standard output: omegatun connect and listen, and npm's hyperdht
//	tcp      a TCP connection carried through such a stream: omegatun forward and serve, and npm's hypertele
//
//	npm ci --prefix scripts/interop && go run ./scripts/udxspeed           # 1 GiB each
//	go run ./scripts/udxspeed -size 256 -rounds 3 -layer stream            # the median of three rounds
//
// Time runs from the first byte that arrives, or is to be sent, to the last that arrives. CPU time is what the two ends take
// meanwhile; what feeds and empties them moves no bytes itself, but the kernel's part of it, with tcp, slows both sides alike.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// measured is one transfer.
type measured struct {
	Layer    string  `json:"layer"`
	From     string  `json:"from"`
	To       string  `json:"to"`
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
	MBytes   float64 `json:"mbyte_per_s"`
	Sender   float64 `json:"sender_cpu_s_per_gib"`
	Receiver float64 `json:"receiver_cpu_s_per_gib"`
	// Of how many rounds it is the median, and the slowest and the fastest of them.
	Rounds  int     `json:"rounds"`
	Slowest float64 `json:"slowest_mbyte_per_s"`
	Fastest float64 `json:"fastest_mbyte_per_s"`
}

func (m measured) cpu() float64 { return m.Sender + m.Receiver }

const timeout = 10 * time.Minute // for one transfer

// layers are what can be measured, from below.
var layers = []string{"udx", "stream", "tcp"}

// The two implementations, as the table names them.
const (
	ours   = "go"
	theirs = "js"
)

func main() {
	log.SetFlags(0)
	size := flag.Int64("size", 1024, "`MiB` to move")
	rounds := flag.Int("rounds", 1, "`times` to do everything, in turns; of each figure the median counts")
	only := flag.String("layer", strings.Join(layers, ","), "`layers` to measure")
	asJSON := flag.Bool("json", false, "print JSON instead of tables")
	modules := flag.String("modules", "scripts/interop/node_modules", "`folder` with udx-native, hyperdht and hypertele")
	program := flag.String("omegatun", "", "the `program` to measure; default: as it is built here")
	end := flag.String("end", "", "be one end of a bare stream: send or receive")
	flag.Parse()
	bytes := *size << 20
	if *end != "" {
		if err := bareEnd(*end, bytes); err != nil {
			log.Fatal(err)
		}
		return
	}
	b, err := newBench(bytes, *modules, *program)
	if err != nil {
		log.Fatal(err)
	}
	all, err := b.measure(strings.Split(*only, ","), *rounds)
	b.close()
	if err != nil {
		log.Fatal(err)
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = e.Encode(struct {
			Schema    int        `json:"schema"`
			Transfers []measured `json:"transfers"`
		}{1, all})
	} else {
		_, err = io.WriteString(os.Stdout, table(all))
	}
	if err != nil {
		log.Fatal(err)
	}
}

// table prints a table for each layer, whose last row is what the others are compared with.
func table(all []measured) string {
	var b strings.Builder
	for len(all) > 0 {
		layer := all[0].Layer
		n := slices.IndexFunc(all, func(m measured) bool { return m.Layer != layer })
		if n < 0 {
			n = len(all)
		}
		js := all[n-1]
		fmt.Fprintf(&b, "%-10s %9s %13s %15s %17s %12s %10s\n", layer, "MB/s", "from – to", "sender s/GiB", "receiver s/GiB", "throughput", "CPU")
		for _, m := range all[:n] {
			fmt.Fprintf(&b, "%-10s %9.0f %13s %15.2f %17.2f %11.2fx %9.2fx\n", m.From+" to "+m.To, m.MBytes,
				fmt.Sprintf("%.0f – %.0f", m.Slowest, m.Fastest), m.Sender, m.Receiver, m.MBytes/js.MBytes, m.cpu()/js.cpu())
		}
		all = all[n:]
	}
	return b.String()
}

// bench is what transfers are made with.
type bench struct {
	bytes   int64
	modules string // folder with npm's packages
	program string // omegatun
	scripts string // folder with our JavaScript
	tmp     string
	network *network // nil: not started yet
}

func newBench(bytes int64, modules, program string) (*bench, error) {
	b := &bench{bytes: bytes}
	var err error
	if b.modules, err = filepath.Abs(modules); err != nil {
		return nil, err
	}
	if b.scripts, err = filepath.Abs("scripts/udxspeed"); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(b.modules, "udx-native")); err != nil {
		return nil, fmt.Errorf("run npm ci --prefix scripts/interop first, at the top of the repository: %w", err)
	}
	if b.tmp, err = os.MkdirTemp("", "udxspeed"); err != nil {
		return nil, err
	}
	if b.program, err = filepath.Abs(program); program != "" {
		return b, err
	}
	b.program = filepath.Join(b.tmp, "omegatun")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", b.program, "./cmd/omegatun")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		b.close()
		return nil, fmt.Errorf("go build: %w", err)
	}
	return b, nil
}

func (b *bench) close() {
	if b.network != nil {
		b.network.close()
	}
	_ = os.RemoveAll(b.tmp)
}

// measure makes the transfers of some layers.
func (b *bench) measure(only []string, rounds int) ([]measured, error) {
	var all []measured
	for _, layer := range only {
		var transfer func(from, to string) (measured, error)
		switch layer {
		case "udx":
			transfer = b.bare
		case "stream":
			transfer = b.stream
		case "tcp":
			transfer = b.tcp
		default:
			return nil, fmt.Errorf("no such layer: %q; there are %v", layer, layers)
		}
		pairs := [][2]string{{ours, ours}, {ours, theirs}, {theirs, ours}, {theirs, theirs}}
		each := make([][]measured, len(pairs))
		for range rounds { // in turns, so that what else the machine does slows all of them
			for i, p := range pairs {
				m, err := transfer(p[0], p[1])
				if err != nil {
					return nil, fmt.Errorf("%s: %s to %s: %w", layer, p[0], p[1], err)
				}
				each[i] = append(each[i], m)
			}
		}
		for i, p := range pairs {
			m := b.result(
				median(each[i], func(m measured) time.Duration { return seconds(m.Seconds) }),
				median(each[i], func(m measured) time.Duration { return seconds(m.Sender * b.gib()) }),
				median(each[i], func(m measured) time.Duration { return seconds(m.Receiver * b.gib()) }),
			)
			m.Layer, m.From, m.To, m.Rounds = layer, p[0], p[1], rounds
			m.Slowest, m.Fastest = m.MBytes, m.MBytes
			for _, one := range each[i] {
				m.Slowest, m.Fastest = min(m.Slowest, one.MBytes), max(m.Fastest, one.MBytes)
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// median returns the median of what of returns for each.
func median(each []measured, of func(measured) time.Duration) time.Duration {
	var values []time.Duration
	for _, m := range each {
		values = append(values, of(m))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (b *bench) gib() float64 { return float64(b.bytes) / (1 << 30) }

// result is what a transfer came to.
func (b *bench) result(took, sender, receiver time.Duration) measured {
	return measured{
		Bytes: b.bytes, Seconds: took.Seconds(), MBytes: float64(b.bytes) / took.Seconds() / 1e6,
		Sender: sender.Seconds() / b.gib(), Receiver: receiver.Seconds() / b.gib(),
	}
}
