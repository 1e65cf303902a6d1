package systemd

import (
	"net"
	"path/filepath"
	"testing"
)

func TestQuote(t *testing.T) {
	for _, row := range []struct{ name, in, want string }{
		{"plain", "/usr/bin/omegatun", "/usr/bin/omegatun"},
		{"a blank", "a b", `"a b"`},
		{"nothing", "", `""`},
		{"quotes", `a"b`, `"a\"b"`},
		{"a backslash", `a\b`, `"a\\b"`},
		{"specifiers and variables", "100%$HOME", "100%%$$HOME"},
		{"a separator", "a;b", `"a;b"`},
	} {
		if got, err := quote([]string{row.in}); err != nil || got != row.want {
			t.Errorf("%s: quote(%q) = %s, %v, want %s", row.name, row.in, got, err, row.want)
		}
	}
	if got, err := quote([]string{"a\nExecStartPre=x"}); err == nil {
		t.Errorf("quote lets a new line through: %s", got)
	}
}

func TestNotify(t *testing.T) {
	if err := Notify("", "READY=1"); err != nil {
		t.Errorf("Notify without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "n")
	if len(path) > 100 {
		t.Skipf("the path of the folder for temporary files is too long for a socket: %s", path)
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Notify(path, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := l.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", b[:n], err)
	}
	if err := Notify(path+"x", "READY=1"); err == nil {
		t.Error("Notify to nobody: no error")
	}
}
