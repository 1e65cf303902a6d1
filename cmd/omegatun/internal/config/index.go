package config

import (
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// lines maps settings to their line: "port", "peer.0" for a table's header, "peer.0.name" for a setting in it.
type lines map[string]int

// index finds the line of each setting in text, which the TOML decoder accepted: it does not say itself where keys
// are that it does not know, or in which of several tables. Settings inside inline tables are not found.
func index(text string) lines {
	at := make(lines)
	tables := make(map[string]int) // how many tables of an array there have been
	prefix := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		name, isArray := strings.CutPrefix(line, "[[")
		switch {
		case isArray:
			name, _, _ = strings.Cut(name, "]")
			name = clean(name)
			prefix = name + "." + strconv.Itoa(tables[name])
			tables[name]++
			at[prefix] = i + 1
		case strings.HasPrefix(line, "["):
			name, _, _ = strings.Cut(line[1:], "]")
			prefix = clean(name)
			at[prefix] = i + 1
		default:
			name, _, ok := strings.Cut(line, "=")
			if !ok || strings.HasPrefix(name, "#") {
				continue
			}
			name = clean(name)
			if prefix != "" {
				name = prefix + "." + name
			}
			if _, ok := at[name]; !ok {
				at[name] = i + 1
			}
		}
	}
	return at
}

// clean removes blanks and quotes around the parts of a dotted name.
func clean(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return strings.Join(parts, ".")
}

// find returns the name under which k, which names no table's number, stands in l: the first in the file. It returns
// k's own name if there is none.
func (l lines) find(k toml.Key) string {
	best := strings.Join(k, ".")
	first := 0
	for name, line := range l {
		if sameSetting(strings.Split(name, "."), k) && (first == 0 || line < first) {
			best, first = name, line
		}
	}
	return best
}

// sameSetting reports whether name is k with table numbers put in.
func sameSetting(name []string, k toml.Key) bool {
	for len(name) > 0 && len(k) > 0 && name[0] == k[0] {
		name, k = name[1:], k[1:]
		if len(name) > 0 {
			if _, err := strconv.Atoi(name[0]); err == nil && (len(k) == 0 || k[0] != name[0]) {
				name = name[1:]
			}
		}
	}
	return len(name) == 0 && len(k) == 0
}
