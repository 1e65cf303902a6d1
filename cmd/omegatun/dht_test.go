package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// inDHT runs "omegatun dht …" in the network of bootstrap.
func inDHT(t *testing.T, state, bootstrap, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	args = append([]string{"--state", state, "--bootstrap", bootstrap, "dht"}, args...)
	status, out, talk := output(t, strings.NewReader(stdin), args...)
	return status, string(out), talk
}

// decode parses one JSON object.
func decode(t *testing.T, text string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}

func TestTopicIsAnnouncedAndWithdrawn(t *testing.T) {
	t.Parallel()
	bootstrap := network(t)
	desk, deskKey := newIdentity(t)
	phone, phoneKey := newIdentity(t)
	nobody := t.TempDir()
	const topic = "our chess club"
	hash := key.Hash([]byte(topic)).String()

	if status, out, _ := inDHT(t, nobody, bootstrap, "", "lookup", "--text", topic); status != int(exit.NotFound) || out != "" {
		t.Errorf("lookup before: exit status %d, %q, want %d and nothing", status, out, exit.NotFound)
	}
	if status, _, _ := inDHT(t, desk, bootstrap, "", "unannounce", "--text", topic); status != int(exit.NotFound) {
		t.Errorf("unannounce before: exit status %d, want %d", status, exit.NotFound)
	}

	// One stays for a while, the other only leaves word.
	c := start(t, nil, "--state", desk, "--bootstrap", bootstrap, "--json", "dht", "announce", "--text", topic)
	var e topicEvent
	decode(t, c.stdout.want(t, "{"), &e)
	if e.Schema != 1 || e.Event != "announced" || e.Topic != hash || e.Key.String() != deskKey || e.StoredOn < 1 || e.StoredOn > e.Closest {
		t.Errorf("announced: %+v", e)
	}
	status, out, talk := inDHT(t, phone, bootstrap, "", "announce", "--once", hash)
	if status != 0 || out != phoneKey+"\n" || !strings.Contains(talk, "stored on ") {
		t.Errorf("announce --once: exit status %d, %q, %q, want 0 and the key", status, out, talk)
	}
	status, out, _ = inDHT(t, nobody, bootstrap, "", "lookup", hash)
	lines := strings.Fields(out)
	if status != 0 || len(lines) != 2 || !strings.Contains(out, deskKey) || !strings.Contains(out, phoneKey) {
		t.Errorf("lookup: exit status %d, %q, want both keys, each once", status, out)
	}
	status, out, _ = inDHT(t, nobody, bootstrap, "", "--json", "lookup", "--text", topic)
	if n := strings.Count(out, `"relays":[]`); status != 0 || n != 2 || strings.Count(out, `"schema":1`) != 2 {
		t.Errorf("lookup --json: exit status %d, %q", status, out)
	}

	c.stop()
	decode(t, c.stdout.want(t, "{"), &e)
	if e.Event != "unannounced" || e.Key.String() != deskKey || e.StoredOn < 1 {
		t.Errorf("at the end: %+v, want unannounced", e)
	}
	if status := <-c.done; status != 0 {
		t.Errorf("announce after Ctrl-C: exit status %d, want 0", status)
	}
	if _, out, _ = inDHT(t, nobody, bootstrap, "", "lookup", hash); out != phoneKey+"\n" {
		t.Errorf("lookup after one left: %q, want %s", out, phoneKey)
	}
	if status, out, talk := inDHT(t, phone, bootstrap, "", "unannounce", hash); status != 0 || out != phoneKey+"\n" {
		t.Errorf("unannounce: exit status %d, %q, %s", status, out, talk)
	}
	if status, _, _ = inDHT(t, nobody, bootstrap, "", "lookup", hash); status != int(exit.NotFound) {
		t.Errorf("lookup after both left: exit status %d, want %d", status, exit.NotFound)
	}
}

func TestImmutableValueComesBackByteForByte(t *testing.T) {
	t.Parallel()
	bootstrap, state := network(t), t.TempDir()
	for _, value := range []string{"", "no newline", "\x00\xff\n\n", strings.Repeat("v", 1000)} {
		status, out, talk := inDHT(t, state, bootstrap, value, "put", "-")
		hash := key.Hash([]byte(value)).String()
		if status != 0 || out != hash+"\n" {
			t.Errorf("put of %.20q: exit status %d, %q, want its hash\n%s", value, status, out, talk)
		}
		if status, out, talk := inDHT(t, state, bootstrap, "", "get", hash); status != 0 || out != value {
			t.Errorf("get: exit status %d, %.20q, want %.20q\n%s", status, out, value, talk)
		}
	}
	var put struct {
		Schema, Bytes, Closest int
		StoredOn               int `json:"stored_on"`
		Hash                   string
	}
	_, out, _ := inDHT(t, state, bootstrap, "no newline", "put", "-", "--json")
	decode(t, out, &put)
	if put.Schema != 1 || put.Bytes != 10 || put.StoredOn < 1 || put.StoredOn > put.Closest {
		t.Errorf("put --json: %+v", put)
	}
	var got struct {
		Schema, Bytes int
		Hash, Value   string
	}
	_, out, _ = inDHT(t, state, bootstrap, "", "get", put.Hash, "--json")
	decode(t, out, &got)
	if b, err := base64.StdEncoding.DecodeString(got.Value); err != nil || string(b) != "no newline" || got.Hash != put.Hash {
		t.Errorf("get --json: %+v", got)
	}
	if status, out, _ := inDHT(t, state, bootstrap, "", "get", strings.Repeat("0", 64)); status != int(exit.NotFound) || out != "" {
		t.Errorf("get of what nobody has: exit status %d, %q, want %d", status, out, exit.NotFound)
	}
}

