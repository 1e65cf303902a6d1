package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"omegatun": main})
}

// TestScripts runs the command lines in testdata. Beside the usual commands they have
//
//	status N omegatun …   run the command; its exit status must be N
//	mode PERM file        the file must have this mode
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", "atexit_sleep_ms=0")                    // a race-enabled binary rests for a second at its end
			env.Setenv("BIN", filepath.SplitList(env.Getenv("PATH"))[0]) // where the command is
			home := filepath.Join(env.WorkDir, "home")
			for name, dir := range map[string]string{
				"HOME": home, "XDG_STATE_HOME": home + "/state", "XDG_CONFIG_HOME": home + "/config",
				"XDG_RUNTIME_DIR": home + "/run",
			} {
				env.Setenv(name, dir)
				if err := os.MkdirAll(dir, 0o700); err != nil {
					return err
				}
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, os.ErrInvalid
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": wantStatus,
			"mode":   wantMode,
		},
	})
}

// wantStatus runs a command whose exit status the script names.
func wantStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [args…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit status %d, want %d", args[1:], got, want)
	}
}

func wantMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode PERM file")
	}
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := info.Mode().Perm(); got != os.FileMode(want) {
		ts.Fatalf("%s has mode %04o, want %04o", args[1], got, want)
	}
}

func TestOptionalBootstrap(t *testing.T) {
	for _, tt := range []struct{ in, want []string }{
		{[]string{"node", "--bootstrap", "--host", "203.0.113.9"}, []string{"node", "--bootstrap=self", "--host", "203.0.113.9"}},
		{[]string{"node", "--bootstrap"}, []string{"node", "--bootstrap=self"}},
		{[]string{"node", "--bootstrap", "203.0.113.9:1"}, []string{"node", "--bootstrap", "203.0.113.9:1"}},
		{[]string{"node", "--bootstrap=203.0.113.9:1"}, []string{"node", "--bootstrap=203.0.113.9:1"}},
		{[]string{"x", "--", "--bootstrap"}, []string{"x", "--", "--bootstrap"}},
	} {
		if got := optionalBootstrap(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("optionalBootstrap(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for _, tt := range []struct {
		name             string
		rtts             []float64
		min, median, p99 float64
	}{
		{"none", nil, 0, 0, 0},
		{"one", []float64{3}, 3, 3, 3},
		{"three, not in order", []float64{9, 1, 4}, 1, 4, 9},
		{"a hundred", hundred, 1, 50, 99},
	} {
		s := summarize(200, tt.rtts)
		if s.Sent != 200 || s.Received != len(tt.rtts) || s.MinMS != tt.min || s.MedianMS != tt.median || s.P99MS != tt.p99 {
			t.Errorf("%s: %+v, want min %v, median %v, p99 %v", tt.name, s, tt.min, tt.median, tt.p99)
		}
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1 << 40: "1.1 TB", 1<<64 - 1: "18446.7 PB",
	} {
		if got := byteCount(n); got != want {
			t.Errorf("byteCount(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestServersOutliveTheirReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if _, err := w.WriteString("x"); err == nil {
		t.Skip("this system lets one write to a pipe that nobody reads")
	}
	if n, err := (deaf{w}).Write([]byte("ready")); n != 5 || err != nil {
		t.Errorf("Write to a pipe that nobody reads: %d, %v, want success", n, err)
	}
	w.Close()
	if _, err := (deaf{w}).Write([]byte("ready")); err == nil {
		t.Error("Write to a closed file: no error")
	}
}
