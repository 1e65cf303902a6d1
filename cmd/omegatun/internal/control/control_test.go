package control

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// fakeDaemon answers from its fields.
type fakeDaemon struct {
	status *Status
	events []Event
	err    error // returned by everything, after the events
	peer   key.Public
	pinged Ping
	block  bool // wait for the caller to go away
	ended  chan struct{}
}

func (d *fakeDaemon) wait(ctx context.Context) error {
	if d.block {
		<-ctx.Done()
		close(d.ended)
		return ctx.Err()
	}
	return d.err
}

func (d *fakeDaemon) Status(context.Context) (*Status, error) { return d.status, d.err }

func (d *fakeDaemon) Events(ctx context.Context, emit func(Event) error) error {
	for _, e := range d.events {
		if err := emit(e); err != nil {
			return err
		}
	}
	return d.wait(ctx)
}

func (d *fakeDaemon) Up(ctx context.Context, peers []key.Public, emit func(Event) error) error {
	d.peer = peers[0]
	return d.Events(ctx, emit)
}

func (d *fakeDaemon) Wait(ctx context.Context, peer key.Public) error {
	d.peer = peer
	return d.wait(ctx)
}

func (d *fakeDaemon) Ping(_ context.Context, ping Ping, emit func(Pong) error) error {
	d.pinged = ping
	for seq := range ping.Count {
		if err := emit(Pong{Event: "pong", Seq: seq + 1, RTTMS: 1.5}); err != nil {
			return err
		}
	}
	return d.err
}

func (d *fakeDaemon) Explain(
	_ context.Context, peer key.Public, timeout time.Duration, emit func(Step) error,
) (*Attempt, error) {
	d.peer = peer
	for i := range 3 {
		if err := emit(Step{Event: "step", AfterMS: float64(i), Text: timeout.String()}); err != nil {
			return nil, err
		}
	}
	return &Attempt{Event: "attempt", Peer: peer, State: "connected"}, d.err
}

func (d *fakeDaemon) Reload(context.Context) error { return d.err }

func (d *fakeDaemon) Down(context.Context) error { return d.err }

// serve starts a server for d and returns a client of it.
func serve(t *testing.T, d Daemon) *Client {
	t.Helper()
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, d, nil)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there after Close")
		}
	})
	return NewClient(path)
}

// socketPath returns a path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "omegatun") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "s")
}

func TestStatusArrivesAsItIs(t *testing.T) {
	k := key.FromSeed([32]byte{1}).Public()
	want := &Status{
		Self: Self{Key: k, Name: "desk", IPv6: netip.MustParseAddr("fd00::1"), State: "up"},
		Peers: []PeerStatus{
			{Key: k, State: "connected", Path: &Path{Kind: "direct", Remote: netip.MustParseAddrPort("192.0.2.1:9")}, RxBytes: 7},
			{Key: k, State: "idle", Dropped: map[string]uint64{"spoofed": 2}},
		},
	}
	c := serve(t, &fakeDaemon{status: want})
	got, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Schema != Schema || got.Self.Key != k || got.Self.IPv6 != want.Self.IPv6 || got.Self.IPv4.IsValid() ||
		len(got.Peers) != 2 || *got.Peers[0].Path != *want.Peers[0].Path || got.Peers[1].Path != nil ||
		got.Peers[1].Dropped["spoofed"] != 2 {
		t.Errorf("Status: %+v, want %+v", got, want)
	}
}

func TestEventsThenTheError(t *testing.T) {
	k := key.FromSeed([32]byte{1}).Public()
	d := &fakeDaemon{
		events: []Event{{Event: "listening", Key: k}, {Event: "peer", Key: k, State: "failed", Code: exit.NoPath, Reason: "no way"}},
		err:    exit.New(exit.NotFound, "nobody has it").WithTry("look there"),
	}
	c := serve(t, d)
	var got []Event
	err := c.Up(t.Context(), []key.Public{k}, func(e Event) error {
		got = append(got, e)
		return nil
	})
	if len(got) != 2 || got[0].Schema != Schema || got[0].Key != k || got[1].Code != exit.NoPath || got[1].Reason != "no way" {
		t.Errorf("events %+v, want %+v", got, d.events)
	}
	if e := exit.From(err); e == nil || e.Code != exit.NotFound || e.Reason != "nobody has it" || e.Try != "look there" {
		t.Errorf("Up: %+v, want the daemon's error as it is", e)
	}
	if d.peer != k {
		t.Errorf("the daemon was asked for %v, want %v", d.peer, k)
	}
}

