//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"omegatun/punch/lab"
	"omegatun/scripts/netlab"
)

// sandbox says why the tests cannot run here.
var sandbox struct{ missing error }

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "endpoint" {
		exit(endpoint())
	}
	sandbox.missing = netlab.Enter()
	os.Exit(m.Run())
}

// Every profile is what its name says. This is also the test of the router in user space.
func TestProfilesAreAsNamed(t *testing.T) {
	if sandbox.missing != nil {
		t.Skip(sandbox.missing)
	}
	var text strings.Builder
	w := newOutput(&text)
	if err := check(t.Context(), w, ""); err != nil {
		t.Fatal(err)
	}
	if w.failed > 0 {
		t.Errorf("%d profiles are not as named:\n%s", w.failed, &text)
	}
	if want := lab.AddressDependent.String(); !strings.Contains(text.String(), want) {
		t.Errorf("no profile is %s:\n%s", want, &text)
	}
}

// The matrix finds what there is: a direct path, a relayed one, one on the LAN.
func TestMatrixFindsThePaths(t *testing.T) {
	if sandbox.missing != nil {
		t.Skip(sandbox.missing)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := config{self: self, combos: [][2]string{{"go", "go"}}, tries: 1, delay: 5 * time.Millisecond, relay: true, workers: 1}
	for name, path := range map[string]string{
		"home:double": "direct", "sym-random:sym-random": "relay", "lan": "lan", "carrier-no-hairpin": "relay",
	} {
		t.Run(name, func(t *testing.T) {
			c.only = []string{name}
			var text strings.Builder
			w := newOutput(&text)
			if err := c.runMatrix(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			r := w.parts["matrix"].([]row)[0]
			if got := fmt.Sprintf("%d %s", r.Connected, r.Paths); got != "1 "+path {
				t.Errorf("connected and path: %s, want 1 %s\n%s", got, path, &text)
			}
		})
	}
}

func TestQuantile(t *testing.T) {
	for _, row := range []struct {
		q, want float64
	}{{0, 1}, {0.5, 10}, {0.95, 19}, {0.96, 20}, {1, 20}} {
		var v []float64
		for i := range 20 {
			v = append(v, float64(20-i))
		}
		if got, ok := quantile(v, row.q); !ok || got != row.want {
			t.Errorf("quantile %v of 1 to 20: %v, %v, want %v", row.q, got, ok, row.want)
		}
	}
	if _, ok := quantile(nil, 0.5); ok {
		t.Error("nothing has a median, want none")
	}
}

func TestResultsAreStoredARowALine(t *testing.T) {
	w := newOutput(io.Discard)
	w.add("matrix", "", rowsOf([][]result{
		{{Server: "home", Client: "open", Tries: []try{{OK: true, MS: 150.4, Path: "direct"}, {Message: "no answer"}}}},
		{{Server: "lan"}},
	}), newTable(""))
	got, err := w.json()
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Schema int
		Matrix []struct {
			Tries, Connected int
			MS               []float64
			Failures         []struct{ Message string }
		}
	}
	if err := json.Unmarshal(got, &all); err != nil {
		t.Fatalf("%v in\n%s", err, got)
	}
	if n := bytes.Count(got, []byte("\n")); n != 7 {
		t.Errorf("%d lines, want 7:\n%s", n, got)
	}
	if m := all.Matrix; all.Schema != 1 || len(m) != 2 || m[0].Tries != 2 || m[0].Connected != 1 || m[0].MS[0] != 150 ||
		m[0].Failures[0].Message != "no answer" {
		t.Errorf("not what was put in:\n%s", got)
	}
}

// A part of the matrix takes the place of what a file has of the same pairs and programs, and of nothing else.
func TestPartsArePutTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "matrix.json")
	c := config{combos: [][2]string{{"go", "go"}}, delay: goalDelay, relay: true}
	tries := func(first, direct float64) []try {
		return []try{{OK: true, MS: first, Path: "relay", EchoMS: first, Direct: direct}, {OK: true, MS: first, Path: "direct", EchoMS: first}}
	}
	store := func(results ...result) *output {
		t.Helper()
		w := newOutput(io.Discard)
		if err := w.into(file); err != nil {
			t.Fatal(err)
		}
		rows, err := merge(w, "matrix", rowsOf([][]result{results}), row.same)
		if err != nil {
			t.Fatal(err)
		}
		c.report(w, rows, allPairs())
		if err := w.finish(file); err != nil {
			t.Fatal(err)
		}
		return w
	}
	store(
		result{Server: "home", Client: "home", ServerImpl: "go", ClientImpl: "go", Want: "direct", Tries: []try{{Message: "lost"}}},
		result{Server: "home", Client: "sym-random", ServerImpl: "go", ClientImpl: "go", Want: "direct", Tries: tries(300, 900)},
		result{Server: "home", Client: "home", ServerImpl: "js", ClientImpl: "go", Want: "direct", Tries: tries(500, 600)},
	)
	w := store(result{Server: "home", Client: "home", ServerImpl: "go", ClientImpl: "go", Want: "direct", Tries: tries(200, 210)})
	var got []string
	for _, r := range w.parts["matrix"].([]row) {
		got = append(got, fmt.Sprint(r.name(), r.programs(), r.Connected, r.MS, r.untilDirect()))
	}
	want := []string{
		"home:homego → go2 [200 200] [200 210]", "home:sym-randomgo → go2 [300 300] [300 900]", "home:homego → js2 [500 500] [500 600]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if w.failed > 0 {
		t.Errorf("goals missed: %+v", w.goals)
	}
}

