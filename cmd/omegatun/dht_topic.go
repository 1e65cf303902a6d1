package main

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
)

const (
	// announceEvery is how often an announcement is renewed: nodes keep it for 13 minutes at least.
	announceEvery = 5 * time.Minute
	// unannounceTime is how long withdrawing an announcement may take.
	unannounceTime = 10 * time.Second
)

const topicHelp = `A topic is 64 hex digits, or with --text any text, which is hashed with BLAKE2b-256.`

func newDHTLookup(e *env) *cobra.Command {
	var text bool
	cmd := &cobra.Command{
		Use:   "lookup <topic>",
		Short: "List who announced a topic",
		Long: `Asks the nodes closest to a topic who announced it, and prints a line a peer as the answers
come: its key, then the addresses of nodes that lead to it, if it named some. Anyone may
announce anything, so a key in the list proves nothing. Nodes that know more than twenty
tell of any twenty.

` + topicHelp + `

With --json, an object a line: {"schema":1,"key","relays","from"}, from: the node that said so.

Exit status 6: nobody announced it. 9: no DHT node answers.`,
		Example: `  omegatun dht lookup --text "our chess club"
  omegatun dht lookup 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef --json`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, err := parseTopic(args[0], text)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return e.withNode(ctx, func(n *dht.Node) error { return e.lookup(ctx, n, topic) })
		},
	}
	addTextFlag(cmd, &text)
	return cmd
}

func addTextFlag(cmd *cobra.Command, text *bool) {
	cmd.Flags().BoolVar(text, "text", false, "the topic is the hash of this text")
}

// lookup prints who announced topic.
func (e *env) lookup(ctx context.Context, n *dht.Node, topic key.Target) error {
	seen := make(map[key.Public]bool)
	for r, err := range n.Lookup(ctx, topic) {
		if err != nil {
			return err
		}
		for _, p := range r.Peers {
			if seen[p.Key] {
				continue
			}
			seen[p.Key] = true
			if err := e.printRecord(p, r.From); err != nil {
				return err
			}
		}
	}
	if len(seen) == 0 {
		return exit.New(exit.NotFound, "nobody announced this topic")
	}
	return nil
}

// printRecord prints a peer that node from knows.
func (e *env) printRecord(p dht.Record, from netip.AddrPort) error {
	return e.print(object{"key": p.Key, "relays": someNodes(p.Relays), "from": from}, recordLine(p)+"\n")
}

