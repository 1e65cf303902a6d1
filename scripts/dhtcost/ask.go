//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

// asked is what a program costs that asks another one: one request after another of the same node, or whole queries.
type asked struct {
	Kind   string `json:"kind"`
	Window int    `json:"window"` // requests or queries at a time
	Asks   string `json:"asks"`
	Serves string `json:"answers"`

	PerSecond float64 `json:"requests_per_second"`
	Requests  float64 `json:"requests_each"` // that a query takes
	Ask       float64 `json:"ask_us"`        // processor time of a request: of who asks,
	Answer    float64 `json:"answer_us"`     // and of who answers
}

func (a asked) both() float64 { return a.Ask + a.Answer }

// questions are what is asked.
var questions = []struct {
	kind   string
	window int
}{{"ping", 64}, {"ping", 1}, {"find_node", 8}, {"find_node", 1}, {"lookup", 8}, {"lookup", 1}}

// count is how much was done.
type count struct {
	Done     int64 `json:"done"`
	Requests int64 `json:"requests"`
}

// clientOf is client with what ask.js takes for its arguments.
func clientOf(args []string) error {
	if len(args) != 5 {
		return errors.New("-client: wrong number of arguments")
	}
	var n [5]int
	for i, a := range args {
		if i == 1 {
			continue
		}
		var err error
		if n[i], err = strconv.Atoi(a); err != nil {
			return err
		}
	}
	ms := time.Millisecond
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(n[0]))
	return client(to, args[1], n[2], time.Duration(n[3])*ms, time.Duration(n[4])*ms)
}

// client asks the node at to, with so many requests or queries at a time, as a program does that uses the module.
func client(to netip.AddrPort, kind string, window int, warm, d time.Duration) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	all, err := session.NewNodes()
	if err != nil {
		return err
	}
	defer func() { _ = all.Close() }()
	n, err := all.Open(session.NodeConfig{Addr: to.Addr(), DHT: dht.Config{Bootstrap: []string{to.String()}}})
	if err != nil {
		return err
	}
	defer func() { _ = n.Close() }()
	if err := n.Ready(ctx); err != nil {
		return err
	}
	var done, requests atomic.Int64
	ask := func() error {
		_, err := n.Node().Ping(ctx, nil, to, 3)
		requests.Add(1)
		return err
	}
	if kind != "ping" {
		ask = func() error {
			var target key.Target
			rand.Read(target[:])
			if kind == "lookup" {
				q := n.Node().StartLookup(ctx, target)
				err := q.Wait()
				requests.Add(int64(q.Stats().Requests))
				return err
			}
			q := n.Node().StartFindNode(ctx, target)
			err := q.Wait()
			requests.Add(int64(q.Stats().Requests))
			return err
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, window)
	for range window {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); err != nil && ctx.Err() == nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	say := json.NewEncoder(os.Stdout)
	var before count
	for _, step := range []struct {
		event string
		after time.Duration
	}{{"begin", warm}, {"end", d}} {
		select {
		case err := <-failed:
			return err
		case <-time.After(step.after):
		}
		now := count{done.Load(), requests.Load()}
		if err := say.Encode(event{Event: step.event, count: count{now.Done - before.Done, now.Requests - before.Requests}}); err != nil {
			return err
		}
		before = now
	}
	return nil
}

// question has clients of im, on one core, ask nodes of to, on the other.
func (im implementation) question(to implementation, kind string, window int, busy time.Duration) (a asked, err error) {
	a = asked{Kind: kind, Window: window, Asks: im.name, Serves: to.name}
	nodes, port, err := to.start(workers, "1")
	if err != nil {
		return a, err
	}
	defer nodes.stop()
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	args := append([]string{"-c", "0"}, im.client...)
	args = append(args, strconv.Itoa(int(port)), kind, strconv.Itoa(window), ms(busy/5), ms(busy))
	c := &child{cmd: exec.Command("taskset", args...)}
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		return a, err
	}
	defer c.stop()
	var used [2][2]time.Duration // at begin and end: of who asks, of who answers
	var e event
	lines := bufio.NewScanner(out)
	for i, name := range []string{"begin", "end"} {
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Event != name {
			return a, fmt.Errorf("%s: asking for %s ended early", im.name, kind)
		}
		for j, p := range []*child{c, nodes} {
			if used[i][j], _, err = p.cpu(); err != nil {
				return a, err
			}
		}
	}
	if e.Done == 0 || e.Requests == 0 {
		return a, fmt.Errorf("%s: no answer to %s", im.name, kind)
	}
	n := float64(e.Requests)
	a.PerSecond, a.Requests = n/busy.Seconds(), n/float64(e.Done)
	a.Ask = float64((used[1][0] - used[0][0]).Microseconds()) / n
	a.Answer = float64((used[1][1] - used[0][1]).Microseconds()) / n
	return a, nil
}
