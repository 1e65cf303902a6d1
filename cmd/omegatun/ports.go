package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
)

// A HyperDHT program that serves a TCP port has one key for it, and pipes each stream as it is: nothing in it says
// which port is meant. That is what "omegatun serve" does with one port, under this machine's key.
//
// With several ports, each has a key pair of its own besides, derived from this machine's secret, and is served
// under it in the same way; this machine's key leads to the first. Which key is which port's is said in a value that
// is stored in the DHT under this machine's key, signed by it. So whoever knows only the key and the port finds the
// way, and streams stay what every program understands.
//
// The value is JSON:
//
//	{"host":"127.0.0.1","port":22,"udp":false,"ports":{"22":"<key>","80":"<key>"}}
//
// Host, port and udp are what npm holesail stores there, about the first port.

// portKey returns the key pair under which this machine serves a port, if it serves several.
func portKey(identity key.Private, port uint16) key.Private {
	seed := identity.Seed()
	defer clear(seed[:])
	derived := key.KeyedHash(seed[:], []byte("omegatun port 1"), binary.BigEndian.AppendUint16(nil, port))
	return key.FromSeed(derived)
}

// portList is what a machine stores about the ports that it serves. It is nobody's if Ports is empty.
type portList struct {
	Host  string                `json:"host"`
	Port  uint16                `json:"port"`
	UDP   bool                  `json:"udp"`
	Ports map[uint16]key.Public `json:"ports"`
}

// encode returns the value to store.
func (p portList) encode() ([]byte, error) {
	b, err := json.Marshal(p)
	if err == nil && len(b) > dht.MaxValue {
		err = dht.ErrTooLarge
	}
	return b, err
}

// parsePortList parses what a machine stores. Other programs store other things there: then it is an error.
func parsePortList(b []byte) (portList, error) {
	var p portList
	if len(b) > dht.MaxValue {
		return p, dht.ErrTooLarge
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return portList{}, fmt.Errorf("not a list of ports: %w", err)
	}
	if len(p.Ports) == 0 {
		return portList{}, errors.New("not a list of ports: there are none")
	}
	for port, k := range p.Ports {
		if port == 0 || k.IsZero() {
			return portList{}, fmt.Errorf("not a list of ports: it has %q for port %d", k, port)
		}
	}
	return p, nil
}

// String lists the ports for a message.
func (p portList) String() string {
	var words []string
	for _, port := range slices.Sorted(maps.Keys(p.Ports)) {
		words = append(words, strconv.Itoa(int(port)))
	}
	return strings.Join(words, ", ")
}

// target is a TCP server of ours: "22", "localhost:22", "db.lan:5432".
type target struct {
	host string
	port uint16
}

func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(int(t.port))) }

// tryTarget says what [parseTarget] reads.
const tryTarget = "the TCP port of a server on this machine, for example 22, or host:port, for example db.lan:5432"

// parseTarget reads a port of this machine, or host:port.
func parseTarget(arg string) (target, error) {
	host, text := "localhost", arg
	if strings.Contains(arg, ":") {
		var err error
		if host, text, err = net.SplitHostPort(arg); err != nil || host == "" {
			return target{}, exit.New(exit.Usage, "%q is neither a port nor host:port", arg).WithTry("%s", tryTarget)
		}
	}
	port, err := parsePort(text)
	if err != nil || port == 0 {
		return target{}, exit.New(exit.Usage, "%q: the port is not a number between 1 and 65535", arg).WithTry("%s", tryTarget)
	}
	return target{host, port}, nil
}

// forwarding is what forward does with one port: whoever connects to it is connected to a peer's.
type forwarding struct {
	bind string // host to listen at
	at   uint16 // port to listen at; 0: any
	peer string // as given
	port uint16 // the peer's
}

// parseForwarding reads [bind:]port:peer:port.
func parseForwarding(arg string) (forwarding, error) {
	bad := func(reason string) (forwarding, error) {
		return forwarding{}, exit.New(exit.Usage, "%q: %s", arg, reason).
			WithTry("[<address>:]<port here>:<peer>:<port there>, for example 8080:desk:80")
	}
	i := strings.LastIndexByte(arg, ':')
	if i < 0 {
		return bad("there is no peer in it")
	}
	rest, text := arg[:i], arg[i+1:]
	f := forwarding{bind: "127.0.0.1"}
	var err error
	if f.port, err = parsePort(text); err != nil || f.port == 0 {
		return bad("the port there is not a number between 1 and 65535")
	}
	first, peer, ok := strings.Cut(rest, ":")
	if f.at, err = parsePort(first); err != nil { // then it is the address
		if strings.HasPrefix(rest, "[") {
			first, peer, ok = strings.Cut(rest[1:], "]:")
		}
		f.bind = first
		if !ok {
			return bad("there is no peer in it")
		}
		first, peer, ok = strings.Cut(peer, ":")
		if f.at, err = parsePort(first); err != nil {
			return bad("the port here is not a number between 0 and 65535")
		}
	}
	if f.peer = peer; !ok || peer == "" {
		return bad("there is no peer in it")
	}
	if f.bind == "*" {
		f.bind = ""
	}
	return f, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}
