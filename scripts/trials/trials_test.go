//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
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
			if err := c.matrix(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			r := w.parts["matrix"].([]result)[0]
			if got := fmt.Sprintf("%d %s", r.connected(), r.paths()); got != "1 "+path {
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
	w.add("matrix", "", []result{
		{Server: "home", Client: "open", Tries: []try{{OK: true, MS: 150.4, Path: "direct"}, {Message: "no answer"}}},
		{Server: "lan"},
	}, newTable(""))
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
