//go:build linux

// Command dhtcost measures what a DHT node costs, next to npm's hyperdht: memory and idle traffic of a node, of many in
// one process on loopback sockets, and processor time of an answer on one core.
//
//	go run ./scripts/dhtcost               # 1,000 nodes of each: ten minutes
//	go run ./scripts/dhtcost -nodes 200    # two minutes
//
// It needs node, and takes hyperdht from scripts/interop/node_modules, or has npm install it into a temporary folder.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cost is what was measured of one implementation.
type cost struct {
	Name     string  `json:"name"`
	Nodes    int     `json:"nodes"`
	Process  float64 `json:"process_kib"`           // resident, with one node
	Node     float64 `json:"node_kib"`              // resident, of each further node
	Idle     float64 `json:"idle_bytes_per_minute"` // sent by each node, without headers
	IdleCPU  float64 `json:"idle_cpu_us_per_minute"`
	PerSec   float64 `json:"find_node_per_second"` // answered on one core
	FindNode float64 `json:"find_node_cpu_us"`     // processor time of an answer
	FindPeer float64 `json:"find_peer_cpu_us"`
	Ping     float64 `json:"ping_cpu_us"`
}

// implementation says how nodes are started.
type implementation struct {
	name    string
	command []string
	env     []string
}

// child is nodes in a process of their own.
type child struct {
	cmd   *exec.Cmd
	lines chan event
}

type event struct {
	Event string
	Port  int
	Bytes int64
}

func (im implementation) start(count int, core string) (*child, error) {
	args := append([]string{}, im.command...)
	if core != "" {
		args = append([]string{"taskset", "-c", core}, args...)
	}
	c := &child{cmd: exec.Command(args[0], append(args[1:], strconv.Itoa(count))...), lines: make(chan event, 100)}
	c.cmd.Env = append(os.Environ(), im.env...)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var e event
			if json.Unmarshal(s.Bytes(), &e) == nil {
				c.lines <- e
			}
		}
	}()
	return c, nil
}

// want waits for an event.
func (c *child) want(name string) (event, error) {
	for e := range c.lines {
		if e.Event == name {
			return e, nil
		}
	}
	return event{}, fmt.Errorf("%s ended before it was %q", c.cmd.Path, name)
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

// cpu returns the processor time used so far.
func (c *child) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// Requests as on the wire: flags (4: of the RPC layer, 8: with a target, 16: with a value), command.
var requests = map[string][2]byte{"ping": {4, 0}, "find_node": {4 | 8 | 16, 2}, "find_peer": {8 | 16, 2}}

// load asks the node at port as fast as it answers. It returns how many answers there were.
func load(port int, request [2]byte, d time.Duration) (int, error) {
	conn, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	const window = 32
	q := append([]byte{3, request[0], 0, 0, 127, 0, 0, 1}, 0, 0, request[1])
	if request[0]&8 != 0 {
		q = append(q, make([]byte, 32)...)
		pad := 84 - len(q) - 1
		q = append(append(q, byte(pad)), make([]byte, pad)...)
	}
	tid := uint16(0)
	ask := func() error {
		tid++
		binary.LittleEndian.PutUint16(q[2:], tid)
		if request[0]&8 != 0 {
			binary.BigEndian.PutUint16(q[11:], tid*40503) // another target each time
		}
		_, err := conn.Write(q)
		return err
	}
	answers := 0
	in := make([]byte, 2048)
	flying := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for flying < window {
			if err := ask(); err != nil {
				return 0, err
			}
			flying++
		}
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := conn.Read(in); err != nil {
			flying = 0 // lost
			continue
		}
		flying--
		answers++
	}
	return answers, nil
}