func TestMutableValueHasASequence(t *testing.T) {
	t.Parallel()
	bootstrap := network(t)
	state, k := newIdentity(t)
	nobody := t.TempDir()
	if status, _, _ := inDHT(t, nobody, bootstrap, "", "get", "--mutable", k); status != int(exit.NotFound) {
		t.Errorf("get before: exit status %d, want %d", status, exit.NotFound)
	}
	for _, tt := range []struct {
		name, value string
		args        []string
		status      exit.Code
		seq         int
	}{
		{"the first", "one", nil, exit.OK, 1},
		{"another", "two", nil, exit.OK, 2},
		{"the same again", "two", nil, exit.OK, 2},
		{"a number of one's own", "ten", []string{"--seq", "10"}, exit.OK, 10},
		{"an older number", "nine", []string{"--seq", "9"}, exit.Refused, 0},
		{"the same number for another value", "also ten", []string{"--seq", "10"}, exit.Refused, 0},
		{"and on", "eleven", nil, exit.OK, 11},
	} {
		status, out, talk := inDHT(t, state, bootstrap, tt.value, append([]string{"put", "-", "--mutable"}, tt.args...)...)
		want := ""
		if tt.status == exit.OK {
			want = fmt.Sprintf("%s %d\n", k, tt.seq)
		}
		if status != int(tt.status) || out != want {
			t.Errorf("put %s: exit status %d, %q, want %d, %q\n%s", tt.name, status, out, tt.status, want, talk)
		}
		if tt.status != exit.OK {
			continue
		}
		if status, out, talk := inDHT(t, nobody, bootstrap, "", "get", "--mutable", k); status != 0 || out != tt.value {
			t.Errorf("get after %s: exit status %d, %q, want %q\n%s", tt.name, status, out, tt.value, talk)
		}
	}
	var got struct {
		Schema, Bytes, Seq int
		Key, Value         string
	}
	_, out, _ := inDHT(t, nobody, bootstrap, "", "get", "--mutable", k, "--min-seq", "11", "--json")
	decode(t, out, &got)
	if got.Seq != 11 || got.Key != k || got.Value != base64.StdEncoding.EncodeToString([]byte("eleven")) {
		t.Errorf("get --json: %+v", got)
	}
	if status, _, _ := inDHT(t, nobody, bootstrap, "", "get", "--mutable", k, "--min-seq", "12"); status != int(exit.NotFound) {
		t.Errorf("get of a later one: exit status %d, want %d", status, exit.NotFound)
	}
}

func TestNodesAndPeersAreFound(t *testing.T) {
	t.Parallel()
	bootstrap := network(t)
	state, k := newIdentity(t)
	nobody := t.TempDir()
	if status, out, _ := inDHT(t, nobody, bootstrap, "", "find", k); status != int(exit.NotFound) || out != "" {
		t.Errorf("find before: exit status %d, %q, want %d", status, out, exit.NotFound)
	}
	l := start(t, new(bytes.Buffer), "--state", state, "--bootstrap", bootstrap, "listen", "--allow", "any")
	l.stderr.want(t, "listening "+k)
	status, out, talk := inDHT(t, nobody, bootstrap, "", "find", k)
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); !strings.HasPrefix(line, "127.0.0.1:") || words[1] != k {
			t.Errorf("find: the line %q", line)
		}
	}
	if status != 0 || out == "" {
		t.Errorf("find: exit status %d, %q\n%s", status, out, talk)
	}

	status, out, talk = inDHT(t, nobody, bootstrap, "", "ping", bootstrap, "-c", "2")
	if status != 0 || !strings.Contains(out, "ms, from "+bootstrap+", we are 127.0.0.1:") || !strings.Contains(out, "2 sent, 2 received") {
		t.Errorf("ping: exit status %d, %q\n%s", status, out, talk)
	}
	var p nodePong
	_, out, _ = inDHT(t, nobody, bootstrap, "", "ping", bootstrap, "-c", "1", "--json")
	decode(t, out, &p)
	if p.Schema != 1 || p.Event != "pong" || p.Seq != 1 || p.RTTMS <= 0 || p.From.String() != bootstrap || !p.To.IsValid() {
		t.Errorf("ping --json: %+v", p)
	}

	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if status, out, _ := inDHT(t, nobody, bootstrap, "", "ping", silent.LocalAddr().String(), "-c", "1"); status != int(exit.Timeout) ||
		!strings.Contains(out, "1 sent, 0 received") {
		t.Errorf("ping of one that is silent: exit status %d, %q, want %d", status, out, exit.Timeout)
	}
}
