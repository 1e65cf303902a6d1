package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// MinPrefix is how many characters of a key at least name it.
const MinPrefix = 6

// Peers is a list of peers. Keys are unique in it, and so are names that are not empty.
type Peers []Peer

// indexed returns ps by key and by name.
func (ps Peers) indexed() (byKey map[key.Public]Peer, byName map[string]Peer) {
	byKey, byName = make(map[key.Public]Peer, len(ps)), make(map[string]Peer, len(ps))
	for _, p := range ps {
		byKey[p.Key], byName[p.Name] = p, p
	}
	return byKey, byName
}

// ByKey returns the peer with key k.
func (ps Peers) ByKey(k key.Public) (Peer, bool) {
	for _, p := range ps {
		if p.Key == k {
			return p, true
		}
	}
	return Peer{}, false
}

// ByName returns the peer with that name.
func (ps Peers) ByName(name string) (Peer, bool) {
	for _, p := range ps {
		if p.Name == name && name != "" {
			return p, true
		}
	}
	return Peer{}, false
}

// Find returns the peer that a person means by arg: a whole key in either form, listed or not; the name of a listed
// peer; or the first characters of a listed key, in either form, at least [MinPrefix] of them. Errors are
// [exit.Error]s: Usage for text that looks like a key but is none, UnknownPeer for all else.
func (ps Peers) Find(arg string) (Peer, error) {
	text := strings.ToLower(strings.TrimSpace(arg))
	k, keyErr := key.ParsePublic(text)
	if keyErr == nil {
		if p, ok := ps.ByKey(k); ok {
			return p, nil
		}
		return Peer{Key: k}, nil
	}
	if p, ok := ps.ByName(text); ok {
		return p, nil
	}
	var found Peers
	if len(text) >= MinPrefix {
		for _, p := range ps {
			if strings.HasPrefix(p.Key.String(), text) || strings.HasPrefix(p.Key.Hex(), text) {
				found = append(found, p)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Peer{}, exit.New(exit.UnknownPeer, "%q is the beginning of %d keys: %s", arg, len(found), found.brief()).
			WithTry("more characters of the key, or the peer's name")
	case len(text) > 32 || errors.Is(keyErr, key.ErrSecret): // was meant to be a key
		return Peer{}, NotKey(arg, keyErr)
	}
	reason := fmt.Sprintf("no listed peer is called %q, and no listed key begins with it", arg)
	if len(text) < MinPrefix {
		reason = fmt.Sprintf("no listed peer is called %q (the beginning of a key counts from %d characters on)", arg, MinPrefix)
	}
	err := exit.New(exit.UnknownPeer, "%s", reason)
	if len(ps) == 0 {
		return Peer{}, err.WithTry("the whole key (52 characters); names are for listed peers: omegatun add <key> --name <name>")
	}
	return Peer{}, err.WithTry("the whole key (52 characters), or one of: %s", ps.brief())
}

// NotKey returns what to say of arg, which was to be a key, after [key.ParsePublic] returned err.
func NotKey(arg string, err error) *exit.Error {
	if errors.Is(err, key.ErrSecret) { // and the message may go into a log
		return exit.New(exit.Usage, "this is %w", err).WithTry("be its identity, in a folder of its own, which prints the key to use there:\n" +
			"read -rs s; printf %%s \"${s#hs://s000}\" | sha256sum | cut -c-64 | omegatun --state <folder> key import -")
	}
	if len(arg) > 100 {
		arg = arg[:80] + "…"
	}
	return exit.New(exit.Usage, "%q is %w", arg, err).
		WithTry("copy the whole key: on the other machine, omegatun id prints it")
}

// brief lists names, or keys where there is no name, for a message.
func (ps Peers) brief() string {
	var names []string
	for _, p := range ps {
		if len(names) == 8 {
			names = append(names, "…")
			break
		}
		if p.Name == "" {
			names = append(names, p.Key.String()[:12])
		} else {
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, ", ")
}

// In returns the peers that are listed in file.
func (ps Peers) In(file string) Peers {
	return slices.DeleteFunc(slices.Clone(ps), func(p Peer) bool { return p.From.File != file })
}

// Relays returns the keys of those where others may be met.
func (ps Peers) Relays() []key.Public {
	var keys []key.Public
	for _, p := range ps {
		if p.Relay {
			keys = append(keys, p.Key)
		}
	}
	return keys
}

// Encode returns the text of a file that lists ps and is read by [Load].
func (ps Peers) Encode() ([]byte, error) {
	type entry struct {
		Key   key.Public  `toml:"key"`
		Name  string      `toml:"name,omitempty"`
		IPv4  *netip.Addr `toml:"ipv4,omitempty"`
		Relay bool        `toml:"relay,omitempty"`
	}
	var list struct {
		Peer []entry `toml:"peer"`
	}
	for _, p := range ps {
		e := entry{Key: p.Key, Name: p.Name, Relay: p.Relay}
		if p.IPv4.IsValid() {
			e.IPv4 = new(p.IPv4)
		}
		list.Peer = append(list.Peer, e)
	}
	var b bytes.Buffer
	b.WriteString("# Peers listed by \"omegatun add\"; \"omegatun rm\" removes them.\n")
	if len(list.Peer) == 0 {
		return b.Bytes(), nil
	}
	b.WriteByte('\n')
	if err := toml.NewEncoder(&b).Encode(list); err != nil {
		return nil, fmt.Errorf("config: list of peers: %w", err)
	}
	return b.Bytes(), nil
}
