//go:build linux

// Command dhtcost measures what a DHT node costs, next to npm's hyperdht: memory and idle traffic of a node, of many in
// one process on loopback sockets, and processor time of an answer on one core, and of asking.
//
//	go run ./scripts/dhtcost                 # 1,000 nodes of each: a quarter of an hour
//	go run ./scripts/dhtcost -parts asking   # five minutes
//
// What is measured is the command omegatun node, as it is built here, and a few lines of JavaScript that do the same
// (nodes.js). Both are asked the same by the same program with plain sockets, on another core; then by a program that uses the
// module's packages, and by one in JavaScript (ask.js), each asking each. All are looked at from outside: by /proc,
// and by the counters of a network namespace in which there is nothing else. It needs root or user namespaces; and node, and
// takes hyperdht from scripts/interop/node_modules, or has npm install it into a temporary folder.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what was measured of one implementation.
type cost struct {
	Name    string   `json:"name"`
	Nodes   int      `json:"nodes"`
	Process float64  `json:"process_kib"`           // resident, with one node
	Node    float64  `json:"node_kib"`              // resident, of each further node
	Idle    float64  `json:"idle_bytes_per_minute"` // sent by each node, without headers
	IdleCPU float64  `json:"idle_cpu_us_per_minute"`
	Answers []answer `json:"answers"`
}

// answer is what answering one kind of request costs, on one core.
type answer struct {
	Kind string `json:"kind"`
	pattern
	PerSecond float64 `json:"per_second"`
	CPU       float64 `json:"cpu_us"`  // processor time of one
	User      float64 `json:"user_us"` // of it, outside the kernel
}

// patterns are how requests come: few of many clients each, as in a network, many of few, and one at a time.
var patterns = []pattern{{64, 2}, {8, 16}, {1, 128}, {1, 1}}

// workers is how many nodes there are while one of them answers.
const workers = 30

var kinds = []string{"ping", "find_node", "find_peer"}

// implementation says how nodes are started.
type implementation struct {
	name    string
	command func(count int) []string
	client  []string // a command that asks: see client
}

// child is nodes in a process of their own.
type child struct {
	cmd   *exec.Cmd
	ready chan uint16 // ports, as the nodes become ready
}

type event struct {
	Event string `json:"event"`
	Port  uint16 `json:"port"`
	count
}

// start starts nodes, on one core if core is not empty, and returns once they are ready. port is the first one's.
func (im implementation) start(count int, core string) (c *child, port uint16, err error) {
	args := im.command(count)
	if core != "" {
		args = append([]string{"taskset", "-c", core}, args...)
	}
	c = &child{cmd: exec.Command(args[0], args[1:]...), ready: make(chan uint16, count)}
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, 0, err
	}
	go func() {
		defer close(c.ready)
		for s := bufio.NewScanner(out); s.Scan(); {
			var e event
			if json.Unmarshal(s.Bytes(), &e) == nil && e.Event == "ready" {
				c.ready <- e.Port
			}
		}
	}()
	for i := range count {
		p, ok := <-c.ready
		if !ok {
			c.stop()
			return nil, 0, fmt.Errorf("%s ended after %d of %d nodes", im.name, i, count)
		}
		if i == 0 {
			port = p
		}
	}
	return c, port, nil
}

func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// resident returns the memory of the process in KiB.
func (c *child) resident() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, errors.New("no VmRSS")
}

// cpu returns the processor time used so far, and what of it was used outside the kernel.
func (c *child) cpu() (all, user time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3
	var ticks [2]int64
	for i, s := range f[11:13] {
		if ticks[i], err = strconv.ParseInt(s, 10, 64); err != nil {
			return 0, 0, err
		}
	}
	const tick = 10 * time.Millisecond
	return time.Duration(ticks[0]+ticks[1]) * tick, time.Duration(ticks[0]) * tick, nil
}

