package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
)

// These tests run whole command lines in this process, on loopback, in a network of their own.

// command is a command line that runs in the background.
type command struct {
	stdout, stderr *lines
	stop           context.CancelFunc
	done           chan int // gets the exit status
}

// lines hands on what is written, line by line.
type lines struct {
	c    chan string
	pipe *io.PipeWriter
}

func newLines() *lines {
	r, w := io.Pipe()
	l := &lines{c: make(chan string, 100), pipe: w}
	go func() {
		defer close(l.c)
		for scan := bufio.NewScanner(r); scan.Scan(); {
			l.c <- scan.Text()
		}
	}()
	return l
}

// want returns the next line, which must begin with prefix.
func (l *lines) want(t *testing.T, prefix string) string {
	t.Helper()
	select {
	case line, ok := <-l.c:
		if !ok || !strings.HasPrefix(line, prefix) {
			t.Fatalf("got the line %q (there was one: %v), want %q", line, ok, prefix)
		}
		return line
	case <-time.After(time.Minute):
		t.Fatalf("nothing after a minute, want %q", prefix)
	}
	panic("unreachable")
}

// start runs a command line until it ends, or the test does.
func start(t *testing.T, stdin io.Reader, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &command{stdout: newLines(), stderr: newLines(), stop: cancel, done: make(chan int, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		status := run(ctx, args, stdin, c.stdout.pipe, c.stderr.pipe)
		c.stdout.pipe.Close()
		c.stderr.pipe.Close()
		c.done <- status
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return c
}

// output runs a command line to its end.
func output(t *testing.T, stdin io.Reader, args ...string) (status int, stdout []byte, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	status = run(t.Context(), args, stdin, &out, &talk)
	return status, out.Bytes(), talk.String()
}

// network starts a network of four nodes and returns its first.
func network(t *testing.T) (bootstrap string) {
	t.Helper()
	c := start(t, nil, "node", "--bootstrap", "--host", "127.0.0.1", "--port", freeTestPort(t), "--nodes", "4")
	for i := range 4 {
		line := c.stdout.want(t, "ready 127.0.0.1:")
		if i == 0 {
			bootstrap = strings.TrimPrefix(line, "ready ")
		}
	}
	return bootstrap
}

// freeTestPort returns the first of four UDP ports that are free.
func freeTestPort(t *testing.T) string {
	t.Helper()
	for range 100 {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := c.LocalAddr().(*net.UDPAddr).Port
		c.Close()
		free := first+3 <= 65535
		for i := 1; i <= 3 && free; i++ {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: first + i})
			if free = err == nil; free {
				c.Close()
			}
		}
		if free {
			return strconv.Itoa(first)
		}
	}
	t.Fatal("no four ports in a row are free")
	return ""
}

func TestNodeTells(t *testing.T) {
	bootstrap := network(t)
	c := start(t, nil, "node", "--bootstrap", bootstrap, "--host", "127.0.0.1", "--persistent", "--json")
	for _, want := range []string{"ready", "persistent"} {
		var e nodeEvent
		if err := json.Unmarshal([]byte(c.stdout.want(t, "{")), &e); err != nil {
			t.Fatal(err)
		}
		if e.Schema != 1 || e.Event != want || e.Host.String() != "127.0.0.1" || e.Port == 0 || len(e.ID) != 64 {
			t.Errorf("%+v, want %s", e, want)
		}
	}
	c.stop()
	if status := <-c.done; status != int(exit.OK) {
		t.Errorf("exit status %d after Ctrl-C, want 0", status)
	}
}

func TestNodeThatCannotWork(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // after the subtests, which are parallel
	_, port, err := net.SplitHostPort(taken.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		status exit.Code
		say    string
	}{
		{"the port is taken", []string{"--bootstrap", "--host", "127.0.0.1", "--port", port}, exit.Other, "UDP port " + port + " is in use already"},
		{"nobody answers", []string{"--bootstrap", taken.LocalAddr().String()}, exit.Timeout, "no DHT node answers; asked for were 127.0.0.1:" + port},
		{"a network without an address", []string{"--bootstrap"}, exit.Usage, "needs an address"},
		{"not an address", []string{"--host", "here"}, exit.Usage, `"here" is not an IPv4 address`},
		{"metrics for everybody", []string{"--bootstrap", "--host", "127.0.0.1", "--metrics", "0.0.0.0:9737"}, exit.Usage, "is not a loopback address with a port"},
		{"metrics nowhere", []string{"--bootstrap", "--host", "127.0.0.1", "--metrics", "9737"}, exit.Usage, "is not a loopback address with a port"},
		{"no nodes", []string{"--nodes", "0"}, exit.Usage, "--nodes must be between 1 and"},
		{"more ports than there are", []string{"--nodes", "3", "--port", "65534"}, exit.Usage, "more ports than there are"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			status, out, talk := output(t, nil, append([]string{"--state", t.TempDir(), "node"}, tt.args...)...)
			if status != int(tt.status) || !strings.Contains(talk, tt.say) || len(out) > 0 {
				t.Errorf("exit status %d, stdout %q, stderr:\n%swant %d and %q", status, out, talk, tt.status, tt.say)
			}
		})
	}
}

