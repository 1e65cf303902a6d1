//go:build linux

// Package e2etest is what the end-to-end tests and the tests with other implementations share: labs, hosts and
// peers that are taken down with the test, and the reasons why a test cannot run here.
package e2etest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"omegatun/scripts/e2e/peer"
	"omegatun/scripts/netlab"
)

// binEnv names the omegatun command under test. Without it all tests are skipped.
const binEnv = "OMEGATUN_BIN"

// sandbox says whether the tests can run. It is written before they start.
var sandbox struct{ missing error }

// Main is for TestMain: it moves the tests into a sandbox, if they are to run at all, and exits.
func Main(m *testing.M) {
	if sandbox.missing = wanted(); sandbox.missing == nil {
		sandbox.missing = netlab.Enter()
	}
	if sandbox.missing == nil {
		sandbox.missing = os.Setenv("TMPDIR", "/run") // in the sandbox: gone with it
	}
	os.Exit(m.Run())
}

func wanted() error {
	bin := os.Getenv(binEnv)
	if bin == "" {
		return errors.New(binEnv + " does not name an omegatun command; use scripts/e2e/run or scripts/interop/run")
	}
	if !filepath.IsAbs(bin) {
		return errors.New(binEnv + " is not an absolute path: " + bin)
	}
	_, err := os.Stat(bin)
	return err
}

// Bin returns the path of the omegatun command under test.
func Bin() string { return os.Getenv(binEnv) }

// Lab makes an Internet that lives as long as the test, or skips the test where that is impossible. The test
// fails if the lab cannot be taken down completely.
func Lab(t testing.TB) *netlab.Lab {
	t.Helper()
	if sandbox.missing != nil {
		t.Skip(sandbox.missing)
	}
	before := processes(t)
	l, err := netlab.New(t.Context(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("take down the lab: %v", err)
		}
		left, err := filepath.Glob("/run/netns/*")
		if err != nil || len(left) > 0 {
			t.Errorf("namespaces left behind: %v, %v", left, err)
		}
		for pid, command := range processes(t) {
			if before[pid] == "" {
				t.Errorf("process left behind: %s %s", pid, command)
			}
		}
	})
	return l
}

// processes returns the command lines of the processes in the sandbox, by process id.
func processes(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && len(line) > 0 { // empty: a zombie
			all[filepath.Base(filepath.Dir(f))] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return all
}

// Processes returns how many processes are in the sandbox, the test itself included.
func Processes(t testing.TB) int {
	t.Helper()
	return len(processes(t))
}

// PublicAddrs returns n addresses for DHT nodes on the internet.
func PublicAddrs(t testing.TB, l *netlab.Lab, n int) []netip.AddrPort {
	t.Helper()
	addrs, err := l.PublicAddrs(n)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// GoNodes starts a DHT of n omegatun nodes on the internet, and returns the address of the bootstrap node.
func GoNodes(t testing.TB, l *netlab.Lab, n int) (bootstrap string) {
	t.Helper()
	addrs := PublicAddrs(t, l, n)
	if err := peer.Nodes(t.Context(), l.Internet, Bin(), addrs...); err != nil {
		t.Fatal(err)
	}
	return addrs[0].String()
}

// Site adds a home network named "a", "b", … with a prefix and public address of its own. change may be nil.
func Site(t testing.TB, l *netlab.Lab, name string, change func(*netlab.NAT)) *netlab.Site {
	t.Helper()
	i := name[0] - 'a'
	nat := netlab.NAT{
		WAN: netip.AddrFrom4([4]byte{192, 88, 99, 101 + i}),
		LAN: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1 + i, 0}), 24),
	}
	if change != nil {
		change(&nat)
	}
	s, err := l.Site(name, nat)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Peer makes an omegatun with a fresh identity on a host.
func Peer(t testing.TB, n *netlab.Net, bootstrap string) *peer.Peer {
	t.Helper()
	p, err := peer.New(n, Bin(), t.TempDir(), bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Up starts "omegatun up" for the given keys. What it wrote is logged if the test fails.
func Up(t testing.TB, p *peer.Peer, keys ...string) *peer.Up {
	t.Helper()
	u, err := p.Up(nil, keys...)
	if err != nil {
		t.Fatal(err)
	}
	LogOnFailure(t, u.Process)
	return u
}

// LogOnFailure logs what a process wrote if the test fails.
func LogOnFailure(t testing.TB, p *netlab.Process) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
	})
}

// Within returns a context that ends after d, or with the test.
func Within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("not within "+d.String()))
	t.Cleanup(cancel)
	return ctx
}