// sent returns how many bytes of UDP payload the namespace has sent: what the loopback device carried, without headers.
func sent() (int64, error) {
	dev, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, err
	}
	snmp, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0, err
	}
	var size, packets int64 = -1, -1
	for line := range strings.Lines(string(dev)) {
		if f := strings.Fields(line); len(f) == 17 && f[0] == "lo:" {
			size, err = strconv.ParseInt(f[9], 10, 64)
		}
	}
	for line := range strings.Lines(string(snmp)) {
		if f := strings.Fields(line); len(f) > 4 && f[0] == "Udp:" && f[4] != "OutDatagrams" {
			packets, err = strconv.ParseInt(f[4], 10, 64)
		}
	}
	if err == nil && (size < 0 || packets < 0) {
		err = errors.New("no counters of the network")
	}
	const headers = 14 + 20 + 8 // Ethernet, IPv4, UDP
	return size - headers*packets, err
}

// rest measures the memory and the traffic of idle nodes.
func (im implementation) rest(r *cost, idle time.Duration) error {
	one, _, err := im.start(1, "")
	if err != nil {
		return err
	}
	defer one.stop()
	time.Sleep(5 * time.Second)
	if r.Process, err = one.resident(); err != nil {
		return err
	}
	one.stop()
	c, _, err := im.start(r.Nodes, "")
	if err != nil {
		return err
	}
	defer c.stop()
	log.Printf("%s: %d nodes run", im.name, r.Nodes)
	time.Sleep(30 * time.Second) // it settles
	before, err := sent()
	if err != nil {
		return err
	}
	used, _, err := c.cpu()
	if err != nil {
		return err
	}
	time.Sleep(idle)
	after, err := sent()
	if err != nil {
		return err
	}
	now, _, err := c.cpu()
	if err != nil {
		return err
	}
	perMinute := idle.Minutes() * float64(r.Nodes)
	r.Idle = float64(after-before) / perMinute
	r.IdleCPU = float64((now - used).Microseconds()) / perMinute
	all, err := c.resident()
	if err != nil {
		return err
	}
	r.Node = (all - r.Process) / float64(r.Nodes-1)
	return nil
}

// work measures what answers cost.
func (im implementation) work(count int, kinds []string, busy time.Duration) (answers []answer, err error) {
	c, port, err := im.start(count, "1")
	if err != nil {
		return nil, err
	}
	defer c.stop()
	for _, p := range patterns {
		for _, kind := range kinds {
			if _, err := ask(port, kind, p, busy/5); err != nil { // it warms up
				return nil, err
			}
			before, userBefore, err := c.cpu()
			if err != nil {
				return nil, err
			}
			count, err := ask(port, kind, p, busy)
			if err != nil {
				return nil, err
			}
			after, userAfter, err := c.cpu()
			if err != nil {
				return nil, err
			}
			if count == 0 {
				return nil, fmt.Errorf("%s: no answer to %s", im.name, kind)
			}
			answers = append(answers, answer{
				Kind: kind, pattern: p, PerSecond: float64(count) / busy.Seconds(),
				CPU:  float64((after - before).Microseconds()) / float64(count),
				User: float64((userAfter - userBefore).Microseconds()) / float64(count),
			})
		}
	}
	log.Printf("%s: answers measured", im.name)
	return answers, nil
}

// ask has a process on the other core load the node at port. It returns how many answers there were.
func ask(port uint16, kind string, p pattern, d time.Duration) (int64, error) {
	cmd := exec.Command("taskset", "-c", "0", self(), "-load", kind, "-port", strconv.Itoa(int(port)),
		"-clients", strconv.Itoa(p.Clients), "-window", strconv.Itoa(p.Window), "-busy", d.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, err
	}
	var r struct{ Answers int64 }
	err = json.Unmarshal(out, &r)
	return r.Answers, err
}

// self returns the path of this program.
func self() string {
	path, err := os.Executable()
	if err != nil {
		log.Fatal(err) // Linux knows it
	}
	return path
}

