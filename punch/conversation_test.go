package punch

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"omegatun/punch/lab"
)

var update = flag.Bool("update", false, "rewrite the conversations in testdata")

// sorted puts the lines of one host at one time in order: pings are sent by a goroutine each.
func sorted(trace string) string {
	lines := strings.SplitAfter(trace, "\n")
	head := func(line string) string { // time and host
		parts := strings.SplitN(line, "  ", 3)
		return strings.Join(parts[:min(2, len(parts))], "  ")
	}
	for start := 0; start < len(lines); {
		end := start + 1
		for end < len(lines) && head(lines[end]) == head(lines[start]) {
			end++
		}
		slices.Sort(lines[start:end])
		start = end
	}
	return strings.Join(lines, "")
}

// TestConversations compares every packet of some attempts with a text, so that a change of behaviour is seen.
func TestConversations(t *testing.T) {
	tests := []struct {
		name           string
		server, client string
		change         func(w *world)
	}{
		{"fast-open", "linux", "linux", nil},
		{"normal-round", "linux", "linux", func(w *world) { w.noFastOpen = true }},
		{"fast-probe-lost", "linux", "linux", func(w *world) {
			lost := false
			w.net.Drop(func(p lab.Packet) bool { // the first probe that would arrive
				drop := !lost && p.TTL > 10 && len(p.Payload) == 1
				lost = lost || drop
				return drop
			})
		}},
		{"relay-lost", "linux", "linux", func(w *world) {
			w.net.Drop(func(p lab.Packet) bool { // the relay of the handshake forwards nothing
				return strings.Contains(string(p.Payload), `"asked"`) && p.From.Addr() == w.server.nodes[1].Addr()
			})
		}},
		{"carrier", "linux/cgn", "linux/linux", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := delayed(1)
				cfg.Trace = true
				w := newWorld(t, cfg, tt.server, tt.client)
				// Uneven cables, so that hardly anything happens at the same time.
				w.server.host.SetLink(lab.Link{Latency: 1700 * time.Microsecond})
				w.client.host.SetLink(lab.Link{Latency: 500 * time.Microsecond})
				if tt.change != nil {
					tt.change(w)
				}
				o := w.meet(t)
				time.Sleep(time.Second)
				got := fmt.Sprintf("%s : %s\n%s", tt.server, tt.client, sorted(w.net.Trace()))
				if o.err != nil {
					t.Fatal(o.err)
				}
				got += fmt.Sprintf("open after %v\n", o.took)
				file := "testdata/" + tt.name + ".txt"
				if *update {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
					return
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("the conversation is\n%s\nwant\n%s", got, want)
				}
			})
		})
	}
}
