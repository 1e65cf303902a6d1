//go:build linux

package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/netlab"
)

// The demonstration leaves nothing behind, however it ends. (That the lab is empty afterwards is checked for each test.)
func TestDemoLeavesNothingBehind(t *testing.T) {
	for _, row := range []struct {
		name   string
		at     string // what it prints last before the signal
		signal syscall.Signal
		code   int
	}{
		{"after all steps", "", 0, 0},
		{"interrupted while it starts nodes", "A DHT of", syscall.SIGINT, 130},
		{"interrupted while both connect", "omegatun up", syscall.SIGINT, 130},
		{"interrupted during the session", "An interactive TCP session", syscall.SIGINT, 130},
		{"terminated during the download", "A download", syscall.SIGTERM, 143},
		{"killed during the session", "An interactive TCP session", syscall.SIGKILL, 137},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := e2etest.Lab(t)
			//nolint:usetesting // t.TempDir is in /run here, which the demo replaces by its own
			temp, err := os.MkdirTemp("/tmp", "omegatun-demo-test.")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(temp) })
			reached := make(chan struct{})
			demo, err := l.Internet.Start(netlab.Cmd{
				Args: []string{"../demo"},
				Env:  []string{"TMPDIR=" + temp},
				OnLine: func(line string) {
					if row.at != "" && strings.HasPrefix(line, row.at) {
						close(reached)
					}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			e2etest.LogOnFailure(t, demo)
			select {
			case <-reached:
				demo.Signal(row.signal)
			case <-demo.Done():
			case <-time.After(time.Minute):
				t.Fatal("not over after a minute")
			}
			code, err := demo.Wait(e2etest.Within(t, time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if code != row.code {
				t.Errorf("exit status %d, want %d", code, row.code)
			}
			// A killed script's children learn of it a moment later.
			var left []os.DirEntry
			for range 50 {
				if left, err = os.ReadDir(temp); err != nil {
					t.Fatal(err)
				}
				if len(left) == 0 && e2etest.Processes(t) <= 1 {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("left behind: %v in the folder for temporary files, %d processes besides the test", left, e2etest.Processes(t)-1)
		})
	}
}