func TestErrorsArriveAsTheyAre(t *testing.T) {
	c := serve(t, &fakeDaemon{err: exit.New(exit.Usage, "the configuration is bad").WithTry("correct it")})
	for name, call := range map[string]func() error{
		"status": func() error { _, err := c.Status(t.Context()); return err },
		"wait":   func() error { return c.Wait(t.Context(), key.Public{}, 0) },
		"reload": func() error { return c.Reload(t.Context()) },
		"down":   func() error { return c.Down(t.Context()) },
		"explain": func() error {
			_, err := c.Explain(t.Context(), key.Public{}, time.Second, func(Step) error { return nil })
			return err
		},
		"ping": func() error { return c.Ping(t.Context(), Ping{Count: 1}, func(Pong) error { return nil }) },
	} {
		if e := exit.From(call()); e == nil || e.Code != exit.Usage || e.Reason != "the configuration is bad" || e.Try != "correct it" {
			t.Errorf("%s: %+v, want the daemon's error as it is", name, e)
		}
	}
}

func TestExplain(t *testing.T) {
	d := new(fakeDaemon)
	c := serve(t, d)
	k := key.FromSeed([32]byte{1}).Public()
	n := 0
	a, err := c.Explain(t.Context(), k, time.Second, func(s Step) error {
		if s.AfterMS != float64(n) || s.Text != "1s" {
			t.Errorf("step %d: %+v", n, s)
		}
		n++
		return nil
	})
	if err != nil || n != 3 || a.Peer != k || a.State != "connected" || d.peer != k {
		t.Errorf("Explain: %+v, %v after %d steps", a, err, n)
	}
}