// modules returns a folder with hyperdht in it. What is installed goes to tmp.
func modules(tmp string) (string, error) {
	dir, err := filepath.Abs("scripts/interop/node_modules")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "hyperdht")); err == nil {
		return dir, nil
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(filepath.Join("scripts/interop", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(tmp, name), b, 0o644)
		}
		if err != nil {
			return "", fmt.Errorf("run this at the top of the repository: %w", err)
		}
	}
	npm := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
	npm.Dir, npm.Stdout, npm.Stderr = tmp, os.Stderr, os.Stderr
	if err := npm.Run(); err != nil {
		return "", fmt.Errorf("npm ci: %w", err)
	}
	return filepath.Join(tmp, "node_modules"), nil
}

// outside prepares what is measured, and has this program measure it in a network namespace of its own.
func outside() error {
	tmp, err := os.MkdirTemp("", "dhtcost")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	dir, err := modules(tmp)
	if err != nil {
		return err
	}
	program := filepath.Join(tmp, "omegatun")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/omegatun")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("go build: %w", err)
	}
	cmd := exec.Command(self(), append([]string{"-inside", program}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in a network namespace: %w", err)
	}
	return nil
}

// loopbackUp brings the namespace's loopback device up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// results are all that was measured.
type results struct {
	Schema   int     `json:"schema"`
	Measured []cost  `json:"measured"`
	Asked    []asked `json:"asked"`
}

// parts says what is to be measured.
type parts struct{ rest, answers, asking bool }

func parseParts(s string) (p parts, err error) {
	for name := range strings.SplitSeq(s, ",") {
		switch name {
		case "rest":
			p.rest = true
		case "answers":
			p.answers = true
		case "asking":
			p.asking = true
		default:
			return p, fmt.Errorf("-parts: %q is none of rest, answers, asking", name)
		}
	}
	return p, nil
}

// inside measures.
func inside(program string, parts parts, count int, idle, busy time.Duration) (r results, err error) {
	r.Schema = 3
	if err := loopbackUp(); err != nil {
		return r, fmt.Errorf("loopback device: %w", err)
	}
	ours := implementation{"omegatun", func(count int) []string {
		return []string{
			program, "node", "--bootstrap", "--host", "127.0.0.1", "--nodes", strconv.Itoa(count), "--persistent", "--json",
		}
	}, []string{self(), "-client"}}
	npms := implementation{"hyperdht", func(count int) []string {
		return []string{"node", "scripts/dhtcost/nodes.js", strconv.Itoa(count)}
	}, []string{"node", "scripts/dhtcost/ask.js"}}
	for _, im := range []implementation{ours, npms} {
		c := cost{Name: im.name, Nodes: count}
		if parts.rest {
			if err := im.rest(&c, idle); err != nil {
				return r, err
			}
		}
		if parts.answers {
			if c.Answers, err = im.work(workers, kinds, busy); err != nil {
				return r, err
			}
		}
		r.Measured = append(r.Measured, c)
	}
	kernel := cost{Name: "kernel"}
	for _, kind := range kinds {
		if !parts.answers {
			break
		}
		im := implementation{kernel.Name, func(int) []string { return []string{self(), "-echo", strconv.Itoa(echoSizes[kind])} }, nil}
		answers, err := im.work(1, []string{kind}, busy)
		if err != nil {
			return r, err
		}
		kernel.Answers = append(kernel.Answers, answers...)
	}
	r.Measured = append(r.Measured, kernel)
	for _, q := range questions {
		if !parts.asking {
			break
		}
		for _, ends := range [][2]implementation{{ours, ours}, {npms, npms}, {npms, ours}, {ours, npms}} {
			a, err := ends[0].question(ends[1], q.kind, q.window, busy)
			if err != nil {
				return r, err
			}
			r.Asked = append(r.Asked, a)
		}
		log.Printf("asking: %s, %d at a time, measured", q.kind, q.window)
	}
	return r, nil
}

