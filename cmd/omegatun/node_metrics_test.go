//go:build unix

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
)

func TestNodeMetrics(t *testing.T) {
	c := start(t, nil, "node", "--bootstrap", "--host", "127.0.0.1", "--port", freeTestPort(t), "--nodes", "3", "--metrics", "127.0.0.1:0")
	url := strings.TrimPrefix(c.stderr.want(t, "note: metrics at http://127.0.0.1:"), "note: metrics at ")
	var nodes []string
	for range 3 {
		nodes = append(nodes, strings.TrimPrefix(c.stdout.want(t, "ready "), "ready "))
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(method, url, host string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	status, text := ask("GET", url, "")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	for _, m := range metrics() {
		for _, node := range nodes {
			line := `(?m)^omegatun_dht_` + m.name + `\{node="` + regexp.QuoteMeta(node) + `"\} \d+$`
			if !regexp.MustCompile(line).MatchString(text) {
				t.Errorf("there is no line %s", line)
			}
		}
		if strings.HasSuffix(m.name, "_total") != (m.kind == "counter") || !strings.Contains(text, "# TYPE omegatun_dht_"+m.name+" "+m.kind+"\n") {
			t.Errorf("%s is not said to be a %s", m.name, m.kind)
		}
	}
	for _, want := range []string{"persistent", "online"} {
		if line := "omegatun_dht_" + want + `{node="` + nodes[1] + `"} 1`; !strings.Contains(text, line) {
			t.Errorf("there is no line %s in\n%s", line, text)
		}
	}
	for _, row := range []struct {
		name, method, url, host string
		status                  int
	}{
		{"by the name of this machine", "GET", url, "localhost:1", http.StatusOK},
		{"by another name", "GET", url, "example.org", http.StatusMisdirectedRequest},
		{"another method", "POST", url, "", http.StatusMethodNotAllowed},
		{"another path", "GET", url + "/x", "", http.StatusNotFound},
	} {
		if status, _ := ask(row.method, row.url, row.host); status != row.status {
			t.Errorf("%s: status %d, want %d", row.name, status, row.status)
		}
	}

	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		line := c.stdout.want(t, "metrics "+node+" persistent=1 online=1 ")
		if !regexp.MustCompile(` requests_total=\d+ .* sent_bytes_total=[1-9]\d*$`).MatchString(line) {
			t.Errorf("%s", line)
		}
	}
	c.stop()
	if status := <-c.done; status != int(exit.OK) {
		t.Errorf("exit status %d, want 0", status)
	}
	if _, err := client.Get(url); err == nil { //nolint:noctx // the client has a timeout
		t.Error("metrics are served after the end")
	}
}

func TestNodeMetricsAsJSON(t *testing.T) {
	c := start(t, nil, "node", "--bootstrap", "--host", "127.0.0.1", "--port", freeTestPort(t), "--json")
	for _, want := range []string{"ready", "persistent"} {
		if line := c.stdout.want(t, "{"); !strings.Contains(line, `"event":"`+want+`"`) {
			t.Fatalf("%s, want %s", line, want)
		}
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var m nodeMetrics
	if err := json.Unmarshal([]byte(c.stdout.want(t, "{")), &m); err != nil {
		t.Fatal(err)
	}
	if m.Schema != 1 || m.Event != "metrics" || !m.Persistent || m.NAT != "open" || len(m.ID) != 64 {
		t.Errorf("%+v", m)
	}
}
