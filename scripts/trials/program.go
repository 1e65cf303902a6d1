//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"omegatun/scripts/netlab"
)

// program is an endpoint that runs somewhere in a lab.
type program struct {
	*netlab.Process
	stdin   *os.File
	answers chan answer
}

// start starts an endpoint; impl is "go" or "js".
func (c *config) start(n *netlab.Net, impl string) (*program, error) {
	args := []string{c.self, "endpoint"}
	if impl == "js" {
		args = []string{"node", c.js}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &program{stdin: w, answers: make(chan answer, 16)}
	p.Process, err = n.Start(netlab.Cmd{Args: args, Stdin: r, OnLine: func(line string) {
		var a answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			a = answer{Event: "error", Message: line}
		}
		select {
		case p.answers <- a:
		default: // nobody asked
		}
	}})
	return p, errors.Join(err, r.Close())
}

// stop ends the program.
func (p *program) stop() {
	p.stdin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil {
		p.Kill()
	}
}

// ask gives an order and waits for the answer.
func (p *program) ask(ctx context.Context, o order) (answer, error) {
	for len(p.answers) > 0 {
		<-p.answers
	}
	b, err := json.Marshal(o)
	if err == nil {
		_, err = p.stdin.Write(append(b, '\n'))
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w\n%s", p.Name, err, p.Output())
	}
	return p.next(ctx)
}

// answerLimit is how long an endpoint may take beyond the time that it was given.
const answerLimit = 150 * time.Second

// next waits for the next answer.
func (p *program) next(ctx context.Context) (answer, error) {
	select {
	case a := <-p.answers:
		if a.Event == "error" {
			return a, errors.New(a.Message)
		}
		return a, nil
	case <-p.Done():
		return answer{}, fmt.Errorf("%s: ended:\n%s", p.Name, p.Output())
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case <-time.After(answerLimit):
		return answer{}, fmt.Errorf("%s: no answer:\n%s", p.Name, p.Output())
	}
}
