// Package config reads the configuration: one optional TOML file written by a person, and a list of peers that the
// commands add and rm keep beside the identity.
//
//	name = "laptop"                            # shown to peers, and the first label of this machine's name
//	port = 49737                               # UDP port, 0 or missing: any free one
//	interface = "omega0"                       # name of the network interface; missing: omega0, omega1, …
//	ipv4 = "10.64.0.7"                         # instead of the address that follows from the key
//	bootstrap = ["203.0.113.9:49737"]          # DHT nodes to start from; missing: the public network
//	port_mapping = false                       # do not ask the router to forward a port
//	relay = true                               # relay between listed peers that have no direct path
//	priority = "normal"                        # not before other programs; also "high"; missing: "realtime"
//	queues = 2                                 # goroutines that carry packets, each way; 0 or missing: by the processors
//	lan = false                                # do not look for listed peers on local networks, nor answer them there
//
//	[[peer]]
//	key = "…"                                  # 52 characters of z-base-32, or 64 hex digits
//	name = "desk"
//	ipv4 = "10.64.0.8"
//	relay = true                               # others may be met there, even if it does not offer it by itself
//
// Keys that are not known are errors, with their line. The person's file is never written to.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// maxFileBytes bounds what is read from a configuration file.
const maxFileBytes = 16 << 20

// Config is what the files say. The zero value is the configuration of a fresh install.
type Config struct {
	Name      string     // of this machine, a DNS label; empty: the host's own name
	Port      uint16     // UDP port; 0: any free one
	Interface string     // name of the network interface; empty: the first free one of omega0, omega1, …
	IPv4      netip.Addr // of this machine; zero: what follows from its key
	Bootstrap []string   // host:port or ip@host:port; nil: the public network
	Relay     bool       // relay between listed peers
	Priority  string     // one of the constants; empty: PriorityRealtime
	Queues    int        // queues of the interface, and receivers of a socket, up to MaxQueues; 0: by the processors
	NoLAN     bool       // do not look for peers on local networks
	NoMapping bool       // do not ask the router to forward a port
	Peers     Peers      // in the order of the files, the person's first
}

// Which programs a running omegatun is scheduled before.
const (
	PriorityNormal   = "normal"   // none
	PriorityHigh     = "high"     // ordinary ones
	PriorityRealtime = "realtime" // those too that are computing, while it needs less than a processor
)

// MaxQueues is the largest value of [Config].Queues.
const MaxQueues = 16

// Peer is a machine that may connect, and that this one may connect to.
type Peer struct {
	Key   key.Public
	Name  string     // a DNS label, unique; may be empty
	IPv4  netip.Addr // zero: what follows from the key
	Relay bool       // others may be met there
	From  Place      // where it is listed
}

// Place is a line of a file.
type Place struct {
	File string
	Line int // 0: not known
}

func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s line %d", p.File, p.Line)
}

// file is the form of both files. Pointers tell missing from empty.
type file struct {
	Name      *string   `toml:"name"`
	Port      *int64    `toml:"port"`
	Interface *string   `toml:"interface"`
	IPv4      *string   `toml:"ipv4"`
	Bootstrap *[]string `toml:"bootstrap"`
	Relay     *bool     `toml:"relay"`
	LAN       *bool     `toml:"lan"`
	Priority  *string   `toml:"priority"`
	Queues    *int64    `toml:"queues"`
	Mapping   *bool     `toml:"port_mapping"`
	Peer      []peer    `toml:"peer"`
}

type peer struct {
	Key   *string `toml:"key"`
	Name  *string `toml:"name"`
	IPv4  *string `toml:"ipv4"`
	Relay bool    `toml:"relay"`
}

// Load reads the configuration at path and the peers at peersPath. A missing file is an empty one, except that path
// must exist if mustExist is set. Errors are [exit.Error]s that name the file and, where there is one, the line.
func Load(path string, mustExist bool, peersPath string) (*Config, error) {
	c := new(Config)
	text, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !mustExist:
	case err != nil:
		return nil, err
	default:
		if err := c.add(path, text, false); err != nil {
			return nil, err
		}
	}
	peers, err := read(peersPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := c.add(peersPath, peers, true); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// read returns the text of a file, or an exit.Error that wraps the cause.
func read(path string) (string, error) {
	text, err := readBounded(path)
	switch {
	case len(text) > maxFileBytes:
		return "", exit.New(exit.Usage, "%s has more than %d bytes, which is not a configuration file", path, maxFileBytes)
	case errors.Is(err, fs.ErrPermission):
		return "", exit.New(exit.Permission, "may not read the configuration: %w", err).
			WithTry("sudo omegatun …, or give yourself read access to %s", path)
	case err != nil:
		return "", exit.New(exit.Usage, "cannot read the configuration: %w", err).
			WithTry("omegatun config path, to see where it is looked for")
	}
	return string(text), nil
}

// pipeWait is how long what is written into a pipe that is read as a configuration may take.
const pipeWait = 10 * time.Second

// errNobodyWrites is what readBounded says of a pipe that is empty.
var errNobodyWrites = errors.New("it is a pipe into which nobody writes")

// readBounded returns the content of a file, which need not be a regular one, and no more than a byte beyond maxFileBytes.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // else a pipe may have us wait for ever
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(pipeWait)) // not every kind of file has one, or needs one
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if info, serr := f.Stat(); err == nil && serr == nil && info.Mode()&fs.ModeNamedPipe != 0 && len(b) == 0 {
		err = fmt.Errorf("%s: %w", path, errNobodyWrites)
	}
	return b, err
}