func TestPing(t *testing.T) {
	d := &fakeDaemon{}
	c := serve(t, d)
	want := Ping{Peer: key.FromSeed([32]byte{1}).Public(), Count: 3, IntervalMS: 10, TimeoutMS: 1000}
	n := 0
	if err := c.Ping(t.Context(), want, func(p Pong) error {
		if n++; p.Seq != n || p.Schema != Schema || p.RTTMS != 1.5 {
			t.Errorf("pong %+v, want seq %d", p, n)
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("Ping: %v after %d pongs, want 3", err, n)
	}
	if d.pinged != want {
		t.Errorf("the daemon was asked for %+v, want %+v", d.pinged, want)
	}
}

func TestCallerThatGoesAwayEndsTheCall(t *testing.T) {
	d := &fakeDaemon{block: true, ended: make(chan struct{}), events: []Event{{Event: "listening"}}}
	c := serve(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := c.Events(ctx, func(Event) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Events: %v, want context.Canceled", err)
	}
	<-d.ended // the daemon's call has ended too
}

func TestServerThatClosesEndsStreams(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{block: true, ended: make(chan struct{}), events: []Event{{Event: "listening"}}}
	s := Serve(l, d, nil)
	arrived, done := make(chan struct{}), make(chan error)
	go func() {
		done <- NewClient(path).Events(t.Context(), func(Event) error { close(arrived); return nil })
	}()
	<-arrived
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	<-d.ended
	if err := <-done; err == nil {
		t.Error("Events ended without an error although the daemon's did not")
	}
}

func TestWaitEndsWithItsTimeout(t *testing.T) {
	d := &fakeDaemon{block: true, ended: make(chan struct{})}
	c := serve(t, d)
	if e := exit.From(c.Wait(t.Context(), key.Public{}, time.Millisecond)); e == nil || e.Code != exit.Timeout {
		t.Errorf("Wait: %v, want status %d", e, exit.Timeout)
	}
	<-d.ended
}

func TestRetireLeavesRoomForTheNext(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{block: true, ended: make(chan struct{})}
	old := Serve(l, d, nil)
	old.Retire()
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("Listen after Retire: %v", err)
	}
	next := Serve(l, &fakeDaemon{status: new(Status)}, nil)
	if err := old.Close(); err != nil {
		t.Errorf("Close after Retire: %v", err)
	}
	if _, err := NewClient(path).Status(t.Context()); err != nil {
		t.Errorf("the next one does not answer: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	path := socketPath(t)
	_, err := NewClient(path).Status(t.Context())
	if e := exit.From(err); e == nil || e.Code != exit.NoDaemon || e.Try == "" {
		t.Errorf("Status without a socket: %v, want status %d and a next step", err, exit.NoDaemon)
	}

	// A socket that a dead process left behind: nobody answers, and Listen replaces it.
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(t.Context()); exit.From(err).Code != exit.NoDaemon {
		t.Errorf("Status at a dead socket: %v, want status %d", err, exit.NoDaemon)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("Listen over a dead socket: %v", err)
	}
	defer l.Close()
	if _, err := Listen(path); !errors.Is(err, ErrRunning) || exit.From(err).Try == "" {
		t.Errorf("Listen over a live socket: %v, want ErrRunning and a next step", err)
	}
}

func TestListenRefuses(t *testing.T) {
	if _, err := Listen("/" + strings.Repeat("x", 200)); exit.From(err).Code != exit.Usage {
		t.Errorf("Listen with a long path: %v, want a usage error", err)
	}
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(path); err == nil {
		l.Close()
		t.Error("Listen replaced a file that is no socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q now, %v", b, err)
	}
}

func TestSocketModeAndCaller(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no file modes here")
	}
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v, %v, want 0660", info.Mode(), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	uid, gids, err := peerCredentials(server)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil || uid != os.Geteuid() || len(gids) == 0 || gids[0] != os.Getegid() {
		t.Errorf("peerCredentials: %d, %d, %v, want %d, %d", uid, gids, err, os.Geteuid(), os.Getegid())
	}
}

func TestMayControl(t *testing.T) {
	const me, mine = 1000, 100
	for _, tt := range []struct {
		name string
		uid  int
		gids []int
		ok   bool
	}{
		{"root", 0, []int{0}, true},
		{"the same user", me, []int{7}, true},
		{"the same group", 1001, []int{7, mine}, true},
		{"a stranger", 1001, []int{7}, false},
		{"a stranger in root's group", 1001, []int{0}, false},
		{"a stranger without groups", 1001, nil, false},
	} {
		if got := mayControl(tt.uid, tt.gids, me, mine); got != tt.ok {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.ok)
		}
	}
}

func TestUnknownRequest(t *testing.T) {
	c := serve(t, &fakeDaemon{})
	err := c.call(t.Context(), http.MethodPost, "/v9/dance", nil, nil)
	if e := exit.From(err); e == nil || !strings.Contains(e.Reason, "does not know POST /v9/dance") {
		t.Errorf("call: %v, want that it is not known", err)
	}
	resp, err := c.http.Post("http://omegatun/v1/wait", "", strings.NewReader(`{"peer":"abc"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad request is answered with %s, want 400", resp.Status)
	}
}

func TestPingTimes(t *testing.T) {
	for _, row := range []struct {
		name              string
		interval, timeout int64
		ok                bool
	}{
		{"usual", 1000, 5000, true},
		{"the shortest", 1, 1, true},
		{"the longest", maxPingMS, maxPingMS, true},
		{"no interval", 0, 1, false},
		{"a negative timeout", 1, -1, false},
		{"an interval of more than a day", maxPingMS + 1, 1, false},
		{"an interval that overflows", math.MaxInt64/1_000_000 + 1, 1, false},
		{"a timeout that overflows to something positive", 1, math.MaxInt64, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			interval, timeout, err := Ping{IntervalMS: row.interval, TimeoutMS: row.timeout}.Times()
			if row.ok != (err == nil) || row.ok && (interval.Milliseconds() != row.interval || timeout.Milliseconds() != row.timeout) {
				t.Errorf("%v, %v, %v", interval, timeout, err)
			}
		})
	}
}
