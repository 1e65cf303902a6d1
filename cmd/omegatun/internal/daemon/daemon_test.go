package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

func testKey(n byte) key.Public { return key.FromSeed([key.SeedSize]byte{n}).Public() }

// collect returns what the hub says until it is closed.
func collect(t *testing.T, h *hub) (got *[]string, done chan error) {
	t.Helper()
	got, done = new([]string), make(chan error, 1)
	go func() {
		done <- h.each(t.Context(), func(e control.Event) error {
			*got = append(*got, e.Event+" "+string(e.State)+" "+e.Reason)
			return nil
		})
	}()
	return got, done
}

func TestHubTellsLatecomersWhatHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hub
		early, earlyDone := collect(t, &h)
		synctest.Wait()
		h.emit(control.Event{Event: "interface"}, true)
		h.emit(control.Event{Event: "peer", Key: testKey(1), State: "failed"}, true)
		h.emit(control.Event{Event: "peer", Key: testKey(1), State: "connected"}, true)
		h.emit(control.Event{Event: "note", Reason: "a"}, true)
		h.emit(control.Event{Event: "note", Reason: "b"}, true)
		h.emit(control.Event{Event: "note", Reason: "a"}, true)
		h.emit(control.Event{Event: "passing"}, false)
		late, lateDone := collect(t, &h)
		synctest.Wait()
		h.forget(testKey(1))
		later, laterDone := collect(t, &h)
		synctest.Wait()
		h.emit(control.Event{Event: "down"}, false)
		h.close()
		for _, done := range []chan error{earlyDone, lateDone, laterDone} {
			if err := <-done; err != nil {
				t.Errorf("each: %v", err)
			}
		}
		for _, tt := range []struct {
			name string
			got  []string
			want string
		}{
			{"early", *early, "interface  |peer failed |peer connected |note  a|note  b|note  a|passing  |down  "},
			{"late", *late, "interface  |peer connected |note  a|note  b|down  "},
			{"later", *later, "interface  |note  a|note  b|down  "},
		} {
			if got := strings.Join(tt.got, "|"); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
		if err := h.each(t.Context(), nil); err != nil { // after the end there is nothing
			t.Errorf("each after close: %v", err)
		}
	})
}

func TestHubDoesNotWaitForTheSlow(t *testing.T) {
	var h hub
	_, events := h.subscribe()
	for range subscriberBacklog + 1 {
		h.emit(control.Event{Event: "x"}, false) // must not block
	}
	n := 0
	for range events { // was closed
		n++
	}
	if n != subscriberBacklog {
		t.Errorf("%d events, want %d", n, subscriberBacklog)
	}
	h.unsubscribe(events) // must not close it again
}

func TestHubEndsWithTheContext(t *testing.T) {
	var h hub
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if err := h.each(ctx, nil); !errors.Is(err, why) {
		t.Errorf("each: %v, want the context's cause", err)
	}
	if len(h.subs) != 0 {
		t.Errorf("%d subscribers are left", len(h.subs))
	}
}

func TestExplain(t *testing.T) {
	dial := func(err error) error { return &session.DialError{Key: testKey(1), Stage: session.StageFind, Err: err} }
	for _, tt := range []struct {
		name   string
		err    error
		code   exit.Code
		reason string
		try    bool
	}{
		{"not found", dial(session.ErrNotFound), exit.NotFound, "not announced in the DHT", true},
		{"no answer", dial(session.ErrNoAnswer), exit.Refused, "announced, but does not answer", true},
		{"no tunnel", dial(session.ErrNoTunnel), exit.Refused, "offers no tunnel", true},
		{"another version", dial(session.ErrIncompatible), exit.Refused, "another version", true},
		{"no path", dial(&session.NoPathError{Local: dht.FirewallRandom, Remote: dht.FirewallRandom}), exit.NoPath, "no path", true},
		{"too late", dial(context.DeadlineExceeded), exit.Timeout, "not reached in time", true},
		{"no node answers", dial(fmt.Errorf("look up: %w", dht.ErrNoNodes)), exit.Timeout, "no nodes answered", true},
		{"interrupted", dial(context.Canceled), exit.Interrupted, "canceled", false},
		{"closed by the peer", fmt.Errorf("link: %w", session.ErrPeerClosed), exit.Refused, "the peer closed the connection", false},
		{"anything else", errors.New("disk full"), exit.Other, "disk full", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := Explain(tt.err)
			if e.Code != tt.code || !strings.Contains(e.Reason, tt.reason) || (e.Try != "") != tt.try {
				t.Errorf("Explain: %d %q, try %q, want %d with %q", e.Code, e.Reason, e.Try, tt.code, tt.reason)
			}
			if strings.Contains(e.Reason, "connect to") || strings.HasPrefix(e.Reason, "session: ") {
				t.Errorf("the reason repeats what everyone knows: %q", e.Reason)
			}
			if !errors.Is(e, tt.err) {
				t.Error("the cause is lost")
			}
		})
	}
	if Explain(nil) != nil {
		t.Error("Explain(nil) is not nil")
	}
}