// table prints what was measured.
func (r results) table(parts parts) {
	g, j, kernel := r.Measured[0], r.Measured[1], r.Measured[2]
	fmt.Printf("%-44s %12s %12s %8s %8s\n", fmt.Sprintf("%d nodes in a process", g.Nodes), g.Name, "npm "+j.Name, "ratio", "echo")
	row := func(name string, a, b float64) { fmt.Printf("%-44s %12.1f %12.1f %7.1fx", name, a, b, b/a) }
	line := func(name string, a, b float64) { row(name, a, b); fmt.Println() }
	if parts.rest {
		line("memory of a node, KiB", g.Node, j.Node)
		line("memory of a process with one, KiB", g.Process, j.Process)
		line("idle, bytes sent a minute", g.Idle, j.Idle)
		line("idle, CPU us a minute", g.IdleCPU, j.IdleCPU)
	}
	for i, a := range g.Answers {
		b := j.Answers[i]
		if i%len(kinds) == 0 {
			fmt.Printf("on one core, clients x requests in flight: %v\n", a.pattern)
		}
		row("  CPU us of a "+strings.ToUpper(a.Kind), a.CPU, b.CPU)
		for _, k := range kernel.Answers {
			if k.Kind == a.Kind && k.pattern == a.pattern {
				fmt.Printf(" %8.1f", k.CPU)
			}
		}
		fmt.Println()
		line("    outside the kernel", a.User, b.User)
		fmt.Printf("%-44s %12.0f %12.0f %7.1fx\n", "    answers a second", a.PerSecond, b.PerSecond, a.PerSecond/b.PerSecond)
	}
	for q := range slices.Chunk(r.Asked, 4) {
		a, b, mixed, other := q[0], q[1], q[2], q[3]
		fmt.Printf("%s, %d at a time, requests of each: %.1f, npm %.1f\n", a.Kind, a.Window, a.Requests, b.Requests)
		line("  CPU us of a request, both ends", a.both(), b.both())
		line("    of who asks", a.Ask, b.Ask)
		line("    of who answers", a.Answer, b.Answer)
		line("  npm asks: us of who answers", mixed.Answer, b.Answer)
		line("  npm answers: us of who asks", other.Ask, b.Ask)
		fmt.Printf("%-44s %12.0f %12.0f %7.1fx\n", "  requests a second", a.PerSecond, b.PerSecond, a.PerSecond/b.PerSecond)
	}
}

func run() error {
	log.SetFlags(log.Ltime)
	count := flag.Int("nodes", 1000, "nodes in a process")
	idle := flag.Duration("idle", time.Minute, "how long idle nodes are watched")
	busy := flag.Duration("busy", 10*time.Second, "how long each kind of request is sent")
	only := flag.String("parts", "rest,answers,asking", "what to measure")
	asJSON := flag.Bool("json", false, "print the numbers as JSON instead of a table")
	out := flag.String("out", "", "`file` for the numbers as JSON")
	// The program itself uses what follows.
	program := flag.String("inside", "", "measure this `program`, here")
	loads := flag.String("load", "", "send this `kind` of request")
	port := flag.Uint("port", 0, "where to")
	clients := flag.Int("clients", 1, "from so many ports")
	window := flag.Int("window", 1, "requests of each in flight")
	echoes := flag.Int("echo", 0, "answer everything with so many `bytes`")
	asks := flag.Bool("client", false, "ask as the arguments say: port, kind, window, milliseconds to warm up and to ask")
	flag.Parse()
	parts, err := parseParts(*only)
	switch {
	case err != nil:
		return err
	case *asks:
		return clientOf(flag.Args())
	case *echoes > 0:
		return echo(*echoes)
	case *loads != "":
		return load(uint16(*port), *loads, pattern{*clients, *window}, *busy)
	case *count < 2:
		return errors.New("-nodes must be at least 2")
	case *program == "":
		return outside()
	}
	all, err := inside(*program, parts, *count, *idle, *busy)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if *out != "" {
		if err := os.WriteFile(*out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if *asJSON {
		fmt.Println(string(b))
		return nil
	}
	all.table(parts)
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
