package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/session"
	"omegatun/tun/tuntest"
)

// pair is two omegatuns in one network namespace, each with its own state, in a network of their own.
type pair struct {
	a, b       []string // how their command lines begin
	keyA, keyB string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	bootstrap := "--bootstrap=" + network(t)
	p := new(pair)
	for _, one := range []struct {
		args *[]string
		key  *string
	}{{&p.a, &p.keyA}, {&p.b, &p.keyB}} {
		var state string
		state, *one.key = newIdentity(t)
		*one.args = []string{"--state", state, "--socket", filepath.Join(shortDir(t), "s"), bootstrap}
	}
	return p
}

// shortDir returns a folder whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if len(dir) > 90 {
		t.Skipf("the path of the folder for temporary files is too long for a socket: %s", dir)
	}
	return dir
}

// must runs a command line that must succeed, and returns its stdout.
func must(t *testing.T, omegatun []string, args ...string) []byte {
	t.Helper()
	status, out, talk := output(t, nil, append(slices.Clone(omegatun), args...)...)
	if status != 0 {
		t.Fatalf("%v: exit status %d\n%s%s", args, status, out, talk)
	}
	return out
}

// wantExit runs a command line that must end with a status, and say something on stderr.
func wantExit(t *testing.T, code exit.Code, say string, omegatun []string, args ...string) {
	t.Helper()
	status, _, talk := output(t, nil, append(slices.Clone(omegatun), args...)...)
	if status != int(code) || !strings.Contains(talk, say) {
		t.Errorf("%v: exit status %d and\n%swant %d and %q", args, status, talk, code, say)
	}
}

// up starts "omegatun up" and waits until it can be found.
func up(t *testing.T, omegatun []string, peers ...string) *command {
	t.Helper()
	c := start(t, nil, append(append(slices.Clone(omegatun), "up", "--json"), peers...)...)
	c.event(t, "interface", "")
	must(t, omegatun, "wait")
	return c
}

// event returns the next event of that kind and state.
func (c *command) event(t *testing.T, kind string, state control.State) control.Event {
	t.Helper()
	for {
		var e control.Event
		line := c.stdout.want(t, "{")
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Event == kind && e.State == state {
			return e
		}
	}
}