// newIdentity makes an identity and returns the folder and the key.
func newIdentity(t *testing.T) (state, key string) {
	t.Helper()
	state = filepath.Join(t.TempDir(), "state")
	status, out, talk := output(t, nil, "--state", state, "key", "new")
	if status != 0 {
		t.Fatalf("key new: %d, %s", status, talk)
	}
	return state, strings.TrimSpace(string(out))
}

func TestStreamThroughATCPServer(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	server, key := newIdentity(t)
	client, clientKey := newIdentity(t)
	l := start(t, nil, "--state", server, bootstrap, "listen", "--allow", clientKey, "--tcp", echo.Addr().String())
	l.stderr.want(t, "listening "+key)

	data := make([]byte, 1<<20)
	rand.Read(data)
	for range 2 { // it stays for the next one
		status, out, talk := output(t, bytes.NewReader(data), "--state", client, bootstrap, "connect", key)
		if status != 0 || !bytes.Equal(out, data) {
			t.Errorf("connect: exit status %d, %d bytes came back, want 0 and what was sent\n%s", status, len(out), talk)
		}
	}

	// Another one is not allowed, and a key that nobody announces is not found.
	stranger, strangerKey := newIdentity(t)
	if status, _, talk := output(t, nil, "--state", stranger, bootstrap, "connect", "--timeout", "15s", key); status != int(exit.Refused) {
		t.Errorf("connect of a stranger: exit status %d, want %d\n%s", status, exit.Refused, talk)
	}
	if status, _, talk := output(t, nil, "--state", client, bootstrap, "connect", strangerKey); status != int(exit.NotFound) {
		t.Errorf("connect to nobody: exit status %d, want %d\n%s", status, exit.NotFound, talk)
	}
	if status, _, talk := output(t, nil, "--state", client, bootstrap, "connect", clientKey); status != int(exit.NotFound) {
		t.Errorf("connect to one's own key, which nobody else has: exit status %d, want %d\n%s", status, exit.NotFound, talk)
	}

	// Two cannot listen with one identity.
	status, _, talk := output(t, nil, "--state", server, bootstrap, "listen", "--allow", "any")
	if status != int(exit.Other) || !strings.Contains(talk, "another omegatun uses "+server) {
		t.Errorf("second listen: exit status %d, want %d\n%s", status, exit.Other, talk)
	}
	l.stop()
	if status := <-l.done; status != 0 {
		t.Errorf("listen after Ctrl-C: exit status %d, want 0", status)
	}
}

func TestStreamOnStdinAndStdout(t *testing.T) {
	bootstrap := "--bootstrap=" + network(t)
	server, key := newIdentity(t)
	client, _ := newIdentity(t)
	stdin, feed := io.Pipe()
	l := start(t, stdin, "--state", server, bootstrap, "listen", "--allow", "any")
	l.stderr.want(t, "listening "+key)

	there, keyboard := io.Pipe()
	c := start(t, there, "--state", client, bootstrap, "connect", key)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(keyboard, line); err != nil {
			t.Fatal(err)
		}
		l.stdout.want(t, strings.TrimSpace(line))
		if _, err := io.WriteString(feed, strings.ToUpper(line)); err != nil {
			t.Fatal(err)
		}
		c.stdout.want(t, strings.ToUpper(strings.TrimSpace(line)))
	}
	// One direction ends, the other goes on.
	if err := keyboard.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(feed, "THREE\n"); err != nil {
		t.Fatal(err)
	}
	c.stdout.want(t, "THREE")
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	if status := <-c.done; status != 0 {
		t.Errorf("connect: exit status %d, want 0", status)
	}
}