func TestNATWord(t *testing.T) {
	host := netip.MustParseAddr("192.0.2.1")
	for want, info := range map[string]dht.Info{
		"open":       {Host: host, Port: 1},
		"unknown":    {Firewalled: true},
		"random":     {Firewalled: true, Host: host},
		"consistent": {Firewalled: true, Host: host, Port: 1},
	} {
		if got := natWord(info); got != want {
			t.Errorf("natWord(%+v) = %q, want %q", info, got, want)
		}
	}
}

func TestClosersUndoTheLastFirst(t *testing.T) {
	var order []int
	bad := errors.New("bad")
	var c closers
	for i := range 3 {
		c.add(func() error {
			order = append(order, i)
			if i == 1 {
				return bad
			}
			return nil
		})
	}
	if err := c.run(); !errors.Is(err, bad) || fmt.Sprint(order) != "[2 1 0]" {
		t.Errorf("run: %v in the order %v, want bad and [2 1 0]", err, order)
	}
	if err := c.run(); err != nil || len(order) != 3 {
		t.Errorf("run again: %v, %v", err, order)
	}
}

// What was handed out is used without a lock: a peer that gets other addresses becomes another member.
func TestMembersStayAsTheyWere(t *testing.T) {
	one, other := netip.MustParsePrefix("10.64.0.1/32"), netip.MustParsePrefix("10.64.0.2/32")
	p := make(map[key.Public]*session.Peer)
	d := &Daemon{peers: make(map[key.Public]*member)}
	for n := range byte(3) {
		k := testKey(n)
		p[k] = new(session.Peer)
		d.peers[k] = &member{name: "old", prefixes: []netip.Prefix{one}, session: p[k]}
	}
	same, moved, gone := d.peers[testKey(0)], d.peers[testKey(1)], d.peers[testKey(2)]
	wanted := map[key.Public]*member{
		testKey(0): {name: "new", prefixes: []netip.Prefix{one}},
		testKey(1): {prefixes: []netip.Prefix{other}},
	}
	left := d.leaveLocked(wanted)
	for k, m := range map[key.Public]*member{testKey(0): same, testKey(1): moved, testKey(2): gone} {
		if m.session != p[k] || m.prefixes[0] != one {
			t.Errorf("member %v has become %+v", k, m)
		}
	}
	if len(d.peers) != 1 || d.peers[testKey(0)] != same || same.name != "new" {
		t.Errorf("members are %v, want the one with the same addresses, by its new name", d.peers)
	}
	if len(wanted) != 1 || wanted[testKey(1)].session != p[testKey(1)] {
		t.Errorf("to be admitted: %v, want the one with other addresses, connected as it is", wanted)
	}
	stays := map[*member]bool{}
	for _, m := range left {
		stays[m.member] = m.stays
	}
	if len(left) != 2 || !stays[moved] || stays[gone] {
		t.Errorf("left: %v, want the two others, of which one stays connected", left)
	}
}

func TestPeersAreUnlistedUnlessAdmittedMeanwhile(t *testing.T) {
	h, err := session.New(session.Config{
		Identity: key.FromSeed([key.SeedSize]byte{9}), Addr: netip.MustParseAddr("127.0.0.1"), NoBeacons: true,
		DHT: dht.Config{Bootstrap: []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &Daemon{host: h, peers: make(map[key.Public]*member)}
	for n := range byte(2) {
		p, err := h.AddPeer(testKey(n))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			d.peers[testKey(n)] = &member{session: p}
		}
		d.unlist(testKey(n))
	}
	if h.Peer(testKey(0)) == nil {
		t.Error("a peer that was admitted meanwhile is not listed any more")
	}
	if h.Peer(testKey(1)) != nil {
		t.Error("a peer that is not admitted is still listed")
	}
}

func TestQueuesFollowTheProcessors(t *testing.T) {
	for _, row := range []struct{ configured, processors, want int }{
		{0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {0, 4, 2}, {0, 7, 3}, {0, 8, 4}, {0, 64, 4}, {1, 64, 1}, {6, 2, 6},
	} {
		if got := queues(row.configured, row.processors); got != row.want {
			t.Errorf("%d configured on %d processors: %d, want %d", row.configured, row.processors, got, row.want)
		}
	}
}