func readStatus(t *testing.T, omegatun []string) (s control.Status) {
	t.Helper()
	if err := json.Unmarshal(must(t, omegatun, "status", "--json"), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func interfaces(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func TestDaemonAndItsCommands(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	p := newPair(t)
	before := interfaces(t)
	must(t, p.a, "add", p.keyB, "--name", "bob")
	upA := up(t, p.a)

	// Nobody is there yet.
	if e := upA.event(t, "peer", "failed"); e.Code != exit.NotFound || e.PeerName != "bob" || e.Reason == "" {
		t.Errorf("%+v, want that bob was not found", e)
	}
	wantExit(t, exit.NotFound, "not announced", p.a, "wait", "bob", "--timeout", "1s")
	wantExit(t, exit.NotFound, "not announced", p.a, "ping", "bob", "--timeout", "1s")

	upB := up(t, p.b, p.keyA)
	must(t, p.a, "wait", "bob")
	if e := upA.event(t, "peer", "connected"); e.Key.String() != p.keyB || !e.Remote.IsValid() || e.Path == "" || e.MS <= 0 {
		t.Errorf("%+v, want that bob is connected, and how", e)
	}
	var s summary
	pings := bytes.Split(bytes.TrimSpace(must(t, p.a, "ping", "bob", "-c", "3", "-i", "10ms", "--json")), []byte("\n"))
	if err := json.Unmarshal(pings[len(pings)-1], &s); err != nil || len(pings) != 4 || s.Received != 3 || s.P99MS <= 0 {
		t.Errorf("ping: %s", bytes.Join(pings, []byte("\n")))
	}
	st := readStatus(t, p.a)
	if len(st.Peers) != 1 || st.Peers[0].Name != "bob" || st.Peers[0].State != "connected" || st.Peers[0].Path == nil ||
		st.Peers[0].Path.MTU != session.DefaultMTU || st.Self.State != "up" || st.Self.DHT.Nodes != 4 || st.Self.Interface.Name == "" {
		t.Errorf("status: %+v", st)
	}
	ip := strings.Fields(string(must(t, p.a, "ip", "bob")))
	if len(ip) != 2 || st.Peers[0].IPv6 != netip.MustParseAddr(ip[0]) || st.Peers[0].IPv4 != netip.MustParseAddr(ip[1]) {
		t.Errorf("status has the addresses %v and %v, ip prints %v", st.Peers[0].IPv6, st.Peers[0].IPv4, ip)
	}

	for deadline := time.Now().Add(30 * time.Second); st.Peers[0].Announced == nil && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond) // it comes on the control channel, after the connection
		st = readStatus(t, p.a)
	}
	if last := st.Peers[0].Last; last == nil || last.State != "connected" || st.Peers[0].Suite == "" ||
		st.Peers[0].Announced == nil || st.Peers[0].Announced.MTU != st.Self.Interface.MTU ||
		!strings.HasPrefix(st.Peers[0].Announced.Version, "omegatun ") ||
		!slices.Contains(st.Peers[0].Announced.Addresses, st.Peers[0].IPv6) {
		t.Errorf("status: %+v, %+v, want how it connected, and what it announces", st.Peers[0], st.Peers[0].Announced)
	}
	for _, args := range [][]string{{"--json"}, {}} { // of the connection that there is
		out := string(must(t, p.a, append(args, "ping", "bob", "--explain")...))
		if !strings.Contains(out, "connected") || strings.Count(out, "\n") < 4 {
			t.Errorf("ping --explain %v:\n%s", args, out)
		}
	}

	// A second up only tells the first one.
	if out := must(t, p.a, "up", "bob", "--json"); !bytes.Contains(out, []byte(`"state":"connected"`)) {
		t.Errorf("second up: %s", out)
	}
	wantExit(t, exit.Usage, "this machine's own key", p.a, "up", p.keyA)
	wantExit(t, exit.Other, "another omegatun uses", p.a, "listen", "--allow", "any")

	// It relays as soon as the configuration says so, and as long.
	for _, relays := range []bool{true, true, false} {
		file := filepath.Join(p.a[1], "config.toml")
		if err := os.WriteFile(file, fmt.Appendf(nil, "relay = %t\n", relays), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, p.a, "up")
		if st := readStatus(t, p.a); (st.Self.Relay != nil) != relays {
			t.Errorf("status: %+v, want that it relays: %t", st.Self, relays)
		}
	}

	// What add and rm change holds at once.
	must(t, p.a, "add", p.keyB, "--name", "robert")
	must(t, p.a, "ping", "robert", "-c", "1")
	must(t, p.a, "rm", "robert")
	upB.event(t, "peer", "disconnected")
	if st := readStatus(t, p.a); len(st.Peers) != 0 {
		t.Errorf("status after rm: %+v, want no peers", st.Peers)
	}
	wantExit(t, exit.UnknownPeer, "is not listed", p.a, "ping", p.keyB)
	must(t, p.a, "ping", "--explain", p.keyB) // b lists us
	if e := upB.event(t, "peer", "failed"); e.Code != exit.Refused {
		t.Errorf("%+v, want that it does not answer", e)
	}
	must(t, p.a, "add", p.keyB)
	must(t, p.b, "wait", p.keyA)

	must(t, p.a, "down")
	if status := <-upA.done; status != 0 {
		t.Errorf("up ended with status %d, want 0", status)
	}
	upB.stop()
	if status := <-upB.done; status != 0 {
		t.Errorf("up ended with status %d after Ctrl-C, want 0", status)
	}
	if after := interfaces(t); !slices.Equal(after, before) {
		t.Errorf("interfaces afterwards: %v, want %v", after, before)
	}
}

func TestDaemonGoesDown(t *testing.T) {
	if !tuntest.InNamespace(t) {
		return
	}
	p := newPair(t)
	before := interfaces(t)
	for _, tt := range []struct {
		name string
		end  func(c *command)
	}{
		{"told to", func(*command) { must(t, p.a, "down") }},
		{"interrupted", func(c *command) { c.stop() }},
	} {
		c := up(t, p.a)
		if after := interfaces(t); len(after) != len(before)+1 {
			t.Errorf("%s: interfaces while up: %v, want one more than %v", tt.name, after, before)
		}
		tt.end(c)
		if status := <-c.done; status != 0 {
			t.Errorf("%s: up ended with status %d, want 0", tt.name, status)
		}
		c.event(t, "down", "")
		if after := interfaces(t); !slices.Equal(after, before) {
			t.Errorf("%s: interfaces afterwards: %v, want %v", tt.name, after, before)
		}
		wantExit(t, exit.NoDaemon, "no omegatun is running", p.a, "status")
	}
	must(t, p.a, "down") // again
}