// add takes over what the file at path says. If peersOnly is set, nothing but peers may be in it, and a peer that is
// listed already is passed over.
func (c *Config) add(path, text string, peersOnly bool) error {
	var f file
	meta, err := toml.Decode(text, &f)
	if err != nil {
		return syntaxError(path, err)
	}
	at := index(text)
	bad := func(where string, format string, args ...any) *exit.Error {
		return exit.New(exit.Usage, "%v: "+format, append([]any{Place{path, at[where]}}, args...)...).
			WithTry("correct the file, then: omegatun config check")
	}
	unknown := func(k toml.Key) bool { // the decoder takes Port for port
		return slices.ContainsFunc(k, func(part string) bool { return strings.ToLower(part) != part })
	}
	keys := meta.Undecoded()
	if i := slices.IndexFunc(meta.Keys(), unknown); i >= 0 {
		keys = append(keys, meta.Keys()[i])
	}
	if len(keys) > 0 {
		k := keys[0]
		return bad(at.find(k), "%q is not a setting that omegatun knows", k.String()).
			WithTry("remove the line; omegatun help config lists all settings")
	}
	if peersOnly && (f.Name != nil || f.Port != nil || f.Interface != nil || f.IPv4 != nil || f.Bootstrap != nil || f.Relay != nil || f.LAN != nil || f.Mapping != nil ||
		f.Priority != nil || f.Queues != nil) {
		return bad("", "this file is for peers only")
	}

	if f.Name != nil {
		if err := CheckName(*f.Name); err != nil {
			return bad("name", "name: %w", err)
		}
		c.Name = *f.Name
	}
	if f.Port != nil {
		if *f.Port < 0 || *f.Port > 65535 {
			return bad("port", "port: %d is not between 0 and 65535", *f.Port)
		}
		c.Port = uint16(*f.Port)
	}
	if f.Interface != nil {
		if err := checkInterface(*f.Interface); err != nil {
			return bad("interface", "interface: %w", err)
		}
		c.Interface = *f.Interface
	}
	if f.IPv4 != nil {
		if c.IPv4, err = ParseIPv4(*f.IPv4); err != nil {
			return bad("ipv4", "ipv4: %w", err)
		}
	}
	if f.Bootstrap != nil {
		for _, node := range *f.Bootstrap {
			if err := CheckBootstrap(node); err != nil {
				return bad("bootstrap", "bootstrap: %w", err)
			}
		}
		c.Bootstrap = append([]string{}, *f.Bootstrap...)
	}
	if f.Relay != nil {
		c.Relay = *f.Relay
	}
	if f.LAN != nil {
		c.NoLAN = !*f.LAN
	}
	if f.Priority != nil {
		switch *f.Priority {
		case PriorityNormal, PriorityHigh, PriorityRealtime:
			c.Priority = *f.Priority
		default:
			return bad("priority", "priority: %q is none of %q, %q and %q", *f.Priority, PriorityNormal, PriorityHigh, PriorityRealtime)
		}
	}
	if f.Queues != nil {
		if *f.Queues < 0 || *f.Queues > MaxQueues {
			return bad("queues", "queues: %d is not between 0 and %d", *f.Queues, MaxQueues)
		}
		c.Queues = int(*f.Queues)
	}
	if f.Mapping != nil {
		c.NoMapping = !*f.Mapping
	}

	byKey, byName := c.Peers.indexed()
	for i, raw := range f.Peer {
		table := "peer." + strconv.Itoa(i)
		p := Peer{Relay: raw.Relay, From: Place{path, at[table]}}
		if raw.Key == nil {
			return bad(table, "this peer has no key")
		}
		if p.Key, err = key.ParsePublic(*raw.Key); err != nil {
			return bad(table+".key", "key: %w", err)
		}
		if raw.Name != nil && *raw.Name != "" {
			if err := CheckName(*raw.Name); err != nil {
				return bad(table+".name", "name: %w", err)
			}
			p.Name = *raw.Name
		}
		if raw.IPv4 != nil {
			if p.IPv4, err = ParseIPv4(*raw.IPv4); err != nil {
				return bad(table+".ipv4", "ipv4: %w", err)
			}
		}
		if other, ok := byKey[p.Key]; ok {
			if peersOnly && other.From.File != path {
				continue // the person's own file has the last word
			}
			return bad(table+".key", "this key is listed already, in %v", other.From)
		}
		if other, ok := byName[p.Name]; ok && p.Name != "" {
			return bad(table+".name", "the name %q belongs to another peer already, in %v", p.Name, other.From)
		}
		c.Peers = append(c.Peers, p)
		byKey[p.Key], byName[p.Name] = p, p
	}
	return nil
}

