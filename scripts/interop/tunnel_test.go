//go:build linux

package interop

import (
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/e2e/peer"
)

// hold is for how long an ordinary connection to a tunnel's end is watched.
const hold = 5 * time.Second

// The bytes that omegatun appends to its handshake to offer a tunnel must not disturb a program that knows nothing
// of them: it gets an ordinary stream to the right key, and nothing it did not ask for happens on it.

func TestJavaScriptClientIsUnharmedByATunnelPeer(t *testing.T) {
	s := acrossNATs(t, omegatun)
	p := e2etest.Peer(t, s.server, s.bootstrap)
	seed := "77"
	clientKey := javaScriptKey(t, s, seed)
	u := e2etest.Up(t, p, clientKey)
	if _, err := u.WaitFor(e2etest.Within(t, 20*time.Second), func(e peer.Event) bool { return e.Event == "listening" }); err != nil {
		t.Fatal(err)
	}
	key := hexKey(t, p)
	js := javaScript(t, s.client, "client", s.arguments("--to="+key, "--seed="+seed, "--hold=5000")...)
	js.want(t, 20*time.Second, "key")
	if e := js.want(t, 20*time.Second, "open"); e.Key != key {
		t.Errorf("connected to %s, want %s", e.Key, key)
	}
	js.want(t, 2*hold, "done")
	wantExit(t, e2etest.Within(t, 10*time.Second), js.Process, 0)
	if _, err := p.Status(); err != nil {
		t.Errorf("the daemon after the visit: %v", err)
	}
}

// As a tunnel's end a JavaScript server is of no use, and "up" says so; the server goes on serving others.
func TestJavaScriptServerIsUnharmedByATunnelPeer(t *testing.T) {
	s := acrossNATs(t, omegatun)
	js := javaScript(t, s.server, "server", s.arguments()...)
	key := js.want(t, 20*time.Second, "ready").Key
	p := e2etest.Peer(t, s.client, s.bootstrap)
	u := e2etest.Up(t, p, key)
	e, err := u.WaitFor(e2etest.Within(t, 20*time.Second), func(e peer.Event) bool { return e.Event == "peer" })
	if err != nil {
		t.Fatal(err)
	}
	if e.State != "failed" || e.Code != 8 {
		t.Errorf("up reports %+v, want a failure with code 8: the other side is no tunnel", e)
	}
	javaScriptClient(t, s, key, 1<<20)
	if code, err := u.Stop(5 * time.Second); err != nil || (code != 0 && code != 130) {
		t.Errorf("up ended with %d, %v", code, err)
	}
	for len(js.lines) > 0 {
		if e := <-js.lines; e.Event == "error" {
			t.Errorf("the server had an error: %s", e.Message)
		}
	}
}

// A key that is not listed gets no answer, so that the client has to give up by itself.
func TestJavaScriptClientThatIsNotListedGetsNoAnswer(t *testing.T) {
	s := acrossNATs(t, omegatun)
	p := e2etest.Peer(t, s.server, s.bootstrap)
	u := e2etest.Up(t, p, javaScriptKey(t, s, "77"))
	if _, err := u.WaitFor(e2etest.Within(t, 20*time.Second), func(e peer.Event) bool { return e.Event == "listening" }); err != nil {
		t.Fatal(err)
	}
	js := javaScript(t, s.client, "client", s.arguments("--to="+hexKey(t, p), "--seed=78", "--hold=1000")...)
	js.want(t, 20*time.Second, "key")
	start := time.Now()
	if e := js.want(t, 60*time.Second, "error"); e.Message != "PEER_CONNECTION_FAILED" {
		t.Errorf("the client failed with %s, want PEER_CONNECTION_FAILED: found, but no answer", e.Message)
	}
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("the client gave up after %v: it must have been told something", took)
	}
}

// javaScriptKey returns the key that belongs to a seed.
func javaScriptKey(t *testing.T, s scene, seed string) string {
	t.Helper()
	js := javaScript(t, s.client, "key", "--seed="+seed)
	return js.want(t, 20*time.Second, "key").Key
}
