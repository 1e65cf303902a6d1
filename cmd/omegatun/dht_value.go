package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/compact"
	"omegatun/dht/key"
)

func newDHTPut(e *env) *cobra.Command {
	var mutable bool
	var seq uint64
	cmd := &cobra.Command{
		Use:   "put <file|->",
		Short: "Store a value in the DHT",
		Long: fmt.Sprintf(`Stores what a file or stdin has, at most %d bytes, on the nodes closest to its hash, and
prints the hash. Anyone who has the hash can get it.

With --mutable it is stored under this machine's key, signed, in place of what is there, and
the key and the sequence number are printed. The number is one more than what is stored;
the same if the value is the same; or that of --seq.

Values are not encrypted. Nodes keep them for 32 to 64 hours after they were last asked for:
put it again once a day to keep it.

With --json, one object: {"schema":1,"hash","bytes","stored_on","closest"}, with --mutable
"key" and "seq" in place of "hash"; on how many nodes of how many it is stored. A node that
refused it does not count.

Exit status 2: too large. 8: all nodes refused it. 9: no DHT node answers.`, dht.MaxValue),
		Example: `  echo hello | omegatun dht put -
  omegatun dht put card.json --mutable`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen := cmd.Flags().Changed("seq")
			switch {
			case chosen && !mutable:
				return exit.New(exit.Usage, "only mutable values have a sequence number").WithTry("--mutable --seq %d", seq)
			case seq > compact.MaxUint:
				return exit.New(exit.Usage, "--seq must not exceed %d", uint64(compact.MaxUint))
			}
			value, err := e.readArg(args[0], dht.MaxValue)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if !mutable {
				return e.withNode(ctx, func(n *dht.Node) error { return e.putImmutable(ctx, n, value) })
			}
			k, err := e.makeIdentity()
			if err != nil {
				return err
			}
			keepSecrets()
			return e.withNode(ctx, func(n *dht.Node) error {
				if !chosen {
					if seq, err = nextSeq(ctx, n, k.Public(), value); err != nil {
						return err
					}
				}
				return e.putMutable(ctx, n, k, seq, value)
			})
		},
	}
	cmd.Flags().BoolVar(&mutable, "mutable", false, "under this machine's key, signed, in place of what is there")
	cmd.Flags().Uint64Var(&seq, "seq", 0, "sequence `number` of a mutable value")
	return cmd
}

func (e *env) putImmutable(ctx context.Context, n *dht.Node, value []byte) error {
	hash, stored, err := n.PutImmutable(ctx, value)
	if err != nil {
		return err
	}
	if len(stored.Nodes) == 0 {
		return dht.ErrNoNodes
	}
	e.saysStored(stored)
	return e.print(object{
		"hash": hash.String(), "bytes": len(value), "stored_on": len(stored.Nodes), "closest": stored.Closest,
	}, hash.String()+"\n")
}

func (e *env) putMutable(ctx context.Context, n *dht.Node, k key.Private, seq uint64, value []byte) error {
	stored, err := n.PutMutable(ctx, k, seq, value)
	if err != nil {
		return err
	}
	if len(stored.Nodes) == 0 {
		return dht.ErrNoNodes
	}
	e.saysStored(stored)
	return e.print(object{
		"key": k.Public(), "seq": seq, "bytes": len(value), "stored_on": len(stored.Nodes), "closest": stored.Closest,
	}, fmt.Sprintf("%s %d\n", k.Public(), seq))
}

// nextSeq returns the sequence number to store value with: that of the stored one if it is the same, or else one
// more.
func nextSeq(ctx context.Context, n *dht.Node, k key.Public, value []byte) (uint64, error) {
	old, err := n.GetMutable(ctx, k, 0)
	switch {
	case errors.Is(err, dht.ErrNotFound):
		return 1, nil
	case err != nil:
		return 0, err
	case bytes.Equal(old.Value, value):
		return old.Seq, nil
	case old.Seq >= compact.MaxUint:
		return 0, exit.New(exit.Refused, "the stored value has the highest sequence number there is")
	}
	return old.Seq + 1, nil
}

func newDHTGet(e *env) *cobra.Command {
	var mutable bool
	var minSeq uint64
	cmd := &cobra.Command{
		Use:   "get <hash> | get --mutable <peer>",
		Short: "Get a value from the DHT",
		Long: `Gets the value with a hash, or with --mutable the latest that a peer, by key or name, has
stored under its key, and writes it to stdout as it is: no byte more. The hash or the
signature has been checked.

With --json, one object: {"schema":1,"hash","bytes","value"}, the value in base64; with
--mutable "key" and "seq" in place of "hash".

Exit status 2: not a hash, or not a key. 6: no node has it. 9: no DHT node answers.`,
		Example: `  omegatun dht get 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef > file
  omegatun dht get --mutable desk
  omegatun dht get --mutable desk --min-seq 7`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if minSeq > compact.MaxUint {
				return exit.New(exit.Usage, "--min-seq must not exceed %d", uint64(compact.MaxUint))
			}
			if mutable {
				k, err := e.anyKey(args[0])
				if err != nil {
					return err
				}
				return e.withNode(ctx, func(n *dht.Node) error { return e.getMutable(ctx, n, k, minSeq) })
			}
			if cmd.Flags().Changed("min-seq") {
				return exit.New(exit.Usage, "only mutable values have a sequence number").WithTry("--mutable --min-seq %d", minSeq)
			}
			hash, err := key.ParseTarget(args[0])
			if err != nil {
				return exit.New(exit.Usage, "%q is not a hash of 64 hex digits", args[0]).WithTry("--mutable, if it is a key")
			}
			return e.withNode(ctx, func(n *dht.Node) error { return e.getImmutable(ctx, n, hash) })
		},
	}
	cmd.Flags().BoolVar(&mutable, "mutable", false, "the latest that a peer stored under its key")
	cmd.Flags().Uint64Var(&minSeq, "min-seq", 0, "take no value with a lower sequence `number`")
	return cmd
}

func (e *env) getImmutable(ctx context.Context, n *dht.Node, hash key.Target) error {
	value, err := n.GetImmutable(ctx, hash)
	if errors.Is(err, dht.ErrNotFound) {
		return exit.Wrap(exit.NotFound, err, "no node has a value with this hash")
	}
	if err != nil {
		return err
	}
	return e.print(object{
		"hash": hash.String(), "bytes": len(value), "value": base64.StdEncoding.EncodeToString(value),
	}, string(value))
}

func (e *env) getMutable(ctx context.Context, n *dht.Node, k key.Public, minSeq uint64) error {
	m, err := n.GetMutable(ctx, k, minSeq)
	if errors.Is(err, dht.ErrNotFound) {
		return exit.Wrap(exit.NotFound, err, "no node has such a value of this key")
	}
	if err != nil {
		return err
	}
	e.say("sequence number %d", m.Seq)
	return e.print(object{
		"key": k, "seq": m.Seq, "bytes": len(m.Value), "value": base64.StdEncoding.EncodeToString(m.Value),
	}, string(m.Value))
}