// recordLine is the line for a peer: its key, then its relays.
func recordLine(p dht.Record) string {
	words := []string{p.Key.String()}
	for _, a := range p.Relays {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

func newDHTAnnounce(e *env) *cobra.Command {
	var text, once bool
	cmd := &cobra.Command{
		Use:   "announce <topic>",
		Short: "Announce this machine's key under a topic",
		Long: `Stores under a topic that this machine's key is to be found there, and prints the key. Others
see it with "omegatun dht lookup"; to be reached, "omegatun up" or listen must run too.

The announcement is renewed until Ctrl-C, and withdrawn then. With --once it is made once:
nodes forget it after 13 to 27 minutes, or with "omegatun dht unannounce".

` + topicHelp + `

With --json, an object a line: {"schema":1,"event":"announced","topic","key","relays",
"stored_on","closest"}, on how many nodes of how many it is stored; at the end the same with
"event":"unannounced".

Exit status 8: all nodes refused it. 9: no DHT node answers.`,
		Example: `  omegatun dht announce --text "our chess club"
  omegatun dht announce --once --text "our chess club"`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, err := parseTopic(args[0], text)
			if err != nil {
				return err
			}
			k, err := e.makeIdentity()
			if err != nil {
				return err
			}
			keepSecrets()
			ctx := cmd.Context()
			return e.withNode(ctx, func(n *dht.Node) error {
				if err := e.announce(ctx, n, topic, k); err != nil || once {
					return err
				}
				e.say("announced until Ctrl-C")
				e.keepAnnounced(ctx, n, topic, k)
				return e.unannounceAtEnd(ctx, n, topic, k)
			})
		},
	}
	addTextFlag(cmd, &text)
	cmd.Flags().BoolVar(&once, "once", false, "announce and leave")
	return cmd
}

// announce announces k and says so.
func (e *env) announce(ctx context.Context, n *dht.Node, topic key.Target, k key.Private) error {
	stored, err := n.Announce(ctx, topic, k, nil)
	if err != nil {
		return err
	}
	if len(stored.Nodes) == 0 {
		return dht.ErrNoNodes
	}
	e.saysStored(stored)
	return e.printTopic("announced", topic, k.Public(), stored)
}

// saysStored tells a person on how many nodes something is stored.
func (e *env) saysStored(s dht.Stored) {
	e.say("stored on %d of %d nodes", len(s.Nodes), s.Closest)
	if s.Refused != nil {
		e.note("a node refused it: %v", s.Refused)
	}
}

func (e *env) printTopic(event string, topic key.Target, k key.Public, s dht.Stored) error {
	return e.print(topicEvent{
		Schema: control.Schema, Event: event, Topic: topic.String(), Key: k, Relays: []netip.AddrPort{},
		StoredOn: len(s.Nodes), Closest: s.Closest,
	}, recordLine(dht.Record{Key: k})+"\n")
}

type topicEvent struct {
	Schema   int              `json:"schema"`
	Event    string           `json:"event"` // "announced", "unannounced"
	Topic    string           `json:"topic"` // hex
	Key      key.Public       `json:"key"`
	Relays   []netip.AddrPort `json:"relays"`
	StoredOn int              `json:"stored_on"` // for "unannounced": that forgot it
	Closest  int              `json:"closest"`
}

// keepAnnounced renews the announcement until ctx ends.
func (e *env) keepAnnounced(ctx context.Context, n *dht.Node, topic key.Target, k key.Private) {
	ticker := time.NewTicker(announceEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		stored, err := n.Announce(ctx, topic, k, nil)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.note("the announcement was not renewed, and will be tried again: %v", err)
		default:
			e.log().Info("announced again", "stored_on", len(stored.Nodes), "closest", stored.Closest)
		}
	}
}

// unannounceAtEnd withdraws the announcement after ctx has ended. That it ended is no failure.
func (e *env) unannounceAtEnd(ctx context.Context, n *dht.Node, topic key.Target, k key.Private) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unannounceTime)
	defer cancel()
	stored, err := n.Unannounce(ctx, topic, k)
	if err != nil {
		e.note("the announcement was not withdrawn, and expires in 27 minutes at most: %v", err)
		return nil
	}
	if !e.json { // the key is on stdout already
		e.say("unannounced on %d of %d nodes", len(stored.Nodes), stored.Closest)
		return nil
	}
	return e.printTopic("unannounced", topic, k.Public(), stored)
}

func newDHTUnannounce(e *env) *cobra.Command {
	var text bool
	cmd := &cobra.Command{
		Use:   "unannounce <topic>",
		Short: "Withdraw what was announced under a topic",
		Long: `Has the nodes closest to a topic forget what was announced there for this machine's key, and
prints the key.

` + topicHelp + `

With --json, one object: {"schema":1,"event":"unannounced","topic","key","relays",
"stored_on","closest"}, how many nodes of how many forgot it.

Exit status 6: no node knew of an announcement. 9: no DHT node answers.`,
		Example: `  omegatun dht unannounce --text "our chess club"`,
		Args:    takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, err := parseTopic(args[0], text)
			if err != nil {
				return err
			}
			k, err := e.identity()
			if err != nil {
				return err
			}
			keepSecrets()
			ctx := cmd.Context()
			return e.withNode(ctx, func(n *dht.Node) error {
				stored, err := n.Unannounce(ctx, topic, k)
				if err != nil {
					return err
				}
				if stored.Closest == 0 {
					return exit.New(exit.NotFound, "this machine's key is not announced under this topic")
				}
				e.say("unannounced on %d of %d nodes", len(stored.Nodes), stored.Closest)
				return e.printTopic("unannounced", topic, k.Public(), stored)
			})
		},
	}
	addTextFlag(cmd, &text)
	return cmd
}
