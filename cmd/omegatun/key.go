package main

import (
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
	"omegatun/dht/key"
)

func newKey(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, show, save and restore this machine's identity",
		Long: `The identity is an Ed25519 key pair. It is kept in the state folder in the file
"identity", mode 0600, which is made on first use. If others may read the file, or if
it is damaged, it is refused, never replaced.`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newKeyNew(e), newKeyShow(e), newKeyExport(e), newKeyImport(e))
	return cmd
}

func newKeyNew(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "new",
		Short: "Make the identity if there is none, and print its public key",
		Long: `Makes the identity if there is none, and prints its public key alone on a line. An
identity that is there already is kept. With --json: {"schema":1,"key","hex"}.`,
		Example: `  omegatun key new
  omegatun --state /srv/second key new`,
		Args: takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			k, err := e.makeIdentity()
			if err != nil {
				return err
			}
			return e.printKey(k.Public())
		},
	}
}

func newKeyShow(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Print the public key",
		Long: `Prints the public key alone on a line, as 52 characters of z-base-32. Without an
identity it fails, and makes none. With --json: {"schema":1,"key","hex"}.`,
		Example: `  omegatun key show`,
		Args:    takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			k, err := e.identity()
			if err != nil {
				return err
			}
			return e.printKey(k.Public())
		},
	}
}

func newKeyExport(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Print the identity, with its secret, to keep a copy of it",
		Long: `Prints the identity in the form of its file, to keep a copy in a safe place or to move
the identity to another machine. Whoever reads it can be this machine. Two machines
with one identity at the same time do not work.

With --json: {"schema":1,"key","hex","seed"}, the seed in hex.`,
		Example: `  (umask 077; omegatun key export > omegatun-identity)
  omegatun key export | ssh root@new omegatun key import -`,
		Args: takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			k, err := e.identity()
			if err != nil {
				return err
			}
			if isTerminal(e.stdout) {
				e.note("this is the secret: whoever sees it can be this machine")
			}
			seed := k.Seed()
			return e.print(
				object{"key": k.Public(), "hex": k.Public().Hex(), "seed": hex.EncodeToString(seed[:])},
				string(state.FormatIdentity(k)))
		},
	}
}

func newKeyImport(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "import <file|->",
		Short: "Take over an identity that was exported",
		Long: `Takes over an identity from a file, or with - from stdin, and prints its public key.
It reads what "omegatun key export" prints, and also a seed alone as 64 hex digits, as
other programs of the network keep it. An identity that is there already is kept: then
this fails.`,
		Example: `  omegatun key import omegatun-identity
  echo $SEED | omegatun --state /srv/second key import -`,
		Args: takes(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := e.readArg(args[0], 64<<10)
			if err != nil {
				return err
			}
			k, err := state.ParseIdentity(text)
			if err != nil {
				return exit.New(exit.Usage, "%s is not an identity: %w", args[0], err).
					WithTry("the output of omegatun key export, or a seed of 64 hex digits")
			}
			dir, err := e.makeState()
			if err != nil {
				return err
			}
			defer dir.Close()
			if err := dir.ImportIdentity(k); err != nil {
				return err
			}
			return e.printKey(k.Public())
		},
	}
}

// identity returns this machine's identity, which must exist.
func (e *env) identity() (key.Private, error) {
	path, err := e.statePath()
	if err != nil {
		return key.Private{}, err
	}
	dir, err := state.Open(path)
	if err != nil {
		return key.Private{}, err
	}
	defer dir.Close()
	return dir.Identity()
}

func (e *env) printKey(k key.Public) error {
	return e.print(object{"key": k, "hex": k.Hex()}, k.String()+"\n")
}

// readArg returns the content of the file that an argument names, - for stdin, if it has at most limit bytes.
func (e *env) readArg(arg string, limit int64) ([]byte, error) {
	in, name := e.stdin, "stdin"
	if arg != "-" {
		name = arg
		f, err := os.Open(arg)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, exit.New(exit.Permission, "%w", err)
		case err != nil:
			return nil, exit.New(exit.Usage, "%w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	switch {
	case err != nil:
		return nil, exit.New(exit.Usage, "%w", err)
	case int64(len(b)) > limit:
		return nil, exit.New(exit.Usage, "%s has more than %d bytes", name, limit)
	}
	return b, nil
}
