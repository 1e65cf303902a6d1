package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
)

func newPing(e *env) *cobra.Command {
	var count int
	var interval, timeout time.Duration
	var explain bool
	cmd := &cobra.Command{
		Use:   "ping <peer>",
		Short: "Measure the way to a peer, through the tunnel",
		Long: `Has the running omegatun send authenticated probes to a peer and shows, for each answer,
how long it took and on which path. It connects first if there is no connection. This
asks the other omegatun, not the other machine's kernel: for that, use ping(8) with the
peer's virtual address.

With --explain it tells instead how the connection comes about, or came about if there is
one: each step with its time, what kind of NAT both machines are behind, what is done about
that, the path, or why there is none and what would help. That needs neither a running
omegatun nor a listed peer, but the peer must list this machine.

With --json, an object a line:
  {"schema":1,"event":"pong","seq","rtt_ms","path","remote"}
  {"schema":1,"event":"lost","seq"}
  {"schema":1,"event":"summary","sent","received","min_ms","median_ms","p99_ms"}
and with --explain:
  {"schema":1,"event":"step","after_ms","stage":"dht|find|handshake|path","text"}
  {"schema":1,"event":"attempt","peer","incoming","local_nat","remote_nat","strategy",
   "state":"connected|failed","took_ms","path":{"kind","remote","relay","rtt_ms"},
   "code","reason","remedy","steps":[…]}

Exit status 3: no omegatun is running. 5: no such peer. 6: it was not found. 7: no path to
it. 8: it refused, or does not answer. 9: nothing came back, or no DHT node answers.`,
		Example: `  omegatun ping desk
  omegatun ping desk --explain
  omegatun ping -c 100 -i 0.01s --json desk | tail -1 | jq .median_ms`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if explain && !cmd.Flags().Changed("timeout") {
				timeout = explainTime
			}
			if count < 0 {
				return exit.New(exit.Usage, "-c must not be negative").WithTry("-c 0, to go on until Ctrl-C")
			}
			p, err := e.findOther(args[0])
			if err != nil {
				return err
			}
			client, err := e.client()
			if err != nil {
				return err
			}
			if explain {
				return e.explain(cmd.Context(), client, p, timeout)
			}
			return e.ping(cmd.Context(), client, control.Ping{
				Peer: p.Key, Count: count, IntervalMS: interval.Milliseconds(), TimeoutMS: timeout.Milliseconds(),
			})
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "tell how the connection comes about, or why not")
	cmd.Flags().IntVarP(&count, "count", "c", 5, "how many probes; 0: until Ctrl-C")
	timeVar(cmd.Flags(), &interval, "interval", "i", time.Second, "`time` between probes")
	timeVar(cmd.Flags(), &timeout, "timeout", "", 10*time.Second, "`time` to wait for the connection, and for an answer")
	return cmd
}

// summary is what a series of pings came to.
type summary struct {
	Schema   int     `json:"schema"`
	Event    string  `json:"event"` // "summary"
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	MinMS    float64 `json:"min_ms"`
	MedianMS float64 `json:"median_ms"`
	P99MS    float64 `json:"p99_ms"`
}

// summarize returns the summary of sent probes and the round trips of those that were answered, which it sorts.
func summarize(sent int, rtts []float64) summary {
	s := summary{Schema: control.Schema, Event: "summary", Sent: sent, Received: len(rtts)}
	if len(rtts) == 0 {
		return s
	}
	slices.Sort(rtts)
	// The smallest value that at least p percent of all do not exceed.
	percentile := func(p int) float64 { return rtts[(len(rtts)*p+99)/100-1] }
	s.MinMS, s.MedianMS, s.P99MS = rtts[0], percentile(50), percentile(99)
	return s
}

func (e *env) ping(ctx context.Context, client *control.Client, ping control.Ping) error {
	sent := 0
	var rtts []float64
	err := client.Ping(ctx, ping, func(p control.Pong) error {
		sent++
		text := fmt.Sprintf("seq %d: no answer\n", p.Seq)
		if p.Event == "pong" {
			rtts = append(rtts, p.RTTMS)
			text = fmt.Sprintf("seq %d: %.3f ms, %s, from %s\n", p.Seq, p.RTTMS, p.Path, p.Remote)
		}
		return e.print(p, text)
	})
	if err != nil && (ctx.Err() == nil || sent == 0) { // Ctrl-C is one way to end it
		return err
	}
	return e.printSummary(sent, rtts, "omegatun status")
}

// printSummary prints what a series of pings came to. Nothing at all is an error, with try as what can be done.
func (e *env) printSummary(sent int, rtts []float64, try string) error {
	s := summarize(sent, rtts)
	text := fmt.Sprintf("%d sent, %d received\n", s.Sent, s.Received)
	if s.Received > 0 {
		text = fmt.Sprintf("%d sent, %d received; min %.3f ms, median %.3f ms, p99 %.3f ms\n",
			s.Sent, s.Received, s.MinMS, s.MedianMS, s.P99MS)
	}
	if err := e.print(s, text); err != nil {
		return err
	}
	if s.Received == 0 {
		return exit.New(exit.Timeout, "nothing came back").WithTry("%s", try)
	}
	return nil
}

// findPeer returns the peer that a person means by arg. That may be this machine's own key: programs such as hyperbeam and
// holesail give one key to both ends, so that who has it may connect.
func (e *env) findPeer(arg string) (config.Peer, error) {
	c, err := e.loadConfig()
	if err != nil {
		return config.Peer{}, err
	}
	return e.lookUp(c, arg)
}

// findOther is findPeer, but for this machine itself.
func (e *env) findOther(arg string) (config.Peer, error) {
	p, err := e.findPeer(arg)
	if err != nil {
		return config.Peer{}, err
	}
	if k, err := e.identity(); err == nil && k.Public() == p.Key {
		return config.Peer{}, ownKeyError()
	}
	return p, nil
}
