package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"omegatun/cmd/omegatun/internal/config"
	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/cmd/omegatun/internal/state"
)

// bootstrapSelf is the value of --bootstrap where none is given.
const bootstrapSelf = "self"

// env is what every command works with: the global flags, the streams, and the folders they lead to.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	flagsParsed bool
	configFlag  string
	stateFlag   string
	socketFlag  string
	bootstrap   []string // nil: from the configuration
	json        bool
	verbose     int
	quiet       bool

	stopWatching func() // ends the watch of the network for the command's host; nil: there is none
}

func (e *env) addFlags(f *pflag.FlagSet) {
	f.StringVar(&e.configFlag, "config", "", "configuration `file`; default: see omegatun config path")
	f.StringVar(&e.stateFlag, "state", "", "`folder` of the identity and of what is remembered;\n"+
		"configuration and socket then are in it too, unless named")
	f.StringVar(&e.socketFlag, "socket", "", "control socket `file` of the running omegatun")
	f.StringSliceVar(&e.bootstrap, "bootstrap", nil, "DHT nodes to start from, `host:port,...`; default: the public network")
	f.BoolVar(&e.json, "json", false, "print JSON: one object, or one a line")
	f.CountVarP(&e.verbose, "verbose", "v", "log more, twice for everything")
	f.BoolVarP(&e.quiet, "quiet", "q", false, "print errors only, besides data")
}

// check refuses global flags that are wrong for every command.
func (e *env) check(f *pflag.FlagSet) error {
	for _, name := range []string{"config", "state", "socket"} {
		if flag := f.Lookup(name); flag.Changed && flag.Value.String() == "" {
			return exit.New(exit.Usage, "--%s needs a value", name).WithTry("leave it out, for the default")
		}
	}
	if e.bootstrapsItself() {
		return nil // only node takes it, and the others ask bootstrapNodes
	}
	for _, node := range e.bootstrap {
		if err := config.CheckBootstrap(node); err != nil {
			return exit.New(exit.Usage, "--bootstrap: %w", err).WithTry("--bootstrap 203.0.113.9:49737")
		}
	}
	return nil
}

// bootstrapNodes returns the DHT nodes to start from: those of the flag, or else of the configuration; nil for the
// public network.
func (e *env) bootstrapNodes(c *config.Config) ([]string, error) {
	if e.bootstrapsItself() {
		return nil, exit.New(exit.Usage, "--bootstrap needs a value here").WithTry("--bootstrap 203.0.113.9:49737")
	}
	if e.bootstrap != nil {
		return e.bootstrap, nil
	}
	return c.Bootstrap, nil
}

// bootstrapsItself reports whether --bootstrap was given without a value, or with an empty one.
func (e *env) bootstrapsItself() bool {
	return e.bootstrap != nil && (len(e.bootstrap) == 0 || len(e.bootstrap) == 1 && e.bootstrap[0] == bootstrapSelf)
}

// outliveReader keeps a command running that serves others when whoever reads its output goes away. It would be killed
// otherwise, without undoing anything.
func (e *env) outliveReader() {
	failWithoutReader()
	if !isTerminal(e.stdout) {
		e.stdout = deaf{e.stdout}
	}
}

// failWithoutReader has writes to stdout fail when whoever reads it goes away. The command would be killed otherwise, without
// telling its peer.
func failWithoutReader() { signal.Ignore(syscall.SIGPIPE) }

// deaf is a writer that takes it for success that nobody reads any more.
type deaf struct{ io.Writer }

func (w deaf) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		return len(b), nil
	}
	return n, err
}

// isRoot reports whether the system's own folders are to be used.
func isRoot() bool { return runtime.GOOS != "windows" && os.Geteuid() == 0 }

const (
	systemState  = "/var/lib/omegatun"
	systemConfig = "/etc/omegatun/config.toml"
	systemSocket = "/run/omegatun/control.sock"
)

// userPath returns a path of the user's own: below the folder in the environment variable, or else below home.
func userPath(variable, home string, rest ...string) (string, error) {
	base := os.Getenv(variable)
	if !filepath.IsAbs(base) {
		dir, err := os.UserHomeDir()
		if err != nil {
			return "", exit.New(exit.Usage, "cannot find your home folder: %w", err).WithTry("--state <folder>")
		}
		base = filepath.Join(dir, filepath.FromSlash(home))
	}
	return filepath.Join(append([]string{base}, rest...)...), nil
}

func (e *env) statePath() (string, error) {
	switch {
	case e.stateFlag != "":
		return e.stateFlag, nil
	case isRoot():
		return systemState, nil
	case runtime.GOOS == "windows":
		return userPath("LocalAppData", "AppData/Local", "omegatun")
	}
	return userPath("XDG_STATE_HOME", ".local/state", "omegatun")
}

