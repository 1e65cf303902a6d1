//go:build linux

package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"omegatun/scripts/e2e/e2etest"
	"omegatun/scripts/netlab"
)

// noJavaScript says why the programs cannot run, "" if they can.
var noJavaScript = sync.OnceValue(func() string {
	out, err := exec.Command("node", "-e", "require('hyperdht'); console.log(process.version)").CombinedOutput()
	if err != nil {
		return fmt.Sprintf("node with hyperdht is missing; use scripts/interop/run: %v: %.200s", err, out)
	}
	return ""
})

// event is a line that one of the programs in js/ prints.
type event struct {
	Event, Key, Remote, Message string
	Sent, Received              int64
	Same                        bool
	MS                          float64
}

// program is one of the programs in js/, running.
type program struct {
	*netlab.Process
	lines chan event
}

// javaScript starts js/NAME.js on a host.
func javaScript(t *testing.T, n *netlab.Net, name string, args ...string) *program {
	t.Helper()
	if reason := noJavaScript(); reason != "" {
		t.Skip(reason)
	}
	js := &program{lines: make(chan event, 1000)}
	var err error
	js.Process, err = n.Start(netlab.Cmd{
		Args: append([]string{"node", "js/" + name + ".js"}, args...),
		OnLine: func(line string) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				e.Event = "malformed: " + line
			}
			js.lines <- e
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	e2etest.LogOnFailure(t, js.Process)
	return js
}

// want returns the next event, which must be of the given kind.
func (js *program) want(t *testing.T, within time.Duration, kind string) event {
	t.Helper()
	select {
	case e := <-js.lines:
		if e.Event != kind {
			t.Fatalf("%s: %+v, want %s", js.Name, e, kind)
		}
		return e
	case <-js.Done():
		select { // it may have printed before
		case e := <-js.lines:
			if e.Event == kind {
				return e
			}
			t.Fatalf("%s: %+v, want %s", js.Name, e, kind)
		default:
			t.Fatalf("%s: ended, want %s:\n%s", js.Name, kind, js.Output())
		}
	case <-time.After(within):
		t.Fatalf("%s: nothing within %v, want %s:\n%s", js.Name, within, kind, js.Output())
	}
	panic("unreachable")
}

// javaScriptNodes starts a DHT of JavaScript nodes in a namespace.
func javaScriptNodes(t *testing.T, n *netlab.Net, addrs []netip.AddrPort) {
	t.Helper()
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	javaScript(t, n, "nodes", "--addresses="+strings.Join(list, ",")).want(t, 20*time.Second, "ready")
}

// wantExit waits for a process to end with the given status.
func wantExit(t *testing.T, ctx context.Context, p *netlab.Process, want int) {
	t.Helper()
	code, err := p.Wait(ctx)
	if err != nil {
		t.Fatalf("%v:\n%s", err, p.Output())
	}
	if code != want {
		t.Fatalf("%s: exit status %d, want %d:\n%s", p.Name, code, want, p.Output())
	}
}
