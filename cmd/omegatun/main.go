// Command omegatun joins machines by their public keys: a VPN without a server.
//
// Each subcommand is in a file of its own and appears in the table below. Data goes to stdout, everything else to
// stderr; with --json both are JSON. The exit statuses are those of package exit.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"omegatun/cmd/omegatun/internal/exit"
)

// commands is the table of subcommands, in the order of the help text.
var commands = []struct {
	group string
	make  func(*env) *cobra.Command
}{
	{"connect", newUp},
	{"connect", newDown},
	{"connect", newAdd},
	{"connect", newRm},
	{"connect", newStatus},
	{"connect", newPing},
	{"connect", newWait},
	{"identity", newID},
	{"identity", newKey},
	{"identity", newIP},
	{"identity", newWhois},
	{"access", newListen},
	{"access", newConnect},
	{"access", newServe},
	{"access", newForward},
	{"dht", newNode},
	{"dht", newRelay},
	{"dht", newDHT},
	{"operate", newService},
	{"operate", newNetcheck},
	{"operate", newConfig},
	{"operate", newVersion},
}

var groups = []*cobra.Group{
	{ID: "connect", Title: "Connect:"},
	{ID: "identity", Title: "Identity:"},
	{ID: "access", Title: "Streams:"},
	{ID: "dht", Title: "DHT:"},
	{ID: "operate", Title: "Operate:"},
}

func main() { os.Exit(execute()) }

// execute runs the command that this process was started with, and returns its exit status.
func execute() int {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP) // the terminal was closed
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	cobra.EnableCommandSorting = false
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for anything
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// run executes one command line and returns its exit status. It stops early when ctx ends.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	e := &env{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRoot(e)
	root.SetArgs(optionalBootstrap(args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return int(exit.OK)
	}
	failure := exit.From(err)
	if failure.Code == exit.Usage && failure.Try == "" {
		failure = failure.WithTry("%s --help", cmd.CommandPath())
	}
	if failure.Code == exit.Interrupted || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		failure = exit.New(exit.Interrupted, "interrupted")
	}
	if !e.flagsParsed { // --json may stand behind what could not be parsed
		for _, a := range args {
			e.json = e.json || a == "--json"
		}
	}
	if e.json {
		e.printJSON(e.stderr, failure) //nolint:errcheck // there is nowhere else to say it
	} else {
		io.WriteString(e.stderr, e.emphasize(failure.Text())) //nolint:errcheck // there is nowhere else to say it
	}
	return int(failure.Code)
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "omegatun",
		Short: "Reach machines by their public key, wherever they are",
		Long: `omegatun joins machines into a private network: each reaches the others at a fixed
virtual address that follows from its public key, through whatever routers are in
between. There is no server to rent and no account. Nobody may connect who is not
listed.

On both machines:

  sudo omegatun id                      # tell the other machine's owner this key
  sudo omegatun up <the other's key>    # and connect

Root and every other user have keys and lists of peers of their own: the machine's, which
"up" needs, are root's. listen, connect, serve and forward need no root.

` + exit.Help,
		Example: `  sudo omegatun id
  sudo omegatun up hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko
  ssh user@$(omegatun ip hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko | head -1)
  sudo omegatun add hg5f75r47ejditzoynds6zdpkeqsnpjk87errjfn17iaojrgofko --name desk
  sudo omegatun ping desk`,
		Args:              cobra.ArbitraryArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,

		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			e.flagsParsed = true
			return e.check(cmd.Flags())
		},
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := exit.New(exit.Usage, "there is no command %q", args[0])
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			return err.WithTry("omegatun %s", strings.Join(similar, "\nomegatun "))
		}
		return err.WithTry("omegatun help, for a list of them")
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		reason, _, _ := strings.Cut(err.Error(), ": strconv.") // a name of Go's tells nobody anything
		return exit.Wrap(exit.Usage, err, "%s", reason)
	})
	e.addFlags(root.PersistentFlags())
	root.AddGroup(groups...)
	for _, c := range commands {
		sub := c.make(e)
		sub.GroupID = c.group
		root.AddCommand(sub)
	}
	root.SetHelpCommand(newHelp())
	root.SetCompletionCommandGroupID("operate")
	return root
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [command]",
		Short:   "Explain a command",
		Long:    "Prints the help text of a command, as its flag --help does.",
		GroupID: "operate",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return exit.New(exit.Usage, "there is no command %q", strings.Join(args, " ")).
					WithTry("omegatun help, for a list of them")
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// takes returns a check that there are between least and most positional arguments, most < 0 for any number.
func takes(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return exit.New(exit.Usage, "%s needs more arguments: %s", cmd.CommandPath(), cmd.UseLine())
		case most >= 0 && len(args) > most:
			return exit.New(exit.Usage, "%q is one argument too many", args[most])
		}
		return nil
	}
}

// needsSubcommand is the RunE of a command that only groups others.
func needsSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return exit.New(exit.Usage, "there is no command %q", strings.TrimPrefix(cmd.CommandPath(), "omegatun ")+" "+args[0])
}

// optionalBootstrap puts a value behind each --bootstrap that has none, which is how a node says that it is the
// bootstrap node itself.
func optionalBootstrap(args []string) []string {
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			return append(out, args[i:]...)
		}
		if a == "--bootstrap" && (i+1 == len(args) || strings.HasPrefix(args[i+1], "-")) {
			a += "=" + bootstrapSelf
		}
		out = append(out, a)
	}
	return out
}

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