// syntaxError returns err, from the TOML decoder, with its file and line.
func syntaxError(path string, err error) error {
	place, reason := Place{File: path}, err.Error()
	if e, ok := errors.AsType[toml.ParseError](err); ok && e.Message != "" {
		place.Line, reason = e.Position.Line, e.Message
	} else if _, scanErr := fmt.Sscanf(reason, "toml: line %d", &place.Line); scanErr == nil {
		var where string // toml: line 3 (last key "port"): what is wrong
		where, reason, _ = strings.Cut(reason, "): ")
		_, setting, _ := strings.Cut(where, "(last key ")
		setting = strings.Trim(setting, `"`)
		if _, wanted, ok := strings.Cut(reason, "; destination has type "); ok {
			reason = setting + ": " + wrongType(wanted, setting)
		}
	}
	return exit.New(exit.Usage, "%v: %s", place, reason).WithTry("correct the file, then: omegatun config check")
}

// wrongType tells in words that the value of a setting is not of the decoder's type wanted.
func wrongType(wanted, setting string) string {
	switch {
	case wanted == "integer":
		return "this has to be a whole number, without quotes"
	case wanted == "boolean":
		return "this has to be true or false, without quotes"
	case wanted == "string":
		return `this has to be text in quotes: "…"`
	case wanted == "slice" && setting == "peer":
		return "each peer begins with a line [[peer]]"
	case wanted == "slice":
		return `this has to be a list: ["…", "…"]`
	}
	return "this is not of the type that belongs here: " + wanted
}

// CheckName reports why s cannot be the name of a machine: names are DNS labels in lower case.
func CheckName(s string) error {
	switch {
	case s == "":
		return errors.New("a name must not be empty")
	case len(s) > 63:
		return fmt.Errorf("a name has at most 63 characters, this one has %d", len(s))
	case strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("%q is not a name: only a–z, 0–9 and - are allowed", s)
	case strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-"):
		return fmt.Errorf("%q is not a name: it must not start or end with -", s)
	}
	if _, err := key.ParsePublic(s); err == nil {
		return fmt.Errorf("%q is a key, not a name", s)
	}
	return nil
}

// CheckBootstrap reports why s is not host:port or ip@host:port.
func CheckBootstrap(s string) error {
	hostport := s
	if ip, rest, ok := strings.Cut(s, "@"); ok {
		a, err := netip.ParseAddr(ip)
		if err != nil || !a.Unmap().Is4() {
			return fmt.Errorf("%q: what comes before @ is not an IPv4 address", s)
		}
		if !IsHost(a) {
			return fmt.Errorf("%q: %s cannot be the address of a machine", s, ip)
		}
		hostport = rest
	}
	host, port, err := net.SplitHostPort(hostport)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil && a.Is6() {
		return fmt.Errorf("%q: the DHT speaks IPv4 only: give a node's IPv4 address, or a name, and its port", s)
	}
	if err != nil || host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }) {
		return fmt.Errorf("%q is not host:port", s)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if !a.Unmap().Is4() {
			return fmt.Errorf("%q: the DHT speaks IPv4 only: give a node's IPv4 address, or a name, and its port", s)
		}
		if !IsHost(a) {
			return fmt.Errorf("%q: %s cannot be the address of a machine", s, host)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: the port is not a number between 1 and 65535", s)
	}
	return nil
}

// IsHost reports whether a can be the address of a machine that others send to.
func IsHost(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsUnspecified() && !a.IsMulticast() && (!a.Is4() || a.As4()[0] < 240)
}

// checkInterface reports why s cannot name a network interface. The limit is Linux's IFNAMSIZ.
func checkInterface(s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n%") {
		return fmt.Errorf("%q cannot name a network interface: 1 to 15 characters, no blanks, no / : %%", s)
	}
	return nil
}

// ParseIPv4 reads the IPv4 address of a machine.
func ParseIPv4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Unmap().Is4() {
		return netip.Addr{}, fmt.Errorf("%q is not an IPv4 address", s)
	}
	a = a.Unmap()
	if !IsHost(a) || a.IsLoopback() {
		return netip.Addr{}, fmt.Errorf("%q cannot be the address of a machine", s)
	}
	return a, nil
}