// A row says which goals it misses.
func TestMissedGoalsAreNamed(t *testing.T) {
	c := config{delay: goalDelay, relay: true}
	ok := func(ms float64, path string, direct float64) try {
		return try{OK: true, MS: ms, Path: path, EchoMS: ms, Direct: direct}
	}
	for _, row := range []struct {
		name, pair string
		tries      []try
		want       string
	}{
		{"as it should be", "home:home", []try{ok(200, "direct", 0)}, "[]"},
		{"slow", "home:home", []try{ok(221, "direct", 0)}, "[median > 220 ms]"},
		{"one side open and slow", "open:home", []try{ok(151, "direct", 0)}, "[median > 150 ms]"},
		{"not connected", "home:home", []try{ok(100, "direct", 0), {Message: "no answer"}}, "[1 failed]"},
		{"never direct", "home:home", []try{ok(100, "relay", 0)}, "[1 stayed relayed]"},
		{"nor between counting ones", "sym-seq:sym-seq", []try{ok(100, "relay", 0)}, "[direct, median > 2000 ms direct, p90 > 6000 ms]"},
		{"random and counting is relayed", "sym-seq:sym-random", []try{ok(100, "relay", 0)}, "[]"},
		{"late", "sym-random:home", []try{ok(351, "relay", 500)}, "[usable, median > 350 ms usable, p95 > 350 ms]"},
		{"late once", "sym-random:sym-random", []try{ok(300, "relay", 0), ok(351, "relay", 0)}, "[all > 350 ms]"},
		{"a packet lost", "sym-random:sym-random", []try{{MS: 200, Path: "relay"}}, "[1 failed 1 first packets lost]"},
		{"not on the LAN", "lan", []try{ok(100, "direct", 0)}, "[not on the LAN]"},
		{"through a wall", "home:blocked", []try{ok(100, "direct", 0)}, "[connected]"},
		{"a wall", "home:blocked", []try{{Message: "no UDP"}}, "[]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			pairs := allPairs()
			p := pairs[slices.IndexFunc(pairs, func(p pair) bool { return p.String() == row.pair })]
			if got := fmt.Sprint(c.missed(p, result{Tries: row.tries}.row())); got != row.want {
				t.Errorf("%s misses %s, want %s", row.pair, got, row.want)
			}
		})
	}
}