// As hyperbeam and holesail do it: whoever has the key may connect.
func TestStreamBetweenTwoWithOneKey(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	server, key := newIdentity(t)
	_, seed, _ := output(t, nil, "--state", server, "key", "export")
	client := filepath.Join(t.TempDir(), "state")
	if status, _, talk := output(t, bytes.NewReader(seed), "--state", client, "key", "import", "-"); status != 0 {
		t.Fatalf("key import: exit status %d\n%s", status, talk)
	}
	l := start(t, strings.NewReader(""), "--state", server, bootstrap, "listen", "--allow", key, "--once")
	l.stderr.want(t, "listening "+key)
	if status, _, talk := output(t, strings.NewReader("hello\n"), "--state", client, bootstrap, "connect", key); status != 0 {
		t.Errorf("connect: exit status %d\n%s", status, talk)
	}
	l.stdout.want(t, "hello")
	if status := <-l.done; status != 0 {
		t.Errorf("listen: exit status %d", status)
	}
	if status, _, talk := output(t, nil, "--state", client, bootstrap, "ping", key); status != int(exit.Usage) {
		t.Errorf("ping of the own key: exit status %d, want %d\n%s", status, exit.Usage, talk)
	}
}

// What was learnt is on disk, so that a peer is found again when no bootstrap node is left.
func TestPeerIsFoundWithoutBootstrapNodes(t *testing.T) {
	t.Parallel()
	first := start(t, nil, "node", "--bootstrap", "--host", "127.0.0.1", "--port", freeTestPort(t))
	bootstrap := "--bootstrap=" + strings.TrimPrefix(first.stdout.want(t, "ready "), "ready ")
	others := start(t, nil, "node", bootstrap, "--host", "127.0.0.1", "--port", freeTestPort(t), "--nodes", "4", "--persistent")
	for range 4 {
		others.stdout.want(t, "ready 127.0.0.1:")
	}
	server, key := newIdentity(t)
	client, _ := newIdentity(t)
	l := start(t, strings.NewReader(""), "--state", server, bootstrap, "listen", "--allow", "any")
	l.stderr.want(t, "listening "+key)
	connect := func(text, state string) (int, string) {
		status, _, talk := output(t, strings.NewReader(text+"\n"), "--state", state, bootstrap, "connect", key)
		if status == 0 {
			l.stdout.want(t, text)
		}
		return status, talk
	}
	if status, talk := connect("with", client); status != 0 {
		t.Fatalf("connect: exit status %d\n%s", status, talk)
	}
	first.stop()
	<-first.done
	for _, row := range []struct{ name, forget string }{
		{"with all that is known", ""},
		{"with the nodes alone", "known-peers.json"},
		{"with the ways to peers alone", "nodes.json"},
	} {
		kept := filepath.Join(client, row.forget)
		var content []byte
		if row.forget != "" {
			var err error
			if content, err = os.ReadFile(kept); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(kept); err != nil {
				t.Fatal(err)
			}
		}
		if status, talk := connect("without", client); status != 0 {
			t.Errorf("%s: exit status %d\n%s", row.name, status, talk)
		}
		if row.forget != "" {
			if err := os.WriteFile(kept, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Damage is no obstacle, and what is remembered is no network.
	for _, name := range []string{"nodes.json", "known-peers.json"} {
		if err := os.WriteFile(filepath.Join(client, name), []byte("[{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status, talk := connect("damaged", client)
	if status != int(exit.Timeout) || !strings.Contains(talk, "is damaged") {
		t.Errorf("with damaged files: exit status %d, want %d\n%s", status, exit.Timeout, talk)
	}
	nodes := []byte("[\"127.0.0.2:1\"")
	for i := 3; i < 64; i++ { // more than one query asks
		nodes = fmt.Appendf(nodes, ", \"127.0.0.%d:1\"", i)
	}
	nodes = append(nodes, ']')
	if err := os.WriteFile(filepath.Join(client, "nodes.json"), nodes, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, talk := connect("gone", client); status != int(exit.Timeout) {
		t.Errorf("with nodes that are gone: exit status %d, want %d\n%s", status, exit.Timeout, talk)
	}
	if b, err := os.ReadFile(filepath.Join(client, "nodes.json")); err != nil || !bytes.Equal(b, nodes) {
		t.Errorf("the nodes were forgotten while offline: %s, %v", b, err)
	}
}

func TestStateIsOfOneNetwork(t *testing.T) {
	t.Parallel()
	state, _ := newIdentity(t)
	remembered := func(name string) (list []string) {
		b, err := os.ReadFile(filepath.Join(state, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	put := func(bootstrap string) (nodes []string) {
		t.Helper()
		status, _, talk := output(t, strings.NewReader("x"), "--state", state, "--bootstrap", bootstrap, "dht", "put", "-")
		if status != 0 {
			t.Fatalf("dht put: exit status %d\n%s", status, talk)
		}
		if nodes = remembered("nodes.json"); len(nodes) != 4 {
			t.Errorf("%d nodes are remembered, want 4: %v", len(nodes), nodes)
		}
		return nodes
	}
	one, other := network(t), network(t)
	first := put(one)
	for _, a := range put(other) {
		if slices.Contains(first, a) {
			t.Errorf("%s of the one network was taken along into the other", a)
		}
	}
	if got := remembered("network.json"); !slices.Equal(got, []string{other}) {
		t.Errorf("the network remembered is that of %v, want %s", got, other)
	}
	put("127.0.0.1:9," + other) // the same network, with another bootstrap node besides
	if got := remembered("network.json"); !slices.Equal(got, []string{"127.0.0.1:9", other}) {
		t.Errorf("the network remembered is that of %v", got)
	}
}

func TestSharedReaderLosesNothing(t *testing.T) {
	r, w := io.Pipe()
	s := shareReader(t.Context(), r)
	go func() {
		for _, text := range []string{"abc", "def", "ghi"} {
			io.WriteString(w, text)
		}
		w.Close()
	}()
	var got bytes.Buffer
	broken := errors.New("broken")
	if err := s.copyTo(t.Context(), writerFunc(func(b []byte) (int, error) { // takes a part of the first chunk
		got.Write(b[:1])
		return 1, broken
	})); !errors.Is(err, broken) {
		t.Errorf("copyTo: %v, want %v", err, broken)
	}
	ended, cancel := context.WithCancel(t.Context())
	if err := s.copyTo(ended, writerFunc(func(b []byte) (int, error) { // is told to stop after the next
		cancel()
		return got.Write(b)
	})); !errors.Is(err, context.Canceled) {
		t.Errorf("copyTo: %v, want %v", err, context.Canceled)
	}
	if err := s.copyTo(t.Context(), &got); err != nil {
		t.Errorf("copyTo: %v", err)
	}
	if got.String() != "abcdefghi" {
		t.Errorf("%q arrived, want abcdefghi", got.String())
	}
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestRelayTells(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	state, key := newIdentity(t)
	client, clientKey := newIdentity(t)
	r := start(t, nil, "--state", state, bootstrap, "--json", "relay", "--allow", clientKey)
	if line := r.stdout.want(t, `{"event":"relaying"`); !strings.Contains(line, key) || !strings.Contains(line, `"schema":1`) {
		t.Errorf("relay: %s", line)
	}
	for _, tt := range []struct {
		name, state, state2 string
		status              exit.Code
	}{
		{"a client", client, "connected", exit.OK},
		{"a stranger", filepath.Join(t.TempDir(), "stranger"), "failed", exit.Refused},
	} {
		status, out, talk := output(t, nil, "--state", tt.state, bootstrap, "--json", "ping", "--explain", key)
		if status != int(tt.status) || !strings.Contains(string(out), `"state":"`+tt.state2+`"`) {
			t.Errorf("%s: exit status %d, want %d\n%s%s", tt.name, status, tt.status, out, talk)
		}
	}
	status, _, talk := output(t, nil, "--state", state, bootstrap, "serve", "--allow", "any", "22")
	if status != int(exit.Other) || !strings.Contains(talk, "another omegatun uses "+state) {
		t.Errorf("serve beside relay: exit status %d, want %d\n%s", status, exit.Other, talk)
	}
	r.stop()
	r.stdout.want(t, `{"bytes":0,"clients":`)
	if status := <-r.done; status != 0 {
		t.Errorf("relay after Ctrl-C: exit status %d, want 0", status)
	}
}

func TestNetcheckOnLoopback(t *testing.T) {
	t.Parallel()
	bootstrap := "--bootstrap=" + network(t)
	state := filepath.Join(t.TempDir(), "state")
	status, out, talk := output(t, nil, "--state", state, bootstrap, "--json", "netcheck")
	var r struct {
		Schema   int
		UDP      bool
		NAT      struct{ Mapping, Public string }
		Findings []struct{ Check, Status string }
	}
	if err := json.Unmarshal(out, &r); err != nil || status != 0 {
		t.Fatalf("netcheck: exit status %d, %v\n%s%s", status, err, out, talk)
	}
	if r.Schema != 1 || !r.UDP || r.NAT.Mapping != "none" || r.NAT.Public != "127.0.0.1" || r.Findings[0].Check != "udp" || r.Findings[0].Status != "ok" {
		t.Errorf("netcheck: %s", out)
	}
	if exists(state) {
		t.Error("netcheck has made a state folder")
	}
	status, out, talk = output(t, nil, "--state", state, "--bootstrap=127.0.0.1:9", "netcheck")
	if status != int(exit.Timeout) || !strings.Contains(string(out), "udp           bad") || !strings.Contains(talk, "try: ") {
		t.Errorf("netcheck without a DHT: exit status %d\n%s%s", status, out, talk)
	}
}