func (im implementation) measure(count int, idle, busy time.Duration) (cost, error) {
	r := cost{Name: im.name, Nodes: count}
	one, err := im.start(1, "")
	if err != nil {
		return r, err
	}
	defer one.stop()
	if _, err = one.want("ready"); err != nil {
		return r, err
	}
	time.Sleep(5 * time.Second)
	if r.Process, err = one.resident(); err != nil {
		return r, err
	}
	one.stop()
	c, err := im.start(count, "")
	if err != nil {
		return r, err
	}
	defer c.stop()
	if _, err = c.want("ready"); err != nil {
		return r, err
	}
	log.Printf("%s: %d nodes run", im.name, count)
	time.Sleep(30 * time.Second) // it settles
	for len(c.lines) > 0 {
		<-c.lines
	}
	before, err := c.want("sent")
	if err != nil {
		return r, err
	}
	used, err := c.cpu()
	if err != nil {
		return r, err
	}
	after := before
	for began := time.Now(); time.Since(began) < idle; {
		if after, err = c.want("sent"); err != nil {
			return r, err
		}
	}
	perMinute := idle.Minutes() * float64(count)
	r.Idle = float64(after.Bytes-before.Bytes) / perMinute
	now, err := c.cpu()
	if err != nil {
		return r, err
	}
	r.IdleCPU = float64((now - used).Microseconds()) / perMinute
	all, err := c.resident()
	if err != nil {
		return r, err
	}
	r.Node = (all - r.Process) / float64(count-1)
	c.stop()

	few, err := im.start(30, "1")
	if err != nil {
		return r, err
	}
	defer few.stop()
	e, err := few.want("ready")
	if err != nil {
		return r, err
	}
	go func() { // so that it does not wait for us
		for range few.lines {
		}
	}()
	for name, into := range map[string]*float64{"ping": &r.Ping, "find_node": &r.FindNode, "find_peer": &r.FindPeer} {
		if _, err := load(e.Port, requests[name], busy/5); err != nil { // it warms up
			return r, err
		}
		used, err := few.cpu()
		if err != nil {
			return r, err
		}
		answers, err := load(e.Port, requests[name], busy)
		if err != nil {
			return r, err
		}
		now, err := few.cpu()
		if err != nil {
			return r, err
		}
		if answers == 0 {
			return r, fmt.Errorf("%s: no answer to %s", im.name, name)
		}
		*into = float64((now - used).Microseconds()) / float64(answers)
		if name == "find_node" {
			r.PerSec = float64(answers) / busy.Seconds()
		}
	}
	return r, nil
}

// modules returns a folder with hyperdht in it, and what removes it.
func modules() (dir string, remove func(), err error) {
	dir, err = filepath.Abs("scripts/interop/node_modules")
	if err != nil {
		return "", nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "hyperdht")); err == nil {
		return dir, func() {}, nil
	}
	tmp, err := os.MkdirTemp("", "dhtcost")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(tmp) }
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(filepath.Join("scripts/interop", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(tmp, name), b, 0o644)
		}
		if err != nil {
			remove()
			return "", nil, fmt.Errorf("run this at the top of the repository: %w", err)
		}
	}
	npm := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
	npm.Dir, npm.Stdout, npm.Stderr = tmp, os.Stderr, os.Stderr
	if err := npm.Run(); err != nil {
		remove()
		return "", nil, fmt.Errorf("npm ci: %w", err)
	}
	return filepath.Join(tmp, "node_modules"), remove, nil
}

func run() error {
	log.SetFlags(log.Ltime)
	count := flag.Int("nodes", 1000, "nodes in a process")
	idle := flag.Duration("idle", time.Minute, "how long idle nodes are watched")
	busy := flag.Duration("busy", 10*time.Second, "how long each kind of request is sent")
	asJSON := flag.Bool("json", false, "print the numbers as JSON instead of a table")
	out := flag.String("out", "", "`file` for the numbers as JSON")
	child := flag.Bool("child", false, "be the nodes (used by the program itself)")
	flag.Parse()
	if *child {
		n, err := strconv.Atoi(flag.Arg(0))
		if err != nil {
			return err
		}
		return nodes(n)
	}
	if *count < 2 {
		return errors.New("-nodes must be at least 2")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, remove, err := modules()
	if err != nil {
		return err
	}
	defer remove()
	var all []cost
	for _, im := range []implementation{
		{name: "omegatun", command: []string{self, "-child"}},
		{name: "hyperdht", command: []string{"node", "scripts/dhtcost/nodes.js"}, env: []string{"NODE_PATH=" + dir}},
	} {
		r, err := im.measure(*count, *idle, *busy)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	b, err := json.MarshalIndent(map[string]any{"schema": 1, "measured": all}, "", "  ")
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
	g, j := all[0], all[1]
	fmt.Printf("%-34s %12s %12s %8s\n", fmt.Sprintf("%d nodes in a process", *count), g.Name, "npm "+j.Name, "ratio")
	row := func(name string, a, b float64) { fmt.Printf("%-34s %12.1f %12.1f %7.1fx\n", name, a, b, b/a) }
	row("memory of a node, KiB", g.Node, j.Node)
	row("memory of a process with one, KiB", g.Process, j.Process)
	row("idle, bytes sent a minute", g.Idle, j.Idle)
	row("idle, CPU us a minute", g.IdleCPU, j.IdleCPU)
	row("CPU us of a PING", g.Ping, j.Ping)
	row("CPU us of a FIND_NODE", g.FindNode, j.FindNode)
	row("CPU us of a FIND_PEER", g.FindPeer, j.FindPeer)
	fmt.Printf("%-34s %12.0f %12.0f %7.1fx\n", "FIND_NODE a second on one core", g.PerSec, j.PerSec, g.PerSec/j.PerSec)
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