func (e *env) configPath() (string, error) {
	switch {
	case e.configFlag != "":
		return e.configFlag, nil
	case e.stateFlag != "":
		return filepath.Join(e.stateFlag, "config.toml"), nil
	case isRoot():
		return systemConfig, nil
	case runtime.GOOS == "windows":
		return userPath("AppData", "AppData/Roaming", "omegatun", "config.toml")
	}
	return userPath("XDG_CONFIG_HOME", ".config", "omegatun", "config.toml")
}

// socketPath returns the socket that a daemon started with these flags opens.
func (e *env) socketPath() (string, error) {
	switch {
	case e.socketFlag != "":
		return e.socketFlag, nil
	case e.stateFlag != "":
		return filepath.Join(e.stateFlag, "control.sock"), nil
	case isRoot():
		return systemSocket, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "omegatun", "control.sock"), nil
	}
	dir, err := e.statePath()
	return filepath.Join(dir, "control.sock"), err
}

// client returns a client of the running omegatun: the user's own, or else the system's if there is one.
func (e *env) client() (*control.Client, error) {
	path, err := e.socketPath()
	if err != nil {
		return nil, err
	}
	if e.socketFlag == "" && e.stateFlag == "" && !exists(path) && exists(systemSocket) {
		path = systemSocket
	}
	return control.NewClient(path), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// makeState opens the state folder, and makes it if it is not there. The caller closes it.
func (e *env) makeState() (*state.Dir, error) {
	path, err := e.statePath()
	if err != nil {
		return nil, err
	}
	if e.stateFlag == "" && !isRoot() && !exists(path) && exists(systemState) {
		e.note("this is about your own omegatun, in %s; sudo omegatun is about the machine's, in %s", path, systemState)
	}
	return state.Make(path)
}

// loadConfig reads the configuration.
func (e *env) loadConfig() (*config.Config, error) {
	dir, err := e.statePath()
	if err != nil {
		return nil, err
	}
	path, err := e.configPath()
	if err != nil {
		return nil, err
	}
	return config.Load(path, e.configFlag != "", filepath.Join(dir, state.PeersFile))
}

// lookUp returns the peer that a person means by arg, see [config.Peers.Find].
func (e *env) lookUp(c *config.Config, arg string) (config.Peer, error) {
	p, err := c.Peers.Find(arg)
	if why := exit.From(err); why != nil && why.Code == exit.UnknownPeer && e.stateFlag == "" && !isRoot() && exists(systemState) {
		err = why.WithTry("%s\nsudo omegatun …, if it is listed for the whole machine", why.Try)
	}
	return p, err
}

// log returns the logger that the flags ask for. It writes to stderr.
func (e *env) log() *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelWarn}
	switch {
	case e.quiet:
		opts.Level = slog.LevelError
	case e.verbose == 1:
		opts.Level = slog.LevelInfo
	case e.verbose > 1:
		opts.Level = slog.LevelDebug
	}
	if e.json {
		return slog.New(slog.NewJSONHandler(e.stderr, opts))
	}
	return slog.New(slog.NewTextHandler(e.stderr, opts))
}

// object is a JSON object with its schema, for answers that are made in place.
type object map[string]any

// print writes data to stdout: text, or with --json v on a line. Objects get their schema here.
func (e *env) print(v any, text string) error {
	if !e.json {
		_, err := io.WriteString(e.stdout, text)
		return err
	}
	if o, ok := v.(object); ok {
		o["schema"] = control.Schema
	}
	return e.printJSON(e.stdout, v)
}

func (e *env) printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// say tells a person something that goes without saying to a program: a line on stderr, nothing with -q or --json.
func (e *env) say(format string, args ...any) {
	if !e.quiet && !e.json {
		fmt.Fprintf(e.stderr, format+"\n", args...)
	}
}

// note tells of something that may be wrong: a line on stderr, an event with --json, nothing with -q.
func (e *env) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	switch {
	case e.quiet:
	case e.json:
		e.printJSON(e.stderr, control.Event{Schema: control.Schema, Event: "note", Reason: text}) //nolint:errcheck // nowhere else to say it
	default:
		fmt.Fprintf(e.stderr, "note: %s\n", text)
	}
}

// emphasize colours the first word of an error message where there are colours.
func (e *env) emphasize(text string) string {
	if !e.colour(e.stderr) {
		return text
	}
	return strings.Replace(text, "error:", "\x1b[1;31merror:\x1b[0m", 1)
}

// colour reports whether w shows colours and its reader wants them.
func (e *env) colour(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}
